"""Which objects of neighbouring planes become a volume, against sets of pixels."""

from fractions import Fraction

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from linked_stacks import by_first_pixels, joined

from tilenet import metrics
from tilenet.instances.linking import _digits, chains, linked


@st.composite
def stacks(draw):
    shape = draw(st.tuples(*[st.integers(1, 4)] * draw(st.integers(3, 4))))
    seed, labels = draw(st.integers(0, 2**32)), draw(st.integers(1, 4))
    return by_first_pixels(np.random.default_rng(seed).integers(0, labels + 1, shape))


@given(stacks(), st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.5, 0.75, 1]), st.tuples(*[st.integers(1, 4)] * 4))
def test_chains_are_those_of_sets_of_pixels_whatever_the_blocks(labels, least, block):
    axes = "tzyx"[-labels.ndim :]
    truth = joined(labels, least, z=labels.ndim - 3)
    for sides in (labels.shape, block[: labels.ndim]):
        found = linked(labels, axes, sides, least)
        assert np.array_equal(np.insert(found, 0, 0)[labels], truth)


def plane(*boxes):
    """Return a plane of 20 x 20 px with the boxes (y0, y1, x0, x1), numbered from 1."""
    labels = np.zeros((20, 20), int)
    for number, (y0, y1, x0, x1) in enumerate(boxes, 1):
        labels[y0:y1, x0:x1] = number
    return labels


def chains_of(*planes, least=0.25):
    labels = by_first_pixels(np.stack(planes))
    found = linked(labels, "zyx", (1, 7, 9), least)
    assert np.array_equal(np.insert(found, 0, 0)[labels], joined(labels, least))
    return found.tolist()


def test_nuclei_that_overlap_too_little_stay_two():
    over, under = plane((0, 10, 0, 10)), plane((5, 15, 5, 15))  # 25 of 175 px
    assert chains_of(over, under) == [1, 2]
    assert chains_of(over, under, least=0.14) == [1, 1]


def test_a_block_alone_would_link_what_the_whole_stack_does_not():
    labels = by_first_pixels(np.stack([plane((0, 10, 0, 10)), plane((0, 10, 8, 20))]))
    assert linked(labels, "zyx", (1, 20, 2), 0.25).tolist() == [1, 2]
    assert linked(labels[..., 8:10], "zyx", (1, 20, 2), 0.25).tolist() == [1, 1]


def test_an_overlap_of_just_the_threshold_is_enough():
    tenth = plane((0, 1, 0, 10)), plane((0, 1, 0, 1))
    assert Fraction(0.1) > Fraction(1, 10) and chains_of(*tenth, least=0.1) == [1, 1]
    assert chains_of(*tenth, least=0.1000001) == [1, 2]


def test_an_object_that_splits_goes_on_in_its_best_partner():
    assert chains_of(plane((0, 10, 0, 10)), plane((0, 10, 0, 4), (0, 10, 4, 10))) == [1, 2, 1]


def test_objects_that_merge_end_but_for_the_best_partner():
    assert chains_of(plane((0, 10, 0, 4), (0, 10, 4, 10)), plane((0, 10, 0, 10))) == [1, 2, 2]


def test_of_equally_good_partners_the_first_one_is_taken():
    assert chains_of(plane((0, 10, 0, 10)), plane((0, 5, 0, 10), (5, 10, 0, 10))) == [1, 1, 2]
    assert chains_of(plane((0, 10, 0, 5), (0, 10, 5, 10)), plane((0, 10, 0, 10))) == [1, 2, 1]


def test_a_partner_that_has_a_better_one_is_none():
    # The upper left one overlaps the lower one, which is better covered by the upper right one.
    assert chains_of(plane((0, 10, 0, 6), (0, 10, 6, 20)), plane((0, 10, 3, 20))) == [1, 2, 2]


def test_an_empty_plane_ends_all_volumes():
    disc = plane((3, 12, 3, 12))
    assert chains_of(disc, plane(), disc) == [1, 2]
    assert chains_of(disc, disc, disc) == [1, 1, 1]


@given(*[st.lists(st.integers(1, 2**39 - 1), min_size=2, max_size=2).map(sorted)] * 2)
def test_the_digits_of_measures_are_in_the_order_of_fractions(one, other):
    first, second = np.array(_digits(*np.array([one, other]).T)).T.tolist()
    assert (first < second, first == second) == (Fraction(*one) < Fraction(*other), Fraction(*one) == Fraction(*other))


def test_measures_that_floats_cannot_tell_apart_are_told_apart():
    n = 2**39 - 1
    sizes = np.array([[1, n - 1], [2, n - 2], [3, n]])
    overlaps = np.array([[1, 2, n - 2], [1, 3, n - 1]])
    assert (n - 2) / (n - 1) == (n - 1) / n and Fraction(n - 2, n - 1) < Fraction(n - 1, n)
    assert chains(overlaps, sizes, 0.25).tolist() == [1, 2, 1]


@pytest.mark.parametrize(("least", "volumes", "f1"), [(0.1, 66, 0.90), (0.25, 97, 0.715)])
def test_real_nuclei_cut_into_planes_are_joined_again_but_for_the_first_and_last_planes_of_some(
    shared_data, least, volumes, f1
):
    true = tifffile.imread(shared_data("volumes/plant_nuclei_1135_label.tif")).astype(np.int64)
    planes = np.where(true > 0, true + (true.max() + 1) * np.arange(len(true))[:, None, None], 0)
    numbers = np.unique(planes, return_inverse=True)[1].reshape(true.shape)
    found = np.insert(linked(numbers, "zyx", true.shape, least), 0, 0)[numbers].astype(np.int32)
    assert len(np.unique(true)) == 55 and found.max() == volumes
    matched = metrics.count_objects(found, true.astype(np.int32), thresholds=(0.9,))[0.9]
    assert (matched.matched, round(matched.f1, 3)) == (54, f1), "what is left over is small, and extra"
