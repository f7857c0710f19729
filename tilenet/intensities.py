"""How bright objects are: the mean of each channel of the image over each object of a mask, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import SettingsError
from tilenet.provenance import closing, open_as_segmented, refuse_another
from tilenet.readers.image import Image
from tilenet.readers.resampled import at_resolution
from tilenet.resolution import recorded
from tilenet.shapes import has_objects
from tilenet.store import Mask
from tilenet.tiff_mask import TiffMask

Means = NDArray[np.float64]


def mean_intensities(mask: Mask | TiffMask, image: str | Path | None) -> tuple[list[str], Means]:
    """Return names of columns, and for each object (n + 1, C) the mean of each channel, as the image stores it.

    The image is read at the resolution of the mask, resampled where the mask is; all its channels are, whichever the
    network saw. Objects without pixels, and number 0, have NaN.

    Raises
    ------
    SettingsError
        If the mask has regions of classes instead of objects.
    OutputMismatch
        If the image is not the one that the mask was made from.
    """
    if not has_objects(mask):
        raise SettingsError(f"{mask.path}: intensities are of objects, and this mask has none. Make it with --objects")
    record = mask.info["record"]
    source = mask.info["image"]["path"] if image is None else image
    with closing(open_as_segmented(source, mask), source) as opened:
        refuse_another(opened, mask)
        seen = at_resolution(opened, recorded(record["level"], record["factor"], record["mpp"]))
        return _columns(seen), _means(mask, seen)


def _columns(image: Image) -> list[str]:
    """Return a name for each channel: its own, or else its number; with the number too where two have one name."""
    names = [name or str(k) for k, name in enumerate(image.channel_names)]
    return [f"mean_{name}" if names.count(name) == 1 else f"mean_{k}_{name}" for k, name in enumerate(names)]


def _means(mask: Mask | TiffMask, image: Image) -> Means:
    sums, counts = np.zeros((1, image.n_channels)), np.zeros(1)
    for index in range(mask.layout.n_blocks(0)):
        box = mask.layout.box(0, index)
        labels = mask[box.slices]
        inside = labels > 0
        if not inside.any():
            continue
        pixels = image.read(box.shifted(mask.origin))[:, inside]
        # Numbers follow the rows of the image: from the least on, they are those of a row of blocks.
        own = labels[inside].astype(np.int64)
        first = int(own.min())
        n = int(own.max()) + 1
        sums, counts = _longer(sums, n), _longer(counts, n)
        counts[first:n] += np.bincount(own - first)
        for channel, values in enumerate(pixels):
            sums[first:n, channel] += np.bincount(own - first, weights=values.astype(np.float64))
    with np.errstate(invalid="ignore"):
        means: Means = sums / counts[:, np.newaxis]
    return means


def _longer(array: NDArray[Any], n: int) -> NDArray[Any]:
    """Return an array with rows of zeros at the end, n at least."""
    if n <= len(array):
        return array
    return np.concatenate([array, np.zeros((max(n, 2 * len(array)) - len(array), *array.shape[1:]))])
