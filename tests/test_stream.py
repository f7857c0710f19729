"""What is held from band to band comes out as if it had never been parted."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tilenet.fast.stream import PassState, Skip, joined, stacked

parts = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def numbered(rows, width=5):
    return torch.arange(rows * width).reshape(1, 1, rows, width)


@given(parts, st.integers(1, 5))
def test_a_step_is_given_the_rows_before_again(heights, count):
    state, whole, top = PassState(), numbered(sum(heights)), 0
    for band in whole.split(heights, dim=2):
        found = state.with_kept("step", band.split(2, dim=2), count)
        assert torch.equal(stacked(found), whole[:, :, max(0, top - count) : top + band.shape[2]])
        top += band.shape[2]


def test_each_step_has_rows_of_its_own():
    state = PassState()
    state.with_kept("one", [numbered(3)], 2)
    assert state.with_kept("other", [numbered(3)], 2)[0].shape[2] == 0


def test_what_is_kept_of_a_band_is_a_copy():
    state, band = PassState(), torch.zeros(1, 1, 1000, 10)
    state.with_kept("step", [band], 2)
    assert state.with_kept("step", [band], 2)[0].untyped_storage().nbytes() == 2 * 10 * 4


@given(parts, st.integers(1, 3))
def test_pieces_on_top_of_each_other_and_channels_after_each_other_are_one_tensor(heights, channels):
    whole = torch.arange(2.0 * channels * sum(heights) * 5).reshape(2, channels, -1, 5)
    pieces = whole.split([*heights, 0], dim=2)
    assert torch.equal(stacked(pieces), whole)
    both = joined([pieces, [-whole]])
    assert torch.equal(both, torch.cat([whole, -whole], dim=1))
    assert stacked([whole]) is whole and both.is_contiguous(memory_format=torch.channels_last)


@given(parts, st.integers(0, 3), st.integers(0, 2), st.data())
def test_a_skip_gives_its_centre_in_order_whatever_the_parts(heights, above, again, data):
    heights = [heights[0] + 2 * above + again, *heights[1:]]
    whole, skip, top = numbered(sum(heights), 9), Skip(), above
    for i, part in enumerate(whole.split(heights, dim=2)):
        for piece in part.split(3, dim=2):
            skip.add(piece)
        held = sum(heights[: i + 1]) - top
        # Of the first band the height says where the centre begins; rows below it wait.
        rows = heights[0] - 2 * above if i == 0 else data.draw(st.integers(max(1, again), max(1, again, held)))
        skip.center((rows, 5))
        rows = min(rows, held)
        found = torch.cat(skip.take(rows, again=min(again, rows)), dim=2)
        assert torch.equal(found, whole[:, :, top : top + rows, 2:7])
        top += rows - min(again, rows)


def test_a_skip_holds_no_memory_of_rows_that_were_taken():
    skip, first = Skip(), torch.zeros(1, 1, 1000, 10)
    skip.add(first)
    skip.center((1000, 10))
    skip.take(990)
    skip.release()
    skip.add(torch.zeros(1, 1, 5, 10))
    assert [part.untyped_storage().nbytes() for part in skip._parts] == [400, 200]
