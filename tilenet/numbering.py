"""Numbered objects of an image of any size, in three steps. A run that is killed in any of them can be resumed.

1. The network writes the foreground, and how deep each pixel lies in its object, into a store like any mask: with the
   same tiles, workers and journal.
2. Each block of it is labelled as the whole image would be (`tilenet.instances`). Every pixel of an object gets the
   place of the object's first pixel in the image, plus one: an identity that each block finds by itself.
3. The places of all objects, sorted, are their numbers 1..n, with which the mask is written.

The stores of the first two steps lie in OUT.making, which the third removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import product
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilenet.compute import Progress, finish, remark_lost
from tilenet.decide import Rule
from tilenet.distributed import map_in_order
from tilenet.errors import OutputExists, OutputMismatch
from tilenet.geometry import Box
from tilenet.instances import BYTES_PER_PIXEL, MARGIN, Recent, View, find_objects
from tilenet.into import Target
from tilenet.outputs import fill, open_store, spare_the_input
from tilenet.runner import Report
from tilenet.separation import Indices
from tilenet.settling import Wanted
from tilenet.sizes import DEFAULT_MEMORY
from tilenet.store import Mask, Store, can_resume, check_free, is_complete, is_ours, open_mask
from tilenet.store.files import faults_named, remove_tree, step
from tilenet.store.journal import MERGED
from tilenet.store.lease import Lease
from tilenet.store.metadata import OWN
from tilenet.store.place import sweep, temporary_place

if TYPE_CHECKING:
    from distributed import Client

DEPTHS, PLACES = "depths.zarr", "places.zarr"
# The entry of a mask's info that tells one numbering from another.
FIRSTS = "first pixels sha256"
# Largest and smallest sides, in pixels, of the parts of a block that are labelled at once, by number of axes.
PARTS = {2: (2048, 256), 3: (192, 48)}


def store_objects(
    out: Path,
    wanted: Wanted,
    *,
    resume: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    progress: Progress | None = None,
) -> Report:
    """Find the objects of an image and write them, numbered, to a store; goes on where a killed run ended.

    `progress` is told of each pixel twice: when the network has run on it, and when its objects are found.

    Raises
    ------
    SettingsError
        If a connected component takes more than the memory.
    BlocksFailed
        If some blocks could not be computed; the run can be resumed.
    OutputMismatch
        If a damaged mask is repaired, and the network finds other objects than before.
    """
    wanted = replace(wanted, options=replace(wanted.options, output=wanted.options.output or "objects"))
    making, report = making_of(out, wanted.target), Report()
    spare_the_input(making / DEPTHS, wanted.image)
    if overwrite:
        _remove(making)
    store = _resumed(out, wanted, making) if resume and can_resume(out) else None
    if store is None:
        overwrite = overwrite or (resume and was_begun(out, wanted.target))
        check_free(out, overwrite=overwrite)
    try:
        if store is None or next(store.pending(), None) is not None:
            depths, report = _depths(making / DEPTHS, wanted, client, _half(progress, 0), resume=resume)
            started = perf_counter()
            with _held(depths.path):
                places = _places(making / PLACES, depths, wanted, client, _half(progress, 1))
                firsts = _firsts(depths, places)
                store = store or _create(out, wanted, depths, firsts, overwrite=overwrite)
                _number(store, places, firsts)
            report.objects = perf_counter() - started
        # Before the mask is complete, after which nobody looks here again.
        _remove(making)
        finish(store)
    finally:
        if store is not None:
            store.close()
    return report


def was_begun(out: Path, target: Target | None) -> bool:
    """Return whether a run that finds objects has begun to write `out`."""
    if is_ours(making_of(out, target) / DEPTHS):
        return True
    record = Store.inspect(out).info.get("record") if is_ours(out) else None  # may have been changed by hand
    return isinstance(record, dict) and record.get("output") == "objects"


def refuse_begun(out: Path, target: Target | None, *, overwrite: bool) -> None:
    """Refuse a place where a run that finds objects has begun; with `overwrite`, remove what it has found instead."""
    making = making_of(out, target)
    if overwrite:
        _remove(making)
    elif is_ours(making / DEPTHS):
        raise OutputExists(f"{making}: is of a run with --objects. Go on with that, or start again with --overwrite")


def making_of(out: Path, target: Target | None) -> Path:
    """Return where the stores are kept while objects are found: beside the mask, or beside the image that it is in."""
    beside = out if target is None else target.path.with_name(f"{target.path.name}.{out.name}")
    return beside.with_name(f"{beside.name}.making").absolute()


def _half(progress: Progress | None, which: int) -> Progress | None:
    """Return the progress of the first or the second half of a run."""
    if progress is None:
        return None
    return lambda done, total: progress(done + which * total, 2 * total)


@contextmanager
def _held(store: Path) -> Iterator[None]:
    """Hold the lease of a store that is complete, so that no other run removes it."""
    with faults_named(store):
        lease = Lease.take(store / OWN, store)
        lease.start(store / OWN)
    try:
        yield
    finally:
        lease.release()


def _remove(making: Path) -> None:
    """Remove the stores of the first two steps, and their folder unless somebody keeps other things in it."""
    for store in (making / DEPTHS, making / PLACES):
        if not store.exists():
            continue
        if not is_ours(store):
            raise OutputExists(f"{store}: is no store, or damaged, and objects are found there. Remove {making}")
        with _held(store), faults_named(store):
            # Renamed first: a store that is removed in part must not look like one to resume.
            aside = temporary_place(store)
            step("rename", os.rename, store, aside)
            remove_tree(aside)
    with faults_named(making):
        for name in (DEPTHS, PLACES):
            sweep(making / name)
        with suppress(OSError):
            making.rmdir()


def _resumed(out: Path, wanted: Wanted, making: Path) -> Store | None:
    """Return a mask to go on with; None if one is there that a run has begun to replace."""
    if is_ours(making / DEPTHS):
        info, depths = Store.inspect(out).info, Store.inspect(making / DEPTHS).info
        if is_complete(out) or {**info, **depths} != info:
            return None
    store = Store.resume(out)
    job, _ = wanted.settle_for(store)
    job.close()
    return store


def _depths(
    path: Path, wanted: Wanted, client: Client | None, progress: Progress | None, *, resume: bool
) -> tuple[Mask, Report]:
    """Return the store of the first step, complete, and what was done for it."""
    if path.parent.is_symlink():
        raise OutputExists(f"{path.parent}: is a symbolic link, and what objects are found in goes there. Remove it")
    wanted = replace(wanted, target=None)
    store, job, numbers = open_store(path, wanted, resume=resume)
    report = fill(store, job, numbers, wanted, client=client, progress=progress)
    return open_mask(path), report


def _places(path: Path, depths: Mask, wanted: Wanted, client: Client | None, progress: Progress | None) -> Mask:
    """Return the store of the second step, complete."""
    # Every file of the depths: another run may have made them anew.
    info = depths.info | {"depths": sha256((depths.path / OWN / MERGED).read_bytes()).hexdigest()}
    if can_resume(path) and Store.inspect(path).info == info:
        store = Store.resume(path)
    else:
        layout = replace(depths.layout, labels={}, largest=prod(depths.shape), classes=0, tissue={})
        store = Store.create(path, layout, info, overwrite=True)
    try:
        memory, pending = wanted.options.memory or DEFAULT_MEMORY, list(store.pending())
        box, dtype, recents = store.layout.box, store.layout.mask_dtype, dict[tuple[int, ...], Recent]()
        parts = [Part(depths.path, box(0, index), memory, dtype, recents) for index in pending]
        done, total = depths.size - sum(part.box.size for part in parts), depths.size
        for index, part, places in zip(pending, parts, map_in_order(client, Part.places, parts), strict=True):
            store.write(index, {"mask": places})
            done += part.box.size
            if progress:
                progress(done, total)
        finish(store)
    finally:
        store.close()
    return open_mask(path)


@dataclass(frozen=True)
class Part:
    """A block whose objects are to be found: what a worker is sent.

    Attributes
    ----------
    depths : Path
        The store of the first step.
    box : Box
        The pixels of the block.
    memory : int
        Bytes that a connected component may take which reaches far beyond the block.
    dtype : str
        Of places.
    recents : dict
        What parts of each plane keep for each other.
    """

    depths: Path
    box: Box
    memory: int
    dtype: str
    recents: dict[tuple[int, ...], Recent] = field(default_factory=dict, compare=False)

    def places(self) -> NDArray[np.unsignedinteger[Any]]:
        """Return, for each pixel, the place of its object's first pixel in the image, plus one; 0 for background."""
        places = np.zeros(self.box.shape, self.dtype)
        with open_mask(self.depths) as depths:
            ndim, rule = len(depths.info["model"]["footprint"]), Rule.recorded(depths.info["record"])
            name = depths.info["image"]["path"]
            name = depths.info["image"]["path"]
            outer, shape = depths.shape[:-ndim], depths.shape[-ndim:]
            block = Box(self.box.start[-ndim:], self.box.stop[-ndim:])
            for at in np.ndindex(*self.box.shape[:-ndim]):
                plane = tuple(a + b for a, b in zip(self.box.start, at, strict=False))
                before = prod(shape) * (int(np.ravel_multi_index(plane, outer)) if outer else 0)
                read, recent = partial(_view, depths, plane), self.recents.setdefault(plane, Recent())
                read = partial(_view, depths, plane)
                for part in _parts(block, self.memory):
                    options = {"memory": self.memory, "recent": recent, "name": name}
                    labels, firsts = find_objects(part, shape, read, rule, **options)
                    numbers = np.where(firsts < 0, 0, firsts + 1 + before).astype(self.dtype)
                    places[(*at, *part.relative_to(block.start).slices)] = numbers[labels]
        return places


