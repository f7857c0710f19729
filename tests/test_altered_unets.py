"""UNets that were altered after they were built are run, told apart and looked at like networks of others."""

import copy
import logging
from types import MethodType

import numpy as np
import pytest
import torch
from oracles import random_network
from torch import nn

import tilenet
from tilenet.errors import ModelError, OutputMismatch, SettingsError
from tilenet.footprint import Footprint
from tilenet.unet import is_as_built

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8)


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


def aligned(network):
    other = copy.deepcopy(network)
    for up in other.up_path:
        up.up[0].align_corners = True
    return other


@pytest.mark.parametrize("changed", [leaky, hooked, aligned])
def test_two_unets_of_the_same_weights_and_other_layers_are_told_apart(tmp_path, changed, monkeypatch):
    network = random_network(depth=2, wf=4, up_mode="upsample")
    other = changed(network)
    assert is_as_built(network) and is_as_built(copy.deepcopy(network).eval()) and not is_as_built(other)
    options = {"axes": "yx", "tile": 32, "output": "logits", "batch": 1}
    other.footprint = network.footprint
    lazily = {name: value for name, value in options.items() if name != "batch"}
    first = tilenet.lazy(IMAGE, model=network, **lazily)
    assert np.array_equal(first.compute(), tilenet.segment(IMAGE, model=network, **options))
    second = tilenet.lazy(IMAGE, model=other, **lazily).compute()
    assert np.array_equal(second, tilenet.segment(IMAGE, model=other, **options))
    assert not np.allclose(second, first.compute())
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=other)
    with pytest.raises(OutputMismatch, match="model answer = "):
        tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network, resume=True)


def test_a_changed_unet_is_not_saved_as_one_that_would_be_loaded_unchanged(tmp_path):
    network = random_network(depth=2, wf=2)
    with pytest.raises(ModelError, match="only a UNet can be saved, and no changed one"):
        tilenet.save_model(leaky(network), tmp_path / "m.safetensors")
    assert not any(tmp_path.iterdir())
    tilenet.save_model(network, tmp_path / "m.safetensors")


class Renamed(tilenet.UNet):
    """A class of somebody's that does what a U-Net does."""


def test_a_class_that_adds_nothing_is_a_unet_as_built_and_one_with_another_forward_is_not():
    assert is_as_built(Renamed(depth=2, wf=2)) and not is_as_built(nn.Conv2d(1, 2, 3))
    changed = tilenet.UNet(depth=2, wf=2)
    changed.pool_size = (2.0, 2.0)
    assert not is_as_built(changed), "although it was compared with (2, 2) before, which is equal"
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
    network.down_path[0].block[1], network.footprint = norm, network.footprint
    tilenet.segment(IMAGE, model=network)
    assert "so that there are seams" in caplog.text


def test_seams_of_corners_aligned_in_a_unet_are_told(caplog):
    network = aligned(random_network(depth=3, wf=2, up_mode="upsample"))
    network.footprint = tilenet.UNet(**network.options).footprint
    one, many = (tilenet.segment(IMAGE, model=network, output="logits", tile=tile) for tile in (128, 32))
    assert np.abs(one - many).max() > 1e-4 * np.ptp(one)
    assert "so that there are seams" in caplog.text


@pytest.mark.parametrize(
    "changed",
    [
        lambda network: setattr(network.down_path[0].block, "0", nn.Conv2d(1, 4, 3, padding="valid")),
        lambda network: setattr(network.down_path, "0", nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU())),
    ],
    ids=["padding in a word", "another block"],
)
def test_a_changed_unet_is_run_with_the_footprint_that_is_given(caplog, changed):
    network = random_network(depth=3, wf=2)
    footprint = network.footprint
    changed(network)
    with pytest.raises(ModelError, match="Give footprint="):
        tilenet.segment(IMAGE, model=network)
    options = {"model": network, "footprint": footprint, "output": "logits"}
    one, many = (tilenet.segment(IMAGE, tile=tile, **options) for tile in (128, 32))
    np.testing.assert_allclose(one, many, atol=1e-5 * np.ptp(one))
    assert "seams" not in caplog.text


class Headed(tilenet.UNet):
    """Goes on where a U-Net ends."""

    def __init__(self, **options):
        super().__init__(**options)
        self.head = wide(2, 2)

    def forward(self, x):
        return self.head(super().forward(x))


class HeadedAndSaid(Headed):
    """Says how far it sees."""

    @property
    def footprint(self):
        (margin, _), step = super().footprint.margin, super().footprint.step
        return Footprint.same(2, reach=margin + 10, step=step)


def wide(channels, outputs):
    return nn.Conv2d(channels, outputs, 21, padding=10)


def padded(change=lambda network: None, kind=tilenet.UNet):
    torch.manual_seed(0)
    network = kind(depth=2, wf=2, padding=True)
    network.load_state_dict(random_network(depth=2, wf=2, padding=True).state_dict(), strict=False)
    change(network)
    return network.eval()


def with_layer(layer, block=0):
    return padded(lambda network: setattr(network.down_path[block].block, "1", layer))


