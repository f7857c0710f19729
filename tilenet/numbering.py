"""Number the objects of an image of any size, in three steps. A run that is killed in any of them can be resumed.

1. The network writes the foreground, and the depth of each pixel in its object, to a store like that of any mask, with
   the same tiles, workers and journal.
2. Each block of a second store is labelled as the whole image would be (`tilenet.instances`). Every pixel of an object
   gets the place of the object's first pixel: its index in the flattened image, plus one. All blocks that share an
   object find the same place, without knowing of each other. Small blocks are joined: each would separate a component
   again that extends over many of them.
3. Sorted, the places become the numbers 1..n, and the mask is written.

The stores of the first two steps lie in the folder OUT.making, which the third step removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilenet.compute import Lost, Progress, finish, remark_lost
from tilenet.decide import ObjectRule
from tilenet.errors import OutputExists, OutputMismatch
from tilenet.geometry import Box, boxes_of, ceil_div, round_up
from tilenet.instances import BYTES_PER_PIXEL, MARGIN, Recent, View, find_objects
from tilenet.making import DEPTHS, PLACES, as_recorded, making_of, mask_to_continue, remove_making
from tilenet.outputs import fill, open_store, spare_the_input
from tilenet.runner import Report
from tilenet.sizes import DEFAULT_MEMORY
from tilenet.store import Mask, Store, can_resume, open_mask
from tilenet.store.journal import MERGED
from tilenet.store.kept import Stamp, stamp_of
from tilenet.store.layout import Layout
from tilenet.store.metadata import OWN, read_root
from tilenet.store.place import holding
from tilenet.wanted import Wanted
from tilenet.workers.distributed import map_in_order

if TYPE_CHECKING:
    from distributed import Client

# Key in a mask's info: a checksum of the first pixels of all objects, which identifies the numbering.
FIRSTS = "first pixels sha256"
# Most pixels that are labelled at once, and a side that is not halved for that, by number of axes.
PIECES = {2: (2**22, 256), 3: (2**23, 48)}
# Part of the memory that large components kept for the next blocks may take.
KEPT = 0.25


def store_objects(
    out: Path,
    wanted: Wanted,
    *,
    resume: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    progress: Progress | None = None,
) -> Report:
    """Find the objects of an image and write their numbers to a store; with `resume`, continue a killed run.

    `progress` counts each pixel twice: when the network has run on it, and when its objects have been found.

    Raises
    ------
    SettingsError
        If a connected component needs more memory than the run may use.
    BlocksFailed
        If some blocks could not be computed; the run can be resumed.
    OutputMismatch
        If a damaged mask is to be repaired, but the objects found now are not those of the mask.
    """
    wanted = replace(wanted, options=replace(wanted.options, output=wanted.options.output or "objects"))
    making, report = making_of(out, wanted.target), Report()
    spare_the_input(making / DEPTHS, wanted.image)
    store, overwrite = mask_to_continue(out, wanted, making, resume=resume, overwrite=overwrite)
    try:
        if store is not None:
            # A repair repeats the first two steps as they were for this mask, also where options are left out now.
            wanted = as_recorded(wanted, store)
        if store is None or next(store.pending(), None) is not None:
            depths, report = _fill_depths(making / DEPTHS, wanted, client, _half(progress, 0), resume=resume)
            started = perf_counter()
            with holding(depths.path):
                places, left_out = _fill_places(making / PLACES, depths, wanted, client, _half(progress, 1))
                firsts = _first_places(depths, places, left_out)
                store = store or _create(out, wanted, depths, firsts, overwrite=overwrite)
                _write_numbers(store, places, firsts)
            report.objects = perf_counter() - started
        # Before the mask is marked complete: a complete mask is skipped, so what is left here would stay.
        remove_making(making)
        finish(store)
    finally:
        if store is not None:
            store.close()
    return report


def _half(progress: Progress | None, which: int) -> Progress | None:
    """Return the callback for the first (0) or second (1) half of a run."""
    if progress is None:
        return None
    return lambda done, total: progress(done + which * total, 2 * total)


def _fill_depths(
    path: Path, wanted: Wanted, client: Client | None, progress: Progress | None, *, resume: bool
) -> tuple[Mask, Report]:
    """Complete the store of the first step, and return it with the report of the network's run."""
    if path.parent.is_symlink():
        raise OutputExists(
            f"{path.parent}: is a symbolic link, and intermediate results would be written there. Remove it"
        )
    report = fill(*open_store(path, wanted, resume=resume), wanted, client=client, progress=progress)
    return open_mask(path), report


