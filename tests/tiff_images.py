"""Small TIFFs that tests write, and what is read of them."""

import numpy as np
import tifffile

from tilenet.geometry import Box
from tilenet.readers import open_image

WINDOWS = [Box((0, 0), (100, 130)), Box((31, 60), (65, 129)), Box((99, 0), (100, 1)), Box((48, 5), (49, 130))]


def noise(shape, dtype=np.uint8):
    values = np.random.default_rng(5).integers(0, 200, shape)
    # Runs, so that every codec has something to do.
    return np.repeat(values, 2, axis=-1)[..., : shape[-1]].astype(dtype)


def write(folder, pixels, **options):
    path = folder / "image.tif"
    tifffile.imwrite(path, pixels, **options)
    return path


def assert_reads(path, whole, **options):
    """Check windows of an image against its whole pixels (C, ..., y, x)."""
    with open_image(path, **options) as image:
        assert image.dtype == whole.dtype
        for window in WINDOWS:
            outer = whole.shape[1:-2]
            box = Box((0,) * len(outer) + window.start, outer + window.stop)
            np.testing.assert_array_equal(image.read(box), whole[..., *window.slices])
        return image
