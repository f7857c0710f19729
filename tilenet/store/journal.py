"""What has been written and is right: one line per block, with its files, sizes and checksums.

Each writer appends to a file of its own, synced line by line; a line that a crash cut short
is not a line. A complete store has one sorted file with nothing in it that depends on who
wrote what when.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tilenet.store.files import make_folder, step, sync_folder, write_all
from tilenet.store.layout import Layout

FOLDER, MERGED = "journal", "journal.jsonl"
# Of a block: not in the journal; all background, so that there is no file.
UNKNOWN, NO_FILE = 0, -1
LINES = 4096


@dataclass(frozen=True)
class Written:
    """Size and SHA-256 of a file as it was written."""

    size: int
    digest: str

    @classmethod
    def of(cls, data: bytes) -> Written:
        """Return those of the content of a file."""
        return cls(len(data), sha256(data).hexdigest())


Files = Sequence[Written | None]


class Journal:
    """The journal of one store, in arrays: 40 bytes per file of a block."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.documents: dict[str, Written] = {}
        blocks = [(layout.n_blocks(level), layout.n_files(level)) for level in range(len(layout.levels))]
        self._sizes = [np.zeros(shape, np.int64) for shape in blocks]
        self._digests = [np.zeros((*shape, 32), np.uint8) for shape in blocks]

    def __contains__(self, block: tuple[int, int]) -> bool:
        level, index = block
        return bool(self._sizes[level][index, 0] != UNKNOWN)

    def sizes(self, level: int, index: int) -> list[int]:
        """Return the sizes of a block's files; `UNKNOWN` or `NO_FILE` for none."""
        sizes: list[int] = self._sizes[level][index].tolist()
        return sizes

    def files(self, level: int, index: int) -> Files | None:
        """Return what was written for a block; None for a file that is all background."""
        if (level, index) not in self:
            return None
        digests = self._digests[level][index]
        return tuple(
            None if size == NO_FILE else Written(size, digest.tobytes().hex())
            for size, digest in zip(self.sizes(level, index), digests, strict=True)
        )

    def record(self, level: int, index: int, files: Files) -> None:
        """Note what was written for a block, in memory."""
        for i, written in enumerate(files):
            if written:
                self._digests[level][index, i] = np.frombuffer(bytes.fromhex(written.digest), np.uint8)
        self._sizes[level][index] = [NO_FILE if written is None else written.size for written in files]

    def load(self, folder: Path) -> None:
        """Read the sorted journal, then those of the writers, oldest first."""
        for path in (folder / MERGED, *sorted((folder / FOLDER).glob("*.jsonl"))):
            if path.is_file():
                with path.open("rb") as lines:
                    for line in lines:
                        self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if "documents" in entry:
                self.documents = {name: Written(*of) for name, of in entry["documents"].items()}
                return
            level, index, files = entry["level"], entry["block"], entry["files"]
            if not 0 <= index < self._layout.n_blocks(level) or tuple(files) != self._layout.files(level, index):
                return
            self.record(level, index, tuple(of and Written(*of) for of in files.values()))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError):
            return  # cut short or damaged: that block is written again

    def line(self, level: int, index: int, files: Files) -> bytes:
        """Return the entry of a block."""
        names = self._layout.files(level, index)
        listed = {name: written and [written.size, written.digest] for name, written in zip(names, files, strict=True)}
        return _line({"level": level, "block": index, "files": listed})

    def sorted_lines(self, documents: Mapping[str, Written]) -> Iterator[bytes]:
        """Yield the whole journal, many lines at a time."""
        yield _line({"documents": {name: [of.size, of.digest] for name, of in sorted(documents.items())}})
        for level in range(len(self._sizes)):
            for start in range(0, len(self._sizes[level]), LINES):
                some = range(start, min(start + LINES, len(self._sizes[level])))
                yield b"".join(self.line(level, i, files) for i in some if (files := self.files(level, i)))


class Pen:
    """Appends to the journal file of this writer; safe to share between threads."""

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder / FOLDER
        self._writer = writer
        self._lock = threading.Lock()
        self._file: int | None = None
        self._torn = False

    def append(self, line: bytes) -> None:
        """Add a line, synced. After a failure the next one begins anew."""
        with self._lock:
            if self._file is None:
                self._file = self._open()
            torn, self._torn = self._torn, True
            step("journal", write_all, self._file, b"\n" + line if torn else line)
            step("sync journal", os.fsync, self._file)
            self._torn = False

    def _open(self) -> int:
        make_folder(self._folder)
        earlier = [int(path.name[:6]) for path in self._folder.iterdir() if path.name[:6].isdecimal()]
        path = self._folder / f"{1 + max(earlier, default=0):06d}-{self._writer}.jsonl"
        handle = step("create journal", os.open, path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        step("sync folder", sync_folder, self._folder)
        return handle

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
