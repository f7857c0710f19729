"""Who may write: lease files with host, process and a heartbeat.

A lease is ``lock.N``, for the whole store, or ``share-I-of-M.N``, for one share of it. It is
taken by creating the next number, which only one process can do, so two that find the same dead
holder cannot both win. The whole excludes every share, and a share excludes the same share and
those of another number of shares: each announces itself first and looks at the others then, so that of two
that exclude each other at most one goes on. Its heartbeat is its modification
time, compared with that of a file made a moment ago in the same folder: both are the file
server's clock, so the clocks of the nodes do not matter.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tilenet.errors import OutputLocked
from tilenet.store import shared_run
from tilenet.store.files import remove_file, step
from tilenet.store.holder import Holder, read_holder, run_of, write_holder

BEAT = 10.0
# Seconds without a heartbeat after which a holder on another machine is taken for dead.
STALE = 60.0
TRIES = 100
# Live holders that an error names.
NAMED = 4
WHOLE = "lock"
# Which of how many, from 1.
Share = tuple[int, int]


class Lock(NamedTuple):
    """The file of a lease: ``kind.number``."""

    kind: str
    number: int
    path: Path

    @property
    def share(self) -> Share | None:
        """The share that it is for; None for the whole store."""
        found = re.fullmatch(r"share-(\d+)-of-(\d+)", self.kind)
        return (int(found[1]), int(found[2])) if found else None

    def excludes(self, kind: str) -> bool:
        """Tell whether there may be no lease of that kind beside this one."""
        other = self._replace(kind=kind).share
        return self.share is None or other is None or self.share == other or self.share[1] != other[1]

    def describe(self, holder: Holder | None) -> str:
        """Return who that is, for people."""
        who = _describe(holder)
        return f"share {self.share[0]}/{self.share[1]} ({who})" if self.share else who


class Lease:
    """The right to write a store or a share of it, until `release` or the end of the process."""

    def __init__(self, folder: Path, kind: str, number: int, holder: Holder) -> None:
        self.folder, self.kind, self.number, self.holder = folder, kind, number, holder
        self._share, self._joined = Lock(kind, number, folder).share, ""
        self._stop = threading.Event()

    @property
    def run(self) -> str:
        """Tells this run from every other; that of a share is what all shares of its array have."""
        return self._joined or self.holder.run

    @property
    def path(self) -> Path:
        """The lease's file."""
        return self.folder / f"{self.kind}.{self.number}"

    @classmethod
    def take(cls, folder: Path, name: Path, share: Share | None = None) -> Lease:
        """Take the lease of a store, or of a share, kept in `folder`; the heartbeat begins with `start`.

        Raises
        ------
        OutputLocked
            If another live process has it, or one that excludes it; `name` is what it is said to write.
        """
        mine, kind = Holder.here(), WHOLE if share is None else "share-{}-of-{}".format(*share)
        note = folder / f"{mine.run}.part"
        for _ in range(TRIES):
            try:
                write_holder(note, mine)
                refuse_live(_rivals(folder, kind), note.stat().st_mtime, name)
                last = max((lock.number for lock in locks(folder) if lock.kind == kind), default=0)
                lease = cls(folder, kind, 1 + last, mine)
                step("lock", os.link, note, lease.path)
            except (FileExistsError, FileNotFoundError):
                continue  # another was quicker, or swept our note away: look again
            finally:
                remove_file(note)
            return lease._settled(name)
        raise OutputLocked(f"{name}: too many runs at once want to write it. Start one of them again")

    def _settled(self, name: Path) -> Lease:
        others = [lock for lock in _rivals(self.folder, self.kind) if lock.path != self.path]
        try:
            refuse_live(others, self.path.stat().st_mtime, name)
        except OutputLocked:
            remove_file(self.path)
            raise
        for lock in others:
            remove_file(lock.path)
        if self._share:
            self._joined = shared_run.join(self.folder, self._share[1])
        else:
            shared_run.end(self.folder)
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
        """Raise `OutputLocked` if another run took the lease while this one was asleep, or its run is over."""
        held = locks(self.folder)
        same = [lock.number for lock in held if lock.kind == self.kind]
        over = self._share and shared_run.run_of_shares(self.folder, self._share[1]) != self._joined
        if over or same != [self.number] or run_of(self.path) != self.holder.run:
            takers = [lock for lock in held if lock.excludes(self.kind)]
            raise OutputLocked(f"{name}: was taken over by {_taker(takers)}. Let that run finish it")

    def release(self) -> None:
        """End the heartbeat and remove the lease, if another run has not taken it meanwhile."""
        self._stop.set()
        if run_of(self.path) == self.holder.run:
            remove_file(self.path)


class Joined:
    """The right to write blocks under a lease that another process holds and keeps alive.

    Whether that process lives is not asked: it may be on another machine, and what is written
    after its death is what it asked for. The right ends with the lock's run id.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def check(self, name: Path) -> None:
        """Raise `OutputLocked` if the lock in the folder is no longer that run's."""
        held = [lock for lock in locks(self.folder) if lock.kind == WHOLE]
        if [run_of(lock.path) for lock in held] != [self.run]:
            who = f"is being written by {_taker(held)}, not" if held else "is no longer being written"
            raise OutputLocked(f"{name}: {who} by the run {self.run}. Let its blocks be given out anew")

    def release(self) -> None:
        """Leave the lease to the process that holds it."""


def locks(folder: Path) -> list[Lock]:
    """Return the files of all leases in a folder, lowest numbers first."""
    found = ((path, re.fullmatch(r"(lock|share-\d+-of-\d+)\.(\d+)", path.name)) for path in folder.iterdir())
    return sorted((Lock(name[1], int(name[2]), path) for path, name in found if name), key=lambda lock: lock.number)


def live(held: list[Lock], now: float) -> list[tuple[Lock, Holder | None]]:
    """Return which of these leases are alive at `now`, and whose they are."""
    found = []
    for lock in reversed(held):
        with suppress(FileNotFoundError):
            holder, age = read_holder(lock.path), now - lock.path.stat().st_mtime
            alive = holder.alive if holder else None
            if age < STALE if alive is None else alive:
                found.append((lock, holder))
    return found


def refuse_live(held: list[Lock], now: float, name: Path) -> None:
    """Raise `OutputLocked` naming the leases that are alive at `now`."""
    if alive := live(held, now):
        who = [lock.describe(holder) for lock, holder in alive[:NAMED]]
        more = [f"{len(alive) - NAMED} more"] if len(alive) > NAMED else []
        that = "that run, or end it" if len(alive) == 1 else "them, or end them"
        raise OutputLocked(f"{name}: is being written by {', '.join(who + more)}. Wait for {that} and use --resume")


def _rivals(folder: Path, kind: str) -> list[Lock]:
    return [lock for lock in locks(folder) if lock.excludes(kind)]


def _taker(held: list[Lock]) -> str:
    with suppress(FileNotFoundError):
        return held[-1].describe(read_holder(held[-1].path)) if held else _describe(None)
    return _describe(None)


def _describe(holder: Holder | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "another run"
