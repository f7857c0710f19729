"""TIFF in all its kinds: BigTIFF, tiled, striped, pyramidal, OME-TIFF, SVS, NDPI, ImageJ.

tifffile says where the tiles and strips ("segments") of a file lie and how one is decoded;
this module reads and decodes only those that a box touches. Axes of length 1 that OME-XML
and ImageJ always declare are not axes of the image; channels and samples are one axis ``c``;
palette indices are read as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tilenet.errors import ImageError, SettingsError
from tilenet.geometry import Box
from tilenet.readers.axes import Layout, layout_of
from tilenet.readers.boundary import check_level, pixel_dtype, quietly, refusing
from tilenet.readers.cache import PieceCache
from tilenet.readers.codestreams import picture_size
from tilenet.readers.image import Image, Level, Pixels
from tilenet.readers.tiff_metadata import channel_names, check_ome, pixel_sizes
from tilenet.readers.tiff_pages import Segments, segments_of
from tilenet.readers.tiff_walk import check_directories

DAMAGED = "The file is damaged, or of a kind that tifffile cannot read"
JPEG = (6, 7, 33007, 34892)
# Codecs whose streams state their own size, which need not be that of the tile.
STREAMS = {7: "jpeg", 33007: "jpeg", 33003: "jpeg2000", 33004: "jpeg2000", 33005: "jpeg2000", 34712: "jpeg2000"}
STREAMS |= {34933: "png"}


@dataclass(frozen=True)
class TiffLevel:
    """One level as the file stores it.

    Attributes
    ----------
    layout : Layout
        Dimensions: those outside the pages, then (S, D, L, W, C) of a page.
    segments : Segments
        Where its tiles or strips are.
    """

    layout: Layout
    segments: Segments


class TiffSource:
    """An open TIFF, shared by the images of all its levels."""

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        self.path, self.said_axes, self.missing = path, axes, missing
        self.cache = PieceCache()
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            with quietly("tifffile"), refusing(f"{path}: cannot be read as a TIFF", DAMAGED):
                self._head, self._size = os.pread(self._file, 16, 0), os.fstat(self._file).st_size
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._check(self.path)
        with tifffile.TiffFile(self.path) as tiff:
            if tiff.is_ome:
                beside = [Path(self.path).parent / other for other in check_ome(tiff, name=self.path)]
                for other in filter(Path.is_file, beside):
                    self._check(str(other))
            series = main_series(tiff)
            if tiff.is_ome and series.kind != "ome" and self.said_axes is None:
                raise ImageError(f"{self.path}: its OME-XML does not describe its pages. Say what they are: --axes")
            self.levels = [self._level(s) for s in series.levels]
            axes = self.levels[0].layout.axes
            self.levels = [level for level in self.levels if level.layout.axes == axes]
            first = self.levels[0].layout
            self.dtype = pixel_dtype(series.dtype, self.path)
            self.pixel_sizes = pixel_sizes(tiff, series, first.axes, [k.layout.image_shape for k in self.levels])
            n_channels = dict(zip(first.axes, first.image_shape, strict=True)).get("c", 1)
            self.channel_names = channel_names(tiff, series, n_channels)
            self.n_missing = sum(level.segments.n_missing for level in self.levels)
            for level in self.levels:
                # Built here, as its first use is not thread-safe; without data it only says what it cannot decode.
                level.segments.page.decode(None, 0)
        if self.n_missing and self.missing == "error":
            raise ImageError(
                f"{self.path}: {self.n_missing} of its tiles are missing. "
                f"Get the whole file, or fill them with 0: --missing fill"
            )

    def _check(self, path: str) -> None:
        with Path(path).open("rb") as file:
            check_directories(file, size=Path(path).stat().st_size, name=path)

    def _level(self, series: Any) -> TiffLevel:
        segments = segments_of(series, name=self.path)
        letters, shape = stored_dimensions(series, segments.page_shape, name=self.path)
        return TiffLevel(layout_of(letters, shape, axes=self.said_axes, name=self.path), segments)

    def read(self, level: TiffLevel, box: Box) -> Pixels:
        """Return the pixels of a box inside a level."""
        if self._file < 0:
            raise ImageError(f"{self.path}: is closed. Open it again")
        out, stored = level.layout.empty(box, self.dtype)
        ranges, outer = level.layout.ranges(box), level.layout.shape[:-5]
        fill = self._rows_of_page if level.segments.raw else self._segments_of_page
        with refusing(f"{self.path}: {box} cannot be read", DAMAGED):
            for index in product(*(range(a, b) for a, b in ranges[:-5])):
                page = int(np.ravel_multi_index(index, outer)) if outer else 0
                target = stored[tuple(i - a for i, (a, _) in zip(index, ranges, strict=False))]
                fill(level.segments, page, ranges[-5:], target)
        return out

    def _segments_of_page(self, segments: Segments, page: int, ranges: list[tuple[int, int]], out: Pixels) -> None:
        for cell in product(*(_cells(r, n) for r, n in zip(ranges, segments.segment_shape[:4], strict=False))):
            number = int(np.ravel_multi_index(cell, segments.grid))
            origin = [i * n for i, n in zip(cell, segments.segment_shape, strict=False)]
            at = Box(tuple(origin), tuple(o + n for o, n in zip(origin, segments.segment_shape, strict=False)))
            part = at & Box(tuple(a for a, _ in ranges[:4]), tuple(b for _, b in ranges[:4]))
            target = out[part.relative_to([a for a, _ in ranges[:4]]).slices]
            if segments.counts[page, number] == 0:
                target[...] = 0
                continue
            key = (id(segments), page, number)
            pixels = self.cache.get(key, partial(self._decode, segments, page, number))
            inside = part.relative_to(origin).slices
            target[...] = pixels[np.newaxis][(*inside, slice(*ranges[4]))]

    def _decode(self, segments: Segments, page: int, number: int) -> Pixels:
        """Return one segment (d, l, w, c)."""
        what = f"{self.path}: tile {number} of page {page} cannot be decoded"
        with refusing(what, "The file is damaged; get it again"):
            data = self._bytes(segments, page, int(segments.offsets[page, number]), int(segments.counts[page, number]))
            _check_stream(segments, data, what)
            extra = {}
            if segments.page.compression in JPEG:
                tables = segments.jpegtables[page] if segments.jpegtables else None
                extra = {"jpegtables": tables, "jpegheader": segments.page.jpegheader}
            pixels, (_, *origin, _), _ = segments.page.decode(data, number, **extra)
            needed = [
                min(n, full - o)
                for n, full, o in zip(segments.segment_shape[1:4], segments.page_shape[1:4], origin, strict=True)
            ]
            if any(have < n for have, n in zip(pixels.shape, needed, strict=False)):
                raise ImageError(f"{what}: it has {pixels.shape[:3]} px instead of {tuple(needed)}. Get the file again")
            return np.asarray(pixels)

    def _rows_of_page(self, segments: Segments, page: int, ranges: list[tuple[int, int]], out: Pixels) -> None:
        """Read uncompressed rows, each only as far as it is needed."""
        stored = np.dtype(segments.page.parent.byteorder + self.dtype.char)
        _, depth, length, width, samples = segments.page_shape
        (_, _), (_, _), (y0, y1), (x0, x1), _ = ranges
        # Whole rows lie one behind the other: one read for all. Otherwise one read a row.
        n_rows = y1 - y0 if (x0, x1) == (0, width) else 1
        for s, d in product(range(*ranges[0]), range(*ranges[1])):
            for y in range(y0, y1, n_rows):
                start = (((s * depth + d) * length + y) * width + x0) * samples
                count = n_rows * (x1 - x0) * samples
                data = self._bytes(
                    segments, page, int(segments.offsets[page, 0]) + start * stored.itemsize, count * stored.itemsize
                )
                rows = np.frombuffer(data, stored).reshape(n_rows, x1 - x0, samples)
                out[s - ranges[0][0], d - ranges[1][0], y - y0 : y - y0 + n_rows] = rows[..., slice(*ranges[4])]

    def _bytes(self, segments: Segments, page: int, offset: int, count: int) -> bytes:
        if not segments.files or segments.files[page] == self.path:
            data = os.pread(self._file, count, offset)
        else:
            with Path(segments.files[page]).open("rb") as file:
                data = os.pread(file.fileno(), count, offset)
        if len(data) < count:
            raise ImageError(
                f"{self.path}: ends {count - len(data)} bytes before a tile of page {page}. Get the whole file"
            )
        return data

    def identity(self) -> dict[str, Any]:
        """Return the file's size and a hash of its header and segment tables."""
        digest = hashlib.sha256(self._head)
        for level in self.levels:
            digest.update(repr((level.segments.page_shape, level.segments.segment_shape)).encode())
            digest.update(level.segments.offsets.astype("<u8").tobytes())
            digest.update(level.segments.counts.astype("<u8").tobytes())
        return {
            "kind": "tiff",
            "bytes": self._size,
            "tables_sha256": digest.hexdigest(),
            "missing": self.n_missing,
        }

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    __del__ = close


