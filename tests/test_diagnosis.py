"""Networks of one's own that do not fit their image or footprint are told what to give instead."""

import re

import numpy as np
import pytest
import torch
from oracles import random_network, whole_image_logits
from torch import nn

import tilenet
from tilenet.errors import ModelError
from tilenet.footprint import Footprint
from tilenet.probe.diagnosis import misfit

GREY, COLOUR = np.zeros((70, 80), np.uint8), np.zeros((70, 80, 3), np.uint8)


class Padded(nn.Module):
    """Pools `times` times by 2, joins what it pooled with what it upsampled, and gives as many pixels as it gets."""

    def __init__(self, channels, times):
        super().__init__()
        self.first, self.times = nn.Conv2d(channels, 2, 3, padding=1), times

    def forward(self, x):
        x = self.first(x)
        small = nn.functional.max_pool2d(x, 2**self.times)
        return torch.cat([x, nn.functional.interpolate(small, scale_factor=2**self.times)], 1)


@pytest.mark.parametrize(
    ("image", "network", "footprint", "says"),
    [
        (GREY, Padded(3, 2), Footprint.same(2, reach=8, step=4), "gives 1 channel, the network takes 3. .*0,0,0"),
        (
            COLOUR,
            Padded(1, 2),
            Footprint.same(2, reach=8, step=4),
            r"gives 3 channels, .* takes 1. .*nels 0\)",
        ),
        (COLOUR, Padded(2, 2), Footprint.same(2, reach=8, step=4), "gives 3 channels, .* takes 2. .*0,1"),
        (GREY, Padded(1, 3), Footprint.same(2, reach=20, step=4), "multiples of 8: is step the product of all its"),
        (GREY, Padded(1, 4), Footprint.same(2, reach=20, step=4), "multiples of 16: is step the product of all its"),
        (GREY, Padded(1, 3), Footprint.valid(2, lost=8, step=4), "give Footprint.same, not Footprint.valid$"),
        (GREY, Padded(1, 0), Footprint.valid(2, lost=6), "Footprint.same is for outputs as large as their input$"),
        (GREY, Padded(3, 3), Footprint.same(2, reach=8, step=4), "expected input.* to have 3 channels"),
    ],
)
def test_a_network_that_does_not_take_its_input_is_told_why(image, network, footprint, says):
    with pytest.raises(ModelError, match=says) as raised:
        tilenet.segment(image, axes="yxc"[: image.ndim], model=network, footprint=footprint)
    assert "\n" not in str(raised.value)


class Wrapped(nn.Module):
    """A U-Net that is not known to be one."""

    def __init__(self, **options):
        super().__init__()
        self.network = random_network(wf=2, **options)

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize(
    ("network", "given", "smallest"),
    [
        (Wrapped(depth=5), {"lost": 92, "step": 16}, 188),
        (Wrapped(depth=4), {"lost": 44, "step": 8, "smallest": 16}, 92),  # the network takes no input of 32
        (Wrapped(depth=4, pool_size=(1, 2)), {"lost": (14, 44), "step": (1, 8)}, (32, 92)),
    ],
)
def test_an_unpadded_network_whose_outputs_are_no_multiples_of_its_step_is_told_its_shortest_input(
    network, given, smallest
):
    image = np.random.default_rng(0).integers(0, 256, (70, 80), np.uint8)
    options = {"model": network, "output": "logits", "tile": 32}
    with pytest.raises(ModelError, match=re.escape(f"is {smallest}: give Footprint.valid(..., smallest={smallest})")):
        tilenet.segment(image, footprint=Footprint.valid(2, **given), **options)
    tiled = tilenet.segment(image, footprint=Footprint.valid(2, **given | {"smallest": smallest}), **options)
    np.testing.assert_allclose(tiled, whole_image_logits(network.network, image[None]), atol=1e-5 * np.ptp(tiled))


def test_no_shortest_input_is_told_of_a_network_that_loses_more_or_pools_more():
    for given in ({"lost": 90, "step": 16}, {"lost": 92, "step": 8}):
        with pytest.raises(ModelError, match=r"the network gives \(20, 20\). Correct the footprint$"):
            tilenet.segment(GREY, model=Wrapped(depth=5), footprint=Footprint.valid(2, **given))


def test_a_footprint_of_too_few_axes_is_told_of_them():
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2)).eval()
    volume = np.zeros((9, 20, 20), np.uint8)
    with pytest.raises(ModelError, match=r"has 2 axes, the network takes 3: .*Footprint\.same\(3, \.\.\.\)$"):
        tilenet.segment(volume, axes="zyx", model=network, footprint=Footprint.same(2, reach=1))
    assert tilenet.segment(volume, axes="zyx", model=network, footprint=Footprint.same(3, reach=1)).shape == (9, 20, 20)
    with pytest.raises(ModelError, match=r"has 3 axes, the network takes 2: .*Footprint\.same\(2, \.\.\.\)$"):
        flat = nn.Conv2d(1, 2, 3, padding=1).eval()
        tilenet.segment(volume, axes="zyx", model=flat, footprint=Footprint.same(3, reach=1))


def test_what_is_advised_is_then_taken():
    same = {"model": Padded(3, 2).eval(), "footprint": Footprint.same(2, reach=8, step=4)}
    assert tilenet.segment(GREY, channels="0,0,0", **same).shape == GREY.shape
    deep = {"model": Padded(1, 3).eval(), "footprint": Footprint.same(2, reach=20, step=8)}
    assert tilenet.segment(GREY, **deep).shape == GREY.shape


def test_a_function_without_an_axis_of_classes_is_told_of_the_axis():
    with pytest.raises(ModelError, match=r"array of 3 axes, \(1, 17, 17\), .* Return logits \(N, K, y, x\)$"):
        tilenet.segment(GREY, model=lambda batch: batch[:, 0], footprint=Footprint.same(2, reach=0))
    with pytest.raises(ModelError, match=r"Return logits \(N, K, z, y, x\)$"):
        volume = np.zeros((9, 20, 20), np.uint8)
        tilenet.segment(volume, axes="zyx", model=lambda b: b[:, 0], footprint=Footprint.same(3, reach=0))


def test_an_output_as_the_footprint_says_is_no_misfit():
    assert misfit((1, 3, 20, 24), (1, 2, 16, 20), (16, 20)) == ""


def test_a_nameless_network_is_called_by_its_class(caplog):
    class Means(nn.Module):
        card, footprint = tilenet.ModelCard(), Footprint.same(2, reach=1)

        def forward(self, x):
            return x - x.mean()

    tilenet.segment(np.random.default_rng(0).integers(0, 256, (70, 80)).astype(np.uint8), model=Means())
    assert any(said.startswith("Means: a tile and a part of it differ") for said in caplog.messages)
