"""From a network's output to objects: instance labels 1..n of one image in memory.

Seeds lie deep inside objects, and a watershed grows them to fill the whole foreground. The depth of a
pixel comes from the network's classes if they encode depth (background, rim, body, centre), or else
from the distance to the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.morphology import h_maxima
from skimage.segmentation import relabel_sequential, watershed

from tilenet.errors import SettingsError

Array = NDArray[Any]
Labels = NDArray[np.int32]


def objects(
    mask_or_probabilities: Array,
    *,
    depth_of_class: Sequence[float] | None = None,
    min_size: int = 20,
    prominence: float = 0.2,
    least_depth: float = 0.75,
) -> Labels:
    """Label the objects of an image.

    Parameters
    ----------
    mask_or_probabilities : array
        A mask of integers (*n), 0 background: touching objects are split where they are
        narrow. Or float probabilities (K, *n), class 0 background.
    depth_of_class : sequence of float, optional
        For probabilities: how deep inside an object each class lies, 0 to 1. The default is
        even steps in the order of the classes.
    min_size : int
        Objects with fewer pixels are dropped.
    prominence : float
        Two centres are two objects if the path between them is shallower than both by this
        fraction of the full depth. Larger values merge objects, smaller values split them.
    least_depth : float
        For probabilities of three classes or more: objects with no pixel of at least this
        expected depth are dropped. Larger values drop more uncertain objects.

    Returns
    -------
    numpy.ndarray
        int32 (*n), 0 background, objects 1..n without gaps.

    Examples
    --------
    >>> objects(np.array([[1, 1, 0, 0, 1, 1]] * 3), min_size=1)[0].tolist()
    [1, 1, 0, 0, 2, 2]
    """
    array = np.asarray(mask_or_probabilities)
    if array.dtype.kind in "iub":
        foreground, depth = array > 0, _depth_of_mask(array > 0)
    else:
        foreground, depth = _read_probabilities(array, depth_of_class)
    labels = _grow(foreground, depth, prominence=prominence)
    drop = np.bincount(labels.ravel()) < min_size
    if array.dtype.kind == "f" and len(array) > 2:
        drop |= ndi.maximum(depth, labels, np.arange(len(drop))) < least_depth
    labels[drop[labels]] = 0
    return np.asarray(relabel_sequential(labels)[0], np.int32)  # type: ignore[no-untyped-call]


def _read_probabilities(array: Array, depth_of_class: Sequence[float] | None) -> tuple[Array, Array]:
    if array.ndim < 2 or len(array) < 2:
        raise SettingsError(f"probabilities are (classes, y, x) with two classes or more, not {array.shape}")
    levels = np.linspace(0, 1, len(array)) if depth_of_class is None else np.asarray(depth_of_class, float)
    if len(levels) != len(array):
        raise SettingsError(f"depth_of_class names {len(levels)} classes, the probabilities have {len(array)}")
    foreground = array.argmax(axis=0) != 0
    if len(array) == 2:  # two classes do not encode depth
        return foreground, _depth_of_mask(foreground)
    return foreground, np.tensordot(levels.astype(np.float32), array.astype(np.float32), axes=1)


def _depth_of_mask(foreground: Array) -> Array:
    """Return the distance to the background, relative to the largest distance in each connected component."""
    distance = ndi.distance_transform_edt(foreground)
    pieces, n = ndi.label(foreground)
    deepest = np.concatenate([[1.0], ndi.maximum(distance, pieces, np.arange(1, n + 1))]) if n else np.ones(1)
    depth: Array = distance / deepest[pieces]
    return depth


def _grow(foreground: Array, depth: Array, *, prominence: float) -> Labels:
    # Smooth a little, so that ripples on a plateau do not become centres.
    smooth = ndi.gaussian_filter(depth.astype(np.float32), 1.0) * foreground
    seeds, n = ndi.label(h_maxima(smooth, prominence), structure=np.ones((3,) * smooth.ndim))  # type: ignore[no-untyped-call]
    pieces, _ = ndi.label(foreground)
    # A connected component too shallow for any seed becomes one object.
    bare = (pieces > 0) & ~np.isin(pieces, np.unique(pieces[seeds > 0]))
    seeds = np.where(bare, pieces + n, seeds)
    labels: Labels = watershed(-smooth, seeds, mask=foreground)  # type: ignore[no-untyped-call]
    return labels
