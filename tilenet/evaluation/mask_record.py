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
    # Rows and columns of its image at full resolution, if it is of a coarser level, whose own are rounded up or down.
    full: tuple[int, int] | None = None


def recorded_of(path: Path) -> Recorded:
    """Return how a mask was made; a file that is none of tilenet's says nothing about it."""
    if not (is_ours(path) or is_tiff_mask(path)):
        return Recorded()
    with open_mask(path) as mask:
        record = mask.info["record"]
        by_plane = mask.has_objects and len(mask.info["model"]["footprint"]) == 2 and "link" not in record
        return Recorded(by_plane) if record.get("roi") else Recorded(by_plane, *_sizes_of(mask))


def _sizes_of(mask: AnyMask) -> tuple[tuple[Fraction, Fraction], tuple[int, int] | None]:
    """Return `factor` and `full` of a mask of a whole image; 1 if only the image says that, and is not there."""
    resolution = resolution_of(mask)
    if resolution.level == 0:
        return resolution.factor, None
    try:
        grid = find_grid(mask, None)
    except TilenetError:
        return Recorded.factor, None
    return grid.step, grid.limit


def nearest(shape: tuple[int, ...], wanted: tuple[int, ...], made: Recorded) -> Index | None:
    """Return which pixels of a resampled mask hold the centres of the pixels of its image; None if they do not fit.

    The last two axes of mask and image are y and x. What lies beyond the last pixel of a level that was rounded down is
    compared with that.

    >>> made = Recorded(factor=(Fraction(3, 2), Fraction(1)))
    >>> nearest((2, 3), (3, 3), made)[0].ravel().tolist(), nearest((1, 3), (3, 3), made)
    ([0, 1, 1], None)
    >>> made = Recorded(factor=(Fraction(2), Fraction(2)), full=(5, 5))
    >>> nearest((2, 3), (5, 5), made)[0].ravel().tolist(), nearest((2, 3), (4, 5), made)
    ([0, 0, 1, 1, 1], None)
    """
    sides = list(zip(shape[-2:], wanted[-2:], made.factor, strict=True))
    rounded_up = tuple(ceil_div(n * f.denominator, f.numerator) for _, n, f in sides)
    fits = wanted[-2:] == made.full if made.full else rounded_up == shape[-2:]
    if not fits or wanted[:-2] != shape[:-2]:
        return None
    # Pixel i covers [i f, (i + 1) f); the centre of pixel j of the image is at j + 1/2.
    centres = [(m, (2 * np.arange(n) + 1) * f.denominator // (2 * f.numerator)) for m, n, f in sides]
    return np.ix_(*map(np.arange, shape[:-2]), *(np.minimum(at, m - 1) for m, at in centres))
