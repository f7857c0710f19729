"""Number the objects of an image of any size, in three steps. A run that is killed in any of them can be resumed.

1. The network writes the foreground, and the depth of each pixel in its object, to a store like that of any mask, with
   the same tiles, workers and journal.
2. Every pixel of an object gets the place of the object's first pixel, in a second store
   (`tilenet.runs.object_places`).
3. Sorted, the places become the numbers 1..n, and the mask is written. If objects of planes are to be linked
   (`tilenet.instances.linking`), those that are get one number.

The stores of the first two steps lie in the folder OUT.making, which the third step removes. It holds the lease of the
first store until then.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilenet.decide import ObjectRule
from tilenet.errors import ANEW, OutputIncomplete, OutputMismatch, closed_on_error
from tilenet.instances.linking import linked
from tilenet.jobs.compute import Lost, finish, remark_lost
from tilenet.jobs.mismatch import remark_other_version
from tilenet.jobs.request import Request
from tilenet.jobs.setup import placed_in
from tilenet.masks.provenance import open_as_segmented, resolution_of
from tilenet.readers.image import closing
from tilenet.runner import Report
from tilenet.runs.object_outputs import (
    DEPTHS,
    PLACES,
    making_of,
    mask_to_continue,
    refuse_link,
    remove_making,
    with_recorded_options,
)
from tilenet.runs.object_places import find_places, open_places
from tilenet.runs.outputs import fill_output, protect_input
from tilenet.sizes import DEFAULT_MEMORY
from tilenet.store import Layout, Mask, Progress, Store, open_mask
from tilenet.store.destination import holding

if TYPE_CHECKING:
    from distributed import Client

# Key in a mask's info: a checksum of the first pixels of all objects, and of links, which identifies the numbering.
FIRSTS = "first pixels sha256"


class AllPlaces(NamedTuple):
    """The places of all objects; and how many objects are nowhere deep enough, None if that is not known."""

    places: Mask
    left_out: int | None


def store_objects(
    out: Path,
    request: Request,
    *,
    resume: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    progress: Progress | None = None,
) -> Report:
    """Find the objects of an image and write their numbers to a store; with `resume`, continue a killed run.

    `progress` counts each pixel twice: when the network has run on it, and when its objects have been found.
    """
    request = replace(request, options=replace(request.options, output=request.options.output or "objects"))
    making, report = making_of(out, request.target), Report()
    protect_input(making / DEPTHS, request.image)
    store, overwrite = mask_to_continue(out, request, making, resume=resume, overwrite=overwrite)
    try:
        if store is not None:
            # A repair repeats the first two steps as they were for this mask, also where options are left out now.
            request = with_recorded_options(request, store)
        if store is None or store.lacks_blocks():
            refuse_link(making)
            step = _half(progress, 0)
            report = fill_output(making / DEPTHS, request, resume=resume, client=client, progress=step)
            started, step = perf_counter(), _half(progress, 1)
            with holding(making / DEPTHS):
                store = _number(out, request, making, store, overwrite=overwrite, client=client, progress=step)
                # Before the mask is marked complete: a complete mask is skipped, so what is left here would stay.
                remove_making(making, held=True)
            report.objects = perf_counter() - started
        else:
            remove_making(making)
        finish(store)
    finally:
        if store is not None:
            store.close()
    return report


def number_divided(out: Path, request: Request) -> None:
    """Do the third step of a run whose first two steps were divided among processes.

    `OutputLocked` if one of them is at work, or has done this; `OutputIncomplete` if the second step is not done.
    """
    making, store = making_of(out, request.target), None
    try:
        with holding(making / DEPTHS):
            if Store.inspect(making / PLACES).lacks_blocks():
                raise OutputIncomplete(f"{out}: some of its objects are not found yet. Run the other shares")
            store, overwrite = mask_to_continue(out, request, making, resume=True, overwrite=False)
            if store is None or store.lacks_blocks():
                store = _number(out, request, making, store, overwrite=overwrite)
            remove_making(making, held=True)
        finish(store)
    finally:
        if store is not None:
            store.close()


def _half(progress: Progress | None, which: int) -> Progress | None:
    """Return the callback for the first (0) or second (1) half of a run."""
    if progress is None:
        return None
    return lambda done, total: progress(done + which * total, 2 * total)


def _fill_places(
    path: Path, depths: Mask, request: Request, client: Client | None, progress: Progress | None
) -> AllPlaces:
    """Complete the store of the second step."""
    memory = request.options.memory or DEFAULT_MEMORY
    store = open_places(path, depths, memory)
    try:
        left_out = find_places(store, depths.path, memory, client=client, progress=progress)
        finish(store)
    finally:
        store.close()
    return AllPlaces(open_mask(path), left_out)


def _number(
    out: Path,
    request: Request,
    making: Path,
    store: Store | None,
    *,
    overwrite: bool,
    client: Client | None = None,
    progress: Progress | None = None,
) -> Store:
    """Complete the second step, and write the numbers of the objects into a mask, which is made if there is none."""
    depths = open_mask(making / DEPTHS)
    found = _fill_places(making / PLACES, depths, request, client, progress)
    numbering = _numbered(depths, found)
    store = store or _create(out, request, depths, numbering, overwrite=overwrite)
    with closed_on_error(store):  # the caller may not know it
        remark_other_version(store)  # than the one that ran the network
        _write_numbers(store, found.places, numbering)
    return store


class Numbering(NamedTuple):
    """The places of all objects, sorted, and the number of each: 1..n, the same for objects that are linked."""

    firsts: NDArray[np.uint64]
    numbers: NDArray[np.int64]

    @property
    def n(self) -> int:
        """How many numbers there are."""
        return int(self.numbers.max(initial=0))

    def checksum(self) -> str:
        """Return a checksum, which is that of the places, as uint64, where nothing is linked."""
        links = self.numbers if self.n < len(self.firsts) else self.numbers[:0]
        return sha256(self.firsts.tobytes() + links.tobytes()).hexdigest()


def _numbered(depths: Mask, found: AllPlaces) -> Numbering:
    """Return the numbers of all objects."""
    places, firsts = found.places, _first_places(depths, *found)
    link = ObjectRule.recorded(depths.info["record"]).link
    if link is None:
        return Numbering(firsts, np.arange(1, len(firsts) + 1))
    return Numbering(firsts, linked(places, places.axes, places.layout.block, link))


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
    remark_lost(depths.info["image"]["path"], lost, depths.info["record"])
    return found


def _create(out: Path, request: Request, depths: Mask, numbering: Numbering, *, overwrite: bool) -> Store:
    """Create the store of the mask, with a pyramid of its own or with the levels of the image that it goes into."""
    layout = numbers_layout(depths.layout, numbering.n)
    if request.target is not None:
        with closing(open_as_segmented(request.image, depths), request.image) as image:
            layout = replace(layout, **placed_in(request.target, image, resolution_of(depths)))
    info = depths.info | {"objects": numbering.n, FIRSTS: numbering.checksum()}
    return Store.create(out, layout, info, overwrite=overwrite, facts=request.facts)


def numbers_layout(depths: Layout, n: int) -> Layout:
    """Return the layout of the numbers of `n` objects that were found in some depths."""
    # 2**16 makes it uint32 even for few objects: the data type must not depend on what was found.
    return replace(depths, labels={}, largest=max(2**16, n), classes=0, n_levels=0)


def _write_numbers(store: Store, places: Mask, numbering: Numbering) -> None:
    """Write the blocks that a store still lacks."""
    if store.info[FIRSTS] != numbering.checksum():
        raise OutputMismatch(f"{store.path}: the objects found now are not those of this mask. To replace it, {ANEW}")
    numbers = np.insert(numbering.numbers, 0, 0).astype(store.layout.mask_dtype)
    for index in store.pending():
        found = places[store.layout.box(0, index).slices]
        store.write(index, {"mask": numbers[np.searchsorted(numbering.firsts, found, "right")]})
