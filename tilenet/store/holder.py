"""Who holds a lease: a process, told apart from every other of any machine and time."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from tilenet.store.files import step, write_all


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
    def alive(self) -> bool | None:
        """Tell whether the holder is running; None where that cannot be told, as on another machine."""
        return is_running(self.pid, self.started) if self.machine == this_machine() else None


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
    with suppress(OSError):
        # Field 22 of proc(5); the name, field 2, may hold spaces and brackets. Z: dead, not yet collected.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass  # It is another user's: there, but hidden from this one.
    return "unknown"


def is_running(pid: int, began: str) -> bool | None:
    """Tell whether the process that began then is running on this machine; None where that cannot be told."""
    now = started(pid)
    return None if now == "unknown" else now == began


def read_holder(path: Path) -> Holder | None:
    """Return who holds a lease; None if its file is not readable."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError):
        return None


def run_of(path: Path) -> str:
    """Return the run id in a lock; empty if it is gone or not readable."""
    try:
        holder = read_holder(path)
    except FileNotFoundError:
        return ""
    return holder.run if holder else ""


def write_holder(path: Path, holder: Holder) -> None:
    """Write what `read_holder` reads."""
    handle = step("create", os.open, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        step("write", write_all, handle, json.dumps(asdict(holder)).encode())
    finally:
        os.close(handle)
