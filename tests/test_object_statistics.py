"""Standard deviation, least and largest value of each object, against NumPy, scikit-image and Python's integers."""

import csv
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import tifffile
from contents import lines_of
from scipy import ndimage as ndi
from skimage.color import rgb2hed
from skimage.measure import regionprops_table
from stub import Bright

import tilenet
from tilenet.export.object_statistics import ObjectStatistics
from tilenet.export.positive_rules import STAINS, is_judged_by
from tilenet.export.table import read_table
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering

RANDOM = np.random.default_rng(0)
BLOBS = ndi.gaussian_filter(RANDOM.normal(size=(200, 260)), 4)
NUCLEI = np.quantile(BLOBS, 0.6) < BLOBS
ALL = ("mean", "sd", "min", "max")


def truth_of(labels, pixels):
    """Return mean, standard deviation, minimum and maximum (C, 4) of pixels (C, y, x), by number of the object."""
    names = [f"intensity_{name}" for name in ("mean", "std", "min", "max")]
    found = regionprops_table(labels, np.moveaxis(pixels, 0, -1).astype(float), properties=("label", *names))
    return {
        int(number): np.array([[found[f"{name}-{c}"][k] for name in names] for c in range(len(pixels))])
        for k, number in enumerate(found["label"])
    }


def values_of(line, name):
    return [float(line[f"{which}_{name}"]) for which in ALL]


def write_slide(path, pixels, names):
    about = {"axes": "CYX", "Channel": {"Name": names}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, pixels, tile=(64, 64), metadata=about, ome=True, photometric="minisblack")
    return path


def fluorescence(dtype):
    pixels = np.stack([np.where(NUCLEI, 200, 20), RANDOM.integers(0, 60_000, NUCLEI.shape)])
    return (pixels - (30_000 if dtype == np.int16 else 0)).clip(-30_000, None).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32])
def test_the_spread_of_channels_is_that_of_scikit_image_whatever_the_blocks(tmp_path, dtype):
    pixels, tables = fluorescence(dtype), []
    slide = write_slide(tmp_path / "s.ome.tif", pixels, ["DAPI", "GFP"])
    bright = Bright(bright=900 if dtype != np.int16 else -269_000)
    for block in (64, 256):
        out = tmp_path / f"{block}.zarr"
        options = Options(channels="DAPI", block=block, tile=64, output="objects")
        numbering.store_objects(out, Request(slide, bright, options))
        found = tilenet.write_table(out, tmp_path / "o.csv", intensities=True, overwrite=True)
        assert read_table(out, tmp_path / "o.csv") == found
        tables.append([line | {"id": ""} for line in lines_of(tmp_path / "o.csv")])
    assert tables[0] == tables[1]
    truth = truth_of(tilenet.open_mask(out)[...], pixels)
    assert list(tables[0][0])[-8:] == [f"{which}_{name}" for name in ("DAPI", "GFP") for which in ALL]
    assert len(truth) == len(tables[0]) > 10
    for line in tables[0]:
        for k, name in enumerate(("DAPI", "GFP")):
            assert values_of(line, name) == pytest.approx(truth[int(line["object"])][k], rel=1e-6)