def _view(depths: Mask, outer: tuple[int, ...], box: Box) -> View:
    """Return a box of one of the planes, or volumes, of a store of depths."""
    foreground = depths[(*outer, *box.slices)] > 0
    if depths.probabilities is None:
        return View(foreground, None)
    with_class = depths.layout.with_class((*outer, *box.slices), 0)
    return View(foreground, np.asarray(depths.probabilities[with_class], np.float32))


def _parts(block: Box, memory: int) -> Iterator[Box]:
    """Yield parts of a block that are labelled at once, each in half the memory if that can be."""
    side, least = PARTS[block.ndim]
    while side > least and (side + 2 * MARGIN[block.ndim]) ** block.ndim * BYTES_PER_PIXEL > memory // 2:
        side //= 2
    corners = product(*(range(a, b, side) for a, b in zip(block.start, block.stop, strict=True)))
    yield from (Box(corner, tuple(a + side for a in corner)) & block for corner in corners)


def _firsts(depths: Mask, places: Mask) -> Indices:
    """Return where all objects begin, in order; say how many pixels of the foreground are in none."""
    firsts, foreground, kept = [np.zeros(0, np.uint64)], 0, 0
    for index in range(places.layout.n_blocks(0)):
        box = places.layout.box(0, index)
        found = places[box.slices]
        own = np.ravel_multi_index(np.ix_(*map(np.arange, box.start, box.stop)), places.shape) + 1
        firsts.append(found[found == own].astype(np.uint64))
        kept += int(np.count_nonzero(found))
        foreground += int(np.count_nonzero(depths[box.slices]))
    remark_lost(depths.info["image"]["path"], foreground, kept, depths.info["record"])
    return np.sort(np.concatenate(firsts))


def _create(out: Path, wanted: Wanted, depths: Mask, firsts: Indices, *, overwrite: bool) -> Store:
    """Create the store of the mask, with a pyramid, or with the levels of its image."""
    n = len(firsts)
    layout = replace(depths.layout, labels={}, largest=max(2**16, n), classes=0, n_levels=0)
    if wanted.target is not None:
        options = wanted.options.or_recorded(depths.info["record"])
        with replace(wanted, options=options).settle() as job:
            layout = replace(layout, **job.inside)
    return Store.create(out, layout, depths.info | {"objects": n, FIRSTS: _checksum(firsts)}, overwrite=overwrite)


def _checksum(firsts: Indices) -> str:
    return sha256(firsts.tobytes()).hexdigest()


def _number(store: Store, places: Mask, firsts: Indices) -> None:
    """Write the blocks that a store still lacks."""
    if store.info[FIRSTS] != _checksum(firsts):
        raise OutputMismatch(f"{store.path}: the network finds other objects than before. Start again with --overwrite")
    for index in store.pending():
        found = places[store.layout.box(0, index).slices]
        numbers = np.where(found > 0, np.searchsorted(firsts, found) + 1, 0)
        store.write(index, {"mask": numbers.astype(store.layout.mask_dtype)})
