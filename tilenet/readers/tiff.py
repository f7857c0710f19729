"""Read TIFF of all kinds: BigTIFF, tiled, striped, pyramidal, OME-TIFF, SVS, NDPI, ImageJ.

tifffile finds the tiles and strips ("segments") of a file and decodes single ones; this module
reads and decodes only the segments that a box touches. Axes of length 1, which OME-XML and ImageJ
always declare, are not axes of the image. Channels and samples are merged into one axis ``c``,
channel by channel. Palette indices are read as they are stored, with a warning unless the palette
is a ramp that shows greys in colour. Greys in which 0 is white are read as stored too.
"""

from __future__ import annotations

import hashlib
import logging
import os
from functools import cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from tilenet.errors import ImageError
from tilenet.geometry import Box, sides_text
from tilenet.readers.axes import AxisMap, Span, axis_map_of
from tilenet.readers.guards import DAMAGED, as_image_errors, check_missing, pixel_dtype, quietly
from tilenet.readers.image import Pixels
from tilenet.readers.stored import StoredImage, sizes_of_levels
from tilenet.readers.tiff_decode import PageReader
from tilenet.readers.tiff_metadata import channel_names, check_ome, finest_sizes
from tilenet.readers.tiff_pages import Segments, all_series, n_alpha, segments_of, stored_dimensions
from tilenet.readers.tiff_walk import Storage, check_directories

LOG = logging.getLogger("tilenet")
# Kinds of TIFF that may hold several images; the factor by which what is no such image is smaller.
SEVERAL, LESSER = {"ome", "shaped", "generic", "uniform"}, 3


@cache
def _warn_once(text: str) -> None:
    """Warn, but not each time that a run opens the same file."""
    LOG.warning("%s", text)


def _is_picture_of_palette(page: tifffile.TiffPage) -> bool:
    """Return whether pixels index colours (or labels), not greys that the palette, a ramp, merely shows in colour."""
    if page.photometric != PHOTOMETRIC.PALETTE or page.colormap is None:
        return False
    colors = np.asarray(page.colormap, np.int64)  # (3, 256)
    return bool((np.diff(colors) < 0).any())


class TiffImage(StoredImage):
    """One level of a TIFF; the images of all levels share the open file."""

    reader = "TIFF (tifffile)"

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        self.name = path
        with quietly("tifffile"), as_image_errors(f"{path}: cannot be read as a TIFF", DAMAGED):
            storage = {os.path.realpath(path): check_directories(path)}
            with tifffile.TiffFile(path) as tiff:
                storage |= self._beside(tiff)
                self._read_metadata(tiff, self._series(tiff, axes), storage, axes)
            check_missing(self.n_missing, missing, name=path)
            self._pages = PageReader(path)

    def _beside(self, tiff: tifffile.TiffFile) -> dict[str, dict[int, Storage]]:
        """Check the other files of an OME-TIFF, and return how their pages are stored."""
        # tifffile looks for them beside the file itself, not beside a link to it.
        folder = Path(os.path.realpath(self.name)).parent
        names = check_ome(tiff, name=self.name) if tiff.is_ome else []
        return {os.path.realpath(p): check_directories(str(p)) for p in map(folder.joinpath, names) if p.is_file()}

    def _series(self, tiff: tifffile.TiffFile, axes: str | None) -> Any:
        """Return the series to read: the largest of a generic TIFF, whose metadata names none, else the first."""
        if not (found := all_series(tiff)):
            raise ImageError(f"{self.name}: holds no image. The file is damaged")
        first = found[0]
        if tiff.is_ome and first.kind != "ome" and axes is None:
            raise ImageError(f"{self.name}: its OME-XML does not describe its pages. Say what they are: --axes")
        chosen = max(found, key=lambda s: prod(s.shape)) if first.kind == "generic" else first
        # Smaller ones are labels, thumbnails or levels.
        others = [s for s in found if s is not chosen and prod(s.shape) * LESSER > prod(chosen.shape)]
        if others and chosen.kind in SEVERAL:
            sides = sides_text([n for n in chosen.shape if n > 1])
            _warn_once(
                f"{self.name}: holds {len(others) + 1} images, of which one is read, {sides} px. "
                f"Write the others to files of their own"
            )
        return chosen

    def _read_metadata(
        self, tiff: tifffile.TiffFile, series: Any, storage: dict[str, dict[int, Storage]], axes: str | None
    ) -> None:
        """Keep all that is needed of a series, so that tifffile's file can be closed."""
        self.dtype, self._segments, maps = pixel_dtype(series.dtype, self.name), list[Segments](), list[AxisMap]()
        for level in (s for s in series.levels if s.dtype == series.dtype):
            segments = segments_of(level, storage=storage, name=self.name)
            letters, shape = stored_dimensions(level, segments.page_shape, name=self.name)
            axis_map = axis_map_of(letters, shape, axes=axes, name=self.name)
            if not maps or axis_map.letters == maps[0].letters:
                self._segments.append(segments)
                maps.append(axis_map)
        for segments in self._segments:
            self._check_page(segments.page)
        self._describe(maps, sizes_of_levels(maps, finest_sizes(tiff, series)))
        self.channel_names = channel_names(tiff, series, n_channels=self.n_channels)
        self.n_missing = sum(segments.n_missing for segments in self._segments)

    def _check_page(self, page: Any) -> None:
        # tifffile builds the decoder on first use, which is not thread-safe, so it is built here. Called without data,
        # it only raises if it cannot decode the page.
        page.decode(None, 0)
        if _is_picture_of_palette(page):
            _warn_once(
                f"{self.name}: its pixels are numbers of a palette, and are read as these numbers, which is right for "
                f"labels alone. Write a picture in colour as RGB first"
            )
        if page.photometric == PHOTOMETRIC.YCBCR and page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS:
            raise ImageError(f"{self.name}: its pixels are YCbCr without JPEG. Convert them to RGB")

    @property
    def keeps_pieces(self) -> bool:  # type: ignore[override]
        return not self._segments[self.level].raw

    @property
    def drops_alpha(self) -> bool:  # type: ignore[override]
        return n_alpha(self._segments[self.level].page) > 0

    @property
    def n_decoded(self) -> int:
        """Number of tiles and strips decoded so far, over the images of all levels."""
        return self._pages.cache.n_decoded

    def _read(self, box: Box, channels: Span | None) -> Pixels:
        axis_map, segments = self._maps[self.level], self._segments[self.level]
        out, stored = axis_map.empty(box, self.dtype, channels)
        asked, outer = axis_map.stored_box(box, channels), axis_map.shape[:-5]
        ranges = list(zip(asked.start, asked.stop, strict=True))
        with as_image_errors(f"{self.name}: {box} cannot be read", DAMAGED):
            for index in product(*(range(a, b) for a, b in ranges[:-5])):
                page = int(np.ravel_multi_index(index, outer)) if outer else 0
                part = stored[tuple(i - a for i, (a, _) in zip(index, ranges, strict=False))]
                self._pages.fill(part, segments, page=page, ranges=ranges[-5:])
        return out

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(self._pages.head)
        for segments in self._segments:
            digest.update(repr((segments.page_shape, segments.segment_shape)).encode())
            digest.update(segments.offsets.astype("<u8").tobytes())
            digest.update(segments.counts.astype("<u8").tobytes())
        return {
            "kind": "tiff",
            "bytes": self._pages.n_bytes,
            "tables_sha256": digest.hexdigest(),
            "missing": self.n_missing,
        }

    def close(self) -> None:
        """Close the file, for the images of all its levels."""
        self._pages.close()
