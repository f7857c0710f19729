"""The run that the shares of a mask have in common: an id, which the first share writes and the others read.

Each share has a lease of its own, which distinguishes it only from later holders of the same share. The id
distinguishes all shares of one job array from those of another. It is removed when a process takes the lease of the
whole store. A share that wakes after that finds the id gone, or another one in its place.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from tilenet.errors import OutputError
from tilenet.store.file_system import new_part, put_bytes, put_under_new_name, remove_file

TRIES = 100


def join(own: Path, count: int) -> str:
    """Return the id of the run of `count` shares; start one if there is none."""
    for _ in range(TRIES):
        if found := run_of_shares(own, count):
            return found
        note = new_part(own)
        try:
            put_bytes(note, os.O_EXCL, uuid4().hex.encode(), sync=True)
            put_under_new_name("link", note, _place(own, count))
        except (FileExistsError, FileNotFoundError):
            continue  # another process was faster, or swept our note away
        finally:
            remove_file(note)
    raise OutputError(f"{_place(own, count)}: is empty. Remove it, and start the shares again")


def run_of_shares(own: Path, count: int) -> str:
    """Return the id of the run of `count` shares; empty if there is none."""
    try:
        return _place(own, count).read_text()
    except FileNotFoundError:
        return ""


def end(own: Path) -> None:
    """End all runs of shares, whatever their number: processes that still work for one may write no more."""
    for path in own.glob("run-of-*"):
        remove_file(path)


def _place(own: Path, count: int) -> Path:
    return own / f"run-of-{count}"
