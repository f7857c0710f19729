"""Find the objects of a part of an image that does not fit in memory, by its connected components.

The objects of a connected component depend only on its own pixels and on the depths within `REACH` of them. A part of
an image can therefore be labelled exactly as the whole image would be: by reading as far beyond the part's border as
the components that cross it extend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from tilenet.byte_counts import gigabytes, library_bytes, memory_option
from tilenet.decide import ObjectRule
from tilenet.errors import SettingsError
from tilenet.geometry import Box, ceil_div, sides_text
from tilenet.instances.separation import REACH, Indices, Labels, first_indices, separate

# How far beyond a part to read at first, in pixels, by number of axes: more than most objects are wide. Components that
# reach further are separated one by one, each in a window of its own.
MARGIN = {2: 64, 3: 16}
# Bytes of memory per pixel of a window. Measured: 102 if one component fills the window, 35 with small components.
BYTES_PER_PIXEL, USUAL_BYTES_PER_PIXEL = 110, 35
# Bytes of memory that a run takes beside that and its libraries, for what is written. Of the rest a part, as numerator
# and denominator, is for windows: other processes, also if they wait, have what they began with.
WRITING, WINDOWS = 80_000_000, (5, 6)
# Of the bytes per pixel, what `Recent` keeps: the foreground, the depth, the labels and the objects.
BYTES_KEPT = 1 + 4 + 4 + 4


class View(NamedTuple):
    """A part of an image: the foreground, and the depth of each pixel (None: use the distance to the background)."""

    foreground: NDArray[np.bool_]
    depth: NDArray[np.float32] | None


Read = Callable[[Box], View]


class Found(NamedTuple):
    """Objects of a part of an image."""

    # int32, of the part's shape; 0 is background. The order of the other labels has no meaning.
    labels: Labels
    # int64: for each label, the index of the object's first pixel in the flattened whole image, which is the same
    # for every part that contains pixels of the object; -1 for background.
    firsts: Indices
    # How many objects are nowhere deep enough, of those whose first pixel lies in the part: the parts of an image
    # count each of them once.
    left_out: int


def find_objects(
    part: Box,
    shape: Sequence[int],
    read: Read,
    rule: ObjectRule | None = None,
    *,
    memory: int | None = None,
    recent: Recent | None = None,
    name: str = "",
) -> Found:
    """Return the objects of a part of an image of a shape, as the whole image would have them.

    `read` returns the `View` of a box inside the image, and `name` is the image's, for messages. A component that
    reaches far beyond the part is a `SettingsError` if it needs more than `memory` bytes (`left_for`). `recent` is
    shared by the calls for several parts, so that not each of them separates a large component again.
    """
    image, recent, rule = Box.of_shape(shape), recent or Recent(), rule or ObjectRule()
    labels, firsts = np.zeros(part.shape, np.int32), [np.array([-1])]
    n = left_out = 0
    near = _Window(_grown(part, MARGIN[image.ndim], image), image, read)
    held, cut = near.labels_in(part)
    beyond = _beyond(near, cut, recent, lambda box: _check_memory(box, memory, name))
    for window, found in chain([(near, near.objects_of(held, rule))], recent.objects_of(beyond, rule)):
        shared = window.box & part
        seen = found[shared.relative_to(window.box.start).slices]
        into = labels[shared.relative_to(part.start).slices]
        np.add(seen, n, out=into, where=seen > 0)
        firsts.append(_first_pixels(found, window.box, shape))
        n += len(firsts[-1])
        left_out += _begun_in(part, -found, window.box)
    return Found(labels, np.concatenate(firsts), left_out)


def _beyond(
    near: _Window, cut: Iterable[int], recent: Recent, check: Callable[[Box], None]
) -> Iterator[tuple[_Window, int]]:
    """Yield each component that the window `near` does not hold, with a window that holds all of it."""
    left = {label: near.pixel_of(label) for label in cut}
    while left:
        label, pixel = left.popitem()
        window = near
        if recent.window is not None and recent.window.label_at(pixel) == recent.label:
            window, label = recent.window, recent.label
        while not window.holds(label):
            box = window.box_of(label)
            box = _grown(box, max(MARGIN[len(pixel)], max(box.shape) // 2), window.image)
            check(box)
            window = _Window(box, window.image, window.read)
            label = window.label_at(pixel)
        # Labels that are separate within `near` may belong to one component.
        left = {other: at for other, at in left.items() if window.label_at(at) != label}
        yield window, label


@dataclass
class Recent:
    """The large component that was separated last, which other parts of the image may share; pickled as empty."""

    window: _Window | None = None
    label: int = 0
    found: Labels | None = None

    def __reduce__(self) -> tuple[type[Recent], tuple[()]]:
        return Recent, ()

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the component takes."""
        return 0 if self.window is None else BYTES_KEPT * self.window.box.size

    def objects_of(
        self, components: Iterable[tuple[_Window, int]], rule: ObjectRule
    ) -> Iterator[tuple[_Window, Labels]]:
        """Separate components, and yield each window with the objects in it."""
        for window, label in components:
            if self.found is None or window is not self.window:
                self.window, self.label, self.found = window, label, None  # before the new one takes its memory
                self.found = window.objects_of([label], rule)
            yield window, self.found


