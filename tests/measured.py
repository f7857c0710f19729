"""What scikit-image measures of the pixels of objects, and what a table says of them."""

import numpy as np
import pytest
from skimage.measure import regionprops_table

ALL = {"mean": "intensity_mean", "sd": "intensity_std", "min": "intensity_min", "max": "intensity_max"}


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
