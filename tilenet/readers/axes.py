"""Map the dimensions of a stored array to the axes of an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers.image import AXES, Pixels

# The first of three axes is suggested to be channels if it has at most this many entries.
FEW = 4
# Half-open range: start and stop.
Span = tuple[int, int]


@dataclass(frozen=True)
class AxisMap:
    """How the dimensions of a stored array become the axes of an image."""

    # One per dimension: a letter of ``tczyx``, or ``""`` for a dimension of length 1 that is not an axis. Several
    # dimensions may be ``c``: they are merged into one axis, the first of them changing slowest.
    letters: tuple[str, ...]
    # Entries used along each dimension (fewer than stored where alpha is dropped).
    shape: tuple[int, ...]
    # The axes that the file states; empty if it states none.
    stated_axes: str = ""

    @property
    def axes(self) -> str:
        """Letters of the image's axes, in stored order."""
        return "".join(dict.fromkeys(self.letters))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Pixels along `axes`."""
        return tuple(
            prod(n for n, other in zip(self.shape, self.letters, strict=True) if other == a) for a in self.axes
        )

    @property
    def separates_channels(self) -> bool:
        """Whether some channels can be read alone: they are one stored dimension, in front of y and x."""
        return self.letters.count("c") == 1 and self.letters.index("c") < self.letters.index("y")

    def stored_box(self, box: Box, channels: Span | None) -> Box:
        """Return the box over the stored dimensions of a box over the axes without ``c``.

        `channels` is a half-open range of channels, allowed if `separates_channels`; None stands for all channels.
        """
        wanted = dict(zip(self.axes.replace("c", ""), zip(box.start, box.stop, strict=True), strict=True))
        if channels is not None:
            wanted["c"] = channels
        spans = [wanted.get(a, (0, n)) for a, n in zip(self.letters, self.shape, strict=True)]
        return Box(tuple(start for start, _ in spans), tuple(stop for _, stop in spans))

    def empty(self, box: Box, dtype: np.dtype[Any], channels: Span | None) -> tuple[Pixels, Pixels]:
        """Allocate an unfilled array, and return two views of it: (C, *box.shape), and in the stored dimensions.

        A reader fills the second, and returns the first. The memory order is that of the file, because reordering pixel
        by pixel takes longer than decoding a JPEG tile. The exception: several dimensions of channels are adjacent in
        memory, at the place of the first of them.
        """
        letters = [a for a in self.letters if a]
        lengths = [n for n, a in zip(self.stored_box(box, channels).shape, self.letters, strict=True) if a]
        channel_dims = [i for i, a in enumerate(letters) if a == "c"]
        others, place = [i for i, a in enumerate(letters) if a != "c"], min(channel_dims, default=0)
        order = others[:place] + channel_dims + others[place:]
        memory = np.empty([lengths[i] for i in order], dtype)
        sides = [lengths[i] for i in others]
        sides.insert(place, prod(lengths[i] for i in channel_dims))
        index = tuple(slice(None) if a else np.newaxis for a in self.letters)
        return np.moveaxis(memory.reshape(sides), place, 0), memory.transpose(np.argsort(order))[index]


def axis_map_of(stored: Sequence[str], shape: Sequence[int], *, axes: str | None, name: str) -> AxisMap:
    """Return how the dimensions of a stored array become axes.

    `stored` has the file's letter for each dimension (``s`` for samples), or ``""`` for one that is no axis; `shape`
    the entries used along each, without alpha; `axes` the caller's letters for those that are axes. If the file states
    its axes too, y, x and colour must stay: only t, z and the c of separate planes can be renamed.
    """
    if min(shape, default=0) < 1:
        raise ImageError(f"{name}: has the shape {tuple(shape)}, which holds no pixels. Give another image")
    stated, nameless = _stated(stored, shape)
    if axes is None and nameless:
        lengths = _lengths(stored, shape)
        raise ImageError(f"{name}: has the shape {lengths}, and nothing says which axis is which. {_advice(lengths)}")
    stated_axes = "".join(dict.fromkeys(stated)) if not nameless and _fault(stated) is None else ""
    letters = stated
    if axes is not None and axes != stated_axes:
        if stated_axes:
            letters = _renamed(stored, stated, axes, stated_axes, name)
        else:
            letters = _given(stored, shape, axes, name)
    if fault := _fault(letters):
        raise ImageError(f"{name}: has the axes {''.join(letters)!r}, {fault}. {_advice(_lengths(stored, shape))}")
    return AxisMap(letters, tuple(shape), stated_axes)


def letters_of_long(letters: Iterable[str], shape: Sequence[int]) -> tuple[str, ...]:
    """Return letters for `axis_map_of`, with none for dimensions of length 1, except for y and x.

    >>> letters_of_long("tzyx", (1, 3, 1, 9))
    ('', 'z', 'y', 'x')
    """
    return tuple(a if n > 1 or a in ("y", "x") else "" for a, n in zip(letters, shape, strict=True))


def letters_of(names: Sequence[Any], ndim: int) -> tuple[str, ...]:
    """Return the letters of the dimensions of an array with names of its own, or with none."""
    letters = [str(name).lower() for name in names]
    if len(letters) == ndim:
        return tuple(letter if len(letter) == 1 else "?" for letter in letters)
    return ("y", "x") if ndim == 2 else ("?",) * ndim


def _lengths(stored: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n, a in zip(shape, stored, strict=True) if a)


def _stated(stored: Sequence[str], shape: Sequence[int]) -> tuple[tuple[str, ...], bool]:
    """Return the file's letters, and whether a dimension of more than one entry has no known letter."""
    letters = ["c" if a.lower() == "s" else a.lower() for a in stored]
    unknown = [i for i, a in enumerate(letters) if a not in AXES]
    stated = tuple("" if i in unknown else a for i, a in enumerate(letters))
    return stated, any(shape[i] > 1 for i in unknown)