def left_for(memory: int) -> int:
    """Return what a run with so much memory has left for separating; if that is little, it takes more than it has.

    >>> left_for(beside() + 2_400_000_000), left_for(600_000_000)
    (2000000000, 300000000)
    """
    return max((memory - beside()) * WINDOWS[0] // WINDOWS[1], memory // 2)


def beside() -> int:
    """Return the bytes of memory that a run takes beside those for separating."""
    return library_bytes() + WRITING


def _check_memory(box: Box, memory: int | None, name: str) -> None:
    if memory is not None and (needs := box.size * BYTES_PER_PIXEL) > memory:
        enough = beside() + ceil_div(needs * WINDOWS[1], WINDOWS[0])
        raise SettingsError(
            f"{name}: connected foreground extends over {sides_text(box.shape)} px of the mask at {box}. Separating "
            f"its objects takes {gigabytes(needs)} or more, and --memory leaves {gigabytes(memory)} for it. Give "
            f"--memory {memory_option(enough)} or more, or leave --objects out"
        )


class _Window:
    """A box of the image with its connected components, which may extend beyond it."""

    def __init__(self, box: Box, image: Box, read: Read) -> None:
        self.box, self.image, self.read = box, image, read
        self.view = read(box)
        self.labels: Labels = ndi.label(self.view.foreground)[0]
        self.slices: list[tuple[slice, ...]] = ndi.find_objects(self.labels)

    def labels_in(self, part: Box) -> tuple[list[int], list[int]]:
        """Return the labels of the components with pixels in a part: those that the window holds, and the others."""
        found = np.bincount(self.labels[part.relative_to(self.box.start).slices].ravel())
        held: dict[bool, list[int]] = {True: [], False: []}
        for label in np.flatnonzero(found).tolist():
            if label:
                held[self.holds(label)].append(label)
        return held[True], held[False]

    def box_of(self, label: int) -> Box:
        at = self.slices[label - 1]
        return Box(tuple(s.start for s in at), tuple(s.stop for s in at)).shifted(self.box.start)

    def pixel_of(self, label: int) -> tuple[int, ...]:
        box = self.box_of(label)
        inside = self.labels[self.slices[label - 1]] == label
        place = np.unravel_index(int(inside.argmax()), inside.shape)
        return tuple(int(a) + start for a, start in zip(place, box.start, strict=True))

    def label_at(self, pixel: Sequence[int]) -> int:
        """Return the label of a pixel of the image; 0 outside the window."""
        if not all(a <= p < b for a, p, b in zip(self.box.start, pixel, self.box.stop, strict=True)):
            return 0
        return int(self.labels[tuple(a - start for a, start in zip(pixel, self.box.start, strict=True))])

    def holds(self, label: int) -> bool:
        """Return whether the window contains all pixels on which the objects of a component depend."""
        return _grown(self.box_of(label), REACH, self.image) in self.box

    def objects_of(self, labels: Sequence[int], rule: ObjectRule) -> Labels:
        """Return what `separate` finds in components that the window holds, of the window's shape."""
        chosen = np.zeros(len(self.slices) + 1, bool)
        chosen[list(labels)] = True
        return separate(np.where(chosen[self.labels], self.labels, 0), self.view.depth, rule)


def _first_pixels(labels: Labels, box: Box, shape: Sequence[int]) -> Indices:
    """Return, for each label from 1 on, the index of its first pixel in the flattened image."""
    return np.ravel_multi_index(_places(labels, box), tuple(shape)).astype(np.int64)


def _begun_in(part: Box, labels: Labels, box: Box) -> int:
    """Return how many labels from 1 on have their first pixel in a part."""
    inside = [(a <= at) & (at < b) for a, at, b in zip(part.start, _places(labels, box), part.stop, strict=True)]
    return int(np.logical_and.reduce(inside).sum())


def _places(labels: Labels, box: Box) -> tuple[Indices, ...]:
    """Return, for each label from 1 on, where its first pixel lies in the image, along each axis."""
    places = np.unravel_index(first_indices(labels, int(labels.max(initial=0))), labels.shape)
    return tuple(place + start for place, start in zip(places, box.start, strict=True))


def _grown(box: Box, by: int, image: Box) -> Box:
    return Box(tuple(a - by for a in box.start), tuple(b + by for b in box.stop)) & image
