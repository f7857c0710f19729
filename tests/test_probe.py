"""Models of somebody else's: told apart by what they answer, and warned of where they do not suit."""

import copy
import logging

import numpy as np
import pytest
import torch
from oracles import random_network
from torch import nn

import tilenet
from tilenet.errors import ModelError, OutputMismatch, SettingsError
from tilenet.footprint import Footprint
from tilenet.job import Job
from tilenet.unet import is_as_built

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8)
POINT, NEAR = Footprint.same(2, reach=0), Footprint.same(2, reach=1)


def brighter_than(level):
    return lambda x: x - level


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain, self.conv = gain, nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x * self.gain)


class EverySecond(nn.Module):
    """Counts pixels from the corner of its tile, as pooling does."""

    def forward(self, x):
        return x * (torch.arange(x.shape[-1]) % 2)


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(1, 2, 3, padding=1)


def gain(value):
    torch.manual_seed(0)
    return Gain(value)


@pytest.mark.parametrize(
    ("first", "other", "footprint"),
    [
        (lambda: brighter_than(128), lambda: brighter_than(128.5), POINT),
        (lambda: lambda x: x > 128.0, lambda: lambda x: x > 50.0, POINT),
        (lambda: gain(1.0), lambda: gain(1.001), NEAR),
        (lambda: nn.Sequential(convolution(), nn.ReLU()), lambda: nn.Sequential(convolution(), nn.Tanh()), NEAR),
    ],
    ids=["function", "threshold", "attribute", "layer without weights"],
)
def test_a_run_is_not_gone_on_with_by_another_model(tmp_path, first, other, footprint):
    out, how = tmp_path / "m.zarr", {"footprint": footprint, "tile": 32}
    mask = np.asarray(tilenet.segment(IMAGE, out, model=first(), **how))
    again = tilenet.segment(IMAGE, out, model=first(), footprint=footprint, resume=True)
    assert np.array_equal(np.asarray(again), mask)
    with pytest.raises(OutputMismatch, match="was begun with model answer"):
        tilenet.segment(IMAGE, out, model=other(), footprint=footprint, resume=True)
    assert tilenet.verify(out, IMAGE, model=first(), footprint=footprint).ok
    with pytest.raises(OutputMismatch, match="answer"):
        tilenet.verify(out, IMAGE, model=other(), footprint=footprint)


def test_nor_by_the_same_with_another_footprint(tmp_path):
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=convolution(), footprint=NEAR)
    with pytest.raises(OutputMismatch, match="was begun with model footprint"):
        tilenet.segment(
            IMAGE, tmp_path / "m.zarr", model=convolution(), footprint=Footprint.same(2, reach=2), resume=True
        )


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Sigmoid()), "look like probabilities"),
        (nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Softmax(1)), "look like probabilities"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2)), "there are seams"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2)), "there are seams"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)), ""),
        (nn.Sequential(nn.Conv2d(1, 2, 5, padding=2)), "there are seams"),
        (EverySecond(), "there are seams"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=8, dilation=8)), "there are seams"),
        (lambda x: x + np.random.default_rng().normal(size=x.shape), "gives other logits for the same pixels"),
        (lambda x: x / 255, "look like probabilities"),
        (lambda x: x - 100, ""),
    ],
    ids=[
        "sigmoid",
        "softmax",
        "instance norm",
        "group norm",
        "batch norm",
        "reach",
        "step",
        "dilation",
        "random",
        "map",
        "logits",
    ],
)
def test_what_does_not_suit_is_told_before_the_run(caplog, model, warned):
    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.segment(IMAGE, model=model, footprint=NEAR)
    assert (warned in caplog.text) if warned else (caplog.text == "")


def test_a_unet_whose_layer_was_replaced_is_run_as_it_is(caplog):
    network = random_network(depth=2, wf=4)
    plain = tilenet.segment(IMAGE, model=network, engine="plain", output="logits")
    network.last = nn.Sequential(network.last, nn.Identity())
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert np.array_equal(tilenet.segment(IMAGE, model=network, output="logits"), plain)
    assert "the plain one is used" in caplog.text
    with pytest.raises(SettingsError, match="--engine plain"):
        tilenet.segment(IMAGE, model=network, engine="fast")


def leaky(network):
    """Return a U-Net of the same weights with other layers without weights."""
    other = copy.deepcopy(network)
    for down in other.down_path:
        down.block[1] = nn.LeakyReLU(0.9)
    return other


def hooked(network):
    other = copy.deepcopy(network)
    other.down_path[0].register_forward_hook(lambda layer, given, made: 2 * made)
    return other


@pytest.mark.parametrize("changed", [leaky, hooked])
def test_two_unets_of_the_same_weights_and_other_layers_are_told_apart(tmp_path, changed, monkeypatch):
    network = random_network(depth=2, wf=4)
    other = changed(network)
    assert is_as_built(network) and is_as_built(copy.deepcopy(network).eval()) and not is_as_built(other)
    options = {"axes": "yx", "tile": 32, "output": "logits", "batch": 1}
    lazily = {name: value for name, value in options.items() if name != "batch"}
    first = tilenet.lazy(IMAGE, model=network, **lazily)
    assert np.array_equal(first.compute(), tilenet.segment(IMAGE, model=network, **options))
    second = tilenet.lazy(IMAGE, model=other, **lazily).compute()
    assert np.array_equal(second, tilenet.segment(IMAGE, model=other, **options))
    assert not np.allclose(second, first.compute())
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=other)
    with pytest.raises(OutputMismatch, match="model answer = "):
        tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network, resume=True)