def wide_at_first(network):
    def forward(self, x):
        return tilenet.UNet.forward(self, nn.functional.max_pool2d(x, 31, 1, 15))

    network.forward = MethodType(forward, network)


def wide_in_a_hook(network):
    network.last.register_forward_hook(lambda layer, given, made: nn.functional.max_pool2d(made, 31, 1, 15))


def transposed(network):
    network.up_path[0].up = nn.ConvTranspose2d(8, 4, kernel_size=14, stride=2, padding=6)


SEES_FURTHER = {
    "another forward": lambda: padded(kind=Headed),
    "its own forward": lambda: padded(wide_at_first),
    "a hook": lambda: padded(wide_in_a_hook),
    "a wide pooling": lambda: with_layer(nn.MaxPool2d(31, 1, 15)),
    "a layer that upsamples": lambda: padded(transposed),
}


def error(network):
    """Return by how much tiles differ from one pass over the image with so much around it that no border is seen."""
    around = np.pad(IMAGE, [(96, 98), (96, 98)], mode="reflect").astype(np.float32)
    with torch.no_grad():
        whole = network(torch.from_numpy(around)[None, None])[0, :, 96:-98, 96:-98].numpy()
    return np.abs(tilenet.segment(IMAGE, model=network, output="logits", tile=32) - whole).max() / np.ptp(whole)


@pytest.mark.parametrize("build", SEES_FURTHER.values(), ids=SEES_FURTHER)
def test_a_unet_that_was_changed_so_that_it_sees_further_is_exact_with_the_footprint_that_is_set(build):
    network, plain = build(), padded().footprint
    with pytest.raises(ModelError, match="was changed, .* set network.footprint: tilenet.measure_footprint"):
        tilenet.segment(IMAGE, model=network)
    network.footprint = plain
    assert error(network) > 1e-5
    network.footprint = tilenet.measure_footprint(network)
    assert error(network) < 1e-5


@pytest.mark.parametrize("layer", [wide(4, 4), nn.Sequential(nn.ReLU(), wide(4, 4)), nn.Sequential()])
def test_what_is_replaced_within_a_block_by_convolutions_is_in_the_footprint(layer):
    network = with_layer(layer)
    assert error(network) < 1e-5
    assert network.footprint == tilenet.measure_footprint(network)


def test_a_wide_last_layer_is_in_the_footprint():
    network = padded(lambda network: setattr(network, "last", wide(4, 2)))
    assert error(network) < 1e-5
    assert network.footprint == tilenet.measure_footprint(network) != padded().footprint


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Dropout2d(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)])
def test_layers_that_see_a_pixel_alone_change_no_footprint(layer):
    assert with_layer(layer).footprint == padded().footprint


def test_a_subclass_may_say_its_footprint_from_that_of_its_layers():
    network = padded(kind=HeadedAndSaid)
    assert error(network) < 1e-5
    assert network.footprint == tilenet.measure_footprint(network)


def test_another_footprint_of_an_unchanged_unet_is_refused():
    network = padded()
    network.footprint = network.footprint
    assert error(network) < 1e-5
    network.footprint = Footprint.same(2, reach=4, step=2)
    with pytest.raises(ModelError, match="follows from its layers: .* another than was given or set"):
        tilenet.segment(IMAGE, model=network)


def test_a_changed_unet_that_is_not_padded_is_not_measured():
    network = random_network(depth=2, wf=2)
    network.down_path[0].block[1] = nn.MaxPool2d(3, 1)
    with pytest.raises(ModelError, match="It is not padded: its footprint is not measured"):
        tilenet.measure_footprint(network)


def test_a_function_that_is_named_sets_the_footprint_of_a_changed_unet(tmp_path, monkeypatch):
    (tmp_path / "changed_unets.py").write_text(
        "import torch, tilenet\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    network = tilenet.UNet(depth=2, wf=2, padding=True)\n"
        "    network.last = torch.nn.Sequential(torch.nn.MaxPool2d(5, 1, 2), network.last)\n"
        "    return network\n"
        "def build_and_say():\n"
        "    network = build()\n"
        "    network.footprint = tilenet.measure_footprint(network)\n"
        "    return network\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="was changed, and its footprint no longer follows"):
        tilenet.segment(IMAGE, model="changed_unets:build")
    one, many = (
        tilenet.segment(IMAGE, model="changed_unets:build_and_say", output="logits", tile=tile) for tile in (96, 16)
    )
    np.testing.assert_allclose(one, many, atol=1e-5 * np.ptp(one))


@pytest.mark.parametrize("lost", ["running_mean", "both"])
def test_a_normalisation_without_statistics_is_told_or_refused(caplog, lost):
    network = random_network(depth=2, wf=2, batch_norm=True)
    norm = network.down_path[0].block[2]
    norm.running_mean = None
    with pytest.raises(ModelError, match="was changed"):
        tilenet.segment(IMAGE, model=network)
    network.footprint = tilenet.UNet(**network.options).footprint
    if lost == "running_mean":
        with pytest.raises(ModelError, match="failed on .*: RuntimeError: running_mean must be defined"):
            tilenet.segment(IMAGE, model=network)
    else:
        norm.running_var = None
        tilenet.segment(IMAGE, model=network)
        assert "so that there are seams" in caplog.text
