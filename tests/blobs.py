"""Images of touching blobs, for the tests of objects."""

import numpy as np
import tifffile
from scipy import ndimage as ndi


def blobs(shape, *, seed, coarse=4.0, share=0.4):
    """Return an image of bright, touching blobs of all sizes; `share` of it is bright."""
    noise = ndi.gaussian_filter(np.random.default_rng(seed).normal(size=shape), coarse, mode="wrap")
    return np.where(noise > np.quantile(noise, 1 - share), np.uint8(200), np.uint8(0))


def write_slide(folder):
    """Write a tiled TIFF of such blobs, and return its path."""
    tifffile.imwrite(folder / "slide.tif", blobs((420, 540), seed=0), tile=(128, 128))
    return folder / "slide.tif"
