"""The list of an image's labels: adding a mask's name, or removing it, without losing other names.

A mask whose layout has a `source` lies in the labels group of an image, and viewers show what that group lists. So a
mask is listed once it is complete, and removed from the list before it becomes incomplete again. Two runs that end at
the same time could overwrite each other's change, so a process that changes the list holds a lease meanwhile. The
lease lies in a folder that exists only for that time.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tilenet.errors import OutputError, OutputLocked
from tilenet.store.file_system import fsync_path, make_folder, remove_parts, step, write_file
from tilenet.store.layout import DOCUMENTS, Layout
from tilenet.store.lease import STALE, Lease
from tilenet.store.metadata import GROUP, OME, OWN

# Seconds to wait for the lease in all, and between tries. A lease is held for milliseconds, except that of a process
# that died on another machine, which blocks others until it is stale.
PATIENCE, LOOK = 2 * STALE, 0.05
Names = list[str]


def read_list(group: Path, zarr_format: int) -> Names:
    """Return the names that a labels group lists; no names if there is no such group."""
    return list(_listed(_read(group, zarr_format), group, zarr_format).get("labels", ()))


def is_listed(path: Path, layout: Layout) -> bool:
    """Return whether a mask is listed, or lies in no image and need not be listed."""
    return not layout.source or path.name in read_list(path.parent, layout.zarr_format)


def enlist(path: Path, layout: Layout) -> None:
    """Add a mask to the list of the labels group that it lies in."""
    if layout.source:
        _change(path.parent, layout.zarr_format, lambda names: [*names, *({path.name} - set(names))])


def withdraw(path: Path, layout: Layout) -> None:
    """Remove a mask from the list of the labels group that it lies in."""
    if layout.source:
        _change(path.parent, layout.zarr_format, lambda names: [name for name in names if name != path.name])


def _change(group: Path, zarr_format: int, change: Callable[[Names], Names]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            _change_now(group, zarr_format, change)
            return
        except OutputLocked:  # another process holds or took the lease, or two saw each other and both gave way
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(LOOK, 2 * LOOK))


def _change_now(group: Path, zarr_format: int, change: Callable[[Names], Names]) -> None:
    with _leased(group) as lease:
        document = _read(group, zarr_format)
        listed = _listed(document, group, zarr_format)
        before = listed.get("labels")
        listed["labels"] = change(list(before or ()))
        files = {DOCUMENTS[zarr_format][0]: json.dumps(document, indent=2).encode()}
        if zarr_format == 2 and not (group / ".zgroup").exists():
            files = {".zgroup": GROUP} | files
        if listed["labels"] == (before or []) and len(files) == 1:
            return
        for name, data in files.items():
            write_file(group / name, [data], within=lease.folder, allowed=lambda: lease.check(group))
        step("sync folder", fsync_path, group)


def _read(group: Path, zarr_format: int) -> dict[str, Any]:
    """Return the document of a labels group that holds its list; a new document if there is none."""
    path = group / DOCUMENTS[zarr_format][0]
    if not path.exists():
        return {} if zarr_format == 2 else {"zarr_format": 3, "node_type": "group", "attributes": {}}
    with _understood(path):
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("node_type", "group") != "group":
            raise TypeError("not a group")
        return document


def _listed(document: dict[str, Any], group: Path, zarr_format: int) -> dict[str, Any]:
    """Return the part of a document whose ``labels`` is the list; add that part if it is missing."""
    with _understood(group / DOCUMENTS[zarr_format][0]):
        part = document
        if zarr_format == 3:
            attributes = document.setdefault("attributes", {})
            part = attributes.setdefault("ome", {"version": OME[3]})
        names = part.get("labels", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("not a list of names")
        return part


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(f"{path}: is no list of labels that can be read. Fix it first") from error


@contextmanager
def _leased(group: Path) -> Iterator[Lease]:
    """Hold the lease of a labels group."""
    folder = group / OWN
    make_folder(folder)
    lease = Lease.take(folder, group)
    try:
        yield lease
    finally:
        try:
            remove_parts(folder)  # of killed runs; a process that is taking the lease tries again
        finally:
            lease.release()
        with suppress(OSError):  # another run has a lease in it, or is about to
            step("remove folder", os.rmdir, folder)
