"""The segment tables of a TIFF: where each tile or strip lies, and what it decodes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import ImageError
from tilenet.geometry import ceil_div
from tilenet.readers.boundary import DAMAGED, LONGEST_AXIS, check_piece
from tilenet.readers.tiff_walk import MOST_DIRECTORIES

# TIFF 6.0 tag numbers.
TILE_WIDTH = 322
NO_COMPRESSION = 1
# LZW, JPEG, deflate and PackBits never pack better than some 1400 : 1.
RATIOS, BEST_RATIO, HARMLESS = (5, 7, 8, 32773, 32946), 2000, 2**26


@dataclass(frozen=True)
class Segments:
    """The segments of all pages of one level.

    A page is an array (S, D, L, W, C): separate samples, depth, length, width, contiguous
    samples; it is cut into segments along S, D, L and W.

    Attributes
    ----------
    page : tifffile.TiffPage
        The first page; all have its shape, type and compression.
    page_shape, segment_shape : tuple of int
        (S, D, L, W, C), and the same of one segment.
    offsets, counts : numpy.ndarray
        Bytes, (pages, segments per page), uint64; a count of 0 is a missing segment.
    files : tuple of str
        Path of each page; empty where all lie in the main file.
    jpegtables : tuple of bytes or None
        Of each page; empty where none has any.
    raw : bool
        Pages are uncompressed and in one piece: rows can be read without decoding.
    """

    page: Any
    page_shape: tuple[int, ...]
    segment_shape: tuple[int, ...]
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    files: tuple[str, ...]
    jpegtables: tuple[bytes | None, ...]
    raw: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Segments of a page along S, D, L and W."""
        return tuple(map(ceil_div, self.page_shape[:4], self.segment_shape[:4]))

    @property
    def n_missing(self) -> int:
        """Segments that the file does not hold."""
        return int(np.count_nonzero(self.counts == 0))


def segments_of(series: Any, *, name: str) -> Segments:
    """Return the segment table of one level (a `tifffile.TiffPageSeries`), checked against the file's size."""
    page = series.keyframe
    page_shape, segment_shape = tuple(map(int, page.shaped)), _segment_shape(page)
    if min(page_shape + segment_shape) < 1 or max(page_shape) > LONGEST_AXIS:
        raise ImageError(f"{name}: has a page of {page_shape} in tiles of {segment_shape}. The file is damaged")
    n_segments = prod(map(ceil_div, page_shape[:4], segment_shape[:4]))
    n_pages = prod(series.get_shape(squeeze=False)) // prod(page_shape)
    if not 0 < n_pages <= MOST_DIRECTORIES:
        raise ImageError(f"{name}: says that it has {n_pages} pages. Its metadata is damaged")
    pages = list(_pages(series, n_pages))
    if _is_raw(page, pages):
        return _raw_segments(series, pages, page_shape, name)
    if len(pages) < n_pages:
        raise ImageError(f"{name}: has {len(pages)} pages of {n_pages}. The file is damaged; get it again")
    segment_bytes = prod(segment_shape) * page.dtype.itemsize
    check_piece(segment_bytes, f"{name}: one of its tiles of {segment_shape[2:4]} px")
    offsets, counts = np.zeros((2, len(pages), n_segments), np.uint64)
    for i, p in enumerate(pages):
        if p is None:
            continue
        if min(len(p.dataoffsets), len(p.databytecounts)) < n_segments:
            raise ImageError(
                f"{name}: lists {min(len(p.dataoffsets), len(p.databytecounts))} tiles or strips "
                f"of the {n_segments} that page {i} consists of. The file is damaged; get it again"
            )
        offsets[i] = p.dataoffsets[:n_segments]
        counts[i] = p.databytecounts[:n_segments]
    counts[offsets == 0] = 0
    _check_ends(offsets, counts, pages, name)
    if segment_bytes > HARMLESS and page.compression in RATIOS and segment_bytes > BEST_RATIO * int(counts.max()):
        raise ImageError(
            f"{name}: its tiles of {segment_shape[2:4]} px have at most {counts.max()} bytes, too few to fill them. "
            f"The file is damaged; get it again"
        )
    return Segments(page, page_shape, segment_shape, offsets, counts, _files(pages), _jpegtables(pages), raw=False)


