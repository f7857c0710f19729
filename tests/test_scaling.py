"""Percentiles that are counted, against NumPy's; and pixels that float32 cannot hold."""

import json

import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import random_network
from stub import Bright

import tilenet
from tilenet import scaling
from tilenet.errors import ImageError, SettingsError, TilenetError
from tilenet.footprint import Footprint
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.readers import open_image
from tilenet.scaling import COUNTED, Scaling, grid_of_windows, of_percentiles, percentiles, sample_pixels

PERCENTS = st.lists(st.one_of(st.floats(0, 100), st.sampled_from([0, 1, 50, 99.8, 100])), min_size=1, max_size=3)
POINT = Footprint.same(2, reach=0)
DTYPES = ("uint8", "uint16", ">u2", "uint32", "float32")


@given(st.lists(arrays(np.uint8, st.integers(1, 60)), min_size=1, max_size=3), st.sampled_from(DTYPES), PERCENTS)
def test_percentiles_are_those_of_numpy_to_the_last_bit(bytes_, dtype, percents):
    parts = [(some.astype(np.uint16) * (257 if np.dtype(dtype).itemsize == 2 else 1)).astype(dtype) for some in bytes_]
    np.testing.assert_array_equal(percentiles(parts, percents), np.percentile(np.concatenate(parts), percents))


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=9), PERCENTS)
@example([-30000, 30000], [50])
def test_percentiles_of_signed_integers_do_not_overflow(values, percents):
    expected = np.percentile(np.array(values, float), percents)
    for dtype in (np.int16, np.int32, np.int64):
        np.testing.assert_array_equal(percentiles([np.array(values, dtype)], percents), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_percentiles_of_more_than_is_counted_at_once_are_those_of_numpy(dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 2 * COUNTED + 17, dtype, endpoint=True)
    np.testing.assert_array_equal(percentiles([values], [1, 99.8]), np.percentile(values, [1, 99.8]))


def test_percentiles_are_of_the_finest_level_that_is_not_too_large(tmp_path, monkeypatch):
    levels = [np.full((64 // n, 64 // n), n, np.uint8) for n in (1, 2, 4)]
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        for level, pixels in enumerate(levels):
            file.write(pixels, tile=(16, 16), subifds=0 if level else 2, subfiletype=int(level > 0))
    for most, expected in ((64 * 64, 1), (64 * 64 - 1, 2), (16 * 16, 4), (1, 4)):
        monkeypatch.setattr(scaling, "WHOLE_LEVEL", most)
        with open_image(tmp_path / "pyramid.tif") as image:
            assert len(image.levels) == 3
            assert {int(v) for part in sample_pixels(image) for v in np.unique(part)} == {expected}


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ((9999, 9999), (8, 8)),
        ((300, 9999), (2, 8)),
        ((99, 9999, 9999), (8, 8, 8)),
        ((99, 99, 9999, 9999), (2, 3, 8, 8)),
        ((99, 99, 300, 9999), (5, 6, 2, 8)),
        ((99, 99, 300, 300), (8, 8, 2, 2)),
    ],
)
def test_windows_reach_from_end_to_end_and_of_a_series_of_stacks_they_are_no_more_than_of_a_stack(shape, counts):
    windows = grid_of_windows(shape)
    assert len(windows) == len(set(windows)) == np.prod(counts) <= 512
    for axis, count in enumerate(counts):
        starts = {window.start[axis] for window in windows}
        assert len(starts) == count
        assert min(starts) == 0
        assert max(window.stop[axis] for window in windows) == shape[axis]


def test_pixels_that_are_no_numbers_have_no_percentiles():
    for parts in ([[1, np.nan]], [[1, 2], [np.inf, 3]], [[np.nan], [1]]):
        with pytest.raises(ImageError, match=r"scan\.tif: has pixels that are not finite"):
            of_percentiles([np.array([part], np.float32) for part in parts], {"low": 1, "high": 99}, name="scan.tif")


def test_a_flat_image_is_divided_by_1():
    assert of_percentiles([np.full((1, 9), 7, np.uint8)], {"low": 1, "high": 99}, name="") == Scaling((7.0,), (1.0,))


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_percentiles_are_of_each_channel_or_of_all_and_their_difference_divides(dtype):
    parts = [np.random.default_rng(0).integers(0, 99, (2, n, 5), np.uint8).astype(dtype) for n in (3, 4)]
    channels = np.concatenate([part.reshape(2, -1) for part in parts], axis=1)
    for per_channel, rows in ((True, channels), (False, channels.reshape(1, -1))):
        found = of_percentiles(parts, {"low": 10, "high": 90, "per_channel": per_channel}, name="scan.tif")
        low, high = np.percentile(rows, [10, 90], axis=1)
        assert (found.subtract, found.divide) == (tuple(low), tuple(high - low))
        assert len({*found.subtract}) == len(rows)


@pytest.mark.parametrize("shape", [(1, 3), (3, 5), (8, 2), (2, 7, 3)])
def test_a_small_image_is_sampled_whole_each_pixel_once(shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    image = open_image(pixels, axes="zyx"[-len(shape) :])
    assert sorted(value for part in sample_pixels(image) for value in part.flat) == list(range(pixels.size))


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64", "uint64", "float64"])
@pytest.mark.parametrize("engine", ["plain", "fast", "function"])
def test_pixels_that_float32_would_round_are_scaled_before_they_are_rounded(dtype, engine):
    small = np.random.default_rng(0).integers(0, 200, (60, 70))
    rule = {"method": "linear", "subtract": 2**25, "divide": 2}
    network = random_network(depth=2, wf=4)
    model, how = (network, {"engine": engine}) if engine != "function" else (lambda x: x - 50, {"footprint": POINT})
    logits = tilenet.segment((small + 2**25).astype(dtype), model=model, output="logits", scaling=rule, **how)
    expected = tilenet.segment(
        small.astype(np.uint8), model=model, output="logits", scaling=rule | {"subtract": 0}, **how
    )
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
    ("dtype", "subtract", "divide"),
    [
        ("uint8", 0, 1e-320),
        ("uint8", 0, -1e-320),
        ("uint8", 0, 1e-37),
        ("uint8", 1e300, 1),
        ("uint32", 0, 1e-320),
        ("int16", 0, [1, 1e-320]),
        ("float32", 0, 1e-40),
        ("float64", 0, 1e-320),
        ("bool", 0, 1e-320),
    ],
)
def test_a_divisor_of_which_no_finite_pixels_come_is_refused_before_the_run(tmp_path, dtype, subtract, divide):
    image = np.ones((2, 20, 30), dtype)
    rule = {"method": "linear", "subtract": subtract, "divide": divide}
    with pytest.raises(SettingsError, match=r"divided by .*, are not finite numbers\. Give another scaling"):
        tilenet.segment(
            image,
            tmp_path / "m.zarr",
            axes="cyx",
            model=lambda x: x - 1,
            footprint=POINT,
            scaling=rule,
            channels=[0, 1],
        )
    assert not (tmp_path / "m.zarr").exists()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"method": "percentile", "low": 99, "high": 1}, "percentiles 99 and 1: give two from 0 to 100"),
        ({"method": "percentile", "low": 1}, "cannot be used .KeyError: 'high'"),
        ({"method": "percentile", "low": -1, "high": 99}, "percentiles -1 and 99: give two from 0 to 100"),
        ({"method": "percentile", "low": 1, "high": 101}, "percentiles 1 and 101: give two from 0 to 100"),
        ({"method": "percentile", "low": 9, "high": 9}, "percentiles 9 and 9: give two from 0 to 100"),
        ({"method": "linear", "divide": 0}, "cannot divide by 0"),
        ({"method": "linear", "clip": [3, 3]}, "cannot be used .ValueError: it would be"),
        ({"method": "linear", "subtract": float("inf")}, "cannot be used .ValueError: it would be"),
        ({"method": "linear", "divide": [1, 2]}, "it has numbers for other than 1 channels"),
        ({"method": "linear", "gain": 2}, "it knows no gain"),
        ({"method": "sqrt"}, "method 'sqrt' is none of"),
    ],
)
def test_a_rule_that_suits_no_pixels_is_refused_when_a_run_is_planned(rule, said):
    with pytest.raises(TilenetError, match=said):
        make_job(np.ones((20, 30)), Bright(), Options(scaling=rule))


@pytest.mark.parametrize("clip", [None, (-1.0, 5.0)])
@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 4)])
def test_each_channel_is_scaled_by_its_own_numbers_and_these_come_back_from_a_record(shape, clip):
    pixels = np.random.default_rng(0).integers(0, 30, shape).astype(np.uint8)
    recorded = json.loads(json.dumps(Scaling((0.0, 3.0), (1.0, 2.0), clip).to_json()))
    low, high = clip or (-np.inf, np.inf)
    expected = np.clip(np.stack([pixels[0], (pixels[1] - 3.0) / 2]), low, high)
    assert np.array_equal(Scaling.from_json(recorded).apply(pixels), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize("divide", [1e-20, 1e30, -3])
def test_far_divisors_of_finite_pixels_are_taken(dtype, divide):
    rule = {"method": "linear", "subtract": 100, "divide": divide}
    logits = tilenet.segment(
        np.ones((20, 30), dtype), model=lambda x: x - 1, footprint=POINT, scaling=rule, output="logits"
    )
    assert np.isfinite(logits).all()
