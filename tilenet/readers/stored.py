"""Images as files store them: an array for each level, whose dimensions become axes, often in chunks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from tilenet.geometry import Box, cells_touched
from tilenet.readers.axes import AxisMap, Span
from tilenet.readers.cache import PieceCache
from tilenet.readers.guards import DAMAGED, as_image_errors
from tilenet.readers.image import RGB, Image, Level, Pixels
from tilenet.resolution import coarser_size

Sizes = tuple[float | None, ...]


class StoredImage(Image):
    """One level of an image that has an array for each level, and a map of its dimensions to the axes."""

    # Whether 8-bit (y, x, 3) is in colour if its channels have no names: picture libraries store colour so.
    _color_by_shape = False
    _maps: Sequence[AxisMap]

    def _describe(self, maps: Sequence[AxisMap], sizes: Sequence[Sizes], names: Sequence[str] = ()) -> None:
        """Set the axes, and the levels with their pixel sizes; channels have no names unless there is one for each."""
        self._maps, self.axes, self.stated_axes = maps, maps[0].axes, maps[0].stated_axes
        self.levels = tuple(Level(k.image_shape, size) for k, size in zip(maps, sizes, strict=True))
        if len(names) != self.n_channels:
            color = self._color_by_shape and self.dtype == np.uint8 and (self.axes, self.n_channels) == ("yxc", 3)
            names = RGB if color else ("",) * self.n_channels
        self.channel_names = tuple(names)

    def read_inside(self, box: Box) -> Pixels:
        return self._read(box, None)

    @property
    def separates_channels(self) -> bool:
        return self._maps[self.level].separates_channels

    def read_channels(self, box: Box, channels: Span) -> Pixels:
        return self._read(box, channels)

    @abstractmethod
    def _read(self, box: Box, channels: Span | None) -> Pixels:
        """Return the pixels of a range of channels, or of all, in a box inside the image."""


class ChunkedImage(StoredImage):
    """One level of an image that is decoded piece by piece, on a grid, so that no pixel depends on the box asked for.

    If the image keeps pieces, they are cached for later reads.
    """

    # What to do about pieces that cannot be decoded.
    _remedy = DAMAGED
    _cache: PieceCache

    @property
    def n_decoded(self) -> int:
        """Number of pieces decoded so far, over all levels; joined chunks of all channels count as one."""
        return self._cache.n_decoded

    def _read(self, box: Box, channels: Span | None) -> Pixels:
        axis_map = self._maps[self.level]
        out, stored = axis_map.empty(box, self.dtype, channels)
        asked = axis_map.stored_box(box, channels)
        with as_image_errors(f"{self.name}: {box} of level {self.level} cannot be decoded", self._remedy):
            pieces = list(self._pieces(asked, joined="c" if channels is None else ""))
            for piece, pixels in zip(pieces, self._pixels_of(pieces), strict=True):
                part = asked & piece
                stored[part.relative_to(asked.start).slices] = pixels[part.relative_to(piece.start).slices]
        return out

    def _pieces(self, asked: Box, joined: str) -> Iterator[Box]:
        """Return the pieces that a box touches, cut to the box if they are not kept.

        They may be `joined` over the whole of an axis, unless that is empty.
        """
        pieces = cells_touched(asked, self._sides(joined), self._maps[self.level].shape)
        return pieces if self.keeps_pieces else (piece & asked for piece in pieces)

    def _pixels_of(self, pieces: Sequence[Box]) -> Iterable[Pixels]:
        if not self.keeps_pieces:
            return map(self._decoded, pieces)
        keys = [(self.level, piece) for piece in pieces]
        return self._cache.get_all(keys, lambda lacking: self._all_decoded([piece for _, piece in lacking]))

    def _all_decoded(self, pieces: list[Box]) -> Sequence[Pixels]:
        return [self._decoded(piece) for piece in pieces]

    @abstractmethod
    def _sides(self, joined: str) -> Sequence[int]:
        """Return how long a piece is along each stored dimension."""

    @abstractmethod
    def _decoded(self, piece: Box) -> Pixels:
        """Return the pixels of a piece along the stored dimensions."""


def sizes_of_levels(maps: Sequence[AxisMap], finest: Mapping[str, float | None]) -> list[Sizes]:
    """Return the pixel size of each level along the axes without ``c``, from those of the finest by axis."""
    lengths = dict(zip(maps[0].axes, maps[0].image_shape, strict=True))
    return [
        tuple(
            coarser_size(finest.get(a), lengths[a], n) for a, n in zip(k.axes, k.image_shape, strict=True) if a != "c"
        )
        for k in maps
    ]
