"""Intensity scaling: maps pixels to the intensities that a network was trained on.

The numbers never depend on a single tile. A model card states the *rule*; once per image, `resolve`
turns it into the numbers of a `Scaling`, which the output records and all tiles share::

    {"method": "none"}
    {"method": "linear", "subtract": 0, "divide": 255}
    {"method": "percentile", "low": 1, "high": 99.8, "per_channel": false, "clip": [-1, 3]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import ImageError, ModelError, SettingsError, TilenetError
from tilenet.geometry import Box, boxes_of, ceil_div, cell_box
from tilenet.readers.image import READERS, Image, Pixels

# For percentiles, a level of up to WHOLE_LEVEL pixels is read whole. Of a larger level, square windows, each in one
# plane, are read on a regular grid: up to WINDOWS_PER_AXIS positions along each axis, and MOST_WINDOWS windows in all,
# so that those of a series of stacks fit the memory.
WHOLE_LEVEL = 2**24
WINDOWS_PER_AXIS, WINDOW_SIDE = 8, 256
MOST_WINDOWS = WINDOWS_PER_AXIS**3
# How many pixels are counted at once: few enough to stay in the cache.
COUNTED = 2**18
# The keys that a rule may have, by method.
KEYS = {
    "none": ("clip",),
    "linear": ("subtract", "divide", "clip"),
    "percentile": ("low", "high", "per_channel", "clip"),
}


@dataclass(frozen=True)
class Scaling:
    """``(pixel - subtract) / divide`` per channel, then clipped if `clip` is given."""

    # One number per channel, or one for all channels.
    subtract: tuple[float, ...] = (0.0,)
    divide: tuple[float, ...] = (1.0,)
    # Lowest and highest value.
    clip: tuple[float, float] | None = None

    def apply(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return scaled pixels (C, *n) as float32; NaN stays NaN."""
        column = (-1,) + (1,) * (pixels.ndim - 1)
        wide = np.dtype(np.float64 if needs_float64(pixels.dtype) else np.float32)
        out: NDArray[np.floating[Any]] = pixels.astype(wide)
        if any(self.subtract):
            out -= np.asarray(self.subtract, wide).reshape(column)
        if any(d != 1 for d in self.divide):
            out /= np.asarray(self.divide, wide).reshape(column)
        return (np.clip(out, *self.clip, out=out) if self.clip else out).astype(np.float32, copy=False)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as the run record keeps them."""
        clip = list(self.clip) if self.clip else None
        return {"subtract": list(self.subtract), "divide": list(self.divide), "clip": clip}

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> Scaling:
        """Return the scaling that a run record states."""
        clip = tuple(recorded["clip"]) if recorded["clip"] else None
        return cls(tuple(recorded["subtract"]), tuple(recorded["divide"]), clip)


def needs_float64(dtype: np.dtype[Any]) -> bool:
    """Return whether to scale pixels in float64, because float32 would round them before the subtraction.

    >>> needs_float64(np.dtype("uint16")), needs_float64(np.dtype("float32")), needs_float64(np.dtype("uint32"))
    (False, False, True)
    """
    return dtype != np.float32 and dtype.itemsize > 2


def check_rule(rule: Mapping[str, Any], image: Image) -> None:
    """Raise what `resolve` raises about a rule, whatever the pixels are; reads none."""
    resolve(rule, image, sample=lambda image: [np.zeros((image.n_channels, 1), image.dtype)])


def resolve(rule: Mapping[str, Any], image: Image, *, sample: Callable[[Image], list[Pixels]] | None = None) -> Scaling:
    """Turn a rule, as on the model card, into the numbers of a `Scaling` for one image; reads it for percentiles.

    These are of the pixels that `sample` returns, by default `sample_pixels`.
    """
    try:
        if unknown := set(rule) - {"method", *KEYS.get(rule.get("method", ""), rule)}:
            raise ValueError(f"it knows no {min(map(str, unknown))}")
        scaling = _resolved(rule, image, sample or sample_pixels)
        used = [*scaling.subtract, *scaling.divide, *(scaling.clip or (0, 1))]
        low, high = scaling.clip or (0, 1)
        if 0 in scaling.divide:
            raise SettingsError("a scaling cannot divide by 0. Give another (--scaling)")
        if not low < high or not all(map(isfinite, used)):
            raise ValueError(f"it would be {scaling.to_json()}")
        if not {len(scaling.subtract), len(scaling.divide)} <= {1, image.n_channels}:
            raise ValueError(f"it has numbers for other than {image.n_channels} channels")
        if rule.get("method") == "linear" and not _is_finite(scaling, image):
            raise SettingsError(
                f"{image.name}: its pixels ({image.dtype}) minus {_said(scaling.subtract)}, divided by "
                f"{_said(scaling.divide)}, are not finite numbers. Give another scaling (--scaling)"
            )
    except TilenetError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        said = f"{type(error).__name__}: {str(error)[:100]}"
        raise ModelError(
            f"scaling {str(dict(rule))[:100]} cannot be used ({said}). Give another (--scaling)"
        ) from error
    return scaling


def _is_finite(scaling: Scaling, image: Image) -> bool:
    """Return whether the least and the largest pixel of an image's type, or of floats 0 and 1, are finite if scaled."""
    ends = np.iinfo(image.dtype) if image.dtype.kind in "iu" else None
    pixels = np.array([0, ends.min, ends.max] if ends else [0, 1], image.dtype)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(scaling.apply(np.tile(pixels, (image.n_channels, 1)))).all())


