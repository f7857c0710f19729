"""Read a level in pieces on a fixed grid, so that what a library reads never depends on the box asked for."""

from __future__ import annotations

from collections.abc import Callable

from tilenet.geometry import Box, cells_touched
from tilenet.readers.image import Pixels


def assemble(
    out: Pixels, box: Box, *, shape: tuple[int, ...], side: tuple[int, int], piece: Callable[[Box], Pixels]
) -> None:
    """Fill a box of a plane from the pieces that it touches.

    Parameters
    ----------
    out : numpy.ndarray
        (C, y, x), the pixels of `box`, to be filled.
    box : Box
        Box inside the plane.
    shape : tuple of int
        Height and width of the plane.
    side : tuple of int
        Height and width of a piece; pieces at the far edges are smaller.
    piece : callable
        Function from the box of a piece to its pixels (C, y, x).
    """
    for cell in cells_touched(box, side, shape):
        part = cell & box
        out[:, *part.relative_to(box.start).slices] = piece(cell)[:, *part.relative_to(cell.start).slices]
