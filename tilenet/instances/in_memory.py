"""Find the objects (instance labels) of an array in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, prod
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.arguments import known_options
from tilenet.decide import ObjectRule, depth_of, relative_spacing
from tilenet.errors import SettingsError
from tilenet.geometry import Box
from tilenet.instances.components import MARGIN, View, find_objects
from tilenet.instances.separation import Labels

Array = NDArray[Any]


@known_options()
def objects(
    mask_or_probabilities: Array,
    *,
    depth_of_class: Sequence[float] | None = None,
    min_size: int = ObjectRule.min_size,
    prominence: float = ObjectRule.prominence,
    least_depth: float = ObjectRule.least_depth,
    spacing: Sequence[float] | None = None,
) -> Labels:
    """Label the objects of an image.

    Parameters
    ----------
    mask_or_probabilities : array
        A mask of integers (*n), 0 background and none below: touching objects are split where they are
        narrow. Or float probabilities (K, *n), class 0 background.
    depth_of_class : sequence of float, optional
        For probabilities: how deep inside an object each class lies, 0 to 1. The default is
        even steps in the order of the classes.
    min_size : int
        Objects with fewer pixels are dropped, whatever the size of a pixel.
    prominence : float
        Two centres are two objects if the path between them is shallower than both by this
        fraction of the full depth. Larger values merge objects, smaller values split them.
    least_depth : float
        For probabilities of three classes or more: objects with no pixel of at least this
        expected depth are dropped. Larger values drop more uncertain objects.
    spacing : sequence of float, optional
        Size of a pixel along each axis, in any unit, such as ``pixel_size`` of an image. The
        widths of objects are measured in it; sizes within 10 % of each other count as equal. By
        default pixels are squares or cubes.

    Returns
    -------
    numpy.ndarray
        int32 (*n), 0 background, objects 1..n in the order of their first pixels.

    Raises
    ------
    SettingsError
        If a path is given, or the array is not a plane or volume, has values below 0 or that are not finite, or if an
        argument does not fit it.

    Examples
    --------
    >>> objects(np.array([[1, 1, 0, 0, 1, 1]] * 3), min_size=1)[0].tolist()
    [1, 1, 0, 0, 2, 2]

    Two balls of 5 um that overlap, in voxels of 2.5 x 0.25 x 0.25 um:

    >>> z, y, x = np.mgrid[-6:9:2.5, -6:7:0.25, -6:15:0.25]
    >>> balls = np.minimum(z**2 + y**2 + x**2, (z - 3) ** 2 + y**2 + (x - 8) ** 2) < 25
    >>> int(objects(balls).max()), int(objects(balls, spacing=(2.5, 0.25, 0.25)).max())
    (1, 2)
    """
    whole = _view_of(_array_of(mask_or_probabilities), depth_of_class)
    relative = () if spacing is None else _checked_spacing(spacing, whole.foreground.ndim)
    return numbered(whole, ObjectRule(min_size, prominence, least_depth, relative))[0]


def numbered(whole: View, rule: ObjectRule | None = None) -> tuple[Labels, int]:
    """Return the objects (*n), 1..n in the order of their first pixels, and how many others are not deep enough."""

    def read(box: Box) -> View:
        foreground, depth = whole
        return View(foreground[box.slices], None if depth is None else depth[box.slices])

    shape = whole.foreground.shape
    if not prod(shape):
        return np.zeros(shape, np.int32), 0
    labels, firsts, left_out = find_objects(Box.of_shape(shape), shape, read, rule)
    numbers = np.empty(len(firsts), np.int32)
    numbers[np.argsort(firsts)] = np.arange(len(firsts))
    return numbers[labels], left_out


def _array_of(given: Any) -> Array:
    if isinstance(given, str | PathLike) and not hasattr(given, "__array__"):  # an open mask is a path, too
        raise SettingsError(f"objects are of an array, not of the path {str(given)!r}. Open it: tilenet.open_mask")
    array: Array = np.asarray(given)
    if array.dtype.kind == "i" and array.size and (least := array.min()) < 0:
        raise SettingsError(f"a mask has 0 for the background and larger values for all else, not {least}. Replace it")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SettingsError("some of the probabilities are not finite. Replace them first")
    return array


def _view_of(array: Array, depth_of_class: Sequence[float] | None) -> View:
    is_mask = array.dtype.kind in "iub"
    if (array.ndim if is_mask else array.ndim - 1) not in MARGIN:
        if array.dtype.kind == "f" and array.ndim == 2:
            raise SettingsError(
                f"an array of {array.dtype} is taken as probabilities (classes, y, x), not of shape {array.shape}. "
                "Give a mask as integers or booleans, such as array > 0.5"
            )
        raise SettingsError(f"objects are of a plane or a volume, not of an array of shape {array.shape}")
    if is_mask:
        return View(array > 0, None)
    if array.dtype.kind != "f":
        raise SettingsError(f"objects are of a mask of integers or of probabilities, not of values of {array.dtype}")
    if len(array) < 2:
        raise SettingsError(f"probabilities are (classes, y, x) with two classes or more, not {array.shape}")
    depths = list(np.linspace(0, 1, len(array)) if depth_of_class is None else depth_of_class)
    if len(depths) != len(array):
        raise SettingsError(f"depth_of_class names {len(depths)} classes, the probabilities have {len(array)}")
    if not all(isinstance(depth, Real) and 0 <= float(depth) <= 1 for depth in depths):
        raise SettingsError(f"depth_of_class {depths}: each depth is a number from 0 to 1")
    foreground = array.argmax(axis=0) != 0
    # Two classes do not encode depth.
    return View(foreground, None if len(array) == 2 else depth_of(array, depths))


def _checked_spacing(spacing: Sequence[float], ndim: int) -> tuple[float, ...]:
    sizes = list(spacing) if isinstance(spacing, Iterable) else []
    if len(sizes) != ndim or not all(isinstance(size, Real) and 0 < size < inf for size in sizes):
        raise SettingsError(f"spacing {spacing!r}: give {ndim} sizes above 0, one per axis, or leave it out")
    return relative_spacing([float(size) for size in sizes])
