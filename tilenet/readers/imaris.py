"""The layout of Imaris 5.5 files (.ims): a dataset (z, y, x) for each level, time point and channel.

Its chunks fill each dataset, so that it is stored longer than the image; attributes of the channel's group state the
size of the image. All attributes are text, as arrays of single characters.
Source: https://github.com/imaris/ImarisWriter, which writes such files.
"""

from __future__ import annotations

import re
from math import nan
from typing import Any

from tilenet.errors import ImageError
from tilenet.readers.axes import letters_of_long
from tilenet.readers.coordinates import MICROMETERS
from tilenet.readers.guards import DAMAGED, positive_or_none
from tilenet.readers.hdf5 import Contents, LevelDatasets
from tilenet.readers.hdf5_file import Stored, attribute_of, follow, text_of

DATA, ABOUT = "DataSet", "DataSetInfo"
# How Imaris numbers the axes in the extent of an image.
NUMBERS = {"x": 0, "y": 1, "z": 2}
NAMELESS = "(name not specified)"


def is_imaris(file: Any) -> bool:
    """Return whether an HDF5 file has the groups of an Imaris file."""
    return all(file.id.links.exists(group.encode()) for group in (DATA, ABOUT))


def contents(file: Any, name: str) -> Contents:
    """Return what an Imaris file holds; refuse one that holds several images, or lacks a part of one."""
    images = attribute_of(file, "NumberOfDataSets")
    if images is not None and int(max(images, default=1)) > 1:
        raise ImageError(f"{name}: holds {int(max(images))} images. Write each to a file of its own")
    root = follow(file, DATA, name)
    n_levels = _count(root, "ResolutionLevel", name)
    grids = tuple(_level(root, k, name) for k in range(n_levels))
    finest = grids[0]
    for k, grid in enumerate(grids):
        alike = (grid.first.dtype, grid.shape[:2]) == (finest.first.dtype, finest.shape[:2])
        if not alike or any(a > b for a, b in zip(grid.shape, finest.shape, strict=True)):
            raise ImageError(
                f"{name}: its level {k} is {grid.shape} of {grid.first.dtype}, and level 0 is {finest.shape} of "
                f"{finest.first.dtype}. {DAMAGED}"
            )
    letters = letters_of_long("tczyx", finest.shape)
    about = follow(file, ABOUT, name)
    sizes = _sizes(follow(about, "Image", name), dict(zip("tczyx", finest.shape, strict=True)))
    names = tuple(_channel_name(about, c, name) for c in range(finest.shape[1]))
    return Contents("imaris", "Imaris (h5py)", grids, letters, sizes, names)


def _count(group: Any, stem: str, name: str) -> int:
    """Return how many numbered members a group has, such as ``TimePoint 0``, ``TimePoint 1``; refuse gaps."""
    found = {int(match[1]) for member in group if (match := re.fullmatch(rf"{stem} (\d{{1,9}})", member))}
    lacking = next(k for k in range(len(found) + 1) if k not in found)
    if not found or lacking < len(found):
        raise ImageError(f"{name}: lacks {stem} {lacking} in {group.name}. Get the whole file")
    return len(found)


def _level(root: Any, number: int, name: str) -> LevelDatasets:
    """Return a level (t, c, z, y, x)."""
    level = follow(root, f"ResolutionLevel {number}", name)
    n_times = _count(level, "TimePoint", name)
    times = [follow(level, f"TimePoint {t}", name) for t in range(n_times)]
    counts = [_count(time, "Channel", name) for time in times]
    if len(set(counts)) > 1:
        raise ImageError(f"{name}: has {min(counts)} to {max(counts)} channels a time point. Get the whole file")
    datasets: dict[tuple[int, ...], Stored] = {}
    sizes = set()
    for t, time in enumerate(times):
        for c in range(counts[0]):
            group = follow(time, f"Channel {c}", name)
            stored = datasets[t, c] = Stored(follow(group, "Data", name), name)
            sizes.add((_size(group, stored, name), stored.chunks, stored.dtype))
    if len(sizes) > 1:
        raise ImageError(
            f"{name}: its channels and time points differ in size, chunks or type in {level.name}. {DAMAGED}"
        )
    return LevelDatasets(datasets, (n_times, counts[0], *sizes.pop()[0]))


def _size(group: Any, stored: Stored, name: str) -> tuple[int, ...]:
    """Return the size (z, y, x) that the group of a dataset states."""
    said = [text_of(group, f"ImageSize{axis}") for axis in "ZYX"]
    size = tuple(int(text) if text.isdecimal() else 0 for text in said)
    if len(stored.shape) != 3 or not all(0 < n <= room for n, room in zip(size, stored.shape, strict=True)):
        raise ImageError(
            f"{name}: states the size {' x '.join(text or '?' for text in said)} for {stored.path}, which is "
            f"{stored.shape}. {DAMAGED}"
        )
    return size


def _sizes(image: Any, lengths: dict[str, int]) -> dict[str, float | None]:
    """Return micrometres per pixel along z, y and x: the extent of the image, divided by its lengths."""
    unit = MICROMETERS.get(text_of(image, "Unit"), 0.0)
    return {a: positive_or_none(_extent(image, number) * unit / lengths[a]) for a, number in NUMBERS.items()}


def _extent(image: Any, number: int) -> float:
    """Return the length of an image along an axis, in its unit; NaN if it is not stated."""
    try:
        return float(text_of(image, f"ExtMax{number}")) - float(text_of(image, f"ExtMin{number}"))
    except ValueError:
        return nan


def _channel_name(about: Any, channel: int, name: str) -> str:
    group = f"Channel {channel}"
    found = text_of(follow(about, group, name), "Name") if about.id.links.exists(group.encode()) else ""
    return "" if found == NAMELESS else found
