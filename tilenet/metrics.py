"""Scores of a segmentation against the truth: pixels, objects, partitions.

Everything is counted first and divided last, so that counts of several images can be added
(``a + b``) and scored together. Nothing here knows of networks or files.

References
----------
J. Caicedo et al.: Nucleus segmentation across imaging experiments: the 2018 Data Science
Bowl. Nature Methods 2019, https://doi.org/10.1038/s41592-019-0612-7
A. Kirillov et al.: Panoptic Segmentation. CVPR 2019, https://arxiv.org/abs/1801.00868
I. Arganda-Carreras et al.: Crowdsourcing the creation of image segmentation algorithms for
connectomics. Frontiers in Neuroanatomy 2015, https://doi.org/10.3389/fnana.2015.00142
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage as ndi
from scipy import sparse

from tilenet.errors import SettingsError

Labels = NDArray[np.integer[Any]]
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
AP_THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))


def _ratio(part: float, whole: float) -> float:
    """Return `part / whole`, and 1 where there is nothing to find and nothing was found."""
    return float(part / whole) if whole else 1.0


def _pair(prediction: ArrayLike, truth: ArrayLike) -> tuple[Labels, Labels]:
    a, b = np.asarray(prediction), np.asarray(truth)
    if a.shape != b.shape:
        raise SettingsError(f"prediction {a.shape} and truth {b.shape} differ in shape. Score images of one size")
    for what, array in (("prediction", a), ("truth", b)):
        if array.dtype.kind not in "iub":
            raise SettingsError(f"the {what} holds {array.dtype}, not integer labels. Threshold or label it first")
    return a, b


def _contingency(a: Labels, b: Labels) -> tuple[Labels, Labels, sparse.csr_array]:
    """Return the labels of `a` and of `b`, and how many pixels bear each pair of them."""
    labels_a, ia = np.unique(a, return_inverse=True)
    labels_b, ib = np.unique(b, return_inverse=True)
    ones = np.ones(a.size, np.int64)
    table = sparse.coo_array((ones, (ia.ravel(), ib.ravel())), shape=(len(labels_a), len(labels_b)))
    return labels_a, labels_b, table.tocsr()


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of one class: found and true, found only, true only."""

    both: int = 0
    only_prediction: int = 0
    only_truth: int = 0

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(
            self.both + other.both,
            self.only_prediction + other.only_prediction,
            self.only_truth + other.only_truth,
        )

    @property
    def dice(self) -> float:
        """2 |A & B| / (|A| + |B|)."""
        return _ratio(2 * self.both, 2 * self.both + self.only_prediction + self.only_truth)

    @property
    def iou(self) -> float:
        """|A & B| / |A | B|."""
        return _ratio(self.both, self.both + self.only_prediction + self.only_truth)


def count_pixels(prediction: ArrayLike, truth: ArrayLike) -> dict[int, PixelCounts]:
    """Return the counts of every class that occurs in either.

    Parameters
    ----------
    prediction, truth : array of int, of one shape
        Classes.
    """
    classes_a, classes_b, table = _contingency(*_pair(prediction, truth))
    sums_a = dict(zip(classes_a.tolist(), table.sum(axis=1).tolist(), strict=True))
    sums_b = dict(zip(classes_b.tolist(), table.sum(axis=0).tolist(), strict=True))
    where_a, where_b = ({c: k for k, c in enumerate(cs.tolist())} for cs in (classes_a, classes_b))
    counts = {}
    for c in sorted({*sums_a, *sums_b}):
        both = int(table[where_a[c], where_b[c]]) if c in where_a and c in where_b else 0
        counts[int(c)] = PixelCounts(both, sums_a.get(c, 0) - both, sums_b.get(c, 0) - both)
    return counts


def dice(prediction: ArrayLike, truth: ArrayLike) -> dict[int, float]:
    """Return the Dice coefficient of every class that occurs in either.

    >>> dice([0, 1, 1, 1], [0, 0, 1, 1])
    {0: 0.6666666666666666, 1: 0.8}
    """
    return {c: n.dice for c, n in count_pixels(prediction, truth).items()}


def iou(prediction: ArrayLike, truth: ArrayLike) -> dict[int, float]:
    """Return the intersection over union (Jaccard index) of every class in either."""
    return {c: n.iou for c, n in count_pixels(prediction, truth).items()}


