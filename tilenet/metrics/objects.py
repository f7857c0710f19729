"""Scores of objects: how many have a partner that overlaps them enough.

References
----------
J. Caicedo et al.: Nucleus segmentation across imaging experiments: the 2018 Data Science
Bowl. Nature Methods 2019, https://doi.org/10.1038/s41592-019-0612-7
A. Kirillov et al.: Panoptic Segmentation. CVPR 2019, https://arxiv.org/abs/1801.00868
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tilenet.errors import SettingsError
from tilenet.metrics.pixels import AddableCounts, contingency, pair, ratio

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
AP_THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))


@dataclass(frozen=True)
class ObjectCounts(AddableCounts):
    """Objects matched at one threshold of IoU.

    Attributes
    ----------
    matched, only_prediction, only_truth : int
        Number of objects with a partner, of false objects, and of missed objects.
    iou_sum : float
        Sum of the IoU of the matched pairs.
    """

    matched: int = 0
    only_prediction: int = 0
    only_truth: int = 0
    iou_sum: float = 0.0

    @property
    def precision(self) -> float | None:
        """Share of the predicted objects that have a partner; None if none was predicted."""
        return _share(self.matched, self.only_prediction)

    @property
    def recall(self) -> float | None:
        """Share of the true objects that were found; None if there are none."""
        return _share(self.matched, self.only_truth)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return ratio(2 * self.matched, 2 * self.matched + self.only_prediction + self.only_truth)

    @property
    def average_precision(self) -> float:
        """``TP / (TP + FP + FN)``, which the Data Science Bowl calls average precision."""
        return ratio(self.matched, self.matched + self.only_prediction + self.only_truth)

    @property
    def panoptic_quality(self) -> float:
        """Mean IoU of the matched pairs times F1."""
        return ratio(self.iou_sum, self.matched + (self.only_prediction + self.only_truth) / 2)


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part or rest else None


def count_objects(
    prediction: ArrayLike, truth: ArrayLike, *, thresholds: Sequence[float] = THRESHOLDS
) -> dict[float, ObjectCounts]:
    """Match objects at each threshold of IoU.

    Parameters
    ----------
    prediction, truth : array of int, of one shape
        Instance labels; 0 is background.
    thresholds : sequence of float
        A pair matches if its IoU is *greater* than the threshold; from 0.5 on, an object has one partner at most.
    """
    low = [t for t in thresholds if not 0.5 <= t < 1]
    if low:
        raise SettingsError(f"an IoU threshold of {low[0]} is not in [0.5, 1): an object could match twice")
    labels_a, labels_b, table = contingency(*pair(prediction, truth))
    pairs = table.tocoo()
    area_a, area_b = table.sum(axis=1), table.sum(axis=0)
    inside = (labels_a[pairs.row] != 0) & (labels_b[pairs.col] != 0)
    overlap = pairs.data[inside]
    ious = overlap / (area_a[pairs.row[inside]] + area_b[pairs.col[inside]] - overlap)
    n_a, n_b = int(np.count_nonzero(labels_a)), int(np.count_nonzero(labels_b))
    counts = {}
    for t in thresholds:
        found = ious[ious > t]
        counts[t] = ObjectCounts(len(found), n_a - len(found), n_b - len(found), float(found.sum()))
    return counts


def mean_average_precision(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Return the Data Science Bowl's score of one image: TP / (TP + FP + FN), mean over IoU 0.5:0.05:0.95.

    >>> truth = [[1, 1, 0, 2, 2]]
    >>> mean_average_precision(truth, truth), mean_average_precision([[1, 1, 0, 0, 0]], truth)
    (1.0, 0.5)
    """
    counts = count_objects(prediction, truth, thresholds=AP_THRESHOLDS)
    return float(np.mean([n.average_precision for n in counts.values()]))


def panoptic_quality(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Return the panoptic quality of one class of objects (IoU above 0.5)."""
    return count_objects(prediction, truth, thresholds=(0.5,))[0.5].panoptic_quality
