import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilenet.geometry import Box, ceil_div, mirror, round_down, round_up

lengths = st.integers(1, 50)
places = st.integers(-300, 300)


@given(lengths, st.integers(0, 200), st.integers(0, 200))
def test_the_mirror_is_numpys_reflect_folded_as_often_as_needed(length, before, after):
    line = np.arange(length)
    expected = np.pad(line, (before, after), mode="reflect")
    assert [mirror(i, length) for i in range(-before, length + after)] == expected.tolist()


def test_the_mirror_does_not_repeat_the_edge_pixel():
    assert [mirror(i, 5) for i in range(-3, 8)] == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**9))
def test_integers_stay_integers(a, b):
    assert (ceil_div(a, b) - 1) * b < a <= ceil_div(a, b) * b
    assert round_down(a, b) <= a <= round_up(a, b)
    assert round_down(a, b) % b == 0 == round_up(a, b) % b
    assert round_up(a, b) - round_down(a, b) in (0, b)


boxes = st.lists(st.tuples(places, st.integers(0, 60)), min_size=2, max_size=2).map(
    lambda sides: Box(tuple(a for a, _ in sides), tuple(a + n for a, n in sides))
)


@given(boxes, boxes)
def test_the_common_part_of_two_boxes_holds_the_pixels_of_both(a, b):
    def pixels(box):
        return {(y, x) for y in range(box.start[0], box.stop[0]) for x in range(box.start[1], box.stop[1])}

    assert pixels(a & b) == pixels(a) & pixels(b)
    assert (a & b).size == len(pixels(a) & pixels(b))


@given(boxes, st.tuples(places, places))
def test_a_shifted_box_keeps_its_shape(box, offset):
    assert box.shifted(offset).shape == box.shape
    assert box.shifted(offset).relative_to(offset) == box


def test_a_box_that_ends_before_it_begins_has_no_pixels():
    assert Box((5, 0), (3, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match="as many starts as stops"):
        Box((0,), (3, 4))


def test_a_box_that_starts_below_zero_is_no_index():
    with pytest.raises(ValueError, match="count from the end"):
        _ = Box((-1, 0), (3, 3)).slices
