"""Read and decode the tiles, strips and rows of a TIFF."""

from __future__ import annotations

import os
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tifffile import COMPRESSION

from tilenet.errors import ImageError
from tilenet.readers.cache import PieceCache
from tilenet.readers.decoded_size import picture_size
from tilenet.readers.guards import as_image_errors
from tilenet.readers.image import Pixels
from tilenet.readers.open_file import OpenFile
from tilenet.readers.tiff_pages import Segments

# Compressions whose decoder takes JPEG tables.
JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY)
# Compressions whose streams state their own size, which may differ from that of the tile.
STREAMS = {
    COMPRESSION.JPEG: "jpeg",
    COMPRESSION.ALT_JPEG: "jpeg",
    COMPRESSION.APERIO_JP2000_YCBC: "jpeg2000",
    COMPRESSION.APERIO_JP2000_RGB: "jpeg2000",
    COMPRESSION.JPEG_2000_LOSSY: "jpeg2000",
    COMPRESSION.JPEG2000: "jpeg2000",
    COMPRESSION.PNG: "png",
}
# Most bytes of uncompressed rows that one read fetches.
ROWS_AT_ONCE = 2**26
Ranges = list[tuple[int, int]]


class PageReader(OpenFile):
    """Fills arrays from the pages of an open TIFF, from any number of threads."""

    def __init__(self, path: str) -> None:
        super().__init__(Path(path), name=path)
        self.cache, self.head = PieceCache(), os.pread(self._file, 16, 0)

    def fill(self, out: Pixels, segments: Segments, *, page: int, ranges: Ranges) -> None:
        """Read a part of a page of a level, by its number, into `out`: `ranges` along (S, D, L, W, C)."""
        self.check_open()
        read = self._rows if segments.raw else self._segments
        read(out, segments, page, ranges)

    def _segments(self, out: Pixels, segments: Segments, page: int, ranges: Ranges) -> None:
        channels, counts, grid = slice(*ranges[4]), segments.counts[page], segments.grid
        # Slides may have thousands of strips of 8 px, so intersections are computed per axis, not per segment.
        for meetings in product(*map(_meetings, ranges[:4], segments.segment_shape[:4])):
            cell, wanted, part = zip(*meetings, strict=True)
            number = int(np.ravel_multi_index(cell, grid))
            if counts[number] == 0:
                out[wanted] = 0
                continue
            pixels = self.cache.get((id(segments), page, number), partial(self._decode, segments, page, number))
            out[wanted] = pixels[np.newaxis][(*part, channels)]

    def _decode(self, segments: Segments, page: int, number: int) -> Pixels:
        """Return the pixels of one segment: (d, l, w, c)."""
        what = f"{self.name}: tile {number} of page {page} cannot be decoded"
        with as_image_errors(what, "The file is damaged; get it again"):
            data = self._bytes(segments, page, int(segments.offsets[page, number]), int(segments.counts[page, number]))
            _check_stream(segments, data, what)
            tables: dict[str, Any] = {}
            if segments.page.compression in JPEG:
                tables["jpegtables"] = segments.jpegtables[page]
                tables["jpegheader"] = segments.page.jpegheader
            pixels, (_, *origin, _), _ = segments.page.decode(data, number, **tables)
            ends = zip(origin, segments.segment_shape[1:4], segments.page_shape[1:4], strict=True)
            needed = tuple(min(n, whole - o) for o, n, whole in ends)
            if any(have < n for have, n in zip(pixels.shape, needed, strict=False)):
                raise ValueError(f"it has {pixels.shape[:3]} px instead of {needed}")
            if segments.page.compression == COMPRESSION.APERIO_JP2000_YCBC:
                return rgb_of_ycbcr(pixels)
            return np.asarray(pixels)

    def _rows(self, out: Pixels, segments: Segments, page: int, ranges: Ranges) -> None:
        """Read uncompressed rows, and of each only the columns needed."""
        if segments.counts[page, 0] == 0:
            out[...] = 0
            return
        stored = segments.page.dtype.newbyteorder(segments.page.parent.byteorder)
        _, depth, length, width, samples = segments.page_shape
        (s0, s1), (d0, d1), (y0, y1), (x0, x1), _ = ranges
        n_row = (x1 - x0) * samples * stored.itemsize
        # Whole rows are contiguous in the file, so one read fetches many; parts of rows take one read each.
        at_once = max(1, ROWS_AT_ONCE // n_row) if (x0, x1) == (0, width) else 1
        for s, d, y in product(range(s0, s1), range(d0, d1), range(y0, y1, at_once)):
            n = min(at_once, y1 - y)
            first = (((s * depth + d) * length + y) * width + x0) * samples * stored.itemsize
            data = self._bytes(segments, page, int(segments.offsets[page, 0]) + first, n * n_row)
            rows = np.frombuffer(data, stored).reshape(n, x1 - x0, samples)
            out[s - s0, d - d0, y - y0 : y - y0 + n] = rows[..., slice(*ranges[4])]

    def _bytes(self, segments: Segments, page: int, offset: int, count: int) -> bytes:
        if not segments.files[page]:
            data = os.pread(self._file, count, offset)
        else:
            with Path(segments.files[page]).open("rb") as file:
                data = os.pread(file.fileno(), count, offset)
        if len(data) < count:
            raise EOFError(f"page {page} ends {count - len(data)} bytes too early")
        return data


def rgb_of_ycbcr(pixels: Pixels) -> Pixels:
    """Return 8-bit RGB of 8-bit YCbCr (..., 3), full range (JFIF 1.02, section 7).

    Aperio's JPEG 2000 tiles of compression 33003 hold YCbCr without saying so in the stream.
    """
    y, blue, red = (pixels[..., i].astype(np.float32) - (128 if i else 0) for i in range(3))
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    out: Pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return out


def _meetings(span: tuple[int, int], size: int) -> list[tuple[int, slice, slice]]:
    """Return the grid cells that a span overlaps: number, slice of the span, and slice of the cell, for each."""
    start, stop = span
    met = []
    for cell in range(start // size, -(-stop // size)):
        origin = cell * size
        a, b = max(start, origin), min(stop, origin + size)
        met.append((cell, slice(a - start, b - start), slice(a - origin, b - origin)))
    return met


def _check_stream(segments: Segments, data: bytes, what: str) -> None:
    """Refuse a tile whose stream states a size larger than the tile, before a decoder allocates it."""
    kind = STREAMS.get(segments.page.compression)
    if kind is None or segments.page.jpegheader is not None:
        return
    size, (height, width) = picture_size(data, kind), segments.segment_shape[2:4]
    # Some writers pad tiles, so up to twice the size is allowed here; the decoder checks the rest.
    if size is None or prod(size) > 2 * height * width:
        says = f"says that it has {size[0]} x {size[1]} px" if size else f"is not a {kind} stream"
        raise ImageError(f"{what}: it {says}, not {height} x {width}. Get the file again")
