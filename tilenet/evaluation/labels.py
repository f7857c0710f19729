"""Labels from files: whole planes or volumes of integers, series and folders of them; and what is plainly none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from tilenet.errors import ImageError, ImageNotFound
from tilenet.geometry import Box
from tilenet.readers import open_image
from tilenet.store import refuse_unfinished

Labels = NDArray[np.int32]
HIDDEN = (".", "_")
# Endings of files that `tilenet batch` and `tilenet export` write beside masks, and other programs beside images.
BESIDE = (".csv", ".geojson", ".json", ".overview.png")
# Labels with at most so many values are never taken for an image: a map of a few classes may be noisy.
CLASSES = 20
# Least share of the nonzero pixels of an image that differ from all their neighbours. Of 600 images it was 3 % in the
# smoothest; in labels of 600 images, objects of one to three pixels included, it was 0.07 % at most.
LONELY = 0.01
# In an image, each value occurs in more pieces than this, on average; the number of an object, mostly in one.
PIECES = 4


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the files (or zarr folders) of a folder by the part of their names before the first dot.

    Tables, overviews and hidden files are skipped.
    """
    if not folder.is_dir():
        raise ImageNotFound(f"{folder}: no such folder. A set of pairs is two folders of one file per image")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(HIDDEN) or path.name.endswith(BESIDE):
            continue
        stem = path.name.split(".")[0]
        if stem in found:
            raise ImageError(f"{path}: has the same stem as {found[stem].name}. Rename one of them")
        found[stem] = path
    if not found:
        raise ImageNotFound(f"{folder}: is empty. Put one file per image into it")
    return found


def read_labels(path: str | Path, *, axes: str | None = None) -> list[Labels]:
    """Return the labels (*n) of each frame of a file; errors as `read_sized_labels`."""
    return read_sized_labels(path, axes=axes)[0]


def read_sized_labels(
    path: str | Path, *, axes: str | None = None, pixel_size: Any = None
) -> tuple[list[Labels], tuple[float | None, ...]]:
    """Return the labels (*n) of each frame of a file, and the size of their pixels in um: as given, or as it has it.

    A frame is 2-D or 3-D; a file without an axis ``t`` holds one. `ImageError` if they are not integers from 0 to
    2**31 - 1, or differ between channels; `OutputIncomplete` or `BlocksFailed` if they are a mask of tilenet that is
    not complete, or has lost files since.
    """
    refuse_unfinished(path)
    with open_image(path, axes=axes, pixel_size=pixel_size) as image:
        if image.dtype.kind not in "iub":
            raise ImageError(f"{path}: holds {image.dtype}, not integers. Labels are whole numbers, 0 is background")
        labels, along, sizes = image.read_inside(Box.of_shape(image.box_shape)), image.box_axes, image.pixel_size
    if any(not np.array_equal(labels[0], other) for other in labels[1:]):
        raise ImageError(f"{path}: has {len(labels)} different channels. Labels have one number per pixel")
    if labels.size and (labels[0].min() < 0 or labels[0].max() > np.iinfo(np.int32).max):
        raise ImageError(f"{path}: has labels that are negative or beyond 2**31. Number the objects from 1")
    frames: list[Labels] = [frame[0].astype(np.int32) for frame in frames_of(labels[:1], along, path)]
    inside = tuple(size for axis, size in zip(along, sizes, strict=True) if axis != "t")
    return frames, inside[-frames[0].ndim :]


def frames_of(pixels: NDArray[Any], axes: str, path: str | Path) -> list[NDArray[Any]]:
    """Return the frames (C, *n) of an image (C, *axes), one for each point in time: time is no axis of an object.

    Leading axes of length 1 are left out; two or three axes must remain.
    """
    points = np.moveaxis(pixels, 1 + axes.index("t"), 0) if "t" in axes else pixels[np.newaxis]
    shape: tuple[int, ...] = points.shape[2:]
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) not in (2, 3):
        raise ImageError(f"{path}: has shape {shape}. Give one 2-D or 3-D image per file, or a series of them along t")
    return [point.reshape(len(point), *shape) for point in points]


def describe_frames(frames: Sequence[NDArray[Any]]) -> str:
    """Return the sizes of frames of one shape as text.

    >>> describe_frames([np.zeros((3, 4))]), describe_frames([np.zeros((3, 4))] * 5)
    ('(3, 4)', '5 frames of (3, 4)')
    """
    return f"{len(frames)} frames of {frames[0].shape}" if len(frames) > 1 else f"{frames[0].shape}"


def looks_like_intensities(labels: NDArray[np.integer[Any]]) -> bool:
    """Return whether labels (*n) are plainly an image of intensities, or were interpolated or compressed like one.

    In images there are many values, each in many connected pieces, and most pieces are single pixels that touch others.
    Objects of a single pixel each do not look like this, nor do maps of few classes, however noisy.

    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 64))
    >>> labels = np.arange(64 * 64).reshape(64, 64)
    >>> looks_like_intensities(noise), looks_like_intensities(noise > 128), looks_like_intensities(labels)
    (True, False, False)
    """
    lonely = _count_isolated(labels)
    if lonely <= LONELY * np.count_nonzero(labels):
        return False
    values = len(np.unique(labels))
    if values <= CLASSES:
        return False
    pieces = int(label(labels, connectivity=1, return_num=True)[1])  # type: ignore[no-untyped-call]
    return pieces > PIECES * values and 2 * lonely > pieces


def _count_isolated(labels: NDArray[np.integer[Any]]) -> int:
    """Return how many nonzero pixels touch another nonzero pixel, along the axes, and none of their own value."""
    alike, touching = np.zeros((2, *labels.shape), bool)
    for axis in range(labels.ndim):
        moved = np.moveaxis(labels, axis, 0)
        equal, both = moved[1:] == moved[:-1], (moved[1:] != 0) & (moved[:-1] != 0)
        for found, pairs in ((alike, equal), (touching, both)):
            along = np.moveaxis(found, axis, 0)
            along[1:] |= pairs
            along[:-1] |= pairs
    return int(np.count_nonzero(touching & ~alike))
