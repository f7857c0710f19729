"""Scores of partitions: how well the segments of one explain those of another.

References
----------
I. Arganda-Carreras et al.: Crowdsourcing the creation of image segmentation algorithms for
connectomics. Frontiers in Neuroanatomy 2015, https://doi.org/10.3389/fnana.2015.00142
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage as ndi
from scipy import sparse

from tilenet.metrics.pixels import Labels, contingency, pair, ratio


@dataclass(frozen=True)
class PartitionScores:
    """How well one partition explains another; 1 is perfect.

    Attributes
    ----------
    split : float
        Lower where true segments are split.
    merge : float
        Lower where true segments are merged.
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
    pixel too wide costs as much as a segment of that area; `thin_borders` removes this cost.

    Parameters
    ----------
    prediction, truth : array of int, of one shape
        Instance labels.
    """
    table = _foreground_table(prediction, truth)
    same, in_prediction, in_truth = (
        float(np.square(n, dtype=np.float64).sum()) for n in (table.data, table.sum(axis=1), table.sum(axis=0))
    )
    return PartitionScores(ratio(same, in_truth), ratio(same, in_prediction), ratio(2 * same, in_truth + in_prediction))


def information_scores(prediction: ArrayLike, truth: ArrayLike) -> PartitionScores:
    """Return the foreground-restricted information scores of the ISBI 2012 challenge.

    They are the mutual information divided by the entropy of the prediction (split), by that of
    the truth (merge), and by the mean of both (F-score). Pixels count as in `rand_scores`.
    """
    table = _foreground_table(prediction, truth)
    of_prediction, of_truth, joint = (_entropy(n) for n in (table.sum(axis=1), table.sum(axis=0), table.data))
    mutual = max(0.0, of_prediction + of_truth - joint)
    return PartitionScores(
        ratio(mutual, of_prediction), ratio(mutual, of_truth), ratio(2 * mutual, of_prediction + of_truth)
    )


def thin_borders(labels: ArrayLike) -> Labels:
    """Return instance labels whose borders have no width: each pixel of value 0 joins the nearest segment.

    The challenge's final scores, V Rand (thinned) and V Info (thinned), are `rand_scores` and
    `information_scores` of a prediction with thinned borders, because the plain scores turned
    out to measure the width of membranes rather than the quality of partitions. The challenge's
    own script leaves borders of one pixel.

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
    a, b = pair(prediction, truth)
    inside = b != 0
    return contingency(a[inside], b[inside])[2]


def _entropy(counts: NDArray[Any]) -> float:
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log(p)).sum())
