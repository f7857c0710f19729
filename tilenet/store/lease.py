"""One writer at a time: a lease file with host, process and a heartbeat.

A lease is ``lock.N``. It is taken by creating the next number, which only one process can
do, so two that find the same dead holder cannot both win. Its heartbeat is its modification
time, compared with that of a file made a moment ago in the same folder: both are the file
server's clock, so the clocks of the nodes do not matter.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from tilenet.errors import OutputLocked
from tilenet.store.files import remove_file, step, write_all

BEAT = 10.0
# Seconds without a heartbeat after which a holder on another machine is taken for dead.
STALE = 60.0
TRIES = 100


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes
    ----------
    host, pid, run : str, int, str
        For people, and for telling two leases of one process apart.
    machine : str
        Where `pid` means this process: boot, and the namespace of process numbers.
    started : str
        When the process began, in ticks since boot: process numbers are used again.
    """

    host: str
    pid: int
    run: str
    machine: str
    started: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder, under a run id of its own."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, uuid4().hex, this_machine(), started(pid))

    @property
    def dead(self) -> bool:
        """Tell whether the holder is known to have ended; False also means unknown."""
        return self.machine == this_machine() and started(self.pid) != self.started


def this_machine() -> str:
    """Return what is the same for all processes that share process numbers, or only the host."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def started(pid: int) -> str:
    """Return when a process began; empty if there is none, ``unknown`` if that cannot be told."""
    try:
        os.kill(pid, 0)
        # Field 22 of proc(5); the name, field 2, may hold spaces and brackets. Z: dead, not yet collected.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except ProcessLookupError:
        return ""
    except OSError:
        return "unknown"


class Lease:
    """The right to write a store, until `release` or the end of the process."""

    def __init__(self, folder: Path, number: int, holder: Holder) -> None:
        self.folder, self.number, self.holder = folder, number, holder
        self._stop = threading.Event()

    @property
    def run(self) -> str:
        """Tells this lease from every other."""
        return self.holder.run

    @property
    def path(self) -> Path:
        """The lease's file."""
        return self.folder / f"lock.{self.number}"

    @classmethod
    def take(cls, folder: Path, name: Path) -> Lease:
        """Take the lease kept in `folder`; the heartbeat begins with `start`.

        Raises
        ------
        OutputLocked
            If another live process has it; `name` is what it is said to write.
        """
        mine = Holder.here()
        note = folder / f"{mine.run}.part"
        for _ in range(TRIES):
            try:
                _write_note(note, mine)
                held = leases(folder)
                _refuse_live(held, note, name)
                lease = cls(folder, 1 + max((number for number, _ in held), default=0), mine)
                step("lock", os.link, note, lease.path)
            except (FileExistsError, FileNotFoundError):
                continue  # another was quicker, or swept our note away: look again
            finally:
                remove_file(note)
            return lease._settled(name)
        raise OutputLocked(f"{name}: too many runs at once want to write it. Start one of them again")

    def _settled(self, name: Path) -> Lease:
        others = [(number, path) for number, path in leases(self.folder) if number != self.number]
        try:
            _refuse_live(others, self.path, name)
        except OutputLocked:
            remove_file(self.path)
            raise
        for _, path in others:
            remove_file(path)
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
        """Raise `OutputLocked` if another run took the lease while this one was asleep."""
        held = leases(self.folder)
        if [number for number, _ in held] != [self.number] or _run_of(self.path) != self.holder.run:
            raise OutputLocked(f"{name}: was taken over by {_taker(held)}. Let that run finish it")

    def release(self) -> None:
        """End the heartbeat and remove the lease, if another run has not taken it meanwhile."""
        self._stop.set()
        if _run_of(self.path) == self.holder.run:
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
        held = leases(self.folder)
        if [_run_of(path) for _, path in held] != [self.run]:
            who = f"is being written by {_taker(held)}, not" if held else "is no longer being written"
            raise OutputLocked(f"{name}: {who} by the run {self.run}. Let its blocks be given out anew")

    def release(self) -> None:
        """Leave the lease to the process that holds it."""


def leases(folder: Path) -> list[tuple[int, Path]]:
    """Return the leases in a folder by number, lowest first."""
    numbers = (path.name.removeprefix("lock.") for path in folder.iterdir() if path.name.startswith("lock."))
    return sorted((int(n), folder / f"lock.{n}") for n in numbers if n.isdecimal())


def live_holder(held: list[tuple[int, Path]], now: float) -> tuple[bool, Holder | None]:
    """Tell whether any of these leases is alive at `now`, and whose it is."""
    for _, path in reversed(held):
        with suppress(FileNotFoundError):
            holder, age = read_holder(path), now - path.stat().st_mtime
            same = holder is not None and holder.machine == this_machine()
            if not holder.dead if holder and same else age < STALE:
                return True, holder
    return False, None


def read_holder(path: Path) -> Holder | None:
    """Return who holds a lease; None if its file is not readable."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError):
        return None


def _run_of(path: Path) -> str:
    """Return the run id in a lock; empty if it is gone or not readable."""
    try:
        holder = read_holder(path)
    except FileNotFoundError:
        return ""
    return holder.run if holder else ""


def _taker(held: list[tuple[int, Path]]) -> str:
    with suppress(FileNotFoundError):
        return _describe(read_holder(held[-1][1]) if held else None)
    return _describe(None)


def _refuse_live(held: list[tuple[int, Path]], fresh: Path, name: Path) -> None:
    alive, holder = live_holder(held, fresh.stat().st_mtime)
    if alive:
        raise OutputLocked(
            f"{name}: is being written by {_describe(holder)}. Wait for that run, or end it and use --resume"
        )


def _describe(holder: Holder | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "another run"


def _write_note(path: Path, holder: Holder) -> None:
    handle = step("create", os.open, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        step("write", write_all, handle, json.dumps(asdict(holder)).encode())
    finally:
        os.close(handle)


def notes(folder: Path) -> Iterator[Path]:
    """Yield the temporary files in a folder."""
    return folder.glob("*.part")
