"""Separate touching objects: split connected components of the foreground into objects.

Seeds lie deep inside objects, and a watershed grows them to fill their component. The depth of a pixel comes from the
network, or else from the distance to the background. Two maxima of the depth are two seeds if every path between them
is shallower than both by `ObjectRule.prominence`.

Distances, and the width of the smoothing, are lengths in the image: `ObjectRule.spacing` says how long a pixel is along
each axis. Everything else is about pixels, whatever their shape: `ObjectRule.min_size` counts them, neighbours share a
face, and where depths are equal, the order of the pixels decides.

The result for a component depends only on its own pixels and on the depths within `REACH` of them. Pixels are
neighbours only if they share a face, here and in the components: components that touch at a corner do not affect each
other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from tilenet.decide import ObjectRule

Labels = NDArray[np.int32]
Depths = NDArray[np.float32]
Indices = NDArray[np.int64]
# Standard deviation, in pixels of the finest axis, of the Gaussian that smooths depths, and its radius: SciPy cuts it
# off at four. Along coarser axes both are smaller.
SIGMA, REACH = 1.0, 4


def separate(components: Labels, depth: Depths | None, rule: ObjectRule) -> Labels:
    """Return the objects of components, 1..n in any order, and as -1..-m those that are nowhere deep enough.

    `components` are labels of connected components, 0 elsewhere; `depth` is 0 to 1, or None: the distance to the
    background, relative to the largest in each component.
    """
    large = np.bincount(components.ravel()) >= rule.min_size
    labels = np.where(large[components], components, 0)
    smooth = _smoothed(labels, depth, rule.spacing)
    slices, n = ndi.find_objects(labels), len(large)
    for label in _with_several_seeds(labels, smooth, rule.prominence):
        at = slices[label - 1]
        own = labels[at] == label
        seeds, count = _seeds(smooth[at] * own, rule.prominence)
        if count > 1:
            grown = watershed(-smooth[at], seeds, mask=own)  # type: ignore[no-untyped-call]
            labels[at][own] = grown[own] + n
            n += count
    return _kept(labels, depth, rule)


def _smoothed(labels: Labels, depth: Depths | None, spacing: tuple[float, ...]) -> Depths:
    """Return smoothed depths, so that ripples on a plateau do not become seeds; 0 outside the components."""
    sigmas = [SIGMA / step for step in spacing or (1.0,) * labels.ndim]
    if depth is not None:
        smooth: Depths = ndi.gaussian_filter(depth, sigmas) * (labels > 0)
        return smooth
    smooth = np.zeros(labels.shape, np.float32)
    for label, place in enumerate(ndi.find_objects(labels), start=1):
        if place is not None:
            at = tuple(slice(max(0, s.start - REACH), s.stop + REACH) for s in place)
            own = labels[at] == label
            smooth[at][own] = ndi.gaussian_filter(_relative_distance(own, spacing), sigmas)[own]
    return smooth


def _relative_distance(own: NDArray[np.bool_], spacing: tuple[float, ...]) -> Depths:
    """Return the distance to the background relative to the largest one; all 1 if there is no background."""
    if own.all():
        return np.ones(own.shape, np.float32)
    distance = ndi.distance_transform_edt(own, sampling=spacing or None)
    relative: Depths = (distance / distance.max()).astype(np.float32)
    return relative


def _with_several_seeds(labels: Labels, smooth: Depths, prominence: float) -> list[int]:
    """Return the labels of components that may have several seeds; these few are then examined one by one."""
    maxima, n = ndi.label(local_maxima(smooth, connectivity=1))  # type: ignore[no-untyped-call]
    peaks = first_indices(maxima, n)
    peaks = peaks[smooth.ravel()[peaks] >= prominence]  # lower ones are never seeds
    heights = smooth.ravel()[peaks]
    of, order = labels.ravel()[peaks], np.lexsort((heights, labels.ravel()[peaks]))
    # Of each component with two maxima or more, where its highest is in `order`; the second highest is before it.
    ends = np.flatnonzero(np.diff(of[order], append=0))
    ends = ends[(ends > 0) & (of[order][ends - 1] == of[order][ends])]
    # If all maxima are connected above (second highest - prominence), only the highest is a seed.
    level = np.full(int(labels.max(initial=0)) + 1, np.inf, np.float32)
    level[of[order][ends]] = heights[order][ends - 1] - np.float32(prominence)
    cores = ndi.label(smooth > level[labels])[0].ravel()[peaks]
    # The smallest and the largest core among a component's maxima; they differ if the maxima lie in several cores. A
    # maximum in core 0 is below the level: only a closer look can tell whether it is a seed.
    least, most = np.full(len(level), n + 1), np.zeros(len(level), np.int64)
    np.minimum.at(least, of, cores)
    np.maximum.at(most, of, cores)
    several = np.isfinite(level) & ((least == 0) | (least != most))
    return [int(label) for label in np.flatnonzero(several)]


def _seeds(smooth: Depths, prominence: float) -> tuple[Labels, int]:
    """Return the seeds of a component: the maxima that remain when every maximum is lowered by `prominence`.

    (skimage's `h_maxima` returns two regions for two maxima of equal height, however shallow the dip between them, and
    depths from a network often reach 1 in several places.)
    """
    faces = ndi.generate_binary_structure(smooth.ndim, 1)
    lowered = reconstruction(smooth - np.float32(prominence), smooth, footprint=faces)  # type: ignore[no-untyped-call]
    seeds, count = ndi.label(local_maxima(lowered, connectivity=1))  # type: ignore[no-untyped-call]
    return seeds, count


def _kept(labels: Labels, depth: Depths | None, rule: ObjectRule) -> Labels:
    """Drop objects that are too small, and renumber the others; those nowhere deep enough get negative numbers."""
    sizes = np.bincount(labels.ravel())
    kept = sizes >= max(1, rule.min_size)
    kept[0] = False
    deep = kept if depth is None else np.bincount(labels[depth >= rule.least_depth], minlength=len(sizes)) > 0
    numbers: Any = sum(sign * which * np.cumsum(which) for sign, which in ((1, kept & deep), (-1, kept & ~deep)))
    return numbers.astype(np.int32)[labels]  # type: ignore[no-any-return]


def first_indices(labels: NDArray[Any], n: int) -> Indices:
    """Return, for each label from 1 to n, the index of its first pixel in the flattened array."""
    flat, firsts = labels.ravel(), np.zeros(n + 1, np.int64)
    foreground = np.flatnonzero(flat > 0)[::-1]
    firsts[flat[foreground]] = foreground  # of several values for one label, NumPy keeps the last
    return firsts[1:]
