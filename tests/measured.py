"""Images of objects to be measured, what scikit-image measures of their pixels, and what a table says of them."""

import numpy as np
import pytest
import tifffile
from scipy import ndimage as ndi
from skimage.measure import regionprops_table

BLOBS = ndi.gaussian_filter(np.random.default_rng(0).normal(size=(200, 260)), 2)
# Blobs with holes, specks of a few pixels, and lines of one, at every border.
MANY_FORMS = np.where(BLOBS > 0, 200, 0).astype(np.uint8)
MANY_FORMS[::37, ::5] = 200
ALL = {"mean": "intensity_mean", "sd": "intensity_std", "min": "intensity_min", "max": "intensity_max"}


def write_named_channels(path, dtype=np.uint16):
    """Write an image of three named channels and two levels, whose first channel has bright blobs."""
    random = np.random.default_rng(0)
    blobs = ndi.gaussian_filter(random.normal(size=(200, 260)), 4)
    pixels = random.integers(0, 60_000, (3, 200, 260)) - (30_000 if dtype == np.int16 else 0)
    pixels[0] = np.where(blobs > np.quantile(blobs, 0.6), 200, 20)
    about = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(pixels.astype(dtype), subifds=1, tile=(64, 64), metadata=about, photometric="minisblack")
        writer.write(pixels[:, ::2, ::2].astype(dtype), subfiletype=1, tile=(64, 64), photometric="minisblack")
    return path


def measured(labels, pixels):
    """Return what `ALL` names (C, 4) of pixels (C, *n) over each object, by its number."""
    pixels = np.moveaxis(pixels, 0, -1).astype(float)
    found = regionprops_table(labels, pixels, properties=("label", *ALL.values()))
    table = np.array([[found[f"{name}-{c}"] for name in ALL.values()] for c in range(pixels.shape[-1])])
    return dict(zip(found["label"].tolist(), np.moveaxis(table, -1, 0), strict=True))


def assert_measured(lines, truth, channels, *, which=tuple(ALL), **within):
    """Compare the lines of a table with `measured`, for channels by their names, as closely as `pytest.approx` says."""
    assert {int(line["object"]) for line in lines} == set(truth)
    for line in lines:
        for name, expected in zip(channels, truth[int(line["object"])], strict=True):
            found = [float(line[f"{column}_{name}"]) for column in which]
            assert found == pytest.approx(expected[: len(which)], **within)
