"""The run that shares of a mask have in common: an id, which the first one leaves and the others join.

Each share has a lease of its own, which tells it from its successors alone. The id tells all
shares of one job array from those of another: it ends when somebody takes the lease of the
whole, and a share that wakes after that finds it gone, or another in its place.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from tilenet.store.files import remove_file, step, write_all


def join(own: Path, count: int) -> str:
    """Return the id of the run of so many shares, a new one where there is none."""
    while not (found := run_of_shares(own, count)):
        note = own / f"{uuid4().hex}.part"
        try:
            handle = step("create", os.open, note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                step("write", write_all, handle, uuid4().hex.encode())
            finally:
                os.close(handle)
            step("link", os.link, note, _place(own, count))  # whole, and only if no other was quicker
        except (FileExistsError, FileNotFoundError):
            continue  # another was, or swept our note away
        finally:
            remove_file(note)
    return found


def run_of_shares(own: Path, count: int) -> str:
    """Return the id of the run of so many shares; empty where there is none."""
    try:
        return _place(own, count).read_text()
    except FileNotFoundError:
        return ""


def end(own: Path) -> None:
    """End the runs of shares, of whatever number: who still works for one may write no more."""
    for path in own.glob("run-of-*"):
        remove_file(path)


def _place(own: Path, count: int) -> Path:
    return own / f"run-of-{count}"
