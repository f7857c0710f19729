"""From logits to what is written: classes, probabilities, or the logits themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import inf, log
from numbers import Real
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.card import DEPTH_CLASSES, MASK_VALUES, ModelCard
from tilenet.errors import SettingsError
from tilenet.geometry import Box
from tilenet.plan import Tile
from tilenet.resolution import TOLERANCE

Logits = NDArray[np.floating[Any]]
Arrays = dict[str, NDArray[Any]]
# Bytes of logits that are decided at once, so that intermediate arrays fit the cache: half the time of a whole tile.
STRIP_BYTES = 2**20
PROBABILITY_DTYPES = ("float16", "float32", "float64")
ARRAYS_OF_OUTPUT = {
    "mask": ("mask",),
    "probabilities": ("probabilities",),
    "both": ("mask", "probabilities"),
    "logits": ("logits",),
    "objects": ("mask",),
}
# Depths, expected values between 0 and 1, are rounded to multiples of this: then they are exactly zero on most of the
# background, and take little room on disk.
DEPTH_UNIT = 1 / 256


@dataclass(frozen=True)
class Decision:
    """How the logits of one pixel become its mask value and its probabilities.

    Examples
    --------
    >>> decision = Decision("softmax", (0, 1, 1))
    >>> decision(np.array([[3.0, 1.0], [2.0, 1.5], [0.0, 2.0]]))["mask"]
    array([0, 1], dtype=uint8)
    """

    # What the logits mean; see `ModelCard.output`.
    kind: str
    mask_of_class: tuple[int, ...]
    # For a network with one output: a sigmoid (or, in a regression, a value) above it is foreground.
    threshold: float = 0.5
    # Out of ``mask``, ``probabilities`` and ``logits``.
    arrays: tuple[str, ...] = ("mask",)
    # One of `PROBABILITY_DTYPES`.
    probability_dtype: str = "float32"
    # How deep inside an object each class lies, 0 to 1: then the probabilities are one array instead, the expected
    # depth (see `depth_of`). Empty for the probabilities of all classes.
    depths: tuple[float, ...] = ()

    @classmethod
    def of_card(cls, card: ModelCard, output: str, *, threshold: float | None, probability_dtype: str) -> Decision:
        """Return the decision that follows from a (completed) card and the requested output."""
        if output not in ARRAYS_OF_OUTPUT:
            raise SettingsError(f"output {output!r} is none of {', '.join(ARRAYS_OF_OUTPUT)}")
        several, masked = len(card.classes) > 1, "mask" in ARRAYS_OF_OUTPUT[output]
        if several and threshold is not None:
            raise SettingsError(
                f"a threshold is for a network of one output; of {len(card.classes)} the largest wins. "
                f"Leave it out, or ask for probabilities"
            )
        if several and card.output != "softmax" and masked:
            raise SettingsError(f"{len(card.classes)} outputs of {card.output} make no mask; ask for probabilities")
        if not card.mask_of_class and masked:
            raise SettingsError(
                f"{len(card.classes)} classes make no mask, which has {len(MASK_VALUES)} values. Ask for "
                f"probabilities, or give the model card a mask_of_class"
            )
        if probability_dtype not in PROBABILITY_DTYPES:
            raise SettingsError(f"probabilities are {', '.join(PROBABILITY_DTYPES)}, not {probability_dtype}")
        level = card.threshold if threshold is None else threshold
        if card.output == "sigmoid" and not 0 < level < 1:
            raise SettingsError(f"threshold {level} is not between 0 and 1")
        says_depth = card.output == "softmax" and card.classes == DEPTH_CLASSES
        depths = tuple(np.linspace(0, 1, len(DEPTH_CLASSES)).tolist()) if output == "objects" and says_depth else ()
        arrays = ("mask", "probabilities") if depths else ARRAYS_OF_OUTPUT[output]
        return cls(card.output, card.mask_of_class, level, arrays, "float16" if depths else probability_dtype, depths)

    def __call__(self, logits: Logits) -> Arrays:
        """Return the requested arrays for logits (K, *n): the mask as (*n), the others as (K, *n)."""
        make: dict[str, Callable[[Logits], NDArray[Any]]] = {
            "mask": self.mask,
            "probabilities": self.probabilities,
            "logits": np.asarray,
        }
        return {name: make[name](logits) for name in self.arrays}

    def mask(self, logits: Logits) -> NDArray[np.uint8]:
        """Return mask values (*n); among equal logits, the first class wins."""
        if self.kind != "softmax":
            return np.where(logits[0] > self.logit_threshold, np.uint8(self.mask_of_class[0]), np.uint8(0))
        mask = np.empty(logits.shape[1:], np.uint8)
        for rows in _strips(logits):
            self._choose(logits[:, rows], mask[rows])
        return mask

    def _choose(self, logits: Logits, mask: NDArray[np.uint8]) -> None:
        """Fill `mask`, a few rows, with the mask value of each pixel's largest logit."""
        # A running maximum over contiguous planes, with a selection that does not branch, is several times as fast
        # as argmax over axis 0, or as assignment through a boolean mask. Neighbouring classes with the same mask
        # value are reduced to their maximum first, because it does not matter which of them is the largest.
        classes = groupby(zip(self.mask_of_class, np.ascontiguousarray(logits), strict=True), key=itemgetter(0))
        largest = [(value, reduce(np.maximum, [plane for _, plane in of_value])) for value, of_value in classes]
        mask[...], best = largest[0]
        for value, plane in largest[1:]:
            mask ^= (mask ^ np.uint8(value)) * (plane > best).view(np.uint8)
            best = np.maximum(best, plane)

    def probabilities(self, logits: Logits) -> NDArray[Any]:
        """Return probabilities (K, *n): softmax, sigmoid, or a regression's plain values; or depths (1, *n)."""
        if self.kind == "regression":
            with np.errstate(over="ignore"):  # which is an error of its own
                values = np.asarray(logits, self.probability_dtype)
            refuse_too_large(values)
            return values
        if self.kind == "sigmoid":
            return np.asarray(np.exp(-np.logaddexp(0, -logits)), self.probability_dtype)
        if self.depths:
            depth = np.empty((1, *logits.shape[1:]), self.probability_dtype)
            for rows in _strips(logits):
                depth[0, rows] = depth_of(_softmax(logits[:, rows]), self.depths)
            return depth
        return np.asarray(_softmax(logits), self.probability_dtype)

    def certainty(self, logits: Logits) -> NDArray[Any]:
        """Return how far each pixel (*n) is, in logits, from getting another mask value."""
        if self.kind != "softmax":
            return np.asarray(np.abs(logits[0] - self.logit_threshold))
        values = np.asarray(self.mask_of_class)
        per_value = [logits[values == v].max(axis=0) for v in np.unique(values)]
        if len(per_value) == 1:
            return np.full(logits.shape[1:], np.inf)
        ordered = np.sort(np.stack(per_value), axis=0)
        return np.asarray(ordered[-1] - ordered[-2])

    @property
    def is_choice(self) -> bool:
        """Whether the result depends only on which logit of a pixel is the largest."""
        return self.kind == "softmax" and self.arrays == ("mask",)

    @property
    def logit_threshold(self) -> float:
        """The logit above which a pixel is foreground, for a sigmoid or a regression with one output."""
        return log(self.threshold / (1 - self.threshold)) if self.kind == "sigmoid" else self.threshold


