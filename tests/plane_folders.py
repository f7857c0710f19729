"""Folders of planes that tests write."""

import numpy as np
import tifffile
from PIL import Image as Picture

RANDOM = np.random.default_rng(11)


def planes(folder, names, *, shape=(20, 30), dtype=np.uint8):
    """Write one plane per name, all of them different; return (z, y, x)."""
    folder.mkdir(exist_ok=True)
    stack = RANDOM.integers(0, 200, (len(names), *shape)).astype(dtype)
    for name, plane in zip(names, stack, strict=True):
        if name.endswith(".tif"):
            tifffile.imwrite(folder / name, plane)
        else:
            Picture.fromarray(plane).save(folder / name)
    return stack
