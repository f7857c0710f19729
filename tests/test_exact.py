"""The one promise: the result is that of one pass over the whole, infinitely mirrored image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import integer_network, random_network, whole_image_logits

import tilenet
from tilenet.footprint import AxisFootprint, Footprint

MODES = [(padding, up_mode) for padding in (False, True) for up_mode in ("upconv", "upsample")]
# Odd, prime, smaller than any context, one pixel, and several tiles long.
SHAPES = [(1, 1), (1, 7), (13, 5), (31, 97), (113, 61)]
TILES = (1, 2, 3, 6)  # in steps


def image_of(shape, *, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 9, (channels, *shape)).astype(np.uint8)


def tiled_logits(image, network, **options):
    axes = "c" + "zyx"[-(image.ndim - 1) :]
    return tilenet.segment(image, model=network, axes=axes, output="logits", **options)


def assert_worth_comparing(logits):
    assert np.unique(logits).size > min(4, logits.size // 2), "a constant reference proves nothing"
    assert np.abs(logits).max() < 2**40, "the sums are no longer exact"


@pytest.mark.parametrize(("padding", "up_mode"), MODES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_logits_equal_one_pass_over_the_mirrored_whole(depth, padding, up_mode):
    network = integer_network(depth, depth=depth, wf=int(depth < 4), padding=padding, up_mode=up_mode)
    step = network.footprint.step[0]
    for shape in SHAPES:
        image = image_of(shape)
        expected = whole_image_logits(network, image)
        if min(shape) > 10:
            assert_worth_comparing(expected)
        for tile in TILES:
            if max(shape) / (tile * step) < 26:
                got = tiled_logits(image, network, tile=tile * step, batch=3)
                assert np.array_equal(got, expected), (shape, tile * step)


@pytest.mark.parametrize(("padding", "up_mode"), MODES)
@pytest.mark.parametrize(("depth", "pool_size"), [(1, None), (2, None), (3, None), (3, (1, 2, 2))])
def test_logits_of_a_volume_equal_one_pass_over_the_mirrored_whole(depth, pool_size, padding, up_mode):
    options = {"depth": depth, "wf": int(depth < 3), "padding": padding, "up_mode": up_mode, "pool_size": pool_size}
    network = integer_network(10 + depth, ndim=3, **options)  # not 2, whose logits at depth 2 are nearly constant
    step = network.footprint.step
    for shape in [(1, 1, 1), (3, 2, 6), (5, 9, 7)]:
        image = image_of(shape)
        expected = whole_image_logits(network, image)
        for tile in (1, 2, 4, 8):
            if max(shape) / (tile * step[-1]) < 7:
                got = tiled_logits(image, network, tile=tuple(tile * s for s in step))
                assert np.array_equal(got, expected), (shape, tile)
    assert_worth_comparing(expected)


@pytest.mark.parametrize("tiles", [(2, 5), pytest.param((1, 3), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("padding", "up_mode"), MODES)
@pytest.mark.parametrize(("depth", "pool_size"), [(4, None), (5, (1, 2, 2))])
def test_logits_of_a_deep_volume_equal_one_pass_over_the_mirrored_whole(depth, pool_size, padding, up_mode, tiles):
    network = integer_network(depth, depth=depth, wf=0, padding=padding, up_mode=up_mode, ndim=3, pool_size=pool_size)
    image = image_of((3, 21, 19))
    expected = whole_image_logits(network, image)
    assert_worth_comparing(expected)
    for tile in tiles:
        sides = tuple(tile * step for step in network.footprint.step)
        assert np.array_equal(tiled_logits(image, network, tile=sides), expected)


@pytest.mark.parametrize(("padding", "up_mode"), MODES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_batch_norm_keeps_the_promise_to_rounding(ndim, padding, up_mode):
    network = integer_network(depth=3, wf=1, ndim=ndim, padding=padding, up_mode=up_mode, batch_norm=True)
    image = image_of((37, 50) if ndim == 2 else (5, 9, 7))
    expected = whole_image_logits(network, image)
    assert_worth_comparing(expected)
    for tile in (4, 8, 12, 20):
        got = tiled_logits(image, network, tile=tile)
        assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max()


def test_several_channels_and_classes_keep_the_promise():
    network = integer_network(depth=3, wf=2, in_channels=3, n_classes=4)
    image = image_of((60, 41), channels=3)
    assert np.array_equal(tiled_logits(image, network, tile=8), whole_image_logits(network, image))


def test_planes_and_times_are_segmented_one_by_one():
    network = integer_network(depth=2, wf=1)
    stack = np.stack([[image_of((30, 21), seed=3 * t + z)[0] for z in range(3)] for t in range(2)])
    got = tilenet.segment(stack, model=network, axes="tzyx", output="logits", tile=8)
    assert got.shape == (2, 2, 3, 30, 21)  # t, class, z, y, x
    for t in range(2):
        for z in range(3):
            assert np.array_equal(got[t, :, z], whole_image_logits(network, stack[t, z][None]))


def laid_edge_to_edge(image, network, tile):
    """Return what the common recipe gives: each tile with its context, wherever the last ended."""
    axis = network.footprint.axes[0]
    out = np.zeros((network.n_classes, *image.shape[1:]))
    for y in range(0, image.shape[1], tile):
        for x in range(0, image.shape[2], tile):
            length = axis.legal_at_least(tile + 2 * axis.lost)
            rows, columns = (
                np.pad(np.arange(n), 200, mode="reflect")[200 + a - axis.lost :][:length]
                for a, n in zip((y, x), image.shape[1:], strict=True)
            )
            with torch.inference_mode():
                logits = network(torch.from_numpy(image[:, rows][:, :, columns][None]).double())[0].numpy()
            kept = out[:, y : y + tile, x : x + tile]
            kept[:] = logits[:, : kept.shape[1], : kept.shape[2]]
    return out


class Disguised(torch.nn.Module):
    """A network that nobody knows to be a U-Net, so that it may be given another footprint."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def test_tiles_off_the_grid_would_show():
    network = integer_network(3, depth=3, wf=1)
    image = image_of((90, 70))
    expected = whole_image_logits(network, image)
    assert np.array_equal(laid_edge_to_edge(image, network, 8), expected), "8 px lie on the grid of 4"
    assert not np.array_equal(laid_edge_to_edge(image, network, 10), expected), "10 px do not"


