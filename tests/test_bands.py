"""Bands cover a tile once, each of a length that the network takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilenet
from tilenet.bands import BAND_BYTES, MOST_PIXELS, Demand, band_pixels, can_band, split_rows
from tilenet.footprint import AxisFootprint

networks = st.builds(
    lambda depth, pool: tilenet.UNet(depth=depth, wf=0, pool_size=(pool, 2)).footprint.axes[0],
    st.integers(1, 4),
    st.integers(1, 3),
)


@given(networks, st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 10**7))
def test_bands_cover_each_row_once_the_first_legal_and_the_others_whole_steps(axis, more, width, pixels):
    length = axis.legal_at_least(more)
    bands = split_rows(axis, length, width, pixels)
    assert [row for start, stop in bands[:500] for row in range(start, stop)] == list(range(bands[:500][-1][1]))
    assert bands[-1][1] == length
    assert axis.is_legal(bands[0][1])
    assert all(stop > start and (stop - start) % axis.step == 0 for start, stop in bands[1:])


@given(networks, st.integers(1, 10**4), st.integers(1, 10**7))
def test_a_band_holds_no_more_pixels_than_it_may_unless_the_network_needs_more_rows(axis, width, pixels):
    least = max(4 * axis.step, axis.smallest)
    for start, stop in split_rows(axis, axis.legal_at_least(3000), width, pixels):
        assert (stop - start) * width <= max(pixels + axis.step * width, (least + axis.step) * width)


@pytest.mark.parametrize(
    ("options", "may"), [({}, True), ({"padding": True}, False), ({"up_mode": "upsample"}, False)], ids=str
)
def test_networks_that_pad_or_clamp_are_not_done_in_bands(options, may):
    assert can_band(tilenet.UNet(depth=3, wf=0, **options).footprint.axes[0]) == may


def test_a_demand_grows_with_the_tile_by_what_is_not_in_bands():
    axis = AxisFootprint(step=16, lost=92, smallest=188)
    demand = Demand(per_pixel=10, in_band=1000, axis=axis, pixels=500_000)
    assert demand.of((188, 204)) == 1010 * 188 * 204
    assert demand.of((1, 4092, 3068)) == 10 * 4092 * 3068 + 1000 * 3068 * 188
    assert demand.of((2044, 2044), batch=2) == demand.of((2044, 4088))
    assert Demand(10, 1000).of((4, 5, 6), batch=3) == 1010 * 360
    assert Demand(10).of((4, 5, 6)) == 10 * 120


@pytest.mark.parametrize("wf", range(8))
def test_bands_are_as_large_for_all_networks_but_narrow_ones(wf):
    pixels = band_pixels(2**wf)
    held = pixels * 4 * 2**wf
    assert held <= BAND_BYTES
    assert pixels == MOST_PIXELS if wf < 5 else held > 0.98 * BAND_BYTES