class TiffImage(Image):
    """One level of a TIFF."""

    def __init__(self, source: TiffSource, level: int) -> None:
        self._source, self.level, self.name = source, level, source.path
        first = source.levels[0].layout
        self.axes, self.dtype, self.channel_names = first.axes, source.dtype, source.channel_names
        self.levels = tuple(
            Level(k.layout.image_shape, size) for k, size in zip(source.levels, source.pixel_sizes, strict=True)
        )
        self.n_missing = source.n_missing

    def at_level(self, level: int) -> Image:
        """Return the same image at another resolution."""
        check_level(level, len(self.levels), self.name)
        return TiffImage(self._source, level)

    @property
    def n_decoded(self) -> int:
        """Tiles and strips decoded so far, for the images of all levels."""
        return self._source.cache.n_decoded

    def read_inside(self, box: Box) -> Pixels:
        """Return the pixels of a box inside the image, decoding only the segments it touches."""
        return self._source.read(self._source.levels[self.level], box)

    def identity(self) -> dict[str, Any]:
        """Return the file's size and a hash of its header and segment tables."""
        return self._source.identity()

    def close(self) -> None:
        """Close the file, for the images of all its levels."""
        self._source.close()

    def __reduce__(self) -> tuple[Any, ...]:
        s = self._source
        return open_tiff, (str(Path(s.path).resolve()), self.level, s.said_axes, s.missing)