def _said(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _resolved(rule: Mapping[str, Any], image: Image, sample: Callable[[Image], list[Pixels]]) -> Scaling:
    clip = _clip_of(rule)
    match rule.get("method"):
        case "none":
            return Scaling(clip=clip)
        case "linear":
            return Scaling(_floats(rule.get("subtract", 0)), _floats(rule.get("divide", 1)), clip)
        case "percentile":
            if not 0 <= rule["low"] < rule["high"] <= 100:
                raise SettingsError(
                    f"percentiles {rule['low']} and {rule['high']}: give two from 0 to 100, the lower one first"
                )
            return of_percentiles(sample(image), rule, name=image.name)
        case other:
            raise ModelError(f"model card: scaling method {other!r} is none of {', '.join(KEYS)}")


def of_percentiles(parts: Sequence[Pixels], rule: Mapping[str, Any], *, name: str) -> Scaling:
    """Return the scaling of a ``percentile`` rule, for pixels given as a list of arrays (C, *n)."""
    if parts[0].dtype.kind == "f" and not all(np.isfinite(part).all() for part in parts):
        raise ImageError(f"{name}: has pixels that are not finite, so it has no percentiles. Replace them first")
    channels = range(len(parts[0])) if rule.get("per_channel") else [slice(None)]
    values = ([part[channel].ravel(order="K") for part in parts] for channel in channels)
    low, high = zip(*(percentiles(some, [rule["low"], rule["high"]]) for some in values), strict=True)
    span = [float(b - a) or 1.0 for a, b in zip(low, high, strict=True)]  # a flat image stays 0
    return Scaling(tuple(map(float, low)), tuple(span), _clip_of(rule))


def percentiles(parts: Sequence[Pixels], percents: Sequence[float]) -> NDArray[np.float64]:
    """Return the percentiles of values given as a list of arrays, as `numpy.percentile` does where that is right.

    Unsigned integers of 8 and 16 bits are counted, which takes a sixth of the time of sorting, and no second copy. A
    difference of two integers does not overflow.

    >>> percentiles([np.array([4], np.uint8), np.array([1, 2], np.uint8)], [50, 75])
    array([2., 3.])
    """
    dtype = parts[0].dtype
    if dtype.kind == "f":
        return np.asarray(np.percentile(np.concatenate(parts), percents, overwrite_input=True))
    place = np.asarray(percents, float) / 100 * (sum(map(len, parts)) - 1)
    before = np.floor(place)
    ranks = np.stack([before, np.ceil(place)]).astype(np.intp)
    if dtype.kind == "u" and dtype.itemsize <= 2:
        counts = np.sum([_counts_of(part) for part in parts], axis=0)
        a, b = np.searchsorted(counts.cumsum(), ranks, side="right").astype(float)
    else:
        values = np.concatenate(parts)
        values.partition(np.unique(ranks))
        a, b = values[ranks].astype(float)
    part = place - before
    # Interpolate from the nearer of the two values, as NumPy does, so that the last bit is the same.
    return np.asarray(np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part)))


def _counts_of(values: Pixels) -> NDArray[np.int64]:
    """Return how often each value of an unsigned 8-bit or 16-bit type occurs."""
    counts = np.zeros(2 ** (8 * values.dtype.itemsize), np.int64)
    for start in range(0, len(values), COUNTED):
        counts += np.bincount(values[start : start + COUNTED], minlength=len(counts))
    return counts


def sample_pixels(image: Image) -> list[Pixels]:
    """Return pixels that represent the whole image, as a list of arrays (C, *n): see `WHOLE_LEVEL`."""
    sizes = [Box.of_shape(image.at_level(k).box_shape).size for k in range(len(image.levels))]
    level = next((k for k, size in enumerate(sizes) if size <= WHOLE_LEVEL), len(sizes) - 1)
    source = image.at_level(level)
    whole = Box.of_shape(source.box_shape)
    boxes = row_strips(whole) if whole.size <= WHOLE_LEVEL else grid_of_windows(source.box_shape)
    with ThreadPoolExecutor(READERS, "sample") as pool:
        return list(pool.map(source.read_inside, boxes))


def row_strips(whole: Box) -> list[Box]:
    """Split the box of a whole array along its rows, into one part for each reading thread.

    >>> [strip.start for strip in row_strips(Box.of_shape((6, 2)))]
    [(0, 0), (2, 0), (4, 0)]
    """
    (*planes, height, width) = whole.shape
    return list(boxes_of(whole, (*planes, ceil_div(height, READERS), width)))


def grid_of_windows(shape: Sequence[int]) -> list[Box]:
    """Return windows spread evenly over an array, from end to end; along outer axes, a few single planes.

    If there would be more than `MOST_WINDOWS`, fewer planes are taken along the outer axes.

    >>> len(grid_of_windows((9999, 9999))), len(grid_of_windows((99, 9999, 9999)))
    (64, 512)
    """
    sides = (1,) * (len(shape) - 2) + (WINDOW_SIDE, WINDOW_SIDE)
    counts = [min(WINDOWS_PER_AXIS, ceil_div(n, side)) for n, side in zip(shape, sides, strict=True)]
    while prod(counts) > MOST_WINDOWS:
        outer = counts[:-2]
        counts[outer.index(max(outer))] -= 1
    along = zip(counts, shape, sides, strict=True)
    starts = ([k * max(0, n - side) // max(1, count - 1) for k in range(count)] for count, n, side in along)
    return [cell_box(corner, sides, shape) for corner in product(*starts)]


def _clip_of(rule: Mapping[str, Any]) -> tuple[float, float] | None:
    if not rule.get("clip"):
        return None
    low, high = map(float, rule["clip"])
    return low, high


def _floats(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),)
