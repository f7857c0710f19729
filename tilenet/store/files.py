"""Files written whole or not at all, and faults of the machine told in one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tilenet.errors import EnvironmentFault

TEMPORARY = ".part"
_numbers = count()


def _nothing(name: str) -> None:
    """Do nothing; tests put a process's death in this place."""


# Called before each step that changes the file system, so that a test can stop at any of them.
on_step: Callable[[str], None] = _nothing


def step(name: str) -> None:
    """Announce a step that changes the file system."""
    on_step(name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, bring it to the disk, and rename it into place."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{next(_numbers)}{TEMPORARY}")
    with faults(path, need=len(content)):
        step("mkdir")
        path.parent.mkdir(parents=True, exist_ok=True)
        step("write")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            step("rename")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        step("renamed")
        sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append a line and bring it to the disk."""
    with faults(path, need=len(line)):
        step("append")
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        step("appended")


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: without it a rename may not outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left under temporary names."""
    for path in folder.rglob(f"*{TEMPORARY}"):
        step("sweep")
        path.unlink(missing_ok=True)


@contextmanager
def faults(path: Path, *, need: int = 0) -> Iterator[None]:
    """Turn errors of the operating system into one line that names path and space."""
    try:
        yield
    except EnvironmentFault:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"disk full ({_free(path)} bytes free, {need} needed). Make room, then go on with --resume"
        else:
            reason = f"cannot be written ({reason}). Mend that, then go on with --resume"
        raise EnvironmentFault(f"{path}: {reason}") from error


def _free(path: Path) -> int:
    existing = next(p for p in [path, *path.absolute().parents] if p.exists())
    return shutil.disk_usage(existing).free
