"""Read slides through OpenSlide: MIRAX (MRXS) and the other formats of `formats.SLIDE_NAMES`.

Pixels are 8-bit red, green and blue, as OpenSlide returns them. Areas that were not scanned are
transparent in OpenSlide, and are read as the slide's background colour (white if it names none).
OpenSlide takes positions in pixels of the finest level, so if the downsampling of a level is not
a whole number, its pixels have no exact position. Levels are therefore read in pieces on a fixed
grid, so that every pixel has the same value whichever box is read. After one error OpenSlide
refuses all further reads of an open slide, which is then opened anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tilenet.errors import ImageError, TilenetError
from tilenet.geometry import Box
from tilenet.readers.cache import PieceCache
from tilenet.readers.fixed_grid import assemble
from tilenet.readers.guards import (
    DAMAGED,
    LONGEST_AXIS,
    as_image_errors,
    needing,
    positive_or_none,
    reduce_by_path,
)
from tilenet.readers.image import RGB, Image, Level, Pixels
from tilenet.resolution import coarser_size

SIDE = (512, 512)
WHITE = "FFFFFF"


class SlideSource:
    """An open slide, shared by the images of all its levels."""

    def __init__(self, path: str) -> None:
        with needing(path, kind="a slide", library="OpenSlide", extra="slide"):
            import openslide
        self.path, self.cache, self.bytes = path, PieceCache(), Path(path).stat().st_size
        self._open: Any = openslide.OpenSlide
        self._failure = openslide.OpenSlideError
        with as_image_errors(f"{path}: cannot be read by OpenSlide", DAMAGED):
            self.slide: Any = self._open(path)
        try:
            with as_image_errors(f"{path}: cannot be read by OpenSlide", DAMAGED):
                self._read_metadata(dict(self.slide.properties))
        except TilenetError:
            self.slide.close()
            raise

    def _read_metadata(self, properties: dict[str, str]) -> None:
        self.downsamples = [float(n) for n in self.slide.level_downsamples]
        self.shapes = [(int(height), int(width)) for width, height in self.slide.level_dimensions]
        if not self.shapes or not all(0 < n <= LONGEST_AXIS for shape in self.shapes for n in shape):
            raise ImageError(f"{self.path}: has levels of {self.shapes} px. {DAMAGED}")
        self.vendor = properties.get("openslide.vendor", "")
        self.hash = properties.get("openslide.quickhash-1", "")
        colour = properties.get("openslide.background-color", WHITE)
        self.background = tuple(bytes.fromhex(colour))
        finest = [positive_or_none(properties.get(f"openslide.mpp-{a}")) for a in "yx"]
        self.levels = tuple(
            Level((*shape, 3), tuple(map(coarser_size, finest, self.shapes[0], shape))) for shape in self.shapes
        )

    def piece(self, level: int, box: Box) -> Pixels:
        """Return the pixels of one piece of the grid: (3, y, x)."""
        return self.cache.get((level, box), lambda: self._decoded(level, box))

    def _decoded(self, level: int, box: Box) -> Pixels:
        at = tuple(round(a * self.downsamples[level]) for a in reversed(box.start))
        with as_image_errors(f"{self.path}: {box} of level {level} cannot be read", DAMAGED):
            rgba = np.asarray(self._region(at, level, box.shape[::-1]))  # (y, x, 4)
            alpha = rgba[..., 3:].astype(np.uint16)
            colour = rgba[..., :3]
            if not (alpha == 255).all():
                behind = np.array(self.background, np.uint16)
                colour = ((colour * alpha + behind * (255 - alpha) + 127) // 255).astype(np.uint8)
            return np.moveaxis(np.ascontiguousarray(colour), 2, 0)

    def _region(self, at: tuple[int, ...], level: int, size: tuple[int, ...]) -> Any:
        """Read a region; after an error, which may be that of another region, once more from a slide opened anew."""
        try:
            return self.slide.read_region(at, level, size)
        except self._failure:
            pass
        # No other thread reads from it until this region is read. The old one closes itself when nobody reads from it.
        anew = self._open(self.path)
        try:
            region = anew.read_region(at, level, size)
        except BaseException:
            anew.close()
            raise
        self.slide = anew
        return region


class SlideImage(Image):
    """One level of a slide."""

    axes, dtype, channel_names = "yxc", np.dtype(np.uint8), RGB

    def __init__(self, source: SlideSource) -> None:
        self._source, self.name, self.levels = source, source.path, source.levels
        self.keeps_pieces = True
        self.reader = f"OpenSlide ({source.vendor})"

    def read_inside(self, box: Box) -> Pixels:
        """Return the pixels of a box inside the slide, decoding only the pieces that it touches."""
        out = self.empty(box)
        read, level = self._source.piece, self.level
        assemble(out, box, shape=self.box_shape, side=SIDE, piece=lambda cell: read(level, cell))
        return out

    def identity(self) -> dict[str, Any]:
        """Return the vendor, the file's size, the shapes of the levels, and OpenSlide's own hash of the slide."""
        source = self._source
        return {
            "kind": "slide",
            "vendor": source.vendor,
            "bytes": source.bytes,
            "shapes": [list(shape) for shape in source.shapes],
            "quickhash": source.hash,
        }

    def close(self) -> None:
        """Close the slide, for the images of all its levels."""
        self._source.slide.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_by_path(self.name, level=self.level)


def open_slide(path: str, *, axes: str | None) -> Image:
    """Open a slide with OpenSlide, whatever the suffix of its name."""
    if axes is not None and axes != SlideImage.axes:
        raise ImageError(f"{path}: a slide has the axes yxc, not {axes}. Leave --axes out")
    return SlideImage(SlideSource(path))
