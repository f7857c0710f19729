"""A level cut into pieces on a grid of its own: what a library reads never depends on the box asked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from tilenet.geometry import Box, round_down
from tilenet.readers.image import Pixels


def assemble(
    out: Pixels, box: Box, *, shape: tuple[int, ...], side: tuple[int, int], piece: Callable[[Box], Pixels]
) -> None:
    """Fill a plane from its pieces.

    Parameters
    ----------
    out : numpy.ndarray
        (C, y, x), of the box.
    box : Box
        Inside the plane.
    shape : tuple of int
        Of the plane.
    side : tuple of int
        Height and width of a piece; those at the far edges are smaller.
    piece : callable
        From the box of a piece to its pixels (C, y, x).
    """
    corners = [range(round_down(a, n), b, n) for a, b, n in zip(box.start, box.stop, side, strict=True)]
    for corner in product(*corners):
        cell = Box(corner, tuple(min(a + s, n) for a, s, n in zip(corner, side, shape, strict=True)))
        part = cell & box
        out[:, *part.relative_to(box.start).slices] = piece(cell)[:, *part.relative_to(cell.start).slices]
