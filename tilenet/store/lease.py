"""The lock: a lease with a heartbeat, so that it works across nodes and outlives no crash."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilenet.errors import OutputLocked
from tilenet.store.files import faults, write_whole

BEAT, STALE = 10.0, 120.0  # seconds
LOCK, GUARD = "lock", "guard"
_held: set[str] = set()  # run ids of this process


class Lease:
    """The right to write one store, held until released, or until its holder is dead.

    Parameters
    ----------
    folder : Path
        The store's own folder.
    run : str
        Identifies this holder.

    Raises
    ------
    OutputLocked
        If another run holds it; the message names host and process.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        with _guarded(folder):
            refuse_if_held(folder)
            _write(folder, run)
        _held.add(run)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        _held.discard(self.run)
        with faults(self.folder / LOCK), _guarded(self.folder):
            if (_read(self.folder) or {}).get("run") == self.run:
                (self.folder / LOCK).unlink()

    def check(self) -> None:
        """Raise `OutputLocked` if another run has taken the lease meanwhile."""
        holder = _read(self.folder)
        if holder is None or holder["run"] != self.run:
            raise OutputLocked(f"{self.folder.parent}: another run has taken it over. This one stops")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            # A heartbeat that fails once (a full disk, say) is not the end of the run.
            with contextlib.suppress(OSError):
                if self.folder.is_dir():
                    _write(self.folder, self.run)


def refuse_if_held(folder: Path) -> None:
    """Raise `OutputLocked` if a live run holds the store."""
    holder = _read(folder)
    if holder is not None and _alive(holder):
        raise OutputLocked(
            f"{folder.parent}: is being written by process {holder['pid']} on {holder['host']} "
            f"(run {holder['run']}). Wait for it, or stop it"
        )


def _alive(holder: dict[str, Any]) -> bool:
    if time.time() - holder["beat"] > STALE:
        return False
    if holder["host"] != socket.gethostname():
        return True
    if holder["pid"] == os.getpid():
        return holder["run"] in _held  # else a namesake from before: containers number alike
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads((folder / LOCK).read_bytes())
        return holder if {"host", "pid", "run", "beat"} <= holder.keys() else None
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return None


def _write(folder: Path, run: str) -> None:
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "run": run, "beat": time.time()}
    write_whole(folder / LOCK, json.dumps(holder).encode())


@contextlib.contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Keep others from judging and taking the lock at the same time; the kernel lets go if we die."""
    with faults(folder), (folder / GUARD).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
