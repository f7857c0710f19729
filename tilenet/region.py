"""A part of an image, as users write it: ``y0:y1,x0:x1``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import index
from types import EllipsisType
from typing import Any

from tilenet.errors import SettingsError
from tilenet.geometry import Box, sides_text

# Along one axis: a slice without a step, or (start, stop), where None is the border of the image. All axes that are
# left out: ``...``.
Range = slice | tuple[int | None, int | None] | EllipsisType
Roi = str | Sequence[Range]


def parse_roi(text: str) -> tuple[tuple[int | None, int | None], ...]:
    """Return (start, stop) along each axis, parsed from a command-line text; None for an open end.

    >>> parse_roi("0:512,1024:")
    ((0, 512), (1024, None))
    """
    found = [re.fullmatch(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", part) for part in text.split(",")]
    if not all(found):
        raise SettingsError(f"roi {text!r} is not start:stop for each axis, such as 0:512,1024:2048")
    return tuple((int(f[1]) if f[1] else None, int(f[2]) if f[2] else None) for f in found if f)


def find_roi(roi: Roi | None, shape: Sequence[int], *, name: str) -> Box:
    """Return the part of an image, of a shape without its ``c`` axis, as a box; `SettingsError` if it is none.

    `roi` is as for `segment`; None is the whole image.

    >>> find_roi([(512, 1024), (None, 100)], (7, 2000, 3000), name="stack.tif")
    Box(start=(0, 512, 0), stop=(7, 1024, 100))
    >>> find_roi((slice(-2, None), ...), (7, 2000, 3000), name="stack.tif")
    Box(start=(5, 0, 0), stop=(7, 2000, 3000))
    """
    entries = _entries(parse_roi(roi) if isinstance(roi, str) else roi, len(shape))
    if len(entries) > len(shape):
        raise SettingsError(f"{name}: roi has {len(entries)} axes, the image {len(shape)}. Give one start:stop an axis")
    if len(entries) < len(shape) and any(isinstance(entry, slice) for entry in entries):
        raise SettingsError(
            f"{name}: roi has {len(entries)} of {len(shape)} slices. Write ... for the others, such as np.s_[2:4, ...] "
            f"for the first axis or np.s_[..., 2:4] for the last"
        )
    ranges = [(None, None)] * (len(shape) - len(entries)) + [_ends(entry) for entry in entries]
    ends = [(_counted(a or 0, n), n if b is None else _counted(b, n)) for (a, b), n in zip(ranges, shape, strict=True)]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    if not box.size or box not in Box.of_shape(shape):
        size = f"{sides_text(shape)} px"
        what = f"is empty; the image has {size}" if not box.size else f"leaves the image, which has {size}"
        raise SettingsError(f"{name}: roi {box} {what}. Give starts and stops inside it")
    return box


def roi_to_json(box: Box, roi: Roi | None) -> list[list[int]] | None:
    """Return the part as the run record keeps it: [start, stop] of every axis; None for the whole image.

    >>> roi_to_json(Box((0, 5), (7, 9)), [(5, 9)])
    [[0, 7], [5, 9]]
    """
    return None if roi is None else [[a, b] for a, b in zip(box.start, box.stop, strict=True)]


def _entries(roi: Any, ndim: int) -> list[Any]:
    """Return the entries of a roi, with ``...`` replaced by one full slice for each axis that it stands for."""
    try:
        entries = [] if roi is None else [roi] if isinstance(roi, slice) or roi is ... else list(roi)
    except TypeError as error:
        raise SettingsError(f"roi {roi!r} is no part. Give one slice or (start, stop) an axis") from error
    return spelt_out(entries, ndim)


def spelt_out(index: Sequence[Any], ndim: int) -> list[Any]:
    """Return an index with ``...``, if it is there, replaced by one full slice for each axis that it stands for."""
    # Not `... in index`: an array among its entries would be compared element by element.
    if (at := next((i for i, entry in enumerate(index) if entry is ...), None)) is None:
        return list(index)
    return [*index[:at], *[slice(None)] * (ndim - len(index) + 1), *index[at + 1 :]]


def _counted(end: int, n: int) -> int:
    """Return a start or stop counted from the first pixel; a negative one counts from the end, as in NumPy."""
    return end + n if end < 0 else end


def _ends(entry: Any) -> tuple[int | None, int | None]:
    if isinstance(entry, slice):
        if entry.step not in (None, 1):
            raise SettingsError(f"roi {entry}: steps of {entry.step} px cannot be taken. Leave the step out")
        entry = (entry.start, entry.stop)
    try:
        start, stop = (None if end is None else index(end) for end in entry)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"roi {entry!r} is neither a slice nor (start, stop). Give one of them an axis") from error
    return start, stop
