"""The journal: what has been written and is right.

One file of lines per writer, each line one block: ``[level, index, [[path, size, sum], ...]]``.
A line counts only if it is whole. When the store is complete the lines are merged, sorted,
into one file in which nothing depends on who wrote what, or when.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from tilenet.store.files import append_line, faults, step, write_whole
from tilenet.store.shards import Entry

MERGED = "journal.jsonl"
Key = tuple[int, int]
Entries = dict[Key, list[Entry]]


class Journal:
    """The lines of all writers of one store.

    Attributes
    ----------
    entries : dict
        Files of each block, by (level, index).
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._own = folder / f"{socket.gethostname()}-{os.getpid()}-{run}.jsonl"
        self.entries: Entries = {}
        for path in sorted(folder.glob("*.jsonl")):
            self.entries |= _read(path)

    def add(self, level: int, index: int, files: list[Entry]) -> None:
        """Note that a block has been written."""
        append_line(self._own, _line((level, index), files))
        self.entries[level, index] = files

    def drop(self, keys: set[Key]) -> None:
        """Forget blocks whose files turned out damaged."""
        for key in keys:
            del self.entries[key]
        self.merge()

    def merge(self) -> None:
        """Replace the lines of all writers by one sorted file."""
        write_whole(self._folder / MERGED, b"".join(_line(key, files) for key, files in sorted(self.entries.items())))
        for path in self._folder.glob("*.jsonl"):
            if path.name != MERGED:
                with faults(path):
                    step("unlink")
                    path.unlink()


def _line(key: Key, files: list[Entry]) -> bytes:
    return json.dumps([*key, files], separators=(",", ":")).encode() + b"\n"


def _read(path: Path) -> Entries:
    """Return the whole lines of one file; a line that was cut short did not happen."""
    entries: Entries = {}
    with faults(path):
        lines = path.read_bytes().split(b"\n")[:-1]
    for line in lines:
        try:
            level, index, files = json.loads(line)
            entries[int(level), int(index)] = [(str(p), int(size), str(total)) for p, size, total in files]
        except (ValueError, TypeError):
            continue
    return entries