@pytest.mark.parametrize(("padding", "up_mode"), [(False, "upsample"), (True, "upconv"), (True, "upsample")], ids=str)
def test_a_spoiled_rim_that_is_kept_would_show(padding, up_mode):
    network = integer_network(3, depth=3, wf=1, padding=padding, up_mode=up_mode)
    image, right = image_of((90, 70)), network.footprint.axes[0]
    expected = whole_image_logits(network, image)
    ignorant = Footprint((replace(right, spoiled=(0, 0)),) * 2)
    assert np.array_equal(tiled_logits(image, network, tile=16), expected)
    assert not np.array_equal(tiled_logits(image, Disguised(network), footprint=ignorant, tile=16), expected)


def test_a_crop_in_front_that_shifts_the_grid_would_show():
    network = integer_network(3, depth=3, wf=1, up_mode="upsample")
    image, right = image_of((90, 70)), network.footprint.axes[0]

    class Shifted(AxisFootprint):
        def span(self, start, stop):
            origin = start - self.spoiled[0]  # s - 1 in front, not s
            length = self.legal_at_least(stop - origin + self.spoiled[1] + 2 * self.lost)
            return (origin - self.lost, origin - self.lost + length), (start - origin, stop - origin)

    shifted = Footprint((Shifted(right.step, right.lost, right.spoiled, right.smallest),) * 2)
    got = tiled_logits(image, Disguised(network), footprint=shifted, tile=16)
    assert not np.array_equal(got, whole_image_logits(network, image))


@pytest.mark.parametrize(("padding", "up_mode"), MODES)
def test_float32_agrees_with_the_whole_image_to_1e_5_of_the_logits_range(padding, up_mode):
    network = random_network(depth=4, wf=3, padding=padding, up_mode=up_mode)
    image = image_of((203, 150)) * np.uint8(28)
    expected = whole_image_logits(network, image)
    for tile in (32, 64, 96, 256):
        got = tiled_logits(image, network, tile=tile)
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_leaves_no_seams_and_is_used(precision):
    network, image = random_network(depth=2, wf=3), image_of((120, 90)) * np.uint8(28)
    single = tiled_logits(image, network, tile=64)
    small, large = (tiled_logits(image, network, tile=tile, precision=precision) for tile in (16, 64))
    assert np.abs(small - large).max() <= 0.02 * np.ptp(large)
    assert 1e-5 * np.ptp(single) < np.abs(small - single).max() <= 0.05 * np.ptp(single)
