"""Job arrays of a run with objects: its first two steps (`tilenet.runs.numbering`) are divided, one does the third.

A share does its part of the first step, in which the network runs. Objects can be found only when that step is
complete, so a share that finds it complete does its part of the second step, and the others do theirs when they are run
again. The share that then finds no pending block, and no other share at work, numbers the objects.

In the second step a process holds the lease of its share of the depths, too. Whoever removes these or numbers the
objects needs the lease of the whole of them, so neither happens while shares are at work.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from tilenet.errors import OutputExists, OutputIncomplete, OutputLocked, TilenetError
from tilenet.jobs.request import Request
from tilenet.masks.label_target import LabelTarget
from tilenet.runner import Report
from tilenet.runs.numbering import number_divided, store_objects
from tilenet.runs.object_outputs import DEPTHS, PLACES, in_making, making_of, refuse_link, remove_making
from tilenet.runs.object_places import are_of, find_places, open_places
from tilenet.runs.outputs import protect_input
from tilenet.runs.shares import (
    among_of,
    checked_share,
    create_share,
    fill_blocks,
    join_shares,
    patiently,
    run_lacking,
)
from tilenet.sizes import DEFAULT_MEMORY
from tilenet.store import Mask, Progress, Share, Store, can_resume, check_free, is_ours, open_mask
from tilenet.store.destination import holding
from tilenet.store.metadata import read_root

# What is said of the blocks of each step.
STEPS = {"network": "the network has run on {} of {} blocks", "objects": "objects are found in {} of {} blocks"}


def fill_objects(out: Path, request: Request, share: Share, *, progress: Progress | None = None) -> Report:
    """Do a share of the step that a run with objects is in; number the objects if nothing else is left to do.

    `progress` counts the pixels of the share, in each step anew.
    """
    share, making = checked_share(share), making_of(out, request.target)
    protect_input(making / DEPTHS, request.image)
    refuse_link(making)
    # In this order: a run makes its mask before it removes the depths.
    if not in_making(out, request.target) and can_resume(out):
        return _end_as_one(out, request, progress)
    try:
        return _fill_steps(out, request, share, progress)
    except (TilenetError, OSError):
        if in_making(out, request.target) or not can_resume(out):
            raise
    # Another process has numbered the objects meanwhile, and removed the depths.
    return _end_as_one(out, request, progress)


def _end_as_one(out: Path, request: Request, progress: Progress | None) -> Report:
    """Do what is left of a mask whose numbers were written once, unless another process ends it just now."""
    try:
        return store_objects(out, request, resume=True, progress=progress)
    except OutputLocked:
        if Store.inspect(out).lacks_blocks():
            raise
    return Report()


def _fill_steps(out: Path, request: Request, share: Share, progress: Progress | None) -> Report:
    making = making_of(out, request.target)
    report = _share_of_depths(out, request, share, progress)
    if read_root(making / DEPTHS).complete:
        started = perf_counter()
        _share_of_places(making, request.options.memory or DEFAULT_MEMORY, share, progress)
        with suppress(OutputIncomplete, OutputLocked):  # then another share is not run yet, or does this
            number_divided(out, request)
        report.objects = perf_counter() - started
    return report


def _share_of_depths(out: Path, request: Request, share: Share, progress: Progress | None) -> Report:
    """Do a share of the first step, and finish that if it was the last one."""
    making = making_of(out, request.target)
    depths = making / DEPTHS
    if is_ours(depths) and read_root(depths).complete:
        request.job_for(Store.inspect(depths)).close()  # not read whole, as by `join_shares`: every share would do so
        return Report()
    if not can_resume(depths):
        check_free(out)
    created = create_share(depths, request, share)
    if created and can_resume(out):
        # Other shares have ended the run, and removed its depths, between the look of this one and its creating them.
        for opened in created:
            opened.close()
        remove_making(making)
        raise OutputExists(f"{out}: was made by other shares just now. Run this one again")
    return fill_blocks(*(created or join_shares(depths, request, share)), share, progress=progress)


def _share_of_places(making: Path, memory: int, share: Share, progress: Progress | None) -> None:
    """Do a share of the second step."""
    path, places = making / DEPTHS, making / PLACES
    if are_of(open_mask(path), places):
        store = Store.inspect(places)
        if not store.lacks_blocks(among_of(store, share)):
            return  # no lease is needed, which a share that numbers the objects may hold for long
    with ExitStack() as held:
        patiently(lambda: held.enter_context(holding(path, share)))
        store = patiently(partial(_open_places, places, open_mask(path), memory, share))
        held.enter_context(closing(store))
        find_places(store, path, memory, progress=progress, among=among_of(store, share))


def _open_places(path: Path, depths: Mask, memory: int, share: Share) -> Store:
    with suppress(OutputExists, OutputLocked):  # if another share was quicker to create it
        return open_places(path, depths, memory, share)
    return open_places(path, depths, memory, share)


class HowFar(NamedTuple):
    """How far a run is: its step, how many blocks of that are written, of how many, and what to do next."""

    step: str
    written: int
    blocks: int
    to_do: str

    def __str__(self) -> str:
        return STEPS[self.step].format(self.written, self.blocks)


def how_far(out: Path, target: LabelTarget | None) -> HowFar | None:
    """Return how far a run with objects is; None if there is none, or if another process ends it just now."""
    making = making_of(out, target)
    with suppress(TilenetError, OSError):
        depths = Store.inspect(making / DEPTHS)
        if not depths.complete or not is_ours(making / PLACES):
            then = "run all shares again, which find the objects"
            return _how_far("network", depths, f", then {then}", f"When no share is at work any more, {then}")
        last = "When no share is at work any more, run one again, which numbers the objects"
        return _how_far("objects", Store.inspect(making / PLACES), ": the last one numbers the objects", last)
    return None


def _how_far(step: str, store: Store, then: str, if_all: str) -> HowFar:
    pending, blocks = list(store.pending()), store.layout.n_blocks(0)
    to_do = run_lacking(store, pending) + then if pending else if_all
    if not store.shares:
        to_do = "Run the same command with --resume"
    return HowFar(step, blocks - len(pending), blocks, to_do)