def open_tiff(path: str, level: int = 0, axes: str | None = None, missing: str = "error") -> TiffImage:
    """Open a TIFF at one of its levels."""
    source = TiffSource(path, axes=axes, missing=missing)
    try:
        check_level(level, len(source.levels), path)
    except SettingsError:
        source.close()
        raise
    return TiffImage(source, level)


def main_series(tiff: tifffile.TiffFile) -> Any:
    """Return the series that is the image: the first, or the largest of a file that names none."""
    series = tiff.series
    if not series:
        raise ImageError(f"{tiff.filename}: holds no image. The file is damaged")
    if series[0].kind == "generic":
        return max(series, key=lambda s: prod(s.shape))
    return series[0]


def stored_dimensions(series: Any, page_shape: tuple[int, ...], *, name: str) -> tuple[list[str], list[int]]:
    """Return letter and length of the dimensions outside the pages, then of (S, D, L, W, C) of a page.

    The letter is empty where a dimension is no axis; alpha is not counted.
    """
    page, axes, lengths = series.keyframe, series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    if axes.endswith("S") and lengths[-1] == 1 and "S" not in page.axes:
        axes, lengths = axes[:-1], lengths[:-1]
    n_outer = len(axes) - len(page.axes)
    if n_outer < 0 or tuple(lengths[n_outer:]) != tuple(page.shape):
        raise ImageError(f"{name}: says it is {axes} {tuple(lengths)}, but its pages are {page.shape}. {DAMAGED}")
    samples = 4 if page.planarconfig == 1 else 0
    place = {"S": samples, "Z": 1, "Y": 2, "X": 3}
    inner, shape = [""] * 5, list(page_shape)
    for letter, own in zip(axes[n_outer:], page.axes, strict=True):
        inner[place[own]] = letter
    shape[samples] -= _n_alpha(page)
    shape = [*lengths[:n_outer], *shape]
    return [a if n > 1 or a in ("Y", "X") else "" for a, n in zip([*axes[:n_outer], *inner], shape, strict=True)], shape


def _check_stream(segments: Segments, data: bytes, what: str) -> None:
    """Refuse a tile whose own header is larger than the tile, before a decoder makes room for it."""
    kind = STREAMS.get(int(segments.page.compression))
    if kind is None or segments.page.jpegheader is not None:
        return
    size, (height, width) = picture_size(data, kind), segments.segment_shape[2:4]
    if size is None or prod(size) > height * width:
        says = f"says that it has {size[0]} x {size[1]} px" if size else f"is not a {kind} stream"
        raise ImageError(f"{what}: it {says}, not {height} x {width}. Get the file again")


def _cells(span: tuple[int, int], size: int) -> Iterator[int]:
    return iter(range(span[0] // size, -(-span[1] // size)))


def _n_alpha(page: Any) -> int:
    """Return how many of the last samples are alpha (ExtraSamples 1 and 2)."""
    return sum(int(kind) in (1, 2) for kind in page.extrasamples) if page.samplesperpixel > 1 else 0
