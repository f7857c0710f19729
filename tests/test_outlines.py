"""Outlines are exact: filled again they are the plane, whatever the strips; and each is valid by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import filled
from scipy import ndimage

from tilenet.export.outlines import Region, regions

CROSS = ndimage.generate_binary_structure(2, 1)


def cut(plane, heights):
    """Return a plane in strips of these heights, over and over."""
    strips, top, k = [], 0, 0
    while top < len(plane):
        strips.append(plane[top : top + heights[k % len(heights)]])
        top, k = top + len(strips[-1]), k + 1
    return strips


def signed_area(ring):
    y, x = ring[:, 0].astype(int), ring[:, 1].astype(int)
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def assert_valid(region):
    """Rings are simple, turn at every corner, go the right way round, and begin where they are said to."""
    for k, ring in enumerate(region.rings):
        vertices = list(map(tuple, ring.tolist()))
        assert len(set(vertices)) == len(vertices) >= 4
        assert vertices[0] == min(vertices)
        steps = np.roll(ring, -1, axis=0) - ring
        assert ((steps[:, 0] == 0) == (np.roll(steps, 1, axis=0)[:, 0] != 0)).all(), "a vertex is no corner"
        assert (signed_area(ring) > 0) == (k == 0)


def pieces_of(plane):
    """Return (value, area) of each 4-connected piece, by scipy."""
    found = []
    for value in np.unique(plane[plane != 0]):
        labels, n = ndimage.label(plane == value, CROSS)
        found += [(int(value), int(size)) for size in np.bincount(labels.ravel())[1 : n + 1]]
    return sorted(found)


def as_lists(found):
    return [(region.value, [ring.tolist() for ring in region.rings]) for region in found]


def check(plane, *cuts):
    whole = list(regions([plane]))
    assert np.array_equal(filled([(r.value, r.rings) for r in whole], plane.shape), plane)
    for region in whole:
        assert_valid(region)
    areas = sorted((region.value, sum(map(signed_area, region.rings))) for region in whole)
    assert areas == pieces_of(plane)
    assert [region.bottom for region in whole] == sorted(region.bottom for region in whole)
    for heights in cuts:
        assert as_lists(regions(cut(plane, heights))) == as_lists(whole), heights


planes = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 2))
)


@settings(max_examples=150)
@given(plane=planes, heights=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_filled_again_they_are_the_plane_whatever_the_strips(plane, heights):
    check(plane, [1], heights)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("values", [1, 2, 5])
def test_noise_of_many_regions_holes_and_pinches(seed, values):
    plane = np.random.default_rng(seed).integers(0, values + 1, (70, 60)).astype(np.uint16)
    plane[30:50, 10:50] = 1
    check(plane, [1], [7], [32], [3, 11])


def test_smooth_blobs_that_cross_many_strips():
    noise = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(400, 300)), 6)
    plane = ((noise > 0.01).astype(np.uint8) + (noise > 0.04)).astype(np.uint8)
    assert len(pieces_of(plane)) > 40
    check(plane, [1], [37], [128])


def test_a_hole_in_a_hole_and_what_lies_in_it():
    plane = np.zeros((9, 9), np.uint8)
    for k, value in enumerate((1, 0, 1, 2)):
        plane[k : 9 - k, k : 9 - k] = value
    found = list(regions([plane]))
    assert [(region.value, len(region.rings)) for region in found] == [(2, 1), (1, 2), (1, 2)]
    check(plane, [1], [4])


def test_pixels_that_touch_at_a_corner_are_two_regions():
    plane = np.array([[1, 0], [0, 1]], np.uint8)
    assert [region.rings[0].tolist() for region in regions([plane])] == [
        [[0, 0], [0, 1], [1, 1], [1, 0]],
        [[1, 1], [1, 2], [2, 2], [2, 1]],
    ]
    check(plane, [1])


def test_a_region_that_touches_itself_at_a_corner_has_a_hole_there():
    plane = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)
    [region] = regions([plane])
    assert [ring.tolist() for ring in region.rings] == [
        [[0, 0], [0, 3], [2, 3], [2, 2], [3, 2], [3, 0]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]
    check(plane, [1], [2])


def test_holes_that_touch_at_a_corner_are_two_rings():
    plane = np.ones((4, 4), np.uint8)
    plane[1, 1] = plane[2, 2] = 0
    [region] = regions([plane])
    assert len(region.rings) == 3
    check(plane, [1], [2])


def test_a_spiral_is_one_ring_that_is_held_until_its_end():
    plane = np.zeros((41, 41), np.uint8)
    y, x, step = 0, 0, 40
    plane[0, 0] = 1
    while step > 0:
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            for _ in range(max(0, step)):
                y, x = y + dy, x + dx
                plane[y, x] = 1
            step -= 2 if (dy, dx) in ((1, 0), (-1, 0)) else 0
    check(plane, [1], [2], [5])


def test_background_alone_has_no_regions_and_one_value_all_over_is_one():
    assert list(regions([np.zeros((5, 4), np.uint8)])) == []
    assert list(regions([])) == []
    [region] = regions(cut(np.full((5, 4), 3, np.uint32), [2]))
    assert (region.value, region.rings[0].tolist()) == (3, [[0, 0], [0, 4], [5, 4], [5, 0]])


def test_the_checks_can_fail():
    plane = np.zeros((4, 4), np.uint8)
    plane[1:3, 1:3] = 1
    [region] = regions([plane])
    moved = Region(1, (region.rings[0] + np.array([0, 1], np.int32),))
    assert not np.array_equal(filled([(1, moved.rings)], plane.shape), plane)
    with pytest.raises(AssertionError):
        assert_valid(Region(1, (region.rings[0][::-1],)))
