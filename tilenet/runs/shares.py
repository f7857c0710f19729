"""Job arrays: several processes write one mask, each a share of its blocks, and the last one finishes it.

No process leads. Each takes the lease of its own share. All join the run that the first process began, and
repeat the run record that it left in the store. The process that finds no pending block and no other process
at work takes the lease of the whole store, which ends the run, and finishes the mask. A killed share is
restarted with the same command, on any machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from tilenet.address import check_local
from tilenet.errors import OutputExists, OutputIncomplete, OutputLocked, SettingsError, counted_of
from tilenet.jobs.compute import fill_pending, finish, raise_if_failed
from tilenet.jobs.job import Job
from tilenet.jobs.request import Request
from tilenet.masks.label_target import LabelTarget
from tilenet.masks.tiff_mask import open_tiff_mask
from tilenet.masks.tiff_store import is_tiff
from tilenet.runner import Report
from tilenet.runs.outputs import create_store
from tilenet.store import Progress, Share, Store, can_resume, check_free, refuse_shares

T = TypeVar("T")
# A process that checks whether it is the last, or that loses the race to create the store, briefly holds the
# lease of the whole store. A share waits for it up to the first number of seconds, and retries after the second. A
# process that finishes the mask holds it longer: then this share has nothing left to do, and is refused.
PATIENCE, LOOK = 5.0, 0.1
# Bounded because each share has a lease file of its own.
MOST_SHARES = 100_000
# How many shares an error message names.
NAMED = 20


def blocks_of_share(share: Share, n_blocks: int) -> range:
    """Return the blocks of share I of N, I from 1: a contiguous range; lengths differ by at most one block.

    Neighbouring blocks read the same rows of file tiles, so a contiguous range decodes nearly every
    file tile once. With ``index % N`` every share would read the whole image.

    >>> [list(blocks_of_share((i, 3), 7)) for i in (1, 2, 3)]
    [[0, 1], [2, 3], [4, 5, 6]]
    """
    which, count = share
    return range((which - 1) * n_blocks // count, which * n_blocks // count)


def among_of(store: Store, share: Share) -> range:
    """Return the blocks of a store that belong to a share."""
    return blocks_of_share(share, store.layout.n_blocks(0))


def parse_share(text: str) -> Share:
    """Parse which share of how many.

    >>> parse_share("2/8")
    (2, 8)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise SettingsError(f"{text!r} is not a share, such as 1/8 (to 8/8)")
    return int(found[1]), int(found[2])


def checked_share(share: Share) -> Share:
    """Return (I, N) as plain integers; `SettingsError` if they are no share."""
    try:
        which, count = map(index, share)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"shard {share!r}: give which of how many, two whole numbers such as (1, 8)") from error
    if not 1 <= which <= count:
        right = f"1/{count} to {count}/{count}" if count > 0 else "a number of shares, such as 1/8"
        raise SettingsError(f"share {which}/{count}: shares count from 1, so give {right}")
    if count > MOST_SHARES:
        raise SettingsError(f"share {which}/{count}: give {MOST_SHARES} shares at most")
    return which, count


def check_combination(
    out: str | PathLike[str] | None, target: LabelTarget | None, *, overwrite: bool, client: Any
) -> None:
    """Raise `SettingsError` for options that cannot be combined with shares."""
    if out is None:
        raise SettingsError("shares are written into a store: give out with shard")
    if target is None and is_tiff(out):
        raise SettingsError(f"{out}: shares are written into a mask of many files. Give a name in .zarr")
    if overwrite:
        raise SettingsError(
            "shard and overwrite: each share would replace what the others wrote. Remove OUT, and OUT.making, first"
        )
    if client is not None:
        raise SettingsError("shard and client: workers share the blocks by themselves. Leave one of them out")


def fill_share(out: Path, request: Request, share: Share, *, progress: Progress | None) -> Report:
    """Compute the pending blocks of a share; finish the store if no other share has anything left to do."""
    share = checked_share(share)
    opened = create_share(out, request, share) or join_shares(out, request, share)
    return fill_blocks(*opened, share, progress=progress)


