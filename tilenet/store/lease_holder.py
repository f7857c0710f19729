"""The holder of a lease: a process, distinguished from every other process on any machine, at any time."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from tilenet.store.file_system import put_bytes


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease."""

    host: str
    pid: int
    # Tells two leases of one process apart.
    run: str
    # Where `pid` means this process: host, boot id and PID namespace.
    machine: str
    # When the process began, in clock ticks since boot; needed because process numbers are reused.
    started: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder, with a new run id."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, uuid4().hex, this_machine(), started(pid))

    @property
    def alive(self) -> bool | None:
        """Whether the holder is running; None where that cannot be known, as on another machine."""
        return is_running(self.pid, self.started) if self.machine == this_machine() else None


def this_machine() -> str:
    """Return host name, boot id and PID namespace, the last two where /proc has them: the scope of process numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def started(pid: int) -> str:
    """Return when a process began; empty if there is no such process, ``unknown`` if that cannot be known."""
    with suppress(OSError):
        # Field 22 of proc(5). The name, field 2, may hold spaces and brackets. State Z: a zombie, dead but not reaped.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass  # The process exists, but is another user's and hidden from this one.
    return "unknown"


def is_running(pid: int, began: str) -> bool | None:
    """Return whether process `pid`, begun at `began`, is running on this machine; None where that cannot be known."""
    now = started(pid)
    return None if now == "unknown" else now == began


def read_holder(path: Path) -> Holder | None:
    """Return the holder written in a lease file; None if the file is there, but not readable."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError):
        return None


def run_of(path: Path) -> str:
    """Return the run id in a lease file; empty if the file is gone or not readable."""
    try:
        holder = read_holder(path)
    except FileNotFoundError:
        return ""
    return holder.run if holder else ""


def write_holder(path: Path, holder: Holder) -> None:
    """Write a holder to a file, for `read_holder`."""
    put_bytes(path, os.O_TRUNC, json.dumps(asdict(holder)).encode())
