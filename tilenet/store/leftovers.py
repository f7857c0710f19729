"""What is unfinished beside its destination: named after the process that makes it, and taken up if that has died.

A store is made under a temporary name beside its destination and then renamed, so that what is at OUT is always a whole
store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from glob import escape
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from tilenet.store.file_system import fsync_path, remove_tree, step
from tilenet.store.journal import FOLDER
from tilenet.store.lease import STALE, live, locks
from tilenet.store.lease_holder import is_running, started, this_machine
from tilenet.store.metadata import OWN, is_ours

REPLACED = "replaced"
NEW = ".tilenet-new"


def temporary_place(path: Path) -> Path:
    """Return a temporary path beside `path` whose name identifies the process that makes it."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{started(os.getpid())}-{uuid4().hex[:8]}{NEW}")


def recover(path: Path) -> None:
    """Move a new store into place if a run was killed after it had moved the old store away."""
    if path.exists() or path.is_symlink():
        return
    for new in abandoned(path):
        if (new / OWN / REPLACED).is_dir() and is_ours(new):
            with suppress(FileNotFoundError):  # another process was faster
                step("rename", os.rename, new, path)
            step("sync folder", fsync_path, path.parent)
            return


def sweep(path: Path) -> None:
    """Remove what killed runs left beside `path`."""
    for new in abandoned(path):
        if not (new / OWN / REPLACED).is_dir():
            remove_tree(new)


def left_behind(own: Path) -> bool:
    """Return whether a run was killed after it had completed the store, but before it had tidied up."""
    return bool(locks(own) or list(own.glob("*.part")) or (own / FOLDER).exists() or (own / REPLACED).exists())


def abandoned(path: Path) -> Iterator[Path]:
    """Yield the unfinished stores beside `path` whose makers are dead."""
    return (new for new in beside(path) if maker_is_dead(new, path))


def beside(path: Path) -> Iterator[Path]:
    """Yield the unfinished stores beside `path`."""
    if path.parent.is_dir():
        for new in sorted(path.parent.glob(f".{escape(path.name)}.*{NEW}")):
            # For `slide`, the pattern also matches what was left beside `slide.zarr`, which belongs to another store.
            own = "." not in new.name.removeprefix(f".{path.name}.").removesuffix(NEW)
            if own and new.is_dir() and not new.is_symlink():
                yield new


def maker_is_dead(new: Path, path: Path) -> bool:
    """Return whether the process has died that made an unfinished store beside `path`."""
    marks = new.name.removesuffix(NEW).rpartition(".")[2].split("-")
    if len(marks) != 4 or not marks[1].isdecimal():
        return False
    machine, pid, ticks, _ = marks
    running = is_running(int(pid), ticks) if machine == _machine() else None
    if running is not None:
        return not running
    try:
        # Writing to a file leaves its folder's time as it is, so those of the files count, too.
        age = _clock_beside(path) - max(part.stat().st_mtime for part in (new, *new.iterdir()))
        held = locks(new / OWN) if (new / OWN).is_dir() else []
    except FileNotFoundError:  # its maker has moved it into place, or removed it
        return False
    return age > STALE and not (held and live(held, _clock_beside(path)))


def _clock_beside(path: Path) -> float:
    """Return the current time by the file server's clock; if killed, leaves a folder that `sweep` removes."""
    note = temporary_place(path)
    step("note", note.mkdir)
    try:
        return note.stat().st_mtime
    finally:
        remove_tree(note)


def _machine() -> str:
    return sha256(this_machine().encode()).hexdigest()[:12]
