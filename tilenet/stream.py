"""What a pass through a network holds from one band of rows to the next (see `tilenet.bands`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 2  # The axis of (N, C, h, w).


class NotFinite(Exception):
    """Logits that were to be decided upon are no numbers."""


class Stream:
    """The rows that steps need again, and the skips on their way from the contracting to the expanding path.

    Attributes
    ----------
    skips : dict
        By their level.
    last : bool
        Whether no rows come after those that are on their way, so that zeros are padded below them.
    values : torch.Tensor, optional
        The mask value of each class, (K) uint8, where the last step decides upon logits at once.
    """

    def __init__(self, values: Tensor | None = None) -> None:
        self.values = values
        self.skips: dict[int, Skip] = defaultdict(Skip)
        self.last = True
        self._last: dict[object, Tensor] = {}

    def after(self, step: object, pieces: Sequence[Tensor], count: int) -> list[Tensor]:
        """Return the last rows that a step was given, none at first, and `pieces`; keep the last `count` of both."""
        rows = [self._last.get(step, pieces[0][:, :, :0]), *pieces]
        # A copy, lest a few rows keep all of them in memory.
        self._last[step] = stacked(last_rows(rows, count)).clone()
        return rows


class Skip:
    """Rows that wait for those that join them: the centre of what is added, in its order."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._begun = False

    def add(self, x: Tensor) -> None:
        """Add rows (N, C, h, w) below those that wait."""
        self._parts.append(x)

    def release(self) -> None:
        """Let go of rows that were taken: of a band they are most, and those that wait are views of all."""
        self._parts = [part.clone() for part in self._parts]

    def center(self, shape: Sequence[int]) -> None:
        """Let the next rows taken be those over which the next (N, C, *shape) come to lie.

        The first band is a legal input of its own, so that its centre is where that of the tile begins.
        """
        height, width = shape
        if not self._begun:
            self.take((sum(part.shape[ROWS] for part in self._parts) - height) // 2)
            self._begun = True
        self._parts = [part.narrow(-1, (part.shape[-1] - width) // 2, width) for part in self._parts]

    def take(self, rows: int, *, again: int = 0) -> list[Tensor]:
        """Return the next rows in pieces; the last `again` of them are taken another time."""
        taken = between(self._parts, 0, rows)
        self._parts = between(self._parts, rows - again, height_of(self._parts))
        return taken


def last_rows(pieces: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the last rows of pieces on top of each other, all of them if there are no more than `count`."""
    return between(pieces, max(0, height_of(pieces) - count), height_of(pieces))


def between(pieces: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Return the rows from `start` to `stop` of pieces on top of each other, in pieces."""
    found, top = [], 0
    for piece in pieces:
        first, last = max(0, start - top), min(piece.shape[ROWS], stop - top)
        if first < last:
            found.append(piece.narrow(ROWS, first, last - first))
        top += piece.shape[ROWS]
    return found


def height_of(pieces: Sequence[Tensor]) -> int:
    """Return the rows of pieces on top of each other."""
    return sum(piece.shape[ROWS] for piece in pieces)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return rows (N, C, h, w) on top of each other, channels last: a copy only if there is more than one part."""
    some = [part for part in parts if part.shape[ROWS]] or parts[:1]
    if len(some) == 1:
        return some[0]
    n, channels, _, width = some[0].shape
    shape = (n, channels, sum(part.shape[ROWS] for part in some), width)
    return torch.cat(list(some), ROWS, out=torch.empty(shape, dtype=some[0].dtype, memory_format=torch.channels_last))


def joined(sources: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the channels of all sources, each rows on top of each other, in one tensor."""
    if len(sources) == 1:
        return stacked(sources[0])
    x = [stacked(pieces) for pieces in sources]
    shape = (len(x[0]), sum(part.shape[1] for part in x), *x[0].shape[2:])
    return torch.cat(x, 1, out=torch.empty(shape, dtype=x[0].dtype, memory_format=torch.channels_last))