def test_densities_of_stains_have_a_spread_only_where_they_are_asked_for(tmp_path):
    noise, brown = RANDOM.integers(-30, 30, (*NUCLEI.shape, 3)), np.array([130, 90, 60])
    pixels = np.where(NUCLEI[..., None], brown + noise, 240 + noise // 2).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", pixels, tile=(64, 64), photometric="rgb")
    mask = tilenet.segment(tmp_path / "s.tif", tmp_path / "o.zarr", model=Dark(), objects=True, scaling="none")
    densities = np.moveaxis(np.maximum(6 * rgb2hed(np.maximum(pixels, 1)), 0), -1, 0)
    truth = truth_of(mask[...], densities)
    tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", stains=True, positive="red>150")
    lines = lines_of(tmp_path / "o.csv")
    assert [name for name in lines[0] if "_red" in name] == ["mean_red"]
    for line in lines:
        for k, name in enumerate(STAINS):
            assert values_of(line, name) == pytest.approx(truth[int(line["object"])][k], abs=2e-6)
    assert is_judged_by(tmp_path / "o.csv", "red>150") and len(lines) > 10
    # As tables were before.
    with (tmp_path / "old.csv").open("w", newline="") as file:
        means = [name for name in lines[0] if not name.startswith(("sd_", "min_", "max_"))]
        old = csv.DictWriter(file, means, extrasaction="ignore")
        old.writeheader()
        old.writerows(lines)
    assert is_judged_by(tmp_path / "old.csv", "red>150")
    first, second = (read_table(tmp_path / "o.zarr", tmp_path / name) for name in ("o.csv", "old.csv"))
    assert replace(first, path=second.path) == second and second.positive.total() < len(lines)
    tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", positive="dab>0.2", overwrite=True)
    columns = [*(f"mean_{stain}" for stain in STAINS), "positive"]
    assert list(lines_of(tmp_path / "o.csv")[0])[-4:] == columns and is_judged_by(tmp_path / "o.csv", "dab>0.2")


class Dark:
    """Finds what is dark in green."""

    footprint = tilenet.Footprint.same(2, reach=0)

    def __call__(self, batch):
        return np.concatenate([np.full_like(batch[:, :1], 170, np.float32), 340 - batch[:, 1:2].astype(np.float32)], 1)


def spread_of(objects, values, pieces, *, exact):
    """Return what the objects have if their pixels come in pieces, in another order."""
    found = ObjectStatistics([False, True], int(objects.max()), exact=exact)
    for piece in RANDOM.permutation(pieces):
        mine = RANDOM.permutation(np.flatnonzero(np.arange(len(objects)) % pieces == piece))
        for place in (0, 1):
            found.add(place, objects[mine], values[mine])
    assert found.of(0, 1) == ()
    return [found.of(1, number) for number in range(1, int(objects.max()) + 1)]


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.uint32, 2**32 - 9, 2**32), (np.int32, -(2**31), 2**31)])
def test_sums_of_squares_beyond_2_to_the_64_lose_no_digit(dtype, low, high):
    values, objects = RANDOM.integers(low, high, 100_000).astype(dtype), RANDOM.integers(1, 4, 100_000)
    found = spread_of(objects, values, 1, exact=True)
    for number, (deviation, least, most) in enumerate(found, start=1):
        own = values[objects == number].tolist()
        total, squares, n = sum(own), sum(value**2 for value in own), len(own)
        assert squares > 2**64
        assert (deviation, least, most) == (sqrt(n * squares - total**2) / n, min(own), max(own))
    assert found == spread_of(objects, values, 7, exact=True) and found[0][0] > 1


def test_real_numbers_that_are_large_and_nearly_equal_keep_their_digits():
    objects = np.repeat([1, 2, 3, 4], 1000)
    noise = RANDOM.normal(size=4000)
    values = np.where(objects == 2, 0.1, 1e9 + noise)
    values[objects == 3] += 1e-3
    values[3500] = np.nan
    first, constant, third, missing = spread_of(objects, values, 5, exact=False)
    for number, found in ((1, first), (3, third)):
        own = values[objects == number]
        assert found == (pytest.approx(np.std(own - 1e9), rel=1e-7), own.min(), own.max())
    assert constant == (0, 0.1, 0.1) and np.isnan(missing).all()
    infinite = spread_of(np.ones(4, np.int64), np.array([np.inf, 1, 2, 3]), 2, exact=False)
    assert np.isnan(infinite[0][0]) and infinite[0][1:] == (1, np.inf)


def test_an_object_of_one_pixel_does_not_vary():
    assert spread_of(np.array([1, 2]), np.array([7, 9], np.uint8), 1, exact=True) == [(0, 7, 7), (0, 9, 9)]
