"""Objects of a part of an image: those of the whole, and found by looking no further than they must."""

import pickle
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from blobs import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from tilenet.byte_counts import parse_bytes
from tilenet.decide import DEPTH_UNIT, ObjectRule
from tilenet.errors import SettingsError
from tilenet.geometry import Box
from tilenet.instances import components, separation
from tilenet.instances.components import View, beside, find_objects, left_for
from tilenet.instances.in_memory import numbered
from tilenet.instances.separation import REACH


def view_of(shape, seed, *, depths):
    """Return a random foreground, and perhaps depths as a network might give them."""
    foreground = blobs(shape, seed=seed, coarse=2.5) > 0
    noise = ndi.gaussian_filter(np.random.default_rng(seed + 1).uniform(size=shape), 1.5)
    depth = np.clip(foreground * 0.6 + 2.5 * (noise - 0.5), 0, 1)
    return View(foreground, (np.rint(depth / DEPTH_UNIT) * DEPTH_UNIT).astype(np.float32) if depths else None)


def part_of(whole, box):
    return View(whole.foreground[box.slices], None if whole.depth is None else whole.depth[box.slices])


def numbered_by_parts(whole, side, rule, left_out=None):
    """Return the numbers of objects that parts of an image find, each by itself; append how many they leave out."""
    shape = whole.foreground.shape
    places = np.zeros(shape, np.int64)
    for corner in np.ndindex(*(-(-n // side) for n in shape)):
        start = tuple(side * c for c in corner)
        part = Box(start, tuple(a + side for a in start)) & Box.of_shape(shape)
        labels, firsts, unsure = find_objects(part, shape, lambda box: part_of(whole, box), rule)
        assert firsts[0] == -1
        places[part.slices] = (firsts + 1)[labels]
        if left_out is not None:
            left_out.append(unsure)
    firsts = np.flatnonzero(places.ravel() == np.arange(places.size) + 1) + 1
    return np.where(places > 0, np.searchsorted(firsts, places) + 1, 0)


@contextmanager
def few_pixels_at_first(reach=REACH):
    """Have parts look no further beyond themselves than they must, so that it shows where that is too little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "MARGIN", {2: 4, 3: 4})
        patch.setattr(components, "REACH", reach)
        yield


@pytest.mark.parametrize("depths", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
@settings(max_examples=15)
@given(data=st.data())
def test_parts_find_the_objects_of_the_whole(ndim, depths, data):
    with few_pixels_at_first():
        _compare_parts_with_the_whole(ndim, depths, data)


def _compare_parts_with_the_whole(ndim, depths, data):
    sides = st.integers(1, 150 if ndim == 2 else 36)
    whole = view_of(tuple(data.draw(sides) for _ in range(ndim)), data.draw(st.integers(0, 2**16)), depths=depths)
    steps = data.draw(st.sampled_from([(), (5.0, 1.0, 1.0), (1.0, 2.5, 1.3)]))
    rule = ObjectRule(
        min_size=data.draw(st.integers(0, 30)),
        least_depth=data.draw(st.sampled_from([0.0, 0.75])),
        spacing=steps[:ndim],
    )
    left_out = []
    found = numbered_by_parts(whole, data.draw(st.integers(7, 60)), rule, left_out)
    assert np.array_equal(found, numbered(whole, rule)[0])
    assert sum(left_out) == numbered(whole, replace(rule, least_depth=0))[0].max(initial=0) - found.max(initial=0)


@pytest.mark.parametrize("depths", [False, True])
def test_objects_of_a_connected_component_are_those_of_it_alone(depths):
    whole = view_of((150, 170), 3, depths=depths)
    found, alone = numbered(whole)[0], np.zeros((150, 170), np.int64)
    components, n = ndi.label(whole.foreground)
    for label in range(1, n + 1):
        own = numbered(View(components == label, whole.depth))[0]
        alone[own > 0] = own[own > 0] + alone.max()
    # The same partition: each number of the one goes with one of the other.
    pairs = np.unique(np.stack([found, alone]).reshape(2, -1), axis=1)
    assert found.max() > 20 and pairs.shape[1] == found.max() + 1 == alone.max() + 1


def count_seeds(smooth, prominence):
    """Return how many parts there are that are the highest of what lies around them down to `prominence` below."""
    found = 0
    for height in np.unique(smooth):
        around, n = ndi.label(smooth >= height - np.float32(prominence))
        found += (ndi.maximum(smooth, around, range(1, n + 1)) == height).sum()
    return found


@given(st.tuples(st.integers(1, 9), st.integers(1, 12)), st.integers(0, 2**16), st.sampled_from([0, 0.1, 0.25, 0.5]))
def test_seeds_are_maxima_that_deep_valleys_part_and_no_component_of_several_is_passed_by(shape, seed, prominence):
    depths = np.random.default_rng(seed).integers(0, 9, shape) / np.float32(8)
    labels, n = ndi.label(depths > 0.25)
    smooth = np.where(labels > 0, depths, 0)
    looked_at = separation._with_several_seeds(labels, smooth, prominence)
    for label in range(1, n + 1):
        own = smooth * (labels == label)
        expected = count_seeds(own, prominence)
        assert max(1, separation._seeds(own, prominence)[1]) == expected
        assert label in looked_at or expected == 1


def test_few_components_of_one_seed_are_looked_at_closely():
    whole = view_of((300, 340), 3, depths=True)
    labels, n = ndi.label(whole.foreground)
    smooth, places = separation._smoothed(labels, whole.depth, ()), ndi.find_objects(labels)
    looked_at = separation._with_several_seeds(labels, smooth, 0.2)
    owns = [smooth[places[k - 1]] * (labels[places[k - 1]] == k) for k in looked_at]
    assert 30 < sum(separation._seeds(own, 0.2)[1] > 1 for own in owns) <= len(looked_at) < n / 2


def test_objects_are_numbered_in_the_order_of_their_first_pixels():
    found = numbered(view_of((120, 140), 5, depths=True))[0]
    _, firsts = np.unique(found, return_index=True)
    assert found.max() > 20 and (np.diff(firsts[1:]) > 0).all()


def test_parts_that_look_less_far_find_other_objects():
    wrong = 0
    for seed in range(6):
        whole = view_of((16, 130), seed, depths=True)
        with few_pixels_at_first(reach=0):
            wrong += not np.array_equal(numbered_by_parts(whole, 30, ObjectRule()), numbered(whole)[0])
        with few_pixels_at_first():
            assert np.array_equal(numbered_by_parts(whole, 30, ObjectRule()), numbered(whole)[0])
    assert wrong > 3


@pytest.mark.parametrize(
    ("spacing", "reach"), [((), REACH), ((5.0, 1.0), REACH), ((1.0, 1.5), 3), ((1.0, 2.5), 2), ((1.0, 10.0), 0)]
)
def test_smoothing_reaches_as_far_as_is_said_and_no_further(spacing, reach):
    own, depth = np.zeros((21, 21), np.int32), np.zeros((21, 21), np.float32)
    own[10, 10] = 1
    here = separation._smoothed(own, depth, spacing)[10, 10]
    for far, seen in ((reach, True), (reach + 1, False)):
        other = depth.copy()
        other[10, 10 + far] = 1
        assert (separation._smoothed(own, other, spacing)[10, 10] != here) == seen


def test_a_component_is_looked_at_once_however_often_it_enters_a_part():
    comb = np.zeros((400, 400), bool)
    comb[:, ::8] = comb[:, 1::8] = comb[380:] = True
    reads = []

    def read(box):
        reads.append(box.size)
        return View(comb[box.slices], None)

    labels, firsts, _ = find_objects(Box((0, 0), (100, 200)), comb.shape, read)
    assert len(firsts) >= 2 and np.array_equal(labels > 0, comb[:100, :200])
    assert sum(reads) < 5 * comb.size


@pytest.mark.parametrize("side", [25, 64, 300])
def test_objects_that_are_nowhere_deep_enough_are_counted_once_whatever_the_parts(side):
    whole, rule, left_out = view_of((200, 260), 3, depths=True), ObjectRule(least_depth=0.9), []
    kept, every = numbered_by_parts(whole, side, rule, left_out), numbered(whole, replace(rule, least_depth=0))[0]
    assert sum(left_out) == every.max() - kept.max() > 5 < kept.max()
    assert numbered(whole, rule)[1] == sum(left_out)


@pytest.fixture
def worm():
    y, x = np.indices((300, 420))
    foreground = (np.abs(y - 150 - 100 * np.sin(x / 40)) < 6) & (x > 3) & (x < 415)
    return View(foreground, foreground.astype(np.float32))


def test_objects_of_a_worm_through_many_parts_are_those_of_the_whole(worm):
    found = numbered_by_parts(worm, 40, ObjectRule())
    assert np.array_equal(found, numbered(worm)[0]) and np.array_equal(found > 0, worm.foreground)
    assert found.max() == 1


def test_what_is_kept_of_a_large_component_takes_as_many_bytes_as_are_said(worm):
    recent = components.Recent()
    assert recent.n_bytes == 0
    find_objects(Box((130, 100), (170, 140)), worm.foreground.shape, lambda box: part_of(worm, box), recent=recent)
    assert recent.n_bytes == sum(kept.nbytes for kept in (*recent.window.view, recent.window.labels, recent.found)) > 0
    assert pickle.loads(pickle.dumps(recent)) == components.Recent()


def test_a_component_that_takes_more_than_the_memory_is_refused_with_its_size():
    whole = View(np.ones((400, 500), bool), None)
    part = Box((0, 0), (30, 30))
    with pytest.raises(SettingsError, match=r"connected foreground extends over \d+ x \d+ px .* --memory") as refused:
        find_objects(part, (400, 500), lambda box: part_of(whole, box), memory=10**6)
    told = re.search(r"takes (.+) or more, .* --memory (\w+) or", str(refused.value))
    needs, enough = map(parse_bytes, told.groups())
    assert 10**6 < needs <= left_for(enough) and beside() + needs < enough < beside() + 2 * needs
    labels, _, _ = find_objects(part, (400, 500), lambda box: part_of(whole, box))
    assert labels.all()
