"""What the tests of tissue share: slides with glass, and a mask of one's own."""

import numpy as np
import pytest
import tifffile
from stub import Bright

SIDES, BLOCK = (1100, 1500), 512
OPTIONS = {"model": Bright(bright=90), "tile": BLOCK, "threads": 1}


def glass(sides=SIDES, *, seed=0):
    """Return fluorescence of a dark background, half of whose pixels are foreground to `OPTIONS`' model."""
    return np.random.default_rng(seed).integers(5, 16, sides, dtype=np.uint8)


@pytest.fixture(name="slide")
def a_slide(tmp_path):
    """Return a pyramid with tissue in (300:600, 500:900)."""
    pixels = glass()
    pixels[300:600, 500:900] += np.random.default_rng(1).integers(40, 200, (300, 400), dtype=np.uint8)
    return write(tmp_path / "slide.tif", pixels)


@pytest.fixture(name="own")
def a_mask_of_ones_own():
    mask = np.zeros((110, 150), np.uint8)
    mask[30:31, 70:71] = 255
    return mask


def write(path, pixels):
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(64, 64), subifds=2, resolution=(20000, 20000), resolutionunit="CENTIMETER")
        for k in (2, 4):
            means = pixels[: SIDES[0] // k * k, : SIDES[1] // k * k].reshape(SIDES[0] // k, k, SIDES[1] // k, k)
            tiff.write(means.mean(axis=(1, 3)).astype(np.uint8), tile=(64, 64), subfiletype=1)
    return path


def blocks_of(mask, computed):
    """Yield each block's pixels, of those that were computed or of those that were skipped."""
    layout = mask.layout
    for index in range(layout.n_blocks(0)):
        box = layout.box(0, index)
        if layout.block_has_tissue_at(*np.transpose([box.start[-2:]]))[0, 0] == computed:
            yield box.slices
