"""Notes that a writer has begun a flight, which tell a later writer of the same flight about the earlier one.

A killed writer cannot report anything. Only one writer can create the note on a flight, so a second writer that is
sent the same blocks finds it. The note names the earlier writer, whose journal file lists the blocks already written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tilenet.store.file_system import put_bytes, remove_file
from tilenet.store.journal import FOLDER


def begin(own: Path, flight: str, writer: str) -> str | None:
    """Note that a writer begins a flight; return the writer that began it earlier, None if there was none."""
    note = _note(own, flight)
    try:
        put_bytes(note, os.O_EXCL, writer.encode(), names=("begin", "write"))
    except FileExistsError:
        return note.read_text()  # empty if that writer was killed before it wrote its name
    return None


def is_begun(own: Path, flight: str) -> bool:
    """Return whether a writer has begun a flight that has not ended."""
    return _note(own, flight).exists()


def forget(own: Path, flight: str) -> None:
    """Remove the note on a flight that has ended."""
    remove_file(_note(own, flight))


def lines_by(own: Path, writer: str, blocks: Iterable[int]) -> dict[int, bytes]:
    """Return, by block, the journal lines that a writer has written for some blocks of level 0."""
    found, some = {}, set(blocks)
    for path in (own / FOLDER).glob(f"*-{writer}.jsonl") if writer else ():
        for line in path.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):  # a line cut short: that block is written again
                entry = json.loads(line)
                if entry["level"] == 0 and entry["block"] in some:
                    found[entry["block"]] = line
    return found


def _note(own: Path, flight: str) -> Path:
    # Finishing the store removes this folder, so that no writer can begin a flight after that.
    return own / FOLDER / f"begun-{flight}"