def _fill_places(
    path: Path, depths: Mask, wanted: Wanted, client: Client | None, progress: Progress | None
) -> tuple[Mask, int | None]:
    """Complete the store of the second step, and return it; and how many objects are nowhere deep enough.

    That is None if an earlier run found some of the places.
    """
    # The sealed journal has the checksums of all files: places that were found in other depths are not used.
    info = depths.info | {"depths": sha256((depths.path / OWN / MERGED).read_bytes()).hexdigest()}
    memory = wanted.options.memory or DEFAULT_MEMORY
    if can_resume(path) and read_root(path)[1] == info:
        store = Store.resume(path)
    else:
        block = _joined(depths.layout, len(depths.info["model"]["footprint"]), memory)
        layout = replace(depths.layout, block=block, labels={}, largest=prod(depths.shape), classes=0, tissue={})
        store = Store.create(path, layout, info, overwrite=True)
    try:
        pending, recents = list(store.pending()), dict[tuple[int, ...], Recent]()
        box, dtype = store.layout.box, store.layout.mask_dtype
        tasks = (PlacesTask(depths.path, box(0, index), memory, dtype, recents) for index in pending)
        done, total = depths.size - sum(box(0, index).size for index in pending), depths.size
        left_out = 0 if len(pending) == store.layout.n_blocks(0) else None
        for index, (places, more) in zip(pending, map_in_order(client, PlacesTask.places, tasks), strict=True):
            store.write(index, {"mask": places})
            left_out = None if left_out is None else left_out + more
            done += places.size
            if progress:
                progress(done, total)
        finish(store)
    finally:
        store.close()
    return open_mask(path), left_out


@dataclass(frozen=True)
class PlacesTask:
    """The task of finding the objects of one block, as it is sent to a worker.

    Attributes
    ----------
    depths : Path
        The store of the first step.
    box : Box
        The pixels of the block.
    memory : int
        Most bytes for a connected component that reaches far beyond the block.
    dtype : str
        Data type of the places.
    recents : dict
        For each plane, the large component that was separated last. Shared by the blocks that one process computes
        without a client, and kept only for the planes of one block, as far as they fit; a worker begins with none.
    """

    depths: Path
    box: Box
    memory: int
    dtype: str
    recents: dict[tuple[int, ...], Recent] = field(default_factory=dict, compare=False)

    def _forget_other_planes(self) -> None:
        """Drop the large components of planes outside the block: blocks come in array order, so those are done."""
        for plane in list(self.recents):
            if not all(a <= p < b for a, p, b in zip(self.box.start, plane, self.box.stop, strict=False)):
                del self.recents[plane]

    def places(self) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
        """Return, for each pixel, the place of its object's first pixel in the image, plus one; 0 for background.

        And how many objects that begin in the block are nowhere deep enough.
        """
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
    """Halve the longest side of a box until it can be labelled at once; all sides are multiples of `steps`.

    Nothing is read beyond the shape of the image.
    """
    sides, margin = list(map(round_up, whole, steps)), 2 * MARGIN[len(whole)]
    while longer := [(side, axis) for axis, side in enumerate(sides) if side > steps[axis]]:
        inside = list(map(min, sides, whole))
        seen = prod(min(n + margin, end) for n, end in zip(inside, image, strict=True))
        if prod(inside) <= most and seen * BYTES_PER_PIXEL <= memory // 2:
            break
        side, axis = max(longer)
        sides[axis] = round_up(ceil_div(side, 2), steps[axis])
    return tuple(sides)


def _first_places(depths: Mask, places: Mask, left_out: int | None) -> NDArray[np.uint64]:
    """Return the places of all objects, sorted; log how many foreground pixels belong to no object."""
    firsts, foreground, kept = [np.zeros(0, np.uint64)], 0, 0
    for index in range(places.layout.n_blocks(0)):
        box = places.layout.box(0, index)
        found = places[box.slices]
        own = np.ravel_multi_index(np.ix_(*map(np.arange, box.start, box.stop)), places.shape) + 1
        firsts.append(found[found == own].astype(np.uint64))
        kept += int(np.count_nonzero(found))
        foreground += int(np.count_nonzero(depths[box.slices]))
    found = np.sort(np.concatenate(firsts))
    lost = Lost(foreground, foreground - kept, len(found), left_out)
    remark_lost(depths.info["image"]["path"], lost, depths.info["record"].get("least_depth"))
    return found


def _create(out: Path, wanted: Wanted, depths: Mask, firsts: NDArray[np.uint64], *, overwrite: bool) -> Store:
    """Create the store of the mask, with a pyramid of its own or with the levels of the image that it goes into."""
    n = len(firsts)
    # 2**16 makes it uint32 even for few objects: the data type must not depend on what was found.
    layout = replace(depths.layout, labels={}, largest=max(2**16, n), classes=0, n_levels=0)
    if wanted.target is not None:
        options = wanted.options.or_recorded(depths.info["record"])
        with replace(wanted, options=options).settle() as job:
            layout = replace(layout, **job.inside)
    return Store.create(out, layout, depths.info | {"objects": n, FIRSTS: _checksum(firsts)}, overwrite=overwrite)


def _checksum(firsts: NDArray[np.uint64]) -> str:
    # The checksum in the mask is of the bytes of uint64.
    return sha256(firsts.tobytes()).hexdigest()


def _write_numbers(store: Store, places: Mask, firsts: NDArray[np.uint64]) -> None:
    """Write the blocks that a store still lacks."""
    if store.info[FIRSTS] != _checksum(firsts):
        raise OutputMismatch(
            f"{store.path}: the objects found now are not those of this mask. Start again with --overwrite"
        )
    for index in store.pending():
        found = places[store.layout.box(0, index).slices]
        numbers = np.where(found > 0, np.searchsorted(firsts, found) + 1, 0)
        store.write(index, {"mask": numbers.astype(store.layout.mask_dtype)})