def _fault(letters: Sequence[str]) -> str | None:
    if any(letters.count(a) > 1 for a in AXES if a != "c"):
        return "which names an axis twice"
    return None if {"y", "x"} <= set(letters) else "which does not name both y and x"


def _given(stored: Sequence[str], shape: Sequence[int], axes: str, name: str) -> tuple[str, ...]:
    letters, lengths = _in_place(axes, stored), _lengths(stored, shape)
    if letters is None:
        raise ImageError(f"{name}: has the shape {lengths}, which axes={axes!r} does not describe. " + _advice(lengths))
    return letters


def _renamed(stored: Sequence[str], stated: Sequence[str], axes: str, stated_axes: str, name: str) -> tuple[str, ...]:
    """Return the caller's letters in place of the file's; refuse letters that move y, x or colour."""
    letters = _in_place(axes, stored)
    behind_x = stated.index("x")
    kept = [a in ("y", "x") or (a == "c" and (stored[i] in "sS" or i > behind_x)) for i, a in enumerate(stated)]
    if letters is None or any(k and a != b for k, a, b in zip(kept, stated, letters, strict=True)):
        others = "" if all(k for k, a in zip(kept, stored, strict=True) if a) else ", or rename t, z and c only"
        count = sum(map(bool, stored))
        fault = "does not keep y, x and colour in their places"
        if len(axes) != count:
            fault = f"has {len(axes)} letters for {count} axes"
        raise ImageError(
            f"{name}: says that its axes are {stated_axes}, and axes={axes!r} {fault}. Leave axes (--axes) out{others}"
        )
    return letters


def _in_place(axes: str, stored: Sequence[str]) -> tuple[str, ...] | None:
    """Return the caller's letter for each dimension; None unless there is one, of its own, for each that is an axis."""
    if not set(axes) <= set(AXES) or not len(set(axes)) == len(axes) == sum(map(bool, stored)):
        return None
    given = iter(axes)
    return tuple(next(given) if a else "" for a in stored)


def _advice(shape: Sequence[int]) -> str:
    if len(shape) < 2:
        return "Give a plane at least, such as an array of one row: pixels[numpy.newaxis]"
    if len(shape) > len(AXES):
        return f"It has {len(shape)} axes; at most {len(AXES)} can be read. Write each image to a file of its own"
    return f"Give one letter of {AXES} for each of its {len(shape)} axes (--axes), e.g. axes={_suggested(shape)!r}"


def _suggested(shape: Sequence[int]) -> str:
    if len(shape) in (4, 5) and shape[-1] in (3, 4) and min(shape[-3:-1]) > FEW:
        return "tzyxc"[-len(shape) :]
    if len(shape) == 3 and shape[-1] in (3, 4) and shape[0] > FEW:
        return "yxc"
    if len(shape) == 3 and shape[0] <= FEW:
        return "cyx"
    return AXES[-len(shape) :]
