"""Images of touching blobs, for the tests of objects."""

import numpy as np
import tifffile
from scipy import ndimage as ndi


def blobs(shape, *, seed, coarse=4.0, share=0.4):
    """Return an image of bright, touching blobs of all sizes; `share` of it is bright."""
    noise = ndi.gaussian_filter(np.random.default_rng(seed).normal(size=shape), coarse, mode="wrap")
    return np.where(noise > np.quantile(noise, 1 - share), np.uint8(200), np.uint8(0))


def write_slide(folder, *, sides=(420, 540)):
    """Write a tiled TIFF of such blobs, and return its path."""
    tifffile.imwrite(folder / "slide.tif", blobs(sides, seed=0), tile=(128, 128))
    return folder / "slide.tif"


def balls(um, *, n=8, radius=2.5, field=(10.0, 16.0, 16.0)):
    """Return a volume of touching and overlapping balls, all sizes in micrometres, in voxels of `um`."""
    random, centres = np.random.default_rng(5), []
    while len(centres) < n:
        centre = random.uniform(radius, np.array(field) - radius)
        if all(np.linalg.norm(centre - other) > 1.75 * radius for other in centres):
            centres.append(centre)
    places = np.meshgrid(*[(np.arange(round(s / u)) + 0.5) * u for s, u in zip(field, um, strict=True)], indexing="ij")
    away = [np.linalg.norm(np.stack(places, axis=-1) - centre, axis=-1) for centre in centres]
    return np.where(np.min(away, axis=0) < radius, np.uint8(200), np.uint8(0))
