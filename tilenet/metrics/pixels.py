"""Scores of classes: how many of their pixels are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tilenet.metrics.contingency import AddableCounts, contingency, pair, ratio


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