def _strips(logits: Logits) -> Iterator[slice]:
    """Yield rows of logits (K, *n) that fit a cache together with what is made of them."""
    rows = max(1, STRIP_BYTES // max(1, logits[:, :1].nbytes))
    yield from (slice(start, start + rows) for start in range(0, logits.shape[1], rows))


def _softmax(logits: Logits) -> Logits:
    powers: Logits = np.exp(logits - logits.max(axis=0))
    powers /= powers.sum(axis=0)
    return powers


def depth_of(probabilities: NDArray[Any], depths: Sequence[float]) -> NDArray[np.float32]:
    """Return the expected depth (*n) of probabilities (K, *n), in multiples of `DEPTH_UNIT`."""
    depth = np.zeros(probabilities.shape[1:], np.float32)
    # One class after the other: the order of sums of a matrix product depends on the shape.
    for of_class, probability in zip(depths, probabilities, strict=True):
        depth += np.float32(of_class) * probability
    np.rint(depth / np.float32(DEPTH_UNIT), out=depth)
    depth *= np.float32(DEPTH_UNIT)
    return depth


@dataclass(frozen=True)
class ObjectRule:
    """What is an object; see `tilenet.objects` for what each number does.

    `spacing` is relative to the finest axis, see `relative_spacing`; empty for pixels as long along each axis. `link`
    is the threshold of `tilenet.instances.linking`; None if objects of planes are not linked.
    """

    min_size: int = 20
    prominence: float = 0.2
    least_depth: float = 0.75
    spacing: tuple[float, ...] = ()
    link: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no object can meet, and NaN."""
        for name in ("min_size", "prominence"):
            if not (isinstance(value := getattr(self, name), Real) and float(value) >= 0):
                raise SettingsError(f"{name} {value!r} is not a number of 0 or more")
        if not (isinstance(self.least_depth, Real) and 0 <= self.least_depth <= 1):
            raise SettingsError(f"least_depth {self.least_depth} is not between 0 and 1")
        # Below 1, smoothing would reach further than `tilenet.instances.separation.REACH`.
        if not all(1 <= step < inf for step in self.spacing):
            raise SettingsError(f"spacing {self.spacing} is not relative to the finest axis")
        if self.link is not None and not 0 < self.link <= 1:
            raise SettingsError(f"link {self.link} is not above 0 and at most 1. Give a share of overlap, such as 0.25")

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> ObjectRule:
        """Return the rule of a run record."""
        least = record.get("least_depth")
        said = {} if least is None else {"least_depth": least}
        return cls(**said, spacing=tuple(record.get("spacing", ())), link=record.get("link"))


def relative_spacing(sizes: Sequence[float | None]) -> tuple[float, ...]:
    """Return the size of a pixel along each axis, relative to the finest; empty if alike along all, or unknown.

    Sizes are alike up to `TOLERANCE`, because those of pyramid levels are rounded.

    >>> relative_spacing((2.0, 0.4, 0.4)), relative_spacing((0.4, 0.4, 0.401)), relative_spacing((None, 0.4, 0.4))
    ((5.0, 1.0, 1.0), (), ())
    """
    known = [size for size in sizes if size]
    if len(known) < len(sizes) or max(known) <= float(TOLERANCE) * min(known):
        return ()
    # Rounded, so that the run record can be read by people.
    return tuple(round(size / min(known), 3) for size in known)


def not_finite(place: Box) -> FloatingPointError:
    """Return the error for logits that are NaN or infinite, from which no mask value follows."""
    return FloatingPointError(f"the network's output at {place} is not finite")


def refuse_too_large(values: NDArray[Any]) -> None:
    """Raise `OverflowError` if the type to which finite values were converted could not hold them."""
    if not np.isfinite(values).all():
        raise OverflowError(f"the network gives values too large for {values.dtype} (--probability-dtype)")


def cropped_logits(tile: Tile, logits: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Crop a tile's logits to the pixels (K, *n) that it writes; `FloatingPointError` if any is not finite."""
    cropped: NDArray[Any] = logits[(slice(None), *tile.crop.slices[-ndim:])]
    if not np.isfinite(cropped).all():
        raise not_finite(tile.write)
    return cropped


def decide_each(
    decide: Callable[[Logits], Arrays], tiles: Sequence[Tile], logits: NDArray[Any], ndim: int
) -> list[Arrays]:
    """Return the arrays of each tile of a batch, from the batch's logits (N, K, *m)."""
    return [decide(cropped_logits(tile, of_tile, ndim)) for tile, of_tile in zip(tiles, logits, strict=True)]


def zeros_like(arrays: Arrays, ndim: int, shape: Sequence[int]) -> Arrays:
    """Return arrays of 0 for pixels of `shape`, named and typed like `arrays`, which have `ndim` axes of pixels."""
    return {name: np.zeros(a.shape[: a.ndim - ndim] + tuple(shape), a.dtype) for name, a in arrays.items()}
