"""Changes to the file system, which go through `step`: there, tests can make them fail or kill the process."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

from tilenet.errors import DiskFault, EnvironmentFault, TilenetError

P = ParamSpec("P")
T = TypeVar("T")
# What file systems answer that take no more bytes or files, and those that take nothing at all.
FULL, CLOSED = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EIO)
# Most bytes that are written without saying how many are needed.
SMALL = 2**20
# What cannot be done to a path from which a run only reads.
ACCESSED = "accessed"
# What file systems without hard links answer to a request for one.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Attempts to remove a folder, or to look at one that may be moved: each other process that does so may make one fail.
TOGETHER = 100


def step(name: str, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make one change to the file system; tests replace this function."""
    return do(*args, **kwargs)


@contextmanager
def faults_named(
    path: str | os.PathLike[str], *, what: str = "written", needed: int = 0, resumes: bool = True
) -> Iterator[None]:
    """Turn an `OSError` into an `EnvironmentFault`, or a `DiskFault` if nothing else could be written there either.

    `what` says what cannot be done to the path, `needed` for how many bytes, `resumes` whether a run can go on later.
    """
    try:
        yield
    except TilenetError:
        raise
    except OSError as error:
        reason, full = (error.strerror or type(error).__name__).lower(), error.errno in FULL
        said = f"{reason}: {_lack(Path(path), needed)}" if full else f"cannot be {what} ({reason}). Fix that"
        fault = DiskFault if full or (what != ACCESSED and error.errno in CLOSED) else EnvironmentFault
        raise fault(f"{path}: {said}, then run again{' with --resume' if resumes else ''}") from error


def _lack(path: Path, needed: int) -> str:
    """Return what the file system of a path lacks, if it is full, and what to do."""
    place = os.statvfs(nearest_folder(path))
    free = place.f_bavail * place.f_frsize
    room = f"{free:,} bytes free" + (f", {needed:,} needed" if needed else "")
    enough = free > (needed or SMALL)
    if enough and place.f_files and not place.f_favail:
        return f"{room}, but all {place.f_files:,} inodes (files and folders) are in use. Remove files"
    return f"{room}{', so inodes or a quota may be used up (df -i, quota -s, lfs quota)' if enough else ''}. Make room"


def nearest_folder(path: Path) -> Path:
    """Return the path, or the nearest of its parents that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def new_part(folder: Path) -> Path:
    """Return a new name in a folder for a temporary file, which `remove_parts` removes if it is left over."""
    return folder / f"{uuid4().hex}.part"


def write_file(path: Path, parts: Iterable[bytes], *, within: Path, allowed: Callable[[], None] = lambda: None) -> None:
    """Put a whole file in place, or leave what was there; until it is whole, it lies `within` another folder.

    Just before, `allowed` may raise. The folder is not synced, so that one `fsync_path` serves several files.
    """
    temporary = new_part(within)
    try:
        handle = step("create", os.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for part in parts:
                step("write", write_all, handle, part)
            step("sync", os.fsync, handle)
        finally:
            os.close(handle)
        allowed()
        step("rename", os.replace, temporary, path)
    except (OSError, TilenetError):
        with suppress(OSError):
            temporary.unlink()
        raise


def write_all(handle: int, data: bytes) -> None:
    """Write every byte; the kernel may accept fewer per call."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def put_bytes(
    path: Path, flags: int, data: bytes, *, names: tuple[str, str] = ("create", "write"), sync: bool = False
) -> None:
    """Write every byte to a file, which the flags open; `names` are those of the two steps."""
    handle = step(names[0], os.open, path, os.O_WRONLY | os.O_CREAT | flags, 0o666)
    try:
        step(names[1], write_all, handle, data)
        if sync:  # else the file may be empty after a loss of power
            step("sync", os.fsync, handle)
    finally:
        os.close(handle)


def put_under_new_name(step_name: str, note: Path, path: Path) -> None:
    """Give a note a name that no file has yet, or raise `FileExistsError`.

    A hard link appears with its content. On file systems that have none, such as exFAT, a file is empty for a moment.
    """
    try:
        step(step_name, os.link, note, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            put_bytes(path, os.O_EXCL, note.read_bytes(), sync=True)
        except FileExistsError:
            raise
        except BaseException:
            remove_file(path)
            raise


def fsync_path(path: Path) -> None:
    """Make the names in a folder, or the content of a file, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each synced so that it survives a loss of power."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        # Another thread may have made it in the meantime.
        step("make folder", new.mkdir, exist_ok=True)
        step("sync folder", fsync_path, new.parent)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    for left in folder.glob("*.part"):
        remove_file(left)


def remove_file(path: Path) -> None:
    """Remove a file that may be gone already."""
    with suppress(FileNotFoundError):
        step("remove", os.unlink, path)


def remove_tree(folder: Path) -> None:
    """Remove a folder that tilenet made, even while other processes remove it; links in it are not followed."""
    for left in reversed(range(TOGETHER)):
        if not folder.is_dir() or folder.is_symlink():
            return
        try:
            step("remove tree", shutil.rmtree, folder)
        except FileNotFoundError:
            if not left:
                raise
