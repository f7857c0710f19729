"""An image whose pixel size the caller gives, because the file does not state it, or states it wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

from tilenet.errors import SettingsError
from tilenet.geometry import Box
from tilenet.readers.coordinates import CoordinateTransform, resized
from tilenet.readers.image import Image, Level, Pixels
from tilenet.readers.views import DerivedImage
from tilenet.resolution import coarser_size, size_text

# Axes that have a pixel size, in array order; a size of two numbers is for the last two.
SPACE = "zyx"
# Micrometres per pixel that are accepted; the limits keep areas, volumes and densities finite.
SMALLEST, LARGEST = 1e-6, 1e6
# Two pixel sizes differ by rounding if the logarithm of their ratio is at most this.
ROUNDING = 0.01
# Most characters of a value that an error message quotes.
LONGEST_QUOTE = 60


def parse_pixel_size(value: Any) -> tuple[float, ...]:
    """Return micrometres per pixel along y and x, or along z, y and x.

    They are given as one number for y and x, two (y, x) or three (z, y, x), or as their text, with commas between them.
    `SettingsError` if these are not one to three numbers of 1e-6 to 1e6.

    >>> parse_pixel_size(0.25), parse_pixel_size("2,0.5,0.5")
    ((0.25, 0.25), (2.0, 0.5, 0.5))
    """
    given: Any = value.split(",") if isinstance(value, str) else value
    try:
        each = tuple(given) if hasattr(given, "__len__") else (given,)
        sizes = () if any(isinstance(size, bool) for size in each) else tuple(map(float, each))
    except (TypeError, ValueError):
        sizes = ()
    if not 1 <= len(sizes) <= len(SPACE) or not all(SMALLEST <= n <= LARGEST for n in sizes):
        quoted = " ".join(str(value).split())[:LONGEST_QUOTE]
        raise SettingsError(
            f"pixel_size {quoted}: give micrometres per pixel, {SMALLEST:g} to {LARGEST:g}: one number for y and x, "
            f"two (y,x) or three (z,y,x), such as 0.25 or 2,0.5,0.5"
        )
    return sizes * 2 if len(sizes) == 1 else sizes


class CalibratedImage(DerivedImage):
    """An image with another pixel size at level 0 along y and x, or z, y and x; other sizes follow from the lengths."""

    def __init__(self, image: Image, pixel_size: tuple[float, ...]) -> None:
        super().__init__(image)
        letters = SPACE[-len(pixel_size) :]
        if missing := set(letters) - set(image.axes):
            raise SettingsError(
                f"{image.name}: pixel_size {','.join(f'{n:g}' for n in pixel_size)} is for {', '.join(letters)}, and "
                f"the image has the axes {image.axes}, without {missing.pop()}. Give two numbers, y,x (--pixel-size)"
            )
        self._given, self.working_bytes = pixel_size, image.working_bytes
        # If the image was given a size before, its z stays where only y and x are replaced.
        self.given_pixel_size = (*image.given_pixel_size[: -len(pixel_size)], *pixel_size)
        self._sizes = dict(zip(letters, pixel_size, strict=True))
        self.levels = tuple(self._sized(level) for level in image.levels)

    def _sized(self, level: Level) -> Level:
        finest = dict(zip(self.axes, self._image.levels[0].shape, strict=True))
        lengths = dict(zip(self.axes, level.shape, strict=True))
        sizes = dict(zip(self.box_axes, level.pixel_size, strict=True))
        for axis, size in self._sizes.items():
            sizes[axis] = coarser_size(size, finest[axis], lengths[axis])
        return Level(level.shape, tuple(sizes.values()))

    @property
    def frame(self) -> CoordinateTransform | None:
        found, sizes = self._image.frame, dict(zip(self.box_axes, self.pixel_size, strict=True))
        return found and resized(found, {axis: size for axis in self._sizes if (size := sizes[axis])})

    @property
    def separates_channels(self) -> bool:
        return self._image.separates_channels

    def at_level(self, level: int) -> Image:
        return CalibratedImage(self._image.at_level(level), self._given)

    def read_inside(self, box: Box) -> Pixels:
        return self._image.read_inside(box)

    def read_channels(self, box: Box, channels: tuple[int, int]) -> Pixels:
        return self._image.read_channels(box, channels)


def overruled_size(image: Image) -> str:
    """Return the pixel size that a file states, as text, if the given one differs by more than rounding; else empty."""
    given = dict(zip(SPACE[-len(image.given_pixel_size) :], image.given_pixel_size, strict=False))
    sizes = dict(zip(image.box_axes, image.stated_pixel_size, strict=True))
    stated = [sizes[axis] for axis in given]
    return size_text(stated) if sizes_differ(image.given_pixel_size, stated) else ""


def sizes_differ(given: Sequence[float], stated: Sequence[float | None]) -> bool:
    """Return whether pixel sizes differ along any axis, where both are known, by more than rounding.

    >>> sizes_differ((2, 0.5), (None, 0.502)), sizes_differ((2, 0.5), (None, 0.6))
    (False, True)
    """
    return any(old and abs(log(new / old)) > ROUNDING for new, old in zip(given, stated, strict=True))
