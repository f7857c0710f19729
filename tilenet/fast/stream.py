"""The state that a forward pass keeps from one band of rows to the next (see `tilenet.bands`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 2  # The axis of (N, C, h, w).


class NotFinite(Exception):
    """Logits from which mask values should be decided are NaN or infinite."""


class PassState:
    """The rows that steps need again, and the skip connections from the contracting to the expanding path."""

    def __init__(self, values: Tensor | None = None) -> None:
        # The mask value of each class, (K,) uint8, if the last step turns logits directly into mask values.
        self.values = values
        # By level.
        self.skips: dict[int, Skip] = defaultdict(Skip)
        # Whether the rows being processed are the last of the tile, so that zeros are padded below them.
        self.last = True
        self._last: dict[object, Tensor] = {}

    def with_kept(self, step: object, pieces: Sequence[Tensor], count: int) -> list[Tensor]:
        """Return the rows kept for a step (none at first) followed by `pieces`; keep the last `count` rows of both."""
        rows = [self._last.get(step, pieces[0][:, :, :0]), *pieces]
        height = height_of(rows)
        # Copied, because a view of a few rows would keep the whole tensor in memory.
        self._last[step] = stacked(between(rows, max(0, height - count), height)).clone()
        return rows


class Skip:
    """A skip connection: a queue of rows, cropped to their centre, that wait for the upsampled rows to join them."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._begun = False

    def add(self, x: Tensor) -> None:
        """Append rows (N, C, h, w) below the waiting rows."""
        self._parts.append(x)

    def release(self) -> None:
        """Free the rows that were taken, most of a band: copy the waiting rows, which are views of the whole band."""
        self._parts = [part.clone() for part in self._parts]

    def center(self, shape: Sequence[int]) -> None:
        """Crop the waiting rows so that they align with the next upsampled rows (N, C, *shape)."""
        height, width = shape
        # The first band is a legal input by itself: the centre of its rows begins where that of the tile's does.
        if not self._begun:
            self.take((height_of(self._parts) - height) // 2)
            self._begun = True
        self._parts = [part.narrow(-1, (part.shape[-1] - width) // 2, width) for part in self._parts]

    def take(self, rows: int, *, again: int = 0) -> list[Tensor]:
        """Return the next `rows` rows, in pieces; the last `again` of them stay in the queue."""
        taken = between(self._parts, 0, rows)
        self._parts = between(self._parts, rows - again, height_of(self._parts))
        return taken


def between(pieces: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Return the rows from `start` to `stop` of vertically adjacent pieces, in pieces."""
    found, top = [], 0
    for piece in pieces:
        first, last = max(0, start - top), min(piece.shape[ROWS], stop - top)
        if first < last:
            found.append(piece.narrow(ROWS, first, last - first))
        top += piece.shape[ROWS]
    return found


def height_of(pieces: Sequence[Tensor]) -> int:
    """Return the total number of rows of vertically adjacent pieces."""
    return sum(piece.shape[ROWS] for piece in pieces)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts (N, C, h, w) along their rows, channels last; copies only if there is more than one part."""
    some = [part for part in parts if part.shape[ROWS]] or parts[:1]
    if len(some) == 1:
        return some[0]
    n, channels, _, width = some[0].shape
    shape = (n, channels, sum(part.shape[ROWS] for part in some), width)
    return torch.cat(list(some), ROWS, out=torch.empty(shape, dtype=some[0].dtype, memory_format=torch.channels_last))


def joined(sources: Sequence[Sequence[Tensor]]) -> Tensor:
    """Concatenate the channels of all sources, each a list of vertically adjacent pieces, into one tensor."""
    if len(sources) == 1:
        return stacked(sources[0])
    x = [stacked(pieces) for pieces in sources]
    shape = (len(x[0]), sum(part.shape[1] for part in x), *x[0].shape[2:])
    return torch.cat(x, 1, out=torch.empty(shape, dtype=x[0].dtype, memory_format=torch.channels_last))
