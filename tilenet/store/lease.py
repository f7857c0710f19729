"""Leases, which say who may write: lock files that name host and process, with a heartbeat.

A lease is a file: ``lock.N`` for the whole store, ``share-I-of-M.N`` for one share of it. A process takes a lease by
writing a note, and giving it the name with the next number N. Only one process can do that, so two that find the same
dead holder cannot both win. A lease of the whole store excludes every share. A share excludes the same share, and
shares of a division into another number of shares. Each process creates its own lease file first and only then looks at
the others, so that of two leases that exclude each other at most one goes on.

The heartbeat is the file's modification time. It is compared with that of a file just made in the same folder: both
come from the file server's clock, so the clocks of the nodes do not matter.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

from tilenet.errors import OutputLocked
from tilenet.store import shared_run
from tilenet.store.file_system import put_under_new_name, remove_file
from tilenet.store.lease_holder import Holder, read_holder, run_of, write_holder

LOG = logging.getLogger("tilenet")
BEAT = 10.0
# Seconds without a heartbeat after which a holder on another machine counts as dead.
STALE = 60.0
# Seconds more for which a run waits: some file systems keep times in seconds, FAT in every other one.
GRAIN = 2.0
# Seconds between two looks for a heartbeat.
LOOK = 0.2
TRIES = 100
# Most live holders that an error message names.
NAMED = 4
WHOLE = "lock"
# Which share, from 1, of how many.
Share = tuple[int, int]


class Lock(NamedTuple):
    """The file of a lease, named ``kind.number``."""

    kind: str
    number: int
    path: Path

    @property
    def share(self) -> Share | None:
        """The share that the lease is for; None for the whole store."""
        return share_of(self.kind)

    def excludes(self, kind: str) -> bool:
        """Return whether this lease and one of that `kind` exclude each other."""
        other = share_of(kind)
        return self.share is None or other is None or self.share == other or self.share[1] != other[1]

    def describe(self, holder: Holder | None) -> str:
        """Return a description of the holder, for messages."""
        who = _describe(holder)
        if holder is None:
            who += f" ({self.path.name} cannot be read: if a crash cut it, it holds until it is {STALE:.0f} s old)"
        return f"share {self.share[0]}/{self.share[1]} ({who})" if self.share else who


class Lease:
    """The right to write a store or a share of it, until `release` or the end of the process."""

    def __init__(self, folder: Path, kind: str, number: int, holder: Holder) -> None:
        self.folder, self.kind, self.number, self.holder = folder, kind, number, holder
        self._share, self._joined = share_of(kind), ""
        self._stop = threading.Event()

    @property
    def run(self) -> str:
        """The id of this run; all shares of one job array have the same."""
        return self._joined or self.holder.run

    @property
    def path(self) -> Path:
        """The file of the lease."""
        return self.folder / f"{self.kind}.{self.number}"

    @classmethod
    def take(cls, folder: Path, name: Path, share: Share | None = None) -> Lease:
        """Take the lease of a store, or of a share, in `folder`; `start` begins the heartbeat.

        `OutputLocked`, of the output `name`, if another live process holds a lease that excludes it. A heartbeat of one
        on another machine is waited for, so that a job that is started again outlasts a dead one.
        """
        mine, kind = Holder.here(), WHOLE if share is None else "share-{}-of-{}".format(*share)
        note = folder / f"{mine.run}.part"
        for attempt in range(TRIES):
            try:
                write_holder(note, mine)
                # Looked at once: a number after that of another's new lease would make that one give up, too.
                held = locks(folder)
                rivals = [lock for lock in held if lock.excludes(kind)]
                if attempt == 0 and outlast(rivals, note.stat().st_mtime, name):
                    continue
                refuse_live(rivals, note.stat().st_mtime, name)
                last = max((lock.number for lock in held if lock.kind == kind), default=0)
                lease = cls(folder, kind, 1 + last, mine)
                put_under_new_name("lock", note, lease.path)
            except (FileExistsError, FileNotFoundError):
                continue  # another process was faster, or swept our note away: try again
            finally:
                remove_file(note)
            return lease._confirmed(name)
        raise OutputLocked(f"{name}: too many runs at once want to write it. Start one of them again")

    def _confirmed(self, name: Path) -> Lease:
        """Return the lease, and remove those of dead holders; if a live one excludes it, give it up and raise."""
        others = [lock for lock in locks(self.folder) if lock.excludes(self.kind) and lock.path != self.path]
        try:
            refuse_live(others, self.path.stat().st_mtime, name)
            for lock in others:
                remove_file(lock.path)
            if self._share:
                self._joined = shared_run.join(self.folder, self._share[1])
            else:
                shared_run.end(self.folder)
        except BaseException:
            remove_file(self.path)
            raise
        return self

    def start(self, folder: Path) -> None:
        """Begin the heartbeat, in the folder where the lease now lies."""
        self.folder = folder
        threading.Thread(target=self._beat, name="tilenet-lease", daemon=True).start()

    def _beat(self) -> None:
        # Not a `step`: it changes no content, and no run depends on when it happens.
        while not self._stop.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)

    def check(self, name: Path) -> None:
        """Raise `OutputLocked` if another run took the lease while this process was asleep, or if its run is over."""
        held = locks(self.folder)
        same = [lock.number for lock in held if lock.kind == self.kind]
        over = self._share and shared_run.run_of_shares(self.folder, self._share[1]) != self._joined
        if over or same != [self.number] or run_of(self.path) != self.holder.run:
            takers = [lock for lock in held if lock.excludes(self.kind)]
            raise OutputLocked(f"{name}: was taken over by {_taker(takers)}. Let that run finish it")

    def release(self) -> None:
        """Stop the heartbeat, and remove the lease file unless another run has taken the lease meanwhile."""
        self._stop.set()
        if run_of(self.path) == self.holder.run:
            remove_file(self.path)


class Joined:
    """The right to write blocks under another process's lease, as long as that has the run id.

    Whether that process is alive does not matter: blocks written after its death are still those that it asked for.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def check(self, name: Path) -> None:
        """Raise `OutputLocked` if the lock file in the folder does not, or no longer, belong to that run."""
        held = [lock for lock in locks(self.folder) if lock.kind == WHOLE]
        if [run_of(lock.path) for lock in held] != [self.run]:
            who = f"is being written by {_taker(held)}, not" if held else "is no longer being written"
            raise OutputLocked(f"{name}: {who} by the run {self.run}. Let its blocks be given out anew")

    def release(self) -> None:
        """Do nothing: the lease belongs to the process that holds it."""


