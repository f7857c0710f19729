"""Images whose levels are arrays in chunks, which are decoded once and kept for later reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from tilenet.geometry import Box
from tilenet.readers.axes import AxisMap, Span
from tilenet.readers.cache import PieceCache
from tilenet.readers.guards import DAMAGED, as_image_errors
from tilenet.readers.image import Image, Pixels


class ChunkedImage(Image):
    """One level of an image that is stored in chunks; a subclass says which pieces a box touches, and decodes them."""

    # What to do about chunks that cannot be decoded.
    _remedy = DAMAGED
    _axis_maps: Sequence[AxisMap]
    _cache: PieceCache

    @property
    def n_decoded(self) -> int:
        """Number of pieces decoded so far, over all levels; joined chunks of all channels count as one."""
        return self._cache.n_decoded

    def read_inside(self, box: Box) -> Pixels:
        """Return the pixels of a box inside the image, decoding only the chunks that it touches."""
        return self._read(box, None)

    @property
    def separates_channels(self) -> bool:
        """Whether the file stores channels apart, so that some can be read without the others."""
        return self._axis_maps[self.level].separates_channels

    def read_channels(self, box: Box, channels: Span) -> Pixels:
        """Return the pixels of a range of channels in a box; the chunks of the others are not decoded."""
        return self._read(box, channels)

    def _read(self, box: Box, channels: Span | None) -> Pixels:
        axis_map = self._axis_maps[self.level]
        out, stored = axis_map.empty(box, self.dtype, channels)
        starts, stops = zip(*axis_map.ranges(box, channels), strict=True)
        asked = Box(starts, stops)
        with as_image_errors(f"{self.name}: {box} of level {self.level} cannot be decoded", self._remedy):
            pieces = list(self._pieces(asked, joined="c" if channels is None else ""))
            for piece, pixels in zip(pieces, self._pixels_of(pieces), strict=True):
                part = asked & piece
                stored[part.relative_to(asked.start).slices] = pixels[part.relative_to(piece.start).slices]
        return out

    @abstractmethod
    def _pieces(self, asked: Box, joined: str) -> Iterable[Box]:
        """Return the pieces that a box touches; they may be joined over the whole of an axis, unless it is empty."""

    @abstractmethod
    def _pixels_of(self, pieces: Sequence[Box]) -> Sequence[Pixels]:
        """Return the pixels of pieces."""