class Renamed(tilenet.UNet):
    """A class of somebody's that does what a U-Net does."""


def test_a_class_that_adds_nothing_is_a_unet_as_built_and_one_with_another_forward_is_not():
    assert is_as_built(Renamed(depth=2, wf=2)) and not is_as_built(nn.Conv2d(1, 2, 3))
    changed = tilenet.UNet(depth=2, wf=2)
    changed.down_path[0].forward = lambda x: x
    assert not is_as_built(changed)
    assert not is_as_built(type("Squared", (tilenet.UNet,), {"forward": lambda self, x: x})(depth=2, wf=2))


def dilated(padding):
    network = random_network(depth=2, wf=2)
    network.down_path[0].block[0] = nn.Conv2d(1, 4, 3, dilation=2, padding=padding)
    return network.eval()


@pytest.mark.parametrize("padding", [0, 2])
def test_a_dilated_layer_in_a_unet_is_in_its_footprint(padding):
    network = dilated(padding)
    side = network.footprint.axes[0].legal_at_least(128)
    x = torch.rand(1, 1, side, side)
    with torch.inference_mode():
        assert tuple(network(x).shape[2:]) == network.footprint.output_shape((side, side))
    one, many = (tilenet.segment(IMAGE, model=network, output="logits", tile=tile) for tile in (96, 16))
    np.testing.assert_allclose(one, many, atol=1e-5 * np.ptp(one))
    (margin, _), (lost, _) = network.footprint.margin, network.footprint.lost
    # Its output begins 56 px before the image, on the grid and beyond what the borders of the input spoil.
    before, after = lost + 56, network.footprint.axes[0].legal_at_least(400) - 100 - lost - 56
    mirrored = np.pad(IMAGE[:, :70], ((before, after + 30), (before, after + 30)), mode="reflect").astype(np.float32)
    with torch.inference_mode():
        whole = network(torch.from_numpy(mirrored[None, None])).numpy()
    assert margin - lost < 56
    found = tilenet.segment(IMAGE[:, :70], model=network, output="logits", tile=32)
    np.testing.assert_allclose(found, whole[0, :, 56:126, 56:126], atol=1e-5 * np.ptp(found))


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(16), nn.GroupNorm(4, 16)], ids=["instance", "group"])
def test_seams_of_a_layer_in_a_unet_that_sees_the_whole_tile_are_told(caplog, norm):
    network = random_network(depth=2, wf=4)
    network.down_path[0].block[1] = norm
    tilenet.segment(IMAGE, model=network)
    assert "so that there are seams" in caplog.text


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_traced_networks_are_taken_like_others():
    network = convolution()
    traced = torch.jit.trace(network, torch.zeros(1, 1, 8, 8))
    expected = tilenet.segment(IMAGE, model=network, footprint=NEAR, output="logits")
    np.testing.assert_allclose(tilenet.segment(IMAGE, model=traced, footprint=NEAR, output="logits"), expected)


def test_a_function_that_wants_tensors_is_told_what_it_gets():
    network = convolution()
    with pytest.raises(ModelError, match="a function gets NumPy float32, and gives an array"):
        tilenet.segment(IMAGE, model=lambda x: network(x), footprint=NEAR)
    with pytest.raises(ModelError, match="the network gives no NumPy array"):
        tilenet.segment(IMAGE, model=lambda x: network(torch.from_numpy(x)), footprint=NEAR)


@pytest.mark.parametrize(
    "options", [{"reach": -1}, {"reach": 1.5}, {"reach": (1, 2, 3)}, {"reach": 1, "step": 0}, {"reach": "1"}], ids=str
)
def test_a_footprint_that_cannot_be_is_refused(options):
    with pytest.raises(SettingsError, match="give a whole number"):
        Footprint.same(2, **options)


def test_a_footprint_may_differ_from_axis_to_axis():
    footprint = Footprint.valid(3, lost=(1, 5, 6), step=(1, 2, 4))
    assert (footprint.lost, footprint.step) == ((1, 5, 6), (1, 2, 4))
    assert footprint.output_shape((3, 12, 16)) == (1, 2, 4)


def test_a_model_that_takes_no_short_inputs_is_asked_with_legal_ones(caplog):
    footprint = Footprint((tilenet.AxisFootprint(1, 0, (8, 8), smallest=64),) * 2)

    def at_least_64(x):
        assert min(x.shape[2:]) >= 64
        return x - 100

    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.segment(IMAGE, model=at_least_64, footprint=footprint)
    assert caplog.text == ""


def test_a_mask_of_a_version_that_asked_nothing_is_gone_on_with(tmp_path, monkeypatch):
    out, model = tmp_path / "m.zarr", brighter_than(128)
    with monkeypatch.context() as before:
        info = Job.info
        asked = ("footprint", "answer")

        def without(job, numbers):
            found = info(job, numbers)
            return found | {"model": {name: value for name, value in found["model"].items() if name not in asked}}

        before.setattr(Job, "info", without)
        tilenet.segment(IMAGE, out, model=model, footprint=POINT)
    assert tilenet.verify(out, IMAGE, model=model, footprint=POINT).ok
