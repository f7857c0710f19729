"""Counts of pixels, by the pairs of labels that they have in two images; scores of classes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tilenet.errors import SettingsError

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class AddableCounts:
    """Base of dataclasses of counts: the counts of two images can be added."""

    def __add__(self, other: Self) -> Self:
        return replace(self, **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def ratio(part: float, whole: float) -> float:
    """Return `part / whole`, or 1 if `whole` is 0: there was nothing to find, and nothing was found."""
    return float(part / whole) if whole else 1.0


def pair(prediction: ArrayLike, truth: ArrayLike) -> tuple[Labels, Labels]:
    """Return both as arrays; raise `SettingsError` if their shapes differ or their values are not integers."""
    a, b = np.asarray(prediction), np.asarray(truth)
    if a.shape != b.shape:
        raise SettingsError(f"prediction {a.shape} and truth {b.shape} differ in shape. Score images of one size")
    for what, array in (("prediction", a), ("truth", b)):
        if array.dtype.kind not in "iub":
            raise SettingsError(f"the {what} holds {array.dtype}, not integer labels. Threshold or label it first")
    return a, b


def contingency(a: Labels, b: Labels) -> tuple[Labels, Labels, sparse.csr_array]:
    """Return the labels of `a`, the labels of `b`, and the number of pixels that have each pair of them."""
    labels_a, ia = np.unique(a, return_inverse=True)
    labels_b, ib = np.unique(b, return_inverse=True)
    ones = np.ones(a.size, np.int64)
    table = sparse.coo_array((ones, (ia.ravel(), ib.ravel())), shape=(len(labels_a), len(labels_b)))
    return labels_a, labels_b, table.tocsr()


@dataclass(frozen=True)
class PixelCounts(AddableCounts):
    """Number of pixels of one class: in both images, in the prediction only, in the truth only."""

    both: int = 0
    only_prediction: int = 0
    only_truth: int = 0

    @property
    def dice(self) -> float:
        """2 |A & B| / (|A| + |B|)."""
        return ratio(2 * self.both, 2 * self.both + self.only_prediction + self.only_truth)

    @property
    def iou(self) -> float:
        """|A & B| / |A | B|."""
        return ratio(self.both, self.both + self.only_prediction + self.only_truth)


def count_pixels(prediction: ArrayLike, truth: ArrayLike) -> dict[int, PixelCounts]:
    """Return the counts of every class that occurs in either image.

    Parameters
    ----------
    prediction, truth : array of int, of one shape
        The class of each pixel.
    """
    classes_a, classes_b, table = contingency(*pair(prediction, truth))
    sums_a = dict(zip(classes_a.tolist(), table.sum(axis=1).tolist(), strict=True))
    sums_b = dict(zip(classes_b.tolist(), table.sum(axis=0).tolist(), strict=True))
    where_a, where_b = ({c: k for k, c in enumerate(cs.tolist())} for cs in (classes_a, classes_b))
    counts = {}
    for c in sorted({*sums_a, *sums_b}):
        both = int(table[where_a[c], where_b[c]]) if c in where_a and c in where_b else 0
        counts[int(c)] = PixelCounts(both, sums_a.get(c, 0) - both, sums_b.get(c, 0) - both)
    return counts


def dice(prediction: ArrayLike, truth: ArrayLike) -> dict[int, float]:
    """Return the Dice coefficient of every class that occurs in either image.

    >>> dice([0, 1, 1, 1], [0, 0, 1, 1])
    {0: 0.6666666666666666, 1: 0.8}
    """
    return {c: n.dice for c, n in count_pixels(prediction, truth).items()}


def iou(prediction: ArrayLike, truth: ArrayLike) -> dict[int, float]:
    """Return the intersection over union (Jaccard index) of every class that occurs in either image."""
    return {c: n.iou for c, n in count_pixels(prediction, truth).items()}


def pixel_error(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Return the share of pixels whose class is wrong."""
    a, b = pair(prediction, truth)
    return ratio(int(np.count_nonzero(a != b)), a.size) if a.size else 0.0
