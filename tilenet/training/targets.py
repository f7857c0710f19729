"""Training targets: the class of each pixel, and its weight in the loss.

References
----------
O. Ronneberger, P. Fischer, T. Brox: U-Net: Convolutional Networks for Biomedical Image
Segmentation. MICCAI 2015, equation 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from skimage.segmentation import relabel_sequential

from tilenet.card import DEPTH_CLASSES
from tilenet.errors import ImageError
from tilenet.training.recipe import Recipe

Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.float32]
# Distance of a pixel that no object is near.
FAR = np.float32(1e6)
# At a distance of REACH sigma the weight is 4e-6 of w0, exp(-REACH**2 / 2): neighbours beyond are left out.
REACH = 5
# Relative depths at which the rim ends and the centre begins.
RIM, CENTRE = 0.35, 0.7
CLASSES = {"mask": ("background", "object"), "depth": DEPTH_CLASSES}


def border_weights(labels: Labels, *, w0: float, sigma: float) -> Floats:
    """Return ``w0 exp(-(d1 + d2)**2 / (2 sigma**2))``, d1 and d2 the distances in pixels to the two nearest objects.

    The distance to the object a pixel lies in is 0, so touching objects get a high ridge on
    both sides of their border. Where fewer than two objects are within `REACH` sigma, the weight is 0.
    """
    reach = int(np.ceil(REACH * sigma))
    nearest = np.full(labels.shape, FAR, np.float32)
    second = nearest.copy()
    for number, box in enumerate(ndi.find_objects(labels), start=1):
        if box is None:
            continue
        window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndi.distance_transform_edt(labels[window] != number).astype(np.float32)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    weights: Floats = np.exp(-np.square(nearest + second) / np.float32(2 * sigma**2)) * np.float32(w0)
    return weights


def relative_depth(labels: Labels) -> Floats:
    """Return the distance to an object's border, as a share of the largest distance in that object.

    The image is mirrored at its edges, as it is for the network, so an object that an edge cuts goes on beyond it.
    """
    depth = np.zeros(labels.shape, np.float32)
    for number, box in enumerate(ndi.find_objects(labels), start=1):
        if box is not None:
            inside = labels[box] == number
            ends = [(s.start == 0, s.stop == n) for s, n in zip(box, labels.shape, strict=True)]
            distance = _mirrored_distance(inside, ends)
            depth[box][inside] = (distance / distance[inside].max())[inside]
    return depth


def _mirrored_distance(inside: NDArray[np.bool_], ends: list[tuple[bool, bool]]) -> NDArray[Any]:
    more = [tuple((n - 1) * cut for cut in cuts) for n, cuts in zip(inside.shape, ends, strict=True)]
    around = np.pad(np.pad(inside, more, mode="reflect"), 1)
    distance = ndi.distance_transform_edt(around)
    centre = tuple(slice(before + 1, before + 1 + n) for (before, _), n in zip(more, inside.shape, strict=True))
    found: NDArray[Any] = distance[centre]
    return found


def depth_classes(labels: Labels) -> NDArray[np.uint8]:
    """Return 0 background, 1 rim, 2 body, 3 centre: how deep inside its object a pixel lies."""
    depth = relative_depth(labels)
    classes: NDArray[np.uint8] = np.digitize(depth, [1e-6, RIM + 1e-6, CENTRE]).astype(np.uint8)
    return classes


def size_weights(labels: Labels, small: float) -> Floats:
    """Return weights of 1, but more (at most 2.5) inside objects of fewer than `small` pixels."""
    area = np.bincount(labels.ravel()).astype(np.float32)
    weights = np.clip(np.sqrt(small / np.maximum(area, 1)), 1, 2.5).astype(np.float32)
    weights[0] = 1
    found: Floats = weights[labels]
    return found


def class_values(labels: list[Labels]) -> tuple[int, ...]:
    """Return the values that occur in any of the labels, in ascending order."""
    values: set[int] = set()
    for one in labels:
        values.update(np.unique(one).tolist())
    if not 2 <= len(values) <= 256:
        raise ImageError(
            f"the labels hold {len(values)} different values, which cannot be classes. If they are objects, train with "
            f"targets mask or depth"
        )
    return tuple(sorted(values))


def check_objects(labels: list[Labels], targets: str) -> None:
    """Raise `ImageError` for labels from which ``mask`` or ``depth`` targets would teach nothing."""
    if not any(one.any() for one in labels):
        raise ImageError("no label holds an object: all are 0. Objects are numbered from 1")
    if targets == "mask" and all(one.all() for one in labels):
        raise ImageError("no label holds background (0), so a mask of objects has one value. Train with targets depth")


def classes_of(labels: Labels, targets: str, values: tuple[int, ...]) -> NDArray[Any]:
    """Return the class of each pixel: its index among `values`, how deep inside an object it lies, or 0 and 1."""
    if targets == "classes":
        return np.searchsorted(values, labels)
    # Objects may have any numbers, and memory grows with the largest.
    return depth_classes(relabel_sequential(labels)[0]) if targets == "depth" else (labels > 0).astype(np.uint8)  # type: ignore[no-untyped-call]


def make_targets(labels: Labels, recipe: Recipe, values: tuple[int, ...]) -> Floats:
    """Return class and weight of each pixel: (2, *n) float32, so that both are resampled together.

    `values` are the label values of the classes; only ``targets="classes"`` uses them.
    """
    if recipe.targets != "classes":
        # Objects may have any numbers, and below, memory grows with the largest.
        labels = relabel_sequential(labels)[0]  # type: ignore[no-untyped-call]
    classes = classes_of(labels, recipe.targets, values)
    weights = np.ones(labels.shape, np.float32)
    if recipe.targets != "classes":
        weights *= size_weights(labels, recipe.small)
    if recipe.class_weights and recipe.class_weights != ("balanced",):
        weights *= np.asarray(recipe.class_weights, np.float32)[classes]
    if recipe.targets != "classes" and recipe.w0:
        weights += border_weights(labels, w0=recipe.w0, sigma=recipe.sigma)
    return np.stack([classes.astype(np.float32), weights])
