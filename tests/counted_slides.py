"""Slides with a known number of bright squares, and how a batch counts them."""

import numpy as np
import pytest
import tifffile
from stub import BAD, Bright

SIZE = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 um
COUNTING = {"model": Bright(), "objects": True, "table": True, "threads": 1}


@pytest.fixture(name="slides")
def three_slides(tmp_path):
    """Return images with three, no and two bright squares; that in the middle has a pixel that cannot be computed."""
    places = {"a": ((10, 10), (40, 60), (80, 20)), "b": (), "c": ((5, 5), (60, 60))}
    for name, corners in places.items():
        pixels = np.zeros((120, 110), np.uint8)
        for y, x in corners:
            pixels[y : y + 20, x : x + 15] = 200
        if name == "b":
            pixels[50, 50] = BAD
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, tile=(32, 32), **SIZE)
    return [tmp_path / f"{name}.tif" for name in places]