def pixel_error(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Return the share of pixels whose class is wrong."""
    a, b = _pair(prediction, truth)
    return _ratio(int(np.count_nonzero(a != b)), a.size) if a.size else 0.0


@dataclass(frozen=True)
class ObjectCounts:
    """Objects matched at one threshold of IoU.

    Attributes
    ----------
    matched, only_prediction, only_truth : int
        Objects that have a partner, false ones, and missed ones.
    iou_sum : float
        Sum of the IoU of the matched pairs.
    """

    matched: int = 0
    only_prediction: int = 0
    only_truth: int = 0
    iou_sum: float = 0.0

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        return ObjectCounts(
            self.matched + other.matched,
            self.only_prediction + other.only_prediction,
            self.only_truth + other.only_truth,
            self.iou_sum + other.iou_sum,
        )

    @property
    def precision(self) -> float:
        """Share of the predicted objects that are right."""
        return _ratio(self.matched, self.matched + self.only_prediction)

    @property
    def recall(self) -> float:
        """Share of the true objects that were found."""
        return _ratio(self.matched, self.matched + self.only_truth)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.matched, 2 * self.matched + self.only_prediction + self.only_truth)

    @property
    def average_precision(self) -> float:
        """``TP / (TP + FP + FN)``, as the Data Science Bowl calls it."""
        return _ratio(self.matched, self.matched + self.only_prediction + self.only_truth)

    @property
    def panoptic_quality(self) -> float:
        """Mean IoU of the matched pairs times F1."""
        return _ratio(self.iou_sum, self.matched + (self.only_prediction + self.only_truth) / 2)


def count_objects(
    prediction: ArrayLike, truth: ArrayLike, *, thresholds: Sequence[float] = THRESHOLDS
) -> dict[float, ObjectCounts]:
    """Match objects at each threshold of IoU.

    Parameters
    ----------
    prediction, truth : array of int, of one shape
        Instance labels; 0 is background.
    thresholds : sequence of float
        A pair matches if its IoU is *greater*; from 0.5 on, an object has one partner at most.
    """
    low = [t for t in thresholds if not 0.5 <= t < 1]
    if low:
        raise SettingsError(f"an IoU threshold of {low[0]} is not in [0.5, 1): an object could match twice")
    labels_a, labels_b, table = _contingency(*_pair(prediction, truth))
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


@dataclass(frozen=True)
class PartitionScores:
    """How well one partition explains another; 1 is perfect.

    Attributes
    ----------
    split : float
        Falls where true segments are split.
    merge : float
        Falls where true segments are merged.
    f_score : float
        Harmonic mean of both; the challenge's error is ``1 - f_score``.
    """

    split: float
    merge: float
    f_score: float


def rand_scores(prediction: ArrayLike, truth: ArrayLike) -> PartitionScores:
    """Return the foreground-restricted Rand scores of the ISBI 2012 challenge.

    Only pixels in a true segment count (label 0 of the truth, the membranes, does not);
    label 0 of the prediction is a segment like any other. So a predicted membrane that is one
    pixel too wide costs as much as a segment of that area; `thin_borders` takes that away.

    Parameters
    ----------
    prediction, truth : array of int, of one shape
        Instance labels.
    """
    table = _foreground_table(prediction, truth)
    same, in_prediction, in_truth = (
        float(np.square(n, dtype=np.float64).sum()) for n in (table.data, table.sum(axis=1), table.sum(axis=0))
    )
    return PartitionScores(
        _ratio(same, in_truth), _ratio(same, in_prediction), _ratio(2 * same, in_truth + in_prediction)
    )


def information_scores(prediction: ArrayLike, truth: ArrayLike) -> PartitionScores:
    """Return the foreground-restricted information scores of the ISBI 2012 challenge.

    Mutual information, divided by the entropy of the prediction (split), of the truth
    (merge), and by the mean of both. Pixels count as in `rand_scores`.
    """
    table = _foreground_table(prediction, truth)
    of_prediction, of_truth, joint = (_entropy(n) for n in (table.sum(axis=1), table.sum(axis=0), table.data))
    mutual = max(0.0, of_prediction + of_truth - joint)
    return PartitionScores(
        _ratio(mutual, of_prediction), _ratio(mutual, of_truth), _ratio(2 * mutual, of_prediction + of_truth)
    )


def thin_borders(labels: ArrayLike) -> Labels:
    """Return instance labels whose borders have no width: each pixel of 0 joins the nearest segment.

    The challenge's final scores, V Rand (thinned) and V Info (thinned), are `rand_scores` and
    `information_scores` of a prediction with thinned borders, because the plain ones turned
    out to tell wide membranes from thin ones rather than good partitions from bad ones. The
    challenge's own script leaves borders of one pixel.

    Parameters
    ----------
    labels : array of int (*n)
        Instance labels; 0 is border or background.

    Returns
    -------
    array of int (*n)
        The same segments, grown until they touch; all 0 if there are none.

    Examples
    --------
    >>> thin_borders([1, 1, 0, 0, 0, 0, 7]).tolist()
    [1, 1, 1, 1, 7, 7, 7]
    """
    array = np.asarray(labels)
    if not array.any():
        return array
    nearest = ndi.distance_transform_edt(array == 0, return_distances=False, return_indices=True)
    grown: Labels = array[tuple(nearest)]
    return grown


def _foreground_table(prediction: ArrayLike, truth: ArrayLike) -> sparse.csr_array:
    a, b = _pair(prediction, truth)
    inside = b != 0
    return _contingency(a[inside], b[inside])[2]


def _entropy(counts: NDArray[Any]) -> float:
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log(p)).sum())
