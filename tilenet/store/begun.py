"""Notes on flights: blocks that one writer has begun, so that the next knows that it is the next.

Whoever is killed says nothing. A note, which only one writer can make, tells the one that is
sent the same blocks again; and where to read which of them are written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tilenet.store.files import remove_file, step, write_all
from tilenet.store.journal import FOLDER


def begin(own: Path, flight: str, writer: str) -> str | None:
    """Note that a writer begins a flight; return the one that began it earlier, None if there was none.

    Empty if its note cannot be read.

    The folder is the journal's: a writer that comes after the end of the store finds none.
    """
    note = _note(own, flight)
    try:
        handle = step("begin", os.open, note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return note.read_text()
    try:
        step("write", write_all, handle, writer.encode())
    finally:
        os.close(handle)
    return None


def is_begun(own: Path, flight: str) -> bool:
    """Tell whether a writer has begun a flight that has not come to its end."""
    return _note(own, flight).exists()


def forget(own: Path, flight: str) -> None:
    """Remove the note on a flight that has come to its end."""
    remove_file(_note(own, flight))


def lines_by(own: Path, writer: str, blocks: Iterable[int]) -> dict[int, bytes]:
    """Return the lines that a writer has entered for some blocks of level 0."""
    found, some = {}, set(blocks)
    for path in (own / FOLDER).glob(f"*-{writer}.jsonl") if writer else ():
        for line in path.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):  # cut short: that block is written again
                entry = json.loads(line)
                if entry["level"] == 0 and entry["block"] in some:
                    found[entry["block"]] = line
    return found


def _note(own: Path, flight: str) -> Path:
    return own / FOLDER / f"begun-{flight}"
