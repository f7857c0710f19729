"""The second step of a run with objects: the place of the object of every pixel.

Each block is labelled as the whole image would be (`tilenet.instances.components`). Every pixel of an object gets the
place of the object's first pixel: its index in the flattened image, plus one. All blocks that share an object find the
same place, without knowing of each other, so processes may divide them. Small blocks are joined: each would separate a
component again that extends over many of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilenet.decide import ObjectRule
from tilenet.geometry import Box, boxes_of, ceil_div, round_up
from tilenet.instances.components import (
    BYTES_PER_PIXEL,
    MARGIN,
    USUAL_BYTES_PER_PIXEL,
    Recent,
    View,
    find_objects,
    left_for,
)
from tilenet.store import Mask, Share, Store, can_resume, open_mask
from tilenet.store.guarded_files import Stamp, stamp_of
from tilenet.store.journal import MERGED
from tilenet.store.layout import Layout
from tilenet.store.metadata import OWN, read_root
from tilenet.workers.processes import map_in_processes, most_processes

if TYPE_CHECKING:
    from distributed import Client

    from tilenet.store import Progress

# The place of each pixel's object, 0 for none; and how many objects begin here that are not deep enough.
Places = tuple[NDArray[np.unsignedinteger[Any]], int]
# Most pixels that are labelled at once, and a side that is not halved for that, by number of axes.
PIECES = {2: (2**22, 256), 3: (2**23, 48)}
# Least bytes for components in each of several processes, and pixels that are worth the second that it takes to start
# them.
EACH, WORTH = 666_000_000, 2**23
# Bytes that each of them takes to begin with; copies of the places of a block, of each of them and of the one that
# writes them; and bytes per pixel of a block while its objects are numbered. All are measured.
PROCESS, COPIES, WRITTEN, NUMBERING = 65_000_000, 4, 5, 40
# Part of the memory that large components kept for the next blocks may take.
KEPT = 0.25


def open_places(path: Path, depths: Mask, memory: int, share: Share | None = None) -> Store:
    """Continue the store of the places in some depths, or create it: with the lease of the whole, or of one share."""
    if are_of(depths, path):
        return Store.resume(path) if share is None else Store.take_share(path, share)
    layout = places_layout(depths.layout, len(depths.info["model"]["footprint"]), memory)
    return Store.create(path, layout, _info(depths), overwrite=True, share=share)


def places_layout(depths: Layout, ndim: int, memory: int) -> Layout:
    """Return the layout of the places in some depths, of objects of `ndim` axes."""
    block = _joined(depths, ndim, memory)
    return replace(depths, block=block, labels={}, largest=prod(depths.shape), classes=0, tissue={})


def are_of(depths: Mask, path: Path) -> bool:
    """Return whether there is a store of places at a path, and they were found in these depths."""
    return can_resume(path) and read_root(path).info == _info(depths)


def _info(depths: Mask) -> dict[str, Any]:
    # The sealed journal has the checksums of all files: places that were found in other depths are not used.
    return depths.info | {"depths": sha256((depths.path / OWN / MERGED).read_bytes()).hexdigest()}


def find_places(
    store: Store,
    depths: Path,
    memory: int,
    *,
    client: Client | None = None,
    progress: Progress | None = None,
    among: range | None = None,
) -> int | None:
    """Write the pending blocks of a store of places, all or in a range, from the depths in another store.

    Return how many objects are nowhere deep enough; None unless all blocks of the store were pending.
    """
    from tilenet import machine  # these import PyTorch, which processes do not need
    from tilenet.predict import predictors

    pending, recents = list(store.pending(among=among)), dict[tuple[int, ...], Recent]()
    box, dtype = partial(store.layout.box, 0), store.layout.mask_dtype
    tasks = [PlacesTask(depths, box(index), left_for(memory), dtype, recents) for index in pending]
    total = sum(box(index).size for index in (range(store.layout.n_blocks(0)) if among is None else among))
    done = total - sum(task.box.size for task in tasks)
    left_out = 0
    if may_fill(memory, total):
        predictors.free_host()  # a caller, or a batch, still has the network
    machine.give_back_freed_memory()  # of the network, which is otherwise gone only now
    with closing(_found(tasks, memory, client)) as found:
        for index, (places, more) in zip(pending, found, strict=True):
            store.write(index, {"mask": places})
            left_out += more
            done += places.size
            del places
            machine.give_back_freed_memory()  # or each block would take other pieces of what the network took
            if progress:
                progress(done, total)
    return left_out if len(pending) == store.layout.n_blocks(0) else None


def _found(tasks: Sequence[PlacesTask], memory: int, client: Client | None) -> Generator[Places]:
    """Yield what each task finds: on the workers of a client, in several processes if they are allowed, or here."""
    count = n_processes(sum(task.box.size for task in tasks), len(tasks), memory)
    if client is not None:
        from tilenet.workers.distributed import map_in_order

        yield from map_in_order(client, PlacesTask.places, tasks)
    elif count > 1:
        there = partial(_places_in_process, memory=_share(memory, count))
        yield from map_in_processes(there, tasks, count, otherwise=PlacesTask.places)
    else:
        yield from map(PlacesTask.places, tasks)


def n_processes(pixels: int, blocks: int, memory: int) -> int:
    """Return in how many processes the objects of some blocks are found."""
    return 1 if pixels < WORTH else max(1, min(most_processes(), blocks, left_for(memory) // EACH))


def may_fill(memory: int, pixels: int) -> bool:
    """Return whether so many pixels, if connected, may take so much that nothing else is to be kept for later.

    >>> may_fill(4_000_000_000, 2048**2), may_fill(4_000_000_000, 4096**2)
    (False, True)
    """
    return pixels * BYTES_PER_PIXEL > left_for(memory) // 2


def _share(memory: int, count: int) -> int:
    """Return the bytes that each of several processes, or the only one, has left for separating components."""
    return left_for(memory) // count


def _beside(places: Layout, count: int) -> int:
    """Return the bytes that each of several processes takes beside these; of the only one, `beside` has them."""
    return PROCESS + COPIES * _block_bytes(places) if count > 1 else 0


def _block_bytes(places: Layout) -> int:
    return prod(map(min, places.block, places.shape)) * np.dtype(places.mask_dtype).itemsize


def usual_bytes(depths: Layout, ndim: int, memory: int) -> int:
    """Return the bytes that it takes to find and number objects of `ndim` axes, beside the resident ones.

    That is if components reach no further than the parts that are labelled at once. A larger one may take all of what
    `memory` leaves for it.
    """
    places = places_layout(depths, ndim, memory)
    count = n_processes(prod(places.shape), places.n_blocks(0), memory)
    block, image = tuple(map(min, places.block, places.shape)), places.shape[-ndim:]
    piece = next(_pieces(Box.of_shape(block[-ndim:]), image, _share(memory, count)))
    each = _seen(piece.shape, image) * USUAL_BYTES_PER_PIXEL + _beside(places, count)
    return max(WRITTEN * _block_bytes(places) + count * each, prod(block) * NUMBERING)


@dataclass(frozen=True)
class PlacesTask:
    """The task of finding the objects of one block, as it is sent to a worker."""

    # The store of the first step.
    depths: Path
    box: Box
    # Most bytes for a connected component that reaches far beyond the block.
    memory: int
    # Data type of the places.
    dtype: str
    # For each plane, the large component that was separated last. Shared by the blocks that one process computes
    # without a client, and kept only for the planes of one block, as far as they fit; a worker of a client begins with
    # none.
    recents: dict[tuple[int, ...], Recent] = field(default_factory=dict, compare=False)

    def _forget_other_planes(self) -> None:
        """Drop the large components of planes outside the block: blocks come in array order, so those are done."""
        for plane in list(self.recents):
            if not all(a <= p < b for a, p, b in zip(self.box.start, plane, self.box.stop, strict=False)):
                del self.recents[plane]

    def places(self) -> Places:
        """Return the place of each pixel's object, 0 for none; and how many that begin here are not deep enough."""
        self._forget_other_planes()
        left_out = 0
        places, depths = np.zeros(self.box.shape, self.dtype), _opened(self.depths, stamp_of(self.depths))
        ndim, rule = len(depths.info["model"]["footprint"]), ObjectRule.recorded(depths.info["record"])
        outer, shape = depths.shape[:-ndim], depths.shape[-ndim:]
        block = Box(self.box.start[-ndim:], self.box.stop[-ndim:])
        for at in np.ndindex(*self.box.shape[:-ndim]):
            plane = tuple(a + b for a, b in zip(self.box.start, at, strict=False))
            before = prod(shape) * (int(np.ravel_multi_index(plane, outer)) if outer else 0)
            find = partial(
                find_objects,
                shape=shape,
                read=partial(_view, depths, plane),
                rule=rule,
                memory=self.memory,
                recent=self.recents.setdefault(plane, Recent()),
                name=depths.info["image"]["path"],
            )
            for piece in _pieces(block, shape, self.memory):
                labels, firsts, beyond = find(piece)
                left_out += beyond
                place_of_label = np.where(firsts < 0, 0, firsts + 1 + before).astype(self.dtype)
                places[(*at, *piece.relative_to(block.start).slices)] = place_of_label[labels]
            if sum(recent.n_bytes for recent in self.recents.values()) > KEPT * self.memory:
                del self.recents[plane]
        return places, left_out


