"""Parsing of many journal lines at once: a million lines in seconds, where a JSON parser takes a minute.

All lines about the blocks of one level have the same form, so one regular expression parses them. A group in which any
line has another form is left to the JSON parser, line by line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilenet.store.layout import PROBABILITIES, Layout

# In place of sizes: the block is not in the journal; there is no file, because all of it is background.
UNKNOWN, NO_FILE = 0, -1
DIGEST = 32
# Exactly as JSON writes numbers, so that no other spelling of a name or a number matches; 18 digits fit into 64 bits.
_NUMBER, _SIZE = rb"(0|[1-9]\d{0,17})", rb"([1-9]\d{0,17})"
_FILE = rb':(?:null|\[%b,"([0-9a-f]{64})"\])' % _SIZE


class Entries(NamedTuple):
    """The content of lines about n blocks of one level: (n,) blocks, (n, files) sizes, (n, files, 32) checksums."""

    level: int
    blocks: NDArray[np.int64]
    sizes: NDArray[np.int64]
    digests: NDArray[np.uint8]


class Form:
    """The form of the lines about the blocks of one layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def read(self, lines: Sequence[bytes]) -> Entries | None:
        """Parse lines about blocks of one level, without those that contradict themselves; None for any other form."""
        for level, (start, pattern) in enumerate(self._patterns):
            if lines[0].startswith(start):
                found = pattern.findall(b"".join(lines))
                return self._entries(level, found) if len(found) == len(lines) else None
        return None

    @cached_property
    def _patterns(self) -> list[tuple[bytes, re.Pattern[bytes]]]:
        return [self._pattern(level) for level in range(len(self._layout.levels))]

    def _pattern(self, level: int) -> tuple[bytes, re.Pattern[bytes]]:
        ndim = len(self._layout.shape)
        start = b'{"level":%d,"block":' % level
        folder = re.escape(self._layout.folder(str(level)).encode())
        mask = b"/".join([folder, *[_NUMBER] * ndim])
        # A class's file has the coordinates of the mask's file, which are groups 2 and up of the expression.
        place = tuple(rb"\%d" % (2 + axis) for axis in range(ndim))
        classes = re.escape(self._layout.folder(PROBABILITIES).encode())
        of_classes = (
            b"/".join([classes, *self._layout.with_class(place, b"%d" % k)])
            for k in range(self._layout.n_files(level) - 1)
        )
        files = b",".join(b'"%b"%b' % (name, _FILE) for name in (mask, *of_classes))
        return start, re.compile(rb'^%b%b,"files":\{%b\}\}$' % (re.escape(start), _NUMBER, files), re.MULTILINE)

    def _entries(self, level: int, found: list[tuple[bytes, ...]]) -> Entries:
        ndim, grid = len(self._layout.shape), self._layout.grid(level)
        columns = list(zip(*found, strict=True))
        blocks, *place = (_integers(column) for column in columns[: 1 + ndim])
        sizes = np.stack([_integers([n or b"-1" for n in column]) for column in columns[1 + ndim :: 2]], axis=1)
        digests = np.stack([_digests(column) for column in columns[2 + ndim :: 2]], axis=1)
        right = np.all([along < n for along, n in zip(place, grid, strict=True)], axis=0)
        inside = [np.where(right, along, 0) for along in place]
        right &= np.ravel_multi_index(inside, grid) == blocks
        return Entries(level, blocks[right], sizes[right], digests[right])


def _integers(column: Sequence[bytes]) -> NDArray[np.int64]:
    return np.array(column).astype(np.int64)


def _digests(column: Sequence[bytes]) -> NDArray[np.uint8]:
    none = b"0" * (2 * DIGEST)
    data: Any = bytes.fromhex(b"".join([digest or none for digest in column]).decode())
    return np.frombuffer(data, np.uint8).reshape(len(column), DIGEST)
