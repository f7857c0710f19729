"""Measure how bright objects are: the mean of each channel of the image over each object of a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import SettingsError
from tilenet.provenance import check_image, closing, open_as_segmented, resolution_of
from tilenet.readers.image import Image
from tilenet.readers.resampled import at_resolution
from tilenet.store import AnyMask

Means = NDArray[np.float64]


def check_intensities(mask: AnyMask, image: str | Path | None) -> None:
    """Raise if the intensities of a mask cannot be measured in an image; reads no pixels.

    Raises
    ------
    SettingsError
        If the mask has regions of classes instead of objects.
    ImageError
        If the image cannot be opened.
    OutputMismatch
        If the image is not the one that the mask was made from.
    """
    if not mask.has_objects:
        raise SettingsError(
            f"{mask.path}: has classes, and intensities are measured for objects. Make it with --objects"
        )
    check_image(_source(mask, image), mask)


def mean_intensities(mask: AnyMask, image: str | Path | None) -> tuple[list[str], Means]:
    """Return column names, and the mean of each channel over each object, (n + 1, C), in the units of the image.

    The image, which `check_intensities` has accepted, is read block by block at the resolution of the mask, resampled
    if the mask was made from resampled pixels. All channels are measured, not only those that the network saw. The row
    of number 0 is NaN.
    """
    source = _source(mask, image)
    with closing(open_as_segmented(source, mask), source) as opened:
        seen = at_resolution(opened, resolution_of(mask))
        return _columns(seen), _means(mask, seen)


def _source(mask: AnyMask, image: str | Path | None) -> Any:
    return mask.info["image"]["path"] if image is None else image


def _columns(image: Image) -> list[str]:
    """Return a column name for each channel: from its name or else its number, with both if a name is used twice."""
    names = [name or str(k) for k, name in enumerate(image.channel_names)]
    return [f"mean_{name}" if names.count(name) == 1 else f"mean_{k}_{name}" for k, name in enumerate(names)]


def _means(mask: AnyMask, image: Image) -> Means:
    n = mask.info["objects"]
    sums, counts = np.zeros((n + 1, image.n_channels)), np.zeros(n + 1)
    for index in range(mask.layout.n_blocks(0)):
        box = mask.layout.box(0, index)
        labels = mask[box.slices]
        inside = labels > 0
        if not inside.any():
            continue
        pixels = image.read(box.shifted(mask.origin))[:, inside]
        # Objects are numbered row by row, so that the numbers in a block span at most those of a row of blocks.
        own = labels[inside].astype(np.int64)
        first, here = int(own.min()), slice(int(own.min()), int(own.max()) + 1)
        counts[here] += np.bincount(own - first)
        for channel, values in enumerate(pixels):
            sums[here, channel] += np.bincount(own - first, weights=values.astype(np.float64))
    with np.errstate(invalid="ignore"):
        means: Means = sums / counts[:, np.newaxis]
    return means
