"""Creation of a store: made under a temporary name beside its destination, then moved there whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tilenet.errors import OutputExists, OutputLocked, TilenetError
from tilenet.store.file_system import fsync_path, make_folder, remove_tree, step, write_file
from tilenet.store.label_list import enlist, withdraw
from tilenet.store.layout import Layout
from tilenet.store.lease import Lease, Share
from tilenet.store.leftovers import REPLACED, sweep, temporary_place
from tilenet.store.metadata import OWN, fixed_documents, read_root, root_document
from tilenet.store.seal import log


def build(
    path: Path,
    layout: Layout,
    info: Mapping[str, Any],
    *,
    replace: bool,
    share: Share | None = None,
    facts: Mapping[str, Any],
) -> Lease:
    """Make a store without pixels at `path`; return its lease, or that of a share, with no heartbeat yet.

    With `replace`, the existing store is moved into the new one and kept there until the new one is complete. However
    the run ends, one of the two is whole.
    """
    documents = {layout.root: root_document(layout, info, complete=False), **fixed_documents(layout)}
    make_folder(path.parent)
    sweep(path)
    new = temporary_place(path)
    try:
        step("make folder", new.mkdir)
        step("make folder", (new / OWN).mkdir)
        lease = Lease.take(new / OWN, path, share)
        for name, data in documents.items():
            make_folder((new / name).parent)
            write_file(new / name, [data], within=new / OWN)
            step("sync folder", fsync_path, (new / name).parent)
        log(new / OWN, "created", **facts)
        if replace:
            _move_aside(path, new / OWN / REPLACED)
        _move_in(new, path, share)
    except BaseException:
        with suppress(OSError):
            _take_back(new, path)
        raise
    return lease


def _move_aside(path: Path, aside: Path) -> None:
    """Move the old store into the new one, holding the old store's own lease to keep other runs off it."""
    lease = Lease.take(path / OWN, path)
    try:
        withdraw(path, read_root(path).layout)
        step("rename", os.rename, path, aside)
    except BaseException:  # also an interrupt, which must not leave the old store locked and unlisted
        lease.release()
        _list_again(path)
        raise


def _list_again(path: Path) -> None:
    """Put a complete mask that could not be replaced back on its image's list of labels."""
    with suppress(OSError, TilenetError):  # the error that prevented the replacement matters more
        root = read_root(path)
        if root.complete:
            enlist(path, root.layout)


def _move_in(new: Path, path: Path, share: Share | None) -> None:
    try:
        step("rename", os.rename, new, path)
    except OSError:
        if not path.exists():
            raise
        # Another run was faster. If it is alive, taking its lease raises an error that names it.
        Lease.take(path / OWN, path, share).release()
        raise OutputExists(f"{path}: was made by another run just now. Use --resume, or choose another path") from None
    step("sync folder", fsync_path, path.parent)


def _take_back(new: Path, path: Path) -> None:
    """Undo the creation of a store that could not be moved into place."""
    aside = new / OWN / REPLACED
    if aside.exists():
        if path.exists():
            raise OutputLocked(f"{path}: was made by another run meanwhile; the mask before it is kept in {aside}")
        os.rename(aside, path)  # noqa: PTH104 - undoing, so not a `step`
        for lock in (path / OWN).glob("lock.*"):
            lock.unlink()
        _list_again(path)
    remove_tree(new)
