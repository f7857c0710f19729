"""UNets that were altered after they were built are run, told apart and looked at like networks of others."""

import copy
import logging

import numpy as np
import pytest
import torch
from oracles import random_network
from torch import nn

import tilenet
from tilenet.errors import ModelError, OutputMismatch, SettingsError
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


def test_seams_of_corners_aligned_in_a_unet_are_told(caplog):
    network = aligned(random_network(depth=3, wf=2, up_mode="upsample"))
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


@pytest.mark.parametrize("lost", ["running_mean", "both"])
def test_a_normalisation_without_statistics_is_told_or_refused(caplog, lost):
    network = random_network(depth=2, wf=2, batch_norm=True)
    norm = network.down_path[0].block[2]
    norm.running_mean = None
    if lost == "running_mean":
        with pytest.raises(ModelError, match="does not take an input of shape .*: running_mean must be defined"):
            tilenet.segment(IMAGE, model=network)
    else:
        norm.running_var = None
        tilenet.segment(IMAGE, model=network)
        assert "so that there are seams" in caplog.text