def fill_blocks(store: Store, job: Job, share: Share, *, progress: Progress | None = None) -> Report:
    """Do the same in a store that was opened for the share; closes store and job in any case."""
    try:
        report = fill_pending(store, job, progress=progress, among=among_of(store, share))
        raise_if_failed(report, job)
    finally:
        store.close()
        job.close()
    started = time.perf_counter()
    # The lease is released: of shares that end together, the last one to look finds that the others are gone.
    with suppress(OutputIncomplete, OutputLocked):  # then another share finishes it
        finish_shares(store.path)
    report.finished = time.perf_counter() - started
    return report


def create_share(out: Path, request: Request, share: Share) -> tuple[Store, Job] | None:
    """Create a store; None if there is one, also if another share was quicker."""
    if can_resume(out):
        return None
    try:
        check_free(out)
        return create_store(out, request, share=share)
    except OutputExists:
        if not can_resume(out):
            raise
        return None


def join_shares(out: Path, request: Request, share: Share) -> tuple[Store, Job]:
    """Open the store that another share created."""
    store = patiently(lambda: Store.take_share(out, share))
    return store, request.job_to_fill(store)


def patiently(take: Callable[[], T]) -> T:
    """Take the lease of a share of a store; wait for a process that holds the whole of it for a moment."""
    deadline = None
    while True:
        try:
            return take()
        except OutputLocked as locked:
            # Not counted from the beginning: `take` may have waited a minute for a process that turned out to be dead.
            deadline = deadline or time.monotonic() + PATIENCE
            if time.monotonic() > deadline or not locked.whole:
                raise
            time.sleep(LOOK)


def finish_shares(out: Path, *, progress: Progress | None = None) -> None:
    """Build the pyramid of a store whose blocks are all written, verify every file, and mark the store complete.

    `OutputLocked` if shares are at work; `OutputIncomplete` if blocks are pending, with how many, and of which shares.
    """
    check_local(out)
    if is_tiff(out) and not out.is_dir():  # no share wrote it: it is whole, or its store is made by one run
        with open_tiff_mask(out) as mask:
            return mask.refuse_damage()
    refuse_shares(out)
    store = Store.inspect(out)
    if not store.complete and (pending := list(store.pending())):
        raise OutputIncomplete(f"{out}: {_say_pending(store, pending)}")
    store = Store.resume(out)
    try:
        finish(store, progress=progress)
    finally:
        store.close()


def written_of(out: Path) -> tuple[int, int]:
    """Return the number of blocks written and the total number of blocks."""
    store = Store.inspect(out)
    total = store.layout.n_blocks(0)
    return total - sum(1 for _ in store.pending()), total


def how_to_go_on(out: Path) -> str:
    """Return how a mask that is not complete is completed."""
    store = Store.inspect(out)
    if not store.shares:
        return "Run the same command with --resume"
    pending = list(store.pending())
    return run_lacking(store, pending) if pending else f"Run tilenet finish {out}"


def _say_pending(store: Store, pending: list[int]) -> str:
    what = f"{counted_of(len(pending), store.layout.n_blocks(0), 'block')} not written"
    if not store.shares:
        return f"{what}. Run the same command again with --resume"
    lacking = _lacking(store, pending)
    return f"{what}, of {_named(lacking, store)}. Run {'that one' if len(lacking) == 1 else 'those'} again"


def run_lacking(store: Store, pending: list[int]) -> str:
    """Return in words which shares of a divided store to run: those that have pending blocks."""
    lacking = _lacking(store, pending)
    they_are = "it is" if len(lacking) == 1 else "they are"
    return f"Run {_named(lacking, store)}, unless {they_are} at work"


def _lacking(store: Store, pending: list[int]) -> list[int]:
    total, count, missing = store.layout.n_blocks(0), store.shares, set(pending)
    return [i for i in range(1, count + 1) if not missing.isdisjoint(blocks_of_share((i, count), total))]


def _named(shares: list[int], store: Store) -> str:
    named = ", ".join(f"{i}/{store.shares}" for i in shares[:NAMED])
    if len(shares) == 1:
        return f"share {named}"
    return f"the shares {named}" + (f", and {len(shares) - NAMED} more" if len(shares) > NAMED else "")
