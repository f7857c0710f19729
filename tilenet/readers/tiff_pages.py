"""The segment tables of a TIFF: where each tile or strip lies in the file, and its decoded shape."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION

from tilenet.errors import ImageError
from tilenet.geometry import ceil_div
from tilenet.readers.guards import DAMAGED, LONGEST_AXIS, check_piece
from tilenet.readers.tiff_walk import MOST_DIRECTORIES, Storage

# A tag of TIFF 6.0.
TILE_WIDTH = 322
# LZW, JPEG, deflate and PackBits never compress better than about 1400 : 1. Segments up to HARMLESS are not checked.
RATIOS = (
    *(COMPRESSION.LZW, COMPRESSION.JPEG, COMPRESSION.PACKBITS),
    *(COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE),
)
BEST_RATIO, HARMLESS = 2000, 2**26


@dataclass(frozen=True)
class Segments:
    """The segments of all pages of one level.

    A page is an array (S, D, L, W, C): separate samples, depth, length, width, contiguous
    samples. It is cut into segments along S, D, L and W.
    """

    # The first page; all pages have its shape, type and compression.
    page: Any
    # Shape (S, D, L, W, C) of a page and of a segment.
    page_shape: tuple[int, ...]
    segment_shape: tuple[int, ...]
    # Offset and number of bytes of each segment, (pages, segments per page), uint64; a count of 0 stands for a
    # missing segment.
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    # Path of the file of each page, empty for a page in the main file.
    files: tuple[str, ...]
    # JPEG tables of each page.
    jpegtables: tuple[bytes | None, ...]
    # Whether each page is uncompressed and contiguous, so that rows can be read without decoding.
    raw: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of segments of a page along S, D, L and W."""
        return tuple(map(ceil_div, self.page_shape[:4], self.segment_shape[:4]))

    @property
    def n_missing(self) -> int:
        """Number of segments that the file lacks."""
        return int(np.count_nonzero(self.counts == 0))


def all_series(tiff: Any) -> list[Any]:
    """Return the series of a `tifffile.TiffFile`, with their axes of length 1."""
    return list(tiff.series(squeeze=False) if callable(tiff.series) else tiff.series)


def dimensions_of(series: Any) -> tuple[str, tuple[int, ...]]:
    """Return the axes of a series, also those of length 1, and their lengths."""
    if hasattr(series, "get_axes"):  # before tifffile 2026.5.2
        return series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    return series.axes, series.shape


def segments_of(series: Any, *, storage: Mapping[str, Mapping[int, Storage]], name: str) -> Segments:
    """Return the segment table of one level, a `tifffile.TiffPageSeries`, checked against the file's size.

    `storage` says how the pages of each file are stored, as `check_directories` returns it, by the file's real path;
    `name` is the path of the main file.
    """
    page = series.keyframe
    page_shape, segment_shape = tuple(map(int, page.shaped)), _segment_shape(page)
    if min(page_shape + segment_shape) < 1 or max(page_shape) > LONGEST_AXIS:
        raise ImageError(f"{name}: has a page of {page_shape} in tiles of {segment_shape}. The file is damaged")
    n_pages = prod(dimensions_of(series)[1]) // prod(page_shape)
    if not 0 < n_pages <= MOST_DIRECTORIES:
        raise ImageError(f"{name}: says that it has {n_pages} pages. Its metadata is damaged")
    pages = list(_pages(series, n_pages))
    _check_alike(page, pages, storage, name)
    raw = _is_raw(page, pages)
    if raw:
        segment_shape = (1, *page_shape[1:])
        offsets, counts = _whole_pages(pages, n_pages, n_bytes=prod(page_shape) * page.dtype.itemsize)
        pages = pages if len(pages) == n_pages else pages * n_pages
    elif len(pages) == n_pages:
        check_piece(prod(segment_shape) * page.dtype.itemsize, f"{name}: one of its tiles of {segment_shape[2:4]} px")
        offsets, counts = _table(pages, prod(map(ceil_div, page_shape[:4], segment_shape[:4])), name=name)
    else:
        raise ImageError(f"{name}: has {len(pages)} pages of {n_pages}. The file is damaged; get it again")
    _check_ends(offsets, counts, pages=pages, name=name)
    tables = tuple(p.jpegtables if p is not None else None for p in pages)
    segments = Segments(page, page_shape, segment_shape, offsets, counts, _files(pages, name), tables, raw)
    _check_filled(segments, name)
    return segments


def _check_alike(first: Any, pages: list[Any], storage: Mapping[str, Mapping[int, Storage]], name: str) -> None:
    """Refuse a level whose pages differ in how they are stored, since all are decoded as the first is."""

    def of(page: Any) -> Storage | None:
        return storage.get(page.parent.filehandle.path, {}).get(page.offset)

    for i, page in enumerate(pages):
        if page is not None and of(page) and of(first) and of(page) != of(first):
            raise ImageError(
                f"{name}: page {i} differs from the others in compression, byte order or type of pixels. "
                f"Write the image again, with all its pages alike"
            )