def share_of(kind: str) -> Share | None:
    """Return the share that leases of a kind are for; None for the whole store.

    >>> share_of("share-2-of-8"), share_of(WHOLE)
    ((2, 8), None)
    """
    found = re.fullmatch(r"share-(\d+)-of-(\d+)", kind)
    return (int(found[1]), int(found[2])) if found else None


def locks(folder: Path) -> list[Lock]:
    """Return all lease files in a folder, lowest numbers first."""
    found = ((path, re.fullmatch(r"(lock|share-\d+-of-\d+)\.(\d+)", path.name)) for path in folder.iterdir())
    return sorted((Lock(name[1], int(name[2]), path) for path, name in found if name), key=lambda lock: lock.number)


def live(held: list[Lock], now: float) -> list[tuple[Lock, Holder | None]]:
    """Return the leases in `held` that are alive at `now`, with their holders."""
    found = []
    for lock in reversed(held):
        with suppress(FileNotFoundError):
            holder, age = read_holder(lock.path), now - lock.path.stat().st_mtime
            alive = holder.alive if holder else None
            if alive is None:  # on another machine, or unreadable: only the heartbeat tells
                alive = age < STALE
            if alive:
                found.append((lock, holder))
    return found


def outlast(held: list[Lock], now: float, name: Path) -> bool:
    """Wait if all live leases in `held` may be those of dead holders on other machines; return whether it waited.

    It waits until one of them has a heartbeat, or until all that are not released have been silent for `STALE` seconds.
    """
    alive = live(held, now)
    if not alive or any(holder and holder.alive for _, holder in alive):
        return False
    rivals = [lock for lock, _ in alive]
    began, before = monotonic(), _heartbeats(rivals)
    silent = now - max(before.values(), default=now)
    who = ", ".join(lock.describe(holder) for lock, holder in alive[:NAMED])
    left = STALE + GRAIN - silent
    LOG.warning("%s: last heard of %s %.0f s ago. Waiting for %.0f s, unless it is heard of", name, who, silent, left)
    while (held_still := _heartbeats(rivals)) and held_still.items() <= before.items():
        if monotonic() - began > max(held_still.values()) + STALE + GRAIN - now:
            break
        sleep(LOOK)
    return True


def _heartbeats(held: list[Lock]) -> dict[Path, float]:
    """Return when the last heartbeat of each lease was that is not released."""
    found = {}
    for lock in held:
        with suppress(FileNotFoundError):
            found[lock.path] = lock.path.stat().st_mtime
    return found


def refuse_live(held: list[Lock], now: float, name: Path) -> None:
    """Raise `OutputLocked` if any lease in `held` is alive at `now`, naming the holders."""
    if alive := live(held, now):
        who = [lock.describe(holder) for lock, holder in alive[:NAMED]]
        more = [f"{len(alive) - NAMED} more"] if len(alive) > NAMED else []
        that = "that run, or end it" if len(alive) == 1 else "them, or end them"
        locked = OutputLocked(
            f"{name}: is being written by {', '.join(who + more)}. Wait for {that}, and run again with --resume"
        )
        locked.whole = any(lock.share is None for lock, _ in alive)
        raise locked


def _taker(held: list[Lock]) -> str:
    with suppress(FileNotFoundError):
        return held[-1].describe(read_holder(held[-1].path)) if held else _describe(None)
    return _describe(None)


def _describe(holder: Holder | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "another run"