# The large components that a process of `map_in_processes` keeps; it ends with the step.
_recents_here: dict[tuple[int, ...], Recent] = {}


def _places_in_process(task: PlacesTask, *, memory: int) -> Places:
    return replace(task, memory=memory, recents=_recents_here).places()


@lru_cache(maxsize=1)
def _opened(depths: Path, stamp: Stamp | None) -> Mask:
    """Open the store of the first step once per process, because opening looks at all of its files."""
    del stamp  # only a key of the cache: another store may lie there by then
    return open_mask(depths)


def _view(depths: Mask, outer: tuple[int, ...], box: Box) -> View:
    """Read a box of one plane (or volume) from a store of depths."""
    foreground = depths[(*outer, *box.slices)] > 0
    if depths.probabilities is None:
        return View(foreground, None)
    with_class = depths.layout.with_class((*outer, *box.slices), 0)
    return View(foreground, np.asarray(depths.probabilities[with_class], np.float32))


def _pieces(block: Box, shape: Sequence[int], memory: int) -> Iterator[Box]:
    """Return the pieces of a block that are labelled at once, small enough for half the memory if possible."""
    most, least = PIECES[block.ndim]
    return boxes_of(block, _sides(block.shape, (least,) * block.ndim, most, memory, shape))


def _joined(layout: Layout, ndim: int, memory: int) -> tuple[int, ...]:
    """Return the sides of blocks in which as many blocks of a layout are joined as can be labelled at once."""
    outer, block, shape = layout.block[:-ndim], layout.block[-ndim:], layout.shape[-ndim:]
    return outer + _sides(shape, block, PIECES[ndim][0] // prod(outer), memory, shape)


def _sides(whole: Sequence[int], steps: Sequence[int], most: int, memory: int, image: Sequence[int]) -> tuple[int, ...]:
    """Halve the longest side of a box until it can be labelled at once; all sides are multiples of `steps`."""
    sides = list(map(round_up, whole, steps))
    while longer := [(side, axis) for axis, side in enumerate(sides) if side > steps[axis]]:
        inside = list(map(min, sides, whole))
        if prod(inside) <= most and _seen(inside, image) * BYTES_PER_PIXEL <= memory // 2:
            break
        side, axis = max(longer)
        sides[axis] = round_up(ceil_div(side, 2), steps[axis])
    return tuple(sides)


def _seen(piece: Sequence[int], image: Sequence[int]) -> int:
    """Return how many pixels are seen to label a piece of an image."""
    return prod(min(n + 2 * MARGIN[len(piece)], end) for n, end in zip(piece, image, strict=True))
