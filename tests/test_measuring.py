"""Footprints that are measured: those that follow from the layers, or a refusal."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import random_network
from scipy.ndimage import gaussian_filter
from torch import nn

import tilenet
from tilenet.errors import ModelError, SettingsError
from tilenet.footprint import Footprint
from tilenet.probe.measuring import measure_footprint


def test_what_is_printed_is_what_the_docs_speak_of():
    network = nn.Sequential(nn.Conv2d(1, 1, 7, padding=3), nn.MaxPool2d(4), nn.Upsample(scale_factor=4))
    assert repr(measure_footprint(network)) == "Footprint.same(2, reach=4, step=4)"


@pytest.mark.parametrize("up_mode", ["upconv", "upsample"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_of_a_padded_unet_the_footprint_of_its_layers_is_found(depth, up_mode):
    network = tilenet.UNet(depth=depth, wf=1, padding=True, up_mode=up_mode, batch_norm=depth % 2 == 0)
    assert measure_footprint(network) == network.footprint


def test_of_a_volume_each_axis_is_measured():
    network = tilenet.UNet(depth=2, wf=0, in_channels=2, padding=True, ndim=3, pool_size=(1, 2, 2))
    assert measure_footprint(network, 3, channels=2) == network.footprint


class Beside(nn.Module):
    """Pools beside a convolution that reaches further, which hides the pooling from the reach."""

    def __init__(self, wide):
        super().__init__()
        self.wide, self.pooled = wide, nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2))

    def forward(self, x):
        return self.wide(x) + self.pooled(x)


class Masked(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x, torch.zeros_like(x))


def strided():
    first, second = nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.Upsample(scale_factor=4, mode="bilinear"))


def faint():
    network = nn.Conv2d(1, 1, 9, padding=4)
    with torch.no_grad():
        network.weight[..., 0] = network.weight[..., 0, :] = 1e-30
        network.weight[..., -1] = network.weight[..., -1, :] = 0
    return network


@pytest.mark.parametrize(
    ("model", "reach", "step"),
    [
        (nn.Conv2d(1, 1, 1), 0, 1),
        (nn.Conv2d(1, 2, (3, 7), padding=(1, 3)), (1, 3), 1),
        (nn.Conv2d(1, 2, 3, padding=8, dilation=8), 8, 1),
        (faint(), 4, 1),
        # Cells of 4 px cover 3 px before their first; bilinear upsampling reads the first cell up to output 5.
        (strided(), 6, 4),
        (nn.Sequential(nn.MaxPool2d((3, 1)), nn.Upsample(scale_factor=(3, 1))), 0, (3, 1)),
        (Beside(nn.Conv2d(1, 1, 15, padding=7)), 7, 2),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)), 1, 1),
        (lambda x: gaussian_filter(x, (0, 0, 2, 1)) - 100, (8, 4), 1),
        (lambda x: x * (np.arange(x.shape[3]) % 4), 0, (1, 4)),
    ],
    ids=["point", "axes", "dilation", "faint", "strides", "pool", "beside", "batch norm", "function", "corner"],
)
def test_reach_and_step_are_the_smallest(model, reach, step):
    assert measure_footprint(model) == Footprint.same(2, reach=reach, step=step)


def test_a_mask_of_the_measured_footprint_is_that_of_the_whole():
    torch.manual_seed(0)
    network, image = strided(), np.random.default_rng(0).random((40, 60), np.float32)
    footprint = measure_footprint(network)
    tiled = tilenet.segment(image, model=network, footprint=footprint, tile=16, output="logits")
    context = np.pad(image, 32, mode="reflect")[None, None]
    with torch.no_grad():
        whole = network(torch.from_numpy(context))[0, :, 32:72, 32:92].numpy()
    np.testing.assert_allclose(tiled, whole, atol=1e-6)
    smaller = Footprint.same(2, reach=4, step=4)  # 5 is rounded up to two steps, as 6 is
    seams = tilenet.segment(image, model=network, footprint=smaller, tile=16, output="logits") - whole
    assert np.abs(seams).max() > 1e-4


C, T = nn.Conv2d, nn.ConvTranspose2d


def up(times, mode="bilinear"):
    return nn.Upsample(scale_factor=times, mode=mode)


# Networks, their reach by the rule in the docs, term by term, and a reach that is too small: for the first four, what
# remains if a pooling counts its stride instead of its kernel, and bicubic interpolation as much as linear.
RULED = {
    "pool of stride 1": ([C(1, 4, 3, padding=1), nn.MaxPool2d(5, 1, 2), C(4, 2, 1)], 1 + 4, 1),
    "wide pool of stride 1": ([C(1, 4, 3, padding=1), nn.MaxPool2d(13, 1, 6), C(4, 2, 1)], 1 + 12, 1),
    "pool, bicubic": ([C(1, 4, 3, padding=1), nn.MaxPool2d(4), up(4, "bicubic"), C(4, 2, 1)], 1 + 3 + 2 * 4, 8),
    "overlapping pool, bicubic": ([nn.MaxPool2d(3, 2, 1), C(1, 2, 3, padding=1), up(2, "bicubic")], 2 + 2 + 2 * 2, 5),
    "strided, pixel shuffle": ([C(1, 8, 3, 2, 1), nn.PixelShuffle(2)], 1 + 1 + 2, 0),
    "strided, transposed": ([C(1, 2, 4, 2, 1), T(2, 1, 4, 2, 1)], 2 + 1 + 3 * 2, 1),
    "strided, bicubic": ([C(1, 2, 7, 4, 3), up(4, "bicubic")], 3 + 3 + 2 * 4, 4),
    "padded pool, linear": ([nn.MaxPool2d(3, 3, 1), C(1, 1, 3, padding=2, dilation=2), up(3)], 2 + 2 * 3 + 3, 5),
    "pooled twice, nearest": ([C(1, 2, 3, 2, 1), nn.AvgPool2d(2), up(4, "nearest")], 1 + 1 + 2 + 4, 0),
}


@pytest.mark.parametrize(("layers", "reach", "small"), RULED.values(), ids=RULED)
def test_a_reach_by_the_rule_is_large_enough(layers, reach, small):
    torch.manual_seed(1)
    network, image = nn.Sequential(*layers), np.random.default_rng(1).normal(size=(70, 61)).astype(np.float32)
    for weights in network.parameters():
        nn.init.normal_(weights)
    measured = measure_footprint(network)
    assert max(axis.spoiled[0] for axis in measured.axes) <= reach
    step = max(measured.step)
    around = np.pad(image, [(60, 62), (60, 59)], mode="reflect")[None, None]  # 192 and 180: multiples of every step
    with torch.no_grad():
        whole = network(torch.from_numpy(around))[0, :, 60:130, 60:121].numpy()

    def error(footprint):
        tiled = tilenet.segment(image, model=network, footprint=footprint, tile=12, output="logits")
        return np.abs(tiled - whole).max() / np.ptp(whole)

    assert error(Footprint.same(2, reach=reach, step=step)) < 1e-5 > error(measured)
    assert error(Footprint.same(2, reach=small, step=step)) > 1e-3


def test_the_rule_of_the_docs_is_that_of_the_docstring():
    docs = (Path(__file__).parent.parent / "docs" / "python.md").read_text()
    rules = [
        re.search("each convolution adds .*? strides before it", " ".join(text.split()), re.IGNORECASE)[0]
        for text in (docs, Footprint.same.__doc__)
    ]
    assert rules[0].lower() == rules[1].lower()


def at_least_16(x):
    if min(x.shape[2:]) < 16:
        raise ValueError("too short")
    return x - 100


def test_a_network_that_takes_no_short_inputs_is_given_none():
    assert [axis.smallest for axis in measure_footprint(at_least_16).axes] == [16, 16]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.InstanceNorm2d(1)), "depends on the whole tile"),
        (
            nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
            "no step that divides .*align_corners",
        ),
        (nn.Conv2d(1, 1, 3), r"gives an array of shape .*, and only .* padded .* Footprint.valid"),
        (nn.Conv2d(3, 1, 3, padding=1), "failed on an input of shape"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(0, 1)), r"of 3 axes, .* Return logits \(N, K, y, x\)"),
        (nn.Conv2d(1, 1, 3, stride=4, padding=1), "an output for every 4 pixels along each axis, .* Enlarge them in"),
        (lambda x: x > 100, "hides pixels that are NaN"),
        (Beside(nn.Sequential(Masked(), nn.Conv2d(1, 1, 9, padding=4))), "hides pixels that are NaN"),
    ],
    ids=["norm", "aligned", "valid", "channels", "axes", "strided", "threshold", "hidden in part"],
)
def test_what_cannot_be_measured_is_refused(model, told):
    with pytest.raises(ModelError, match=told):
        measure_footprint(model)


@pytest.mark.parametrize("model", ["nuclei", None])
def test_what_is_no_network_is_said_to_be_none(model):
    with pytest.raises(ModelError, match=rf"^{model!r}: is no network\. Give a torch\.nn\.Module"):
        measure_footprint(model)


def test_a_function_that_fails_is_told_with_the_class_of_its_error():
    with pytest.raises(ModelError, match=r"failed on an input of shape .*: ZeroDivisionError: division by zero$"):
        tilenet.segment(np.zeros((40, 40), np.uint8), model=lambda x: 1 / 0, footprint=Footprint.same(2, reach=1))


class OfChannels(nn.Module):
    """A 2-D network that makes a volume of the channels of its tile, as networks of many colours do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x[:, None])[:, 0]


