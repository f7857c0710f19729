"""Count the pairs of labels that two label images have at each pixel."""

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
