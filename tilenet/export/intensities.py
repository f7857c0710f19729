"""Measure the image over each object of a mask: each channel, and the optical density of stains.

Stains are told apart by colour [1], with the colours of `skimage.color.rgb2hed`. An optical density is the decadic
logarithm of white over the pixel, so that it compares with QuPath's; `rgb2hed` gives a sixth of it. A pixel alone
decides its densities, and they are summed as integers, so that neither blocks nor their order change a mean.

[1] A. C. Ruifrok and D. A. Johnston, Anal. Quant. Cytol. Histol. 23 (2001).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed

from tilenet.errors import ImageError, SettingsError, counted
from tilenet.export.object_statistics import BITS, ObjectStatistics
from tilenet.export.positive_rules import STAINS, VERDICTS, judged, parse_positive
from tilenet.masks.provenance import image_of, refuse_another, resolution_of
from tilenet.readers.image import Image
from tilenet.readers.resampled import at_resolution
from tilenet.readers.views import channel_numbers
from tilenet.store import AnyMask
from tilenet.tissue.detection import is_dark

# Optical density of each value of 8 bits. As in QuPath, 0 counts as 1: its logarithm is not finite.
DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255)
# What the density of each stain cannot exceed, as that of no channel does.
MOST = np.maximum(hed_from_rgb, 0).sum(axis=0) * DENSITY[0]
# Densities are rounded to these parts: finer than any camera tells, and sums up to 2^53 of them are exact.
PARTS = 2**20
# By how much each stain absorbs more blue than red, as brown does; purple and blue do not.
BROWN = rgb_from_hed[:, 2] - rgb_from_hed[:, 0]
LOG = logging.getLogger("tilenet")

Means = NDArray[np.float64]
# What a table may say of a channel or a stain over each object; the mean in any case.
ALL = ("mean", "sd", "min", "max")


class Column(NamedTuple):
    """What is measured of each pixel: its name, which parts of one it is given in, and whether its spread is wanted."""

    name: str
    parts: int
    spread: bool


@dataclass(frozen=True)
class Measurements:
    """What was measured over each object."""

    of_pixels: list[Column]
    # (n + 1, len(of_pixels)), by number of the object. The row of number 0 is NaN.
    means: Means
    # By place in `of_pixels`, and number of the object.
    spread: ObjectStatistics
    # (n + 1): whether an object is positive, as a place in `VERDICTS`; None if that was not asked for.
    positive: NDArray[np.int64] | None

    @cached_property
    def columns(self) -> list[str]:
        """The names of all columns."""
        of_each = [f"{which}_{name}" for name, _, spread in self.of_pixels for which in (ALL if spread else ALL[:1])]
        return [*of_each, *(["positive"] if self.positive is not None else [])]

    def of(self, number: int) -> dict[str, str]:
        """Return the values of an object by column."""
        values = []
        for k, mean in enumerate(self.means[number].tolist()):
            values += [mean, *(value / self.of_pixels[k].parts for value in self.spread.of(k, number))]
        positive = [] if self.positive is None else [VERDICTS[self.positive[number]]]
        return dict(zip(self.columns, [*(f"{value:.7g}" for value in values), *positive], strict=True))


class Intensities:
    """What to measure: `channels` of the image, not only those that the network saw, and densities of `STAINS`.

    `positive` is a rule by which a mean makes an object positive, such as ``"dab>0.2"``: that of a stain of a colour
    picture, or of a channel by name, in any case of letters, or number. The means are then measured too, and nothing
    else. `SettingsError` if it is not of this form.
    """

    def __init__(self, *, channels: bool = False, stains: bool = False, positive: str | None = None) -> None:
        self._positive, self._above = parse_positive(positive) if positive is not None else ("", 0.0)
        self._stains, self._channels = stains, channels

    def __bool__(self) -> bool:
        return self._channels or self._stains or bool(self._positive)

    def check(self, mask: AnyMask, image: Any) -> None:
        """Raise if the means cannot be measured; reads no pixels.

        `SettingsError` if the mask has no objects, if the image has no such channel or no colours to tell stains by, or
        if no mean can be as large as that of the rule; `ImageError` if the image cannot be opened; `OutputMismatch` if
        it is not the one that the mask was made from.
        """
        if not mask.has_objects:
            raise SettingsError(
                f"{mask.path}: is a plain mask, and intensities are measured for objects. Segment again with --objects"
            )
        with image_of(mask, image, "its image is needed") as opened:
            refuse_another(opened, mask)
            self.check_image(opened)

    def check_image(self, image: Image) -> None:
        """Raise `SettingsError` as `check` does, of an image that has no mask yet."""
        if self._stains and not image.is_color:
            raise SettingsError(
                f"{image.name}: stains are told apart in red, green and blue of 8 bits, which it has not. Measure its "
                f"channels (--intensities)"
            )
        if self._positive:
            self._column(image)
            self._refuse_idle(image)

    def measure(self, mask: AnyMask, image: Any) -> Measurements:
        """Measure an image that `check` has accepted, block by block, at the resolution of the mask.

        Tells of a dark image, whose stains mean nothing, and of objects that are positive for DAB, but not brown.
        """
        with image_of(mask, image, "its image is needed") as opened:
            if dark := self._measured(opened)[1] and is_dark(opened):
                LOG.warning(
                    "%s: is dark, as in fluorescence, and densities of stains are those of bright field. A rule may "
                    "name a channel, such as 'blue>60'",
                    opened.name,
                )
            seen = at_resolution(opened, resolution_of(mask))
            channels, stains = self._measured(seen)
            columns = [Column(name, 1, self._channels) for name in _names(seen)] if channels else []
            columns += [Column(stain, PARTS, self._stains) for stain in STAINS] if stains else []
            exact = seen.dtype.kind in "ui" and seen.dtype.itemsize * 8 <= BITS
            spread = ObjectStatistics([column.spread for column in columns], mask.info["objects"], exact=exact)
            means = _means(mask, seen, partial(_values, channels=channels, stains=stains), spread)
            means /= [column.parts for column in columns]
            positive = judged(means[:, self._column(seen)], self._above) if self._positive else None
            if self._stain(seen) == STAINS.index("dab") and not dark:
                _remark_other_hue(opened.name, means[positive == 1, -len(STAINS) :])
        return Measurements(columns, means, spread, positive)

    def _refuse_idle(self, image: Image) -> None:
        """Raise if no mean can be as large as that of the rule."""
        if (stain := self._stain(image)) is not None:
            if self._above >= (most := MOST[stain]):
                raise SettingsError(
                    f"positive: the density of {STAINS[stain]} is at most {most:.2g}. Give less, such as 0.2"
                )
        elif image.dtype.kind in "ui" and self._above >= (most := np.iinfo(image.dtype).max):
            raise SettingsError(f"positive: channel {self._positive} of {image.name} is at most {most}. Give less")

    def _stain(self, image: Image) -> int | None:
        """Return which of the stains decides what is positive; None if it is a channel."""
        name = self._positive.casefold().replace("hema", "haema")
        return STAINS.index(name) if image.is_color and name in STAINS else None

    def _measured(self, image: Image) -> tuple[bool, bool]:
        """Return whether the channels are measured, and whether the stains."""
        stain = self._stain(image) is not None
        return self._channels or bool(self._positive and not stain), self._stains or stain

    def _column(self, image: Image) -> int:
        """Return the column of the means that decides what is positive."""
        if (stain := self._stain(image)) is not None:
            return stain + image.n_channels * self._measured(image)[0]
        # Channels may be called by their wavelengths.
        is_number = self._positive.isdecimal() and self._positive not in image.channel_names
        try:
            (number,) = channel_numbers(image, int(self._positive) if is_number else self._positive)
        except ImageError as error:
            raise SettingsError(f"{error}; pictures in 8-bit colour have the stains {', '.join(STAINS)}") from error
        if number >= image.n_channels:
            raise SettingsError(f"{image.name}: has channels 0 to {image.n_channels - 1}, not {number}. Choose another")
        return number


def _remark_other_hue(name: str, densities: Means) -> None:
    """Say so if most objects that are positive for DAB, of which these are the densities (n, 3), are not brown."""
    if 2 * (brown := int(np.count_nonzero(densities @ BROWN > 0))) < len(densities):
        LOG.warning(
            "%s: of %d positive objects, %d are brown, so most may have no DAB: haematoxylin gives densities of it, "
            "too. Use the rule on slides with DAB alone, or a higher threshold",
            *(name, len(densities), brown),
        )


def _values(pixels: NDArray[Any], *, channels: bool, stains: bool) -> NDArray[Any]:
    """Return what is measured (C', n) of pixels (C, n)."""
    return np.concatenate([*([pixels] if channels else []), *([_densities(pixels)] if stains else [])])


def _densities(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the optical densities (3, n) of the stains, in `PARTS`, of pixels (3, n) in red, green and blue."""
    red, green, blue = DENSITY[pixels]
    # Not a matrix product: its rounding may depend on how many pixels there are.
    stains = np.stack([red * r + green * g + blue * b for r, g, b in hed_from_rgb.T])
    densities: NDArray[np.float64] = np.rint(np.maximum(stains, 0) * PARTS)
    return densities


def _names(image: Image) -> list[str]:
    """Return a name for each channel: its own or else its number, with both if a name is used twice."""
    names = [name or str(k) for k, name in enumerate(image.channel_names)]
    return [name if names.count(name) == 1 else f"{k}_{name}" for k, name in enumerate(names)]


def _means(
    mask: AnyMask, image: Image, values_of: Callable[[NDArray[Any]], NDArray[Any]], spread: ObjectStatistics
) -> Means:
    """Return the means of values over each object, and add the values to `spread`. Only finite ones count."""
    n = mask.info["objects"]
    n_values = len(values_of(np.zeros((image.n_channels, 0), image.dtype)))
    sums, counts, pixels = np.zeros((n + 1, n_values)), np.zeros((n + 1, n_values)), np.zeros(n + 1)
    for index in range(mask.layout.n_blocks(0)):
        box = mask.layout.box(0, index)
        labels = mask[box.slices]
        inside = labels > 0
        if not inside.any():
            continue
        measured = values_of(image.read(box.shifted(mask.origin))[:, inside])
        here, places = _few(labels[inside].astype(np.int64))
        pixels[here] += np.bincount(places)
        for column, (at, values) in enumerate(_finite(places, measured)):
            counts[here, column] += np.bincount(at, minlength=len(here))
            sums[here, column] += np.bincount(at, values.astype(np.float64), len(here))
            spread.add(column, here[at], values)
    _remark_lacking(image.name, pixels, counts)
    with np.errstate(invalid="ignore"):
        means: Means = sums / counts
    return means


def _few(own: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the objects of some pixels, with at most so many others, and the place of each pixel's among them."""
    first, last = int(own.min()), int(own.max())
    # Objects are numbered row by row, so that the numbers in a block of one plane are close together.
    if last - first < own.size:
        return np.arange(first, last + 1), own - first
    # Those of volumes that began planes before are not.
    return np.unique(own, return_inverse=True)


def _finite(own: NDArray[np.int64], measured: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Yield the objects (m) and values (m) of the pixels (n) in which a value is finite, for each value (C, n)."""
    for values in measured:
        kept = np.isfinite(values)
        yield (own, values) if kept.all() else (own[kept], values[kept])


def _remark_lacking(name: str, pixels: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
    """Say how many objects have pixels (n + 1) without a finite value, and how many have no others (n + 1, values)."""
    lacking, empty = ((counts[1:] < n[1:, np.newaxis]).any(axis=1).sum() for n in (pixels, np.ones_like(pixels)))
    if lacking:
        more = f"; {empty} of them hold no others, and have no mean there" if empty else ""
        hold = f"{counted(int(lacking), 'object')} hold{'s' * int(lacking == 1)}"
        LOG.warning("%s: %s pixels that are not finite, which are left out%s", name, hold, more)