def _segment_shape(page: Any) -> tuple[int, ...]:
    _, _, _, width, samples = page.shaped
    if page.is_tiled:
        return (1, int(page.tiledepth), int(page.tilelength), int(page.tilewidth), int(samples))
    return (1, 1, int(page.rowsperstrip), int(width), int(samples))


def _pages(series: Any, expected: int) -> Iterator[Any]:
    """Yield the pages of a series, None for those that the file lacks."""
    if series.dataoffset is not None and len(series._pages) == 1:  # ImageJ: one page describes a whole stack
        yield series._pages[0]
        return
    found = list(series)[:expected]
    yield from found
    yield from [None] * (expected - len(found))


def _is_raw(page: Any, pages: list[Any]) -> bool:
    simple = page.compression == NO_COMPRESSION and page.is_final and TILE_WIDTH not in page.tags
    return simple and all(p is not None and _in_one_piece(p) for p in pages)


def _in_one_piece(page: Any) -> bool:
    offsets, counts = page.dataoffsets, page.databytecounts
    return len(offsets) == 1 or all(
        a and n and a + n == b for a, n, b in zip(offsets, counts, offsets[1:], strict=False)
    )


def _raw_segments(series: Any, pages: list[Any], page_shape: tuple[int, ...], name: str) -> Segments:
    """Return a table of whole uncompressed pages, one segment each."""
    n_bytes = prod(page_shape) * series.keyframe.dtype.itemsize
    n_pages = prod(series.get_shape(squeeze=False)) // prod(page_shape)
    starts = [int(p.dataoffsets[0]) for p in pages]
    if len(starts) < n_pages:
        starts = [starts[0] + i * n_bytes for i in range(n_pages)]
    offsets = np.array(starts, np.uint64).reshape(-1, 1)
    counts = np.full_like(offsets, n_bytes)
    counts[offsets == 0] = 0
    _check_ends(offsets, counts, pages if len(pages) == n_pages else pages * n_pages, name)
    segment_shape = (1, *page_shape[1:])
    return Segments(series.keyframe, page_shape, segment_shape, offsets, counts, _files(pages), (), raw=True)


def _check_ends(offsets: NDArray[np.uint64], counts: NDArray[np.uint64], pages: list[Any], name: str) -> None:
    """Refuse a file that ends before its last segment does."""
    main = next(p.parent for p in pages if p is not None)
    for i, p in enumerate(pages):
        if p is None:
            continue
        size = p.parent.filehandle.size
        # Compared this way around, because the sum may overflow in a damaged table.
        beyond = (counts[i] > size) | (offsets[i] > np.uint64(size) - np.minimum(counts[i], np.uint64(size)))
        beyond &= counts[i] > 0
        if beyond.any():
            worst = int(np.argmax(np.where(beyond, offsets[i], 0)))
            end = int(offsets[i][worst]) + int(counts[i][worst])
            of = name if p.parent is main else f"{name}: {p.parent.filehandle.name}"
            raise ImageError(
                f"{of}: is cut off: it has {size} bytes, but {int(beyond.sum())} of the {beyond.size} tiles or strips "
                f"of page {i} end beyond that, one at {end}. Get the whole file"
            )


def _files(pages: list[Any]) -> tuple[str, ...]:
    paths = [p.parent.filehandle.path if p is not None else "" for p in pages]
    return tuple(paths) if len({*paths} - {""}) > 1 else ()


def _jpegtables(pages: list[Any]) -> tuple[bytes | None, ...]:
    tables = [p.jpegtables if p is not None else None for p in pages]
    return tuple(tables) if any(tables) else ()


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


def _n_alpha(page: Any) -> int:
    """Return how many of the last samples are alpha (ExtraSamples 1 and 2)."""
    return sum(int(kind) in (1, 2) for kind in page.extrasamples) if page.samplesperpixel > 1 else 0
