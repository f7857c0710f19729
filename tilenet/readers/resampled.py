"""Resample a level of a stored image to another pixel size, as it is read.

Resampled pixel i covers the stored pixels ``[i f, (i + 1) f)``, where f is an exact fraction::

    stored      |  0  |  1  |  2  |  3  |  4  |        f = 3/2
    resampled   |   0    |   1    |   2    | 3 |       pixel 0 = (2 a0 + a1) / 3

If f >= 1, its value is the mean over that interval, along y and then x (a box filter, which
prevents aliasing); at the far edge, the mean over the part inside the image. If f < 1, its value
is interpolated linearly between the two stored pixels whose centres are next to its own. Either
way it is a sum of the same terms in the same order, whichever box is read: integers in exact
arithmetic, rounded once, half up; floats in float64. So the value does not depend on the box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import ImageError, SettingsError
from tilenet.geometry import Box, ceil_div
from tilenet.readers.coordinates import CoordinateTransform, scaled
from tilenet.readers.image import Image, Level, Pixels
from tilenet.readers.views import DerivedImage
from tilenet.resolution import AS_STORED, Factor, PixelSize, Resolution, downsample_factor

# Most pixels (of all channels, stored or resampled) to process at once, and the temporary memory for each.
PIECE, BYTES_PER_PIXEL = 2**21, 24
RESAMPLED = "yx"


@dataclass(frozen=True)
class Taps:
    """The stored pixels, and their weights, that each of some resampled pixels sums along one axis."""

    # Range of the stored pixels needed.
    start: int
    stop: int
    # (K, n): K stored pixels for each of n resampled ones, counted from `start`, and their integer weights. K
    # depends on the factor only; taps that a pixel does not need have weight 0.
    index: NDArray[np.int64]
    weight: NDArray[np.int64]


def taps(start: int, stop: int, length: int, factor: Fraction) -> Taps:
    """Return the taps of the resampled pixels ``start:stop`` on an axis of `length` stored pixels.

    >>> found = taps(0, 2, 5, Fraction(3, 2))
    >>> found.index.T.tolist(), found.weight.T.tolist()
    ([[0, 1], [1, 2]], [[2, 1], [1, 2]])
    """
    a, b = factor.numerator, factor.denominator
    pixel = np.arange(start, stop, dtype=np.int64)
    if factor >= 1:  # in units of 1/b stored pixel, resampled pixel i covers [i a, (i + 1) a)
        low, high = pixel * a, np.minimum((pixel + 1) * a, length * b)
        index = low // b + np.arange((a + 2 * b - 2) // b)[:, None]
        weight = np.maximum(np.minimum(high, (index + 1) * b) - np.maximum(low, index * b), 0)
        # A surplus tap points at a pixel that is needed anyway: 0 times a NaN elsewhere would be NaN.
        index = np.minimum(index, (high - 1) // b)
    else:  # in units of 1/(2 b): the offset of the centre (i + 1/2) a/b from the centre of stored pixel 0
        whole, rest = np.divmod((2 * pixel + 1) * a - b, 2 * b)
        # Where the centres coincide (rest 0), only that pixel is needed.
        index = np.clip(np.stack([whole, whole + (rest > 0)]), 0, length - 1)
        weight = np.stack([2 * b - rest, rest])
    first = int(index.min())
    return Taps(first, int(index.max()) + 1, index - first, weight)


class Resampled(DerivedImage):
    """An image whose level 0 is the current level of another, resampled along y and x; then come its coarser levels.

    `factor` is how many stored pixels there are per resampled pixel. `ImageError` if the pixels are integers too large
    to sum exactly in 64 bits.
    """

    working_bytes = PIECE * BYTES_PER_PIXEL

    def __init__(self, image: Image, factor: tuple[Fraction, Fraction]) -> None:
        super().__init__(image)
        self.factor, self.level = factor, 0
        self._by_axis = dict(zip(RESAMPLED, factor, strict=True))
        largest = np.iinfo(self.dtype).max if self.dtype.kind in "ui" else 0
        if 4 * largest * prod(max(f.numerator, 2 * f.denominator) for f in factor) >= 2**63:
            by = " x ".join(f"{float(f):.6g}" for f in dict.fromkeys(factor))
            # With pixels of 64 bits, no factor helps.
            instead = "convert the image to 32 bits" if self.dtype.itemsize == 8 else "choose a finer mpp (--mpp)"
            raise ImageError(
                f"{self.name}: the mean over {by} px of {self.dtype} cannot be taken exactly in 64 bits. Choose a "
                f"level (--level), or {instead}"
            )
        shape = tuple(
            ceil_div(n * f.denominator, f.numerator)
            for n, f in ((n, self._by_axis.get(a, Fraction(1))) for n, a in zip(image.shape, self.axes, strict=True))
        )
        sizes = zip(image.pixel_size, self._factors, strict=True)
        first = Level(shape, tuple(None if n is None else n * f.numerator / f.denominator for n, f in sizes))
        coarser = [k for k, level in enumerate(image.levels) if prod(level.shape) < prod(shape)]
        self.levels = (first, *(image.levels[k] for k in coarser))
        self._coarser = coarser

    @property
    def _factors(self) -> list[Fraction]:
        return [self._by_axis.get(a, Fraction(1)) for a in self.box_axes]

    @property
    def shift(self) -> tuple[float, ...]:
        if self.level:
            return self._image.at_level(self._coarser[self.level - 1]).shift
        return tuple(
            stored / float(f) + float(1 - 1 / f) / 2 for stored, f in zip(self._image.shift, self._factors, strict=True)
        )

    @property
    def frame(self) -> CoordinateTransform | None:
        if self.level:
            return self._image.at_level(self._coarser[self.level - 1]).frame
        found = self._image.frame
        return found and scaled(found, [float(f) for f in self._factors])

    def with_channels(self, channels: Sequence[int]) -> Image:
        if len(channels) > self.n_channels or self.level:
            return super().with_channels(channels)  # fewer channels are resampled alone
        return Resampled(self._image.with_channels(channels), self.factor)

    def read_inside(self, box: Box) -> Pixels:
        if self.level:
            return self._image.at_level(self._coarser[self.level - 1]).read_inside(box)
        out = self.empty(box)
        for piece in self._pieces(box):
            out[(slice(None), *piece.relative_to(box.start).slices)] = self._resampled(piece)
        return out

    def _pieces(self, box: Box) -> Iterator[Box]:
        """Halve a box until each part needs at most `PIECE` pixels, stored and resampled, whatever the factor."""
        stored = [ceil_div(n * f.numerator, f.denominator) + 2 for n, f in zip(box.shape, self._factors, strict=True)]
        if max(prod(stored), box.size) * self.n_channels <= PIECE or box.size <= 1:
            yield box
            return
        axis = max(range(box.ndim), key=lambda k: (box.shape[k] > 1, stored[k]))
        middle = (box.start[axis] + box.stop[axis]) // 2
        for a, b in ((box.start[axis], middle), (middle, box.stop[axis])):
            start, stop = list(box.start), list(box.stop)
            start[axis], stop[axis] = a, b
            yield from self._pieces(Box(tuple(start), tuple(stop)))

    def _resampled(self, box: Box) -> Pixels:
        found = [
            taps(a, b, n, f) if f != 1 else None
            for a, b, n, f in zip(box.start, box.stop, self._image.box_shape, self._factors, strict=True)
        ]
        starts = tuple(t.start if t else a for t, a in zip(found, box.start, strict=True))
        stops = tuple(t.stop if t else b for t, b in zip(found, box.stop, strict=True))
        pixels = self._image.read_inside(Box(starts, stops))
        return mean(pixels, {axis: t for axis, t in enumerate(found, start=1) if t})


def at_resolution(image: Image, resolution: Resolution) -> Image:
    """Return an image at the level of a resolution, resampled if its factor is not 1."""
    image = image if image.level == resolution.level else image.at_level(resolution.level)
    _refuse_larger_than_image(image, resolution)
    return image if resolution.factor == AS_STORED else Resampled(image, resolution.factor)


def step_of(image: Image, resolution: Resolution) -> Factor:
    """Return how many pixels of the finest level one at a resolution covers, along y and x."""
    full, stored = (image.plane_shape(k) for k in (0, resolution.level))
    y, x = (downsample_factor(n, m) * f for n, m, f in zip(full, stored, resolution.factor, strict=True))
    return y, x


def _refuse_larger_than_image(image: Image, resolution: Resolution) -> None:
    size, sides = in_plane(image, image.level), dict(zip(image.axes, image.shape, strict=True))
    if resolution.mpp is None or None in size:
        return
    whole = [sides[a] * um for a, um in zip(RESAMPLED, size, strict=True) if um is not None]
    if resolution.mpp > max(whole):
        raise SettingsError(
            f"{image.name}: is {' x '.join(f'{um:.6g}' for um in whole)} um in all, less than a pixel of "
            f"{resolution.mpp:g} um. Give an mpp far below {max(whole):.6g} (--mpp), or a level (--level)"
        )


def in_plane(image: Image, level: int) -> PixelSize:
    """Return the pixel size at a level along y and x, in micrometres."""
    sizes = dict(zip(image.box_axes, image.levels[level].pixel_size, strict=True))
    return sizes["y"], sizes["x"]


def mean(pixels: Pixels, along: dict[int, Taps]) -> Pixels:
    """Return the weighted means of pixels along some axes, in their own dtype.

    Means of integers are exact, then rounded half up. The order of the axes, and of the terms along
    each, is fixed, so means of floats are bit-identical whichever other pixels are computed with them.
    """
    exact = pixels.dtype.kind in "ui"
    weight_type = np.dtype(np.int64 if exact else np.float64)
    sums: NDArray[Any] = pixels
    total: NDArray[Any] = np.ones((1,) * pixels.ndim, weight_type)
    for axis, t in along.items():
        shape = [-1 if k == axis else 1 for k in range(pixels.ndim)]
        weights = t.weight.astype(weight_type)
        sums = weighted_sum(sums, t.index, [w.reshape(shape) for w in weights], axis)
        total = total * weights.sum(axis=0).reshape(shape)
    means: Pixels = (2 * sums + total) // (2 * total) if exact else sums / total
    return means.astype(pixels.dtype)


def weighted_sum(pixels: Pixels, index: NDArray[np.int64], weights: list[NDArray[Any]], axis: int) -> NDArray[Any]:
    """Return the sum of ``weights[k] * pixels[index[k]]`` along an axis, adding in the order of k."""
    out: NDArray[Any] = np.take(pixels, index[0], axis=axis) * weights[0]
    for i, weight in zip(index[1:], weights[1:], strict=True):
        out += np.take(pixels, i, axis=axis) * weight
    return out
