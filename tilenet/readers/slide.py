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

from tilenet.errors import ImageError, closed_on_error
from tilenet.geometry import Box
from tilenet.readers.axes import AxisMap
from tilenet.readers.cache import PieceCache
from tilenet.readers.guards import DAMAGED, LONGEST_AXIS, as_image_errors, needing, positive_or_none
from tilenet.readers.image import RGB, Pixels
from tilenet.readers.stored import ChunkedImage, sizes_of_levels

SIDE = (512, 512)
WHITE = "FFFFFF"


class OpenSlides:
    """A slide as OpenSlide has it open, shared by the images of all its levels."""

    def __init__(self, path: str) -> None:
        import openslide

        self._path, self._open, self._failure = path, openslide.OpenSlide, openslide.OpenSlideError
        self.slide: Any = self._open(path)

    def region(self, at: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        """Read a region; after an error, which may be that of another region, once more from a slide opened anew."""
        try:
            return self.slide.read_region(at, level, size)
        except self._failure:
            pass
        # No other thread reads from it until this region is read. The old one closes itself when nobody reads from it.
        anew = self._open(self._path)
        with closed_on_error(anew):
            region = anew.read_region(at, level, size)
        self.slide = anew
        return region


class SlideImage(ChunkedImage):
    """One level of a slide."""

    dtype, keeps_pieces = np.dtype(np.uint8), True

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        if axes not in (None, "yxc"):
            raise ImageError(f"{path}: a slide has the axes yxc, not {axes}. Leave --axes out")
        self.name, self._cache, self._bytes = path, PieceCache(), Path(path).stat().st_size
        with as_image_errors(f"{path}: cannot be read by OpenSlide", DAMAGED):
            with needing(path, kind="a slide", library="OpenSlide", extra="slide"):
                self._opened = OpenSlides(path)
            with closed_on_error(self):
                self._read_metadata()

    def _read_metadata(self) -> None:
        slide = self._opened.slide
        properties = dict(slide.properties)
        self._downsamples = [float(n) for n in slide.level_downsamples]
        self._shapes = [(int(height), int(width)) for width, height in slide.level_dimensions]
        if not self._shapes or not all(0 < n <= LONGEST_AXIS for shape in self._shapes for n in shape):
            raise ImageError(f"{self.name}: has levels of {self._shapes} px. {DAMAGED}")
        self._vendor, self._hash = (properties.get(f"openslide.{key}", "") for key in ("vendor", "quickhash-1"))
        self._background = tuple(bytes.fromhex(properties.get("openslide.background-color", WHITE)))
        finest = {a: positive_or_none(properties.get(f"openslide.mpp-{a}")) for a in "yx"}
        maps = [AxisMap(("y", "x", "c"), (*shape, 3)) for shape in self._shapes]
        self._describe(maps, sizes_of_levels(maps, finest), RGB)
        self.reader = f"OpenSlide ({self._vendor})"

    def _sides(self, joined: str) -> tuple[int, ...]:
        return (*SIDE, 3)

    def _decoded(self, piece: Box) -> Pixels:
        (y, x, _), (height, width, _) = piece.start, piece.shape
        at = round(x * self._downsamples[self.level]), round(y * self._downsamples[self.level])
        rgba = np.asarray(self._opened.region(at, self.level, (width, height)))  # (y, x, 4)
        alpha, colour = rgba[..., 3:].astype(np.uint16), rgba[..., :3]
        if not (alpha == 255).all():
            behind = np.array(self._background, np.uint16)
            colour = ((colour * alpha + behind * (255 - alpha) + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(colour)

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "slide",
            "vendor": self._vendor,
            "bytes": self._bytes,
            "shapes": [list(shape) for shape in self._shapes],
            "quickhash": self._hash,
        }

    def close(self) -> None:
        self._opened.slide.close()