def volume(channels):
    return nn.Sequential(nn.Conv3d(channels, 1, 3, padding=1), nn.BatchNorm3d(1))


@pytest.mark.parametrize(
    ("model", "told", "options"),
    [
        (volume(2), "Give channels=2$", {"channels": 2}),
        (nn.Conv2d(3, 1, 3, padding=1), "Give channels=3$", {"channels": 3}),
        (random_network(depth=3, wf=1, ndim=3), "not padded, and has a footprint of its own: network.footprint$", {}),
        (nn.Sequential(nn.Conv2d(1, 1, 99)), r"It is not padded: .* Give Footprint.valid\(...\)$", {}),
        (nn.Linear(7, 7), r"cannot be multiplied .*\)$", {}),
    ],
    ids=["channels of a volume", "channels", "unet", "valid", "other"],
)
def test_a_network_that_takes_no_tile_is_told_what_to_give(model, told, options):
    with pytest.raises(ModelError, match=told):
        measure_footprint(model)
    if options:
        assert measure_footprint(model, **options) == Footprint.same(2 if "Conv2d" in repr(model) else 3, reach=1)


def scripted(network):
    return torch.jit.trace(network.double(), torch.zeros(1, 1, 8, 8, 8, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("wrapped", [nn.Sequential, scripted], ids=["layer", "traced"])
def test_of_a_network_of_volumes_all_three_axes_are_measured(wrapped):
    torch.manual_seed(0)
    network = wrapped(nn.Conv3d(1, 1, (1, 3, 5), padding=(0, 1, 2)))
    assert measure_footprint(network) == Footprint.same(3, reach=(0, 1, 2))
    assert measure_footprint(nn.MaxPool3d(3, stride=1, padding=1)).ndim == 3
    with pytest.raises(ModelError, match="Give ndim=3"):
        measure_footprint(network, 2)


def test_a_network_that_takes_a_tile_for_a_volume_is_not_measured_as_one_of_planes():
    with pytest.raises(ModelError, match="take a tile of shape .* for a volume .* Give ndim=3, or leave ndim out"):
        measure_footprint(nn.Conv3d(1, 1, 3, padding=1), 2, channels=5)  # PyTorch takes the channels for z


def test_a_network_that_makes_volumes_of_channels_is_measured_as_one_of_planes():
    assert measure_footprint(OfChannels(), 2, channels=5) == Footprint.same(2, reach=1)
    with pytest.raises(ModelError, match="Give ndim=2"):
        measure_footprint(OfChannels(), channels=5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_network_of_volumes_is_not_run_with_a_footprint_of_planes(outputs):
    network = nn.Conv3d(1, outputs, 3, padding=1)
    with pytest.raises(ModelError, match=r"for a volume without a batch. Give a footprint of 3 axes, .*same\(3"):
        tilenet.segment(np.zeros((20, 30), np.uint8), model=network, footprint=Footprint.same(2, reach=1))


def test_a_network_has_two_axes_or_three():
    with pytest.raises(SettingsError, match="ndim 1: a network has 2 or 3 axes"):
        measure_footprint(lambda x: x, 1)


def test_the_error_of_a_missing_footprint_says_how_to_measure_it():
    how = r"network.footprint = tilenet.measure_footprint\(network\)"
    with pytest.raises(ModelError, match=f"Conv2d has no footprint. .* measure it: {how}"):
        tilenet.segment(np.zeros((8, 8), np.uint8), model=nn.Conv2d(1, 1, 1))