def _table(pages: list[Any], n_segments: int, *, name: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return offsets and byte counts (pages, segments); the count of a missing segment is 0."""
    offsets, counts = np.zeros((2, len(pages), n_segments), np.uint64)
    for i, page in enumerate(pages):
        if page is None:
            continue
        listed = min(len(page.dataoffsets), len(page.databytecounts))
        if listed < n_segments:
            raise ImageError(
                f"{name}: lists {listed} tiles or strips of the {n_segments} that page {i} consists of. "
                f"The file is damaged; get it again"
            )
        offsets[i] = page.dataoffsets[:n_segments]
        counts[i] = page.databytecounts[:n_segments]
    counts[offsets == 0] = 0
    return offsets, counts


def _whole_pages(pages: list[Any], n_pages: int, *, n_bytes: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return offsets and byte counts of raw pages, one segment each; a single page may stand for a contiguous stack."""
    starts = [int(page.dataoffsets[0]) for page in pages]
    if len(starts) < n_pages:
        starts = [starts[0] + i * n_bytes for i in range(n_pages)]
    offsets = np.array(starts, np.uint64).reshape(-1, 1)
    return offsets, np.where(offsets == 0, np.uint64(0), np.uint64(n_bytes))


def _segment_shape(page: Any) -> tuple[int, ...]:
    _, _, _, width, samples = page.shaped
    if page.is_tiled:
        return (1, int(page.tiledepth), int(page.tilelength), int(page.tilewidth), int(samples))
    return (1, 1, int(page.rowsperstrip), int(width), int(samples))


def _pages(series: Any, expected: int) -> Iterator[Any]:
    """Yield the pages of a series; None for each page that the file lacks."""
    if series.dataoffset is not None and len(series._pages) == 1:  # ImageJ: one page describes a whole stack
        yield series._pages[0]
        return
    found = list(series)[:expected]
    yield from found
    yield from [None] * (expected - len(found))


def _is_raw(page: Any, pages: list[Any]) -> bool:
    simple = page.compression == COMPRESSION.NONE and page.is_final and TILE_WIDTH not in page.tags
    return simple and all(p is not None and _in_one_piece(p) for p in pages)


def _in_one_piece(page: Any) -> bool:
    offsets, counts = page.dataoffsets, page.databytecounts
    return len(offsets) == 1 or all(
        a and n and a + n == b for a, n, b in zip(offsets, counts, offsets[1:], strict=False)
    )


def _check_ends(offsets: NDArray[np.uint64], counts: NDArray[np.uint64], *, pages: list[Any], name: str) -> None:
    sizes = np.array([[p.parent.filehandle.size if p is not None else 0] for p in pages], np.uint64)
    # Written without `offsets + counts`, which may overflow in a damaged table.
    beyond = (counts > 0) & (offsets > sizes - np.minimum(counts, sizes))
    if beyond.any():
        page, segment = np.unravel_index(int(np.argmax(np.where(beyond, offsets, 0))), offsets.shape)
        end = int(offsets[page, segment]) + int(counts[page, segment])
        raise ImageError(
            f"{name}: is cut off: it has {int(sizes[page, 0])} bytes, but {int(beyond.sum())} of its {beyond.size} "
            f"tiles or strips end beyond that, one at {end}. Get the whole file"
        )


def _check_filled(segments: Segments, name: str) -> None:
    """Refuse segments that decode to far more bytes than their compressed data can encode."""
    n_bytes, largest = prod(segments.segment_shape) * segments.page.dtype.itemsize, int(segments.counts.max())
    if n_bytes > HARMLESS and segments.page.compression in RATIOS and n_bytes > BEST_RATIO * largest > 0:
        raise ImageError(
            f"{name}: its tiles of {segments.segment_shape[2:4]} px have at most {largest} bytes, too few to fill "
            f"them. The file is damaged; get it again"
        )


def _files(pages: list[Any], main: str) -> tuple[str, ...]:
    main = os.path.realpath(main)  # as tifffile resolves the paths of its files
    paths = [p.parent.filehandle.path if p is not None else main for p in pages]
    return tuple("" if path == main else path for path in paths)


def stored_dimensions(series: Any, page_shape: tuple[int, ...], *, name: str) -> tuple[list[str], list[int]]:
    """Return letters and lengths of the dimensions outside the pages, then of (S, D, L, W, C) of a page.

    The letter of a dimension that is not an axis is empty. Alpha is not counted as a sample.
    """
    page, (axes, lengths) = series.keyframe, dimensions_of(series)
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
    shape[samples] -= n_alpha(page)
    shape = [*lengths[:n_outer], *shape]
    return [a if n > 1 or a in ("Y", "X") else "" for a, n in zip([*axes[:n_outer], *inner], shape, strict=True)], shape


def n_alpha(page: Any) -> int:
    """Return how many of the last samples are alpha (ExtraSamples 1 and 2)."""
    return sum(int(kind) in (1, 2) for kind in page.extrasamples) if page.samplesperpixel > 1 else 0
