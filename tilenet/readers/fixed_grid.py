"""Read a level in pieces on a fixed grid, so that what a library reads never depends on the box asked for."""

from __future__ import annotations

from collections.abc import Callable

from tilenet.geometry import Box, cells_touched
from tilenet.readers.image import Pixels


def assemble(
    out: Pixels, box: Box, *, shape: tuple[int, ...], side: tuple[int, int], piece: Callable[[Box], Pixels]
) -> None:
    """Fill `out` (C, y, x) with a box of a plane, from the pieces that it touches.

    A plane of `shape` is divided into pieces of height and width `side`; those at the far edges are smaller. `piece`
    returns the pixels (C, y, x) of the box of one.
    """
    for cell in cells_touched(box, side, shape):
        part = cell & box
        out[:, *part.relative_to(box.start).slices] = piece(cell)[:, *part.relative_to(cell.start).slices]
