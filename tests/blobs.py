"""Images of touching blobs, for the tests of objects."""

import numpy as np
from scipy import ndimage as ndi


def blobs(shape, *, seed, coarse=4.0, share=0.4):
    """Return an image of bright, touching blobs of all sizes; `share` of it is bright."""
    noise = ndi.gaussian_filter(np.random.default_rng(seed).normal(size=shape), coarse, mode="wrap")
    return np.where(noise > np.quantile(noise, 1 - share), np.uint8(200), np.uint8(0))
