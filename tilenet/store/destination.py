"""Where a store may go, and what is there: a store, complete or being written, or what must not be replaced.

Nothing is ever removed unless tilenet's own marker is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time

from tilenet.errors import DiskFault, EnvironmentFault, OutputError, OutputExists, OutputLocked, refuse_windows
from tilenet.store.file_system import (
    ACCESSED,
    TOGETHER,
    faults_named,
    fsync_path,
    make_folder,
    nearest_folder,
    new_part,
    remove_file,
    remove_tree,
    step,
)
from tilenet.store.lease import NAMED, Lease, Share, live, locks, refuse_live
from tilenet.store.leftovers import REPLACED, beside, left_behind, maker_is_dead, recover, sweep, temporary_place
from tilenet.store.metadata import OWN, foreign_entries, is_ours, read_root


def check_free(path: str | Path, *, overwrite: bool = False) -> bool:
    """Refuse a path where no store can be made; return whether one is there, which a new one replaces.

    Writes nothing, unless a run was killed while it replaced a store there: then the new store is moved into place.
    """
    refuse_windows()
    path = Path(path).absolute()
    with faults_named(path, resumes=False):
        recover(path)
        there = _looked_at(path, overwrite)
        folder = nearest_folder(path.parent)
        refuse_inside_mask(path)
        refuse_inside_file(path)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise DiskFault(f"{folder}: cannot be written, and {path} would be in it. Choose another path")
    return there


def refuse_inside_file(path: Path) -> None:
    """Refuse a path of which a folder is a file."""
    if not (folder := nearest_folder(path.absolute().parent)).is_dir():
        raise EnvironmentFault(f"{folder}: is a file, and {path} would be inside it. Choose another path")


def refuse_inside_mask(path: str | Path) -> None:
    """Refuse a path inside a mask: a mask with foreign files in it cannot be overwritten later."""
    folder = nearest_folder(Path(path).absolute().parent).resolve()
    if outer := next((p for p in (folder, *folder.parents) if is_ours(p)), None):
        raise OutputExists(f"{path}: would be inside the mask {outer}. Choose another path")


def _looked_at(path: Path, overwrite: bool) -> bool:
    """Return whether a store is at a path; refuse what may not be replaced, and the place of what is being replaced."""
    for _ in range(TOGETHER):  # a run that replaces a store may move that away just now
        with suppress(FileNotFoundError):
            if path.exists() or path.is_symlink():
                _refuse_to_replace(path, overwrite)
                return True
            if not any((new / OWN / REPLACED).is_dir() and not maker_is_dead(new, path) for new in beside(path)):
                return False
            break
    raise OutputLocked(f"{path}: is being replaced by another run just now. Wait for that run, or end it")


def _refuse_to_replace(path: Path, overwrite: bool) -> None:
    ours = is_ours(path)
    path.lstat()  # that it was moved away meanwhile does not make it another's
    if not overwrite:
        if ours and (holders := writers_of(path)):
            raise OutputExists(
                f"{path}: exists already, and is being written by {', '.join(holders)}. Wait until that is done, or "
                f"choose another path"
            )
        how = "Go on with it (--resume), replace it (--overwrite), or choose" if ours else "Choose"
        raise OutputExists(f"{path}: exists already. {how} another path")
    with suppress(OutputError):
        read_root(path)  # trouble of the file system is told as that
    if path.is_symlink():
        raise OutputExists(
            f"{path}: is a symbolic link, which --overwrite does not follow. Give {path.resolve()} instead"
        )
    protected = (Path.home().resolve(), Path(path.anchor))
    if not ours or path.resolve() in protected or os.path.ismount(path):
        raise OutputExists(f"{path}: exists, and is not a mask that tilenet wrote. Nothing is overwritten there")
    if foreign := foreign_entries(path, read_root(path).layout):
        raise OutputExists(f"{path}: holds {foreign[0]}, which tilenet did not write. Move it away first")


def can_resume(path: str | Path) -> bool:
    """Return whether anything is at a path; a new store for it is moved there first, see `recover`."""
    path = Path(path).absolute()
    with faults_named(path, what=ACCESSED):
        recover(path)
    return path.exists()


def is_complete(path: str | Path) -> bool:
    """Return whether there is a complete store with nothing left to tidy up, without reading its shards."""
    path = Path(path).absolute()
    with faults_named(path, what=ACCESSED):
        return path.exists() and read_root(path).complete and not left_behind(path / OWN)


def refuse_shares(path: str | Path) -> None:
    """Raise `OutputLocked` naming the shares of a store that are being written; `OutputNotFound` without a store."""
    path = Path(path).absolute()
    read_root(path)
    with faults_named(path, what=ACCESSED):
        if held := [lock for lock in locks(path / OWN) if lock.share]:  # only then is the clock asked, which writes
            refuse_live(held, _clock_of(path / OWN), path)


def writers_of(path: Path) -> list[str]:
    """Return who is writing a store; nobody where that cannot be found out."""
    with suppress(OSError):
        if held := locks(path / OWN):
            now = time()  # where this user may not write, and the file server's clock cannot be asked
            with suppress(OSError):
                now = _clock_of(path / OWN)
            return [lock.describe(holder) for lock, holder in live(held, now)[:NAMED]]
    return []


def held_whole(path: str | Path) -> bool:
    """Return whether there is a lease of the whole store, whether its holder is dead or alive."""
    path = Path(path).absolute()
    with faults_named(path, what=ACCESSED):
        return any(lock.share is None for lock in locks(path / OWN))


@contextmanager
def put_whole(out: Path, *, resumes: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file, and move the file to `out` at the end: `out` is never a partial file."""
    refuse_inside_mask(out)
    with faults_named(out, resumes=resumes):
        make_folder(out.parent)
        sweep(out)
        folder = temporary_place(out)
        step("make folder", folder.mkdir)
        try:
            yield folder / out.name
            step("sync", fsync_path, folder / out.name)
            step("rename", os.replace, folder / out.name, out)
            step("sync folder", fsync_path, out.parent)
        finally:
            with suppress(OSError):
                remove_tree(folder)


@contextmanager
def holding(store: Path, share: Share | None = None) -> Iterator[None]:
    """Hold the lease of a complete store, or of one share of it, so that no other run removes it."""
    with faults_named(store):
        lease = Lease.take(store / OWN, store, share)
        lease.start(store / OWN)
    try:
        yield
    finally:
        lease.release()


def discard(store: Path) -> None:
    """Remove a store that this process holds."""
    with faults_named(store):
        # Rename before removing: a half-removed store must not look like one to resume.
        aside = temporary_place(store)
        step("rename", os.rename, store, aside)
        remove_tree(aside)


def _clock_of(own: Path) -> float:
    """Return the current time by the file server's clock; if killed, leaves a file that the next run removes."""
    note = new_part(own)
    step("note", note.touch)
    try:
        return note.stat().st_mtime
    finally:
        remove_file(note)
