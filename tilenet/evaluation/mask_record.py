"""What a mask of tilenet says about itself where it is scored: where objects end, and how it lies on its image."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import TilenetError
from tilenet.export.placement import find_grid
from tilenet.geometry import ceil_div
from tilenet.masks.provenance import resolution_of
from tilenet.masks.tiff_mask import is_tiff_mask, open_mask
from tilenet.store import AnyMask, is_ours

Index = tuple[NDArray[np.intp], ...]


@dataclass(frozen=True)
class Recorded:
    """How a mask was made."""

    # Whether its objects lie in one plane each, as a 2-D network finds them, and were not linked.
    by_plane: bool = False
    # How many pixels of its image at full resolution one of its pixels covers along y and x; 1 of a part.
    factor: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))


def recorded_of(path: Path) -> Recorded:
    """Return how a mask was made; a file that is none of tilenet's says nothing about it."""
    if not (is_ours(path) or is_tiff_mask(path)):
        return Recorded()
    with open_mask(path) as mask:
        record = mask.info["record"]
        by_plane = mask.has_objects and len(mask.info["model"]["footprint"]) == 2 and "link" not in record
        return Recorded(by_plane, Recorded.factor if record.get("roi") else _factor_of(mask))


def _factor_of(mask: AnyMask) -> tuple[Fraction, Fraction]:
    """Return how many pixels of its image one of a mask covers; 1 if only the image says that, and is not there."""
    resolution = resolution_of(mask)
    if resolution.level == 0:
        return resolution.factor
    try:
        return find_grid(mask, None).step
    except TilenetError:
        return Recorded.factor


def nearest(shape: tuple[int, ...], wanted: tuple[int, ...], factor: tuple[Fraction, Fraction]) -> Index | None:
    """Return which pixels of a resampled mask hold the centres of the pixels of its image; None if they do not fit.

    The last two axes of mask and image are y and x; `factor` is how many pixels of the image one of the mask covers
    along them.

    >>> nearest((2, 3), (3, 3), (Fraction(3, 2), Fraction(1)))[0].ravel().tolist()
    [0, 1, 1]
    """
    steps = [(ceil_div(n * f.denominator, f.numerator), n, f) for n, f in zip(wanted[-2:], factor, strict=True)]
    if (*wanted[:-2], *(m for m, _, _ in steps)) != shape:
        return None
    # Pixel i covers [i f, (i + 1) f); the centre of pixel j of the image is at j + 1/2.
    at = [(2 * np.arange(n) + 1) * f.denominator // (2 * f.numerator) for _, n, f in steps]
    return np.ix_(*map(np.arange, shape[:-2]), *at)
