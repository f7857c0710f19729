"""The journal of written blocks: one line per block, with its files, their sizes and their checksums.

Each writer appends to a journal file of its own, and syncs it after every line. A line that a crash cut short is
ignored. A complete store has one sorted journal, which does not depend on who wrote which block when.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.store.file_system import fsync_path, make_folder, step, write_all
from tilenet.store.journal_parser import DIGEST, NO_FILE, UNKNOWN, Form
from tilenet.store.layout import Layout

FOLDER, MERGED = "journal", "journal.jsonl"
LINES = 4096
# Bytes of a journal to read at once.
PIECE = 2**20


@dataclass(frozen=True)
class Written:
    """Size and SHA-256 of a file as it was written."""

    size: int
    digest: str

    @classmethod
    def of(cls, data: bytes) -> Written:
        """Return the size and checksum of `data`, the content of a file."""
        return cls(len(data), sha256(data).hexdigest())

    @classmethod
    def from_json(cls, of: Sequence[Any]) -> Written:
        """Return the size and checksum given in a journal line; `ValueError` for values that no file can have."""
        size, digest = of
        if not 0 < size < 2**63 or len(bytes.fromhex(digest)) != DIGEST:
            raise ValueError(f"a file cannot have the size {size} and the checksum {digest}")
        return cls(int(size), digest)


Files = Sequence[Written | None]


class Journal:
    """The journal of one store, held in arrays: 40 bytes per file of a block."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.documents: dict[str, Written] = {}
        blocks = [(layout.n_blocks(level), layout.n_files(level)) for level in range(len(layout.levels))]
        self._sizes = [np.zeros(shape, np.int64) for shape in blocks]
        self._digests = [np.zeros((*shape, DIGEST), np.uint8) for shape in blocks]

    def __contains__(self, block: tuple[int, int]) -> bool:
        level, index = block
        return bool(self._sizes[level][index, 0] != UNKNOWN)

    def sizes(self, level: int, some: range) -> NDArray[np.int64]:
        """Return file sizes (blocks, files); `UNKNOWN` for blocks not in the journal, `NO_FILE` for background."""
        return self._sizes[level][some.start : some.stop]

    def files(self, level: int, index: int) -> Files | None:
        """Return what was written for a block, None for an all-background file; None if the journal lacks the block."""
        if (level, index) not in self:
            return None
        sizes, digests = self._sizes[level][index].tolist(), self._digests[level][index]
        return tuple(
            None if size == NO_FILE else Written(size, digest.tobytes().hex())
            for size, digest in zip(sizes, digests, strict=True)
        )

    def record(self, level: int, index: int, files: Files) -> None:
        """Record in memory what was written for a block."""
        for i, written in enumerate(files):
            if written:
                self._digests[level][index, i] = np.frombuffer(bytes.fromhex(written.digest), np.uint8)
        self._sizes[level][index] = [NO_FILE if written is None else written.size for written in files]

    def load(self, folder: Path) -> None:
        """Read the sorted journal, then the writers' journals, oldest first."""
        with suppress(FileNotFoundError):
            writers = sorted((folder / FOLDER).glob("*.jsonl"))
            self._load((folder / MERGED, *writers))
            if all(map(os.path.lexists, writers)):
                return
        # Another process has finished the store meanwhile, and removed these: all is in the sorted journal.
        self._load((folder / MERGED,))

    def _load(self, paths: Iterable[Path]) -> None:
        form = Form(self._layout)
        for path in paths:
            if path.is_file():
                with path.open("rb") as file:
                    while lines := file.readlines(PIECE):
                        self._note_all(lines, form)

    def _note_all(self, lines: list[bytes], form: Form) -> None:
        if found := form.read(lines):
            # If a block occurs twice, NumPy's assignment keeps the last entry, as reading line by line does.
            self._sizes[found.level][found.blocks] = found.sizes
            self._digests[found.level][found.blocks] = found.digests
            return
        for line in lines:
            with suppress(ValueError):  # that block is written again
                self.note(line)

    def note(self, line: bytes) -> None:
        """Record in memory what a line says; `ValueError` if it is damaged, or cannot belong to this store."""
        with _named_faults():
            entry = json.loads(line)
            if "documents" in entry:
                self.documents = {name: Written(*of) for name, of in entry["documents"].items()}
            else:
                self._note_block(entry)

    def note_block(self, line: bytes) -> None:
        """Record in memory what a line about a block says; see `note`."""
        with _named_faults():
            self._note_block(json.loads(line))

    def _note_block(self, entry: Mapping[str, Any]) -> None:
        level, index, files = entry["level"], entry["block"], entry["files"]
        if not 0 <= index < self._layout.n_blocks(level) or tuple(files) != self._layout.files(level, index):
            raise ValueError(f"there is no such block {index} of level {level}")
        self.record(level, index, [of if of is None else Written.from_json(of) for of in files.values()])

    def sorted_lines(self, documents: Mapping[str, Written]) -> Iterator[bytes]:
        """Yield the whole journal in sorted order, many lines at a time."""
        yield _line({"documents": {name: [of.size, of.digest] for name, of in sorted(documents.items())}})
        for level in range(len(self._sizes)):
            for start in range(0, len(self._sizes[level]), LINES):
                some = range(start, min(start + LINES, len(self._sizes[level])))
                lines = (line_of(self._layout, level, i, files) for i in some if (files := self.files(level, i)))
                yield b"".join(lines)


class Pen:
    """Appends to the journal file of this writer; safe to share between threads.

    The file is open only while a line is written. Workers keep a store open after its run has ended, and NFS does not
    remove a folder while a process on the same machine has a file in it open.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder / FOLDER
        self.writer = writer
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._torn = False

    def append(self, line: bytes) -> None:
        """Append a line and sync the file; after a failed append, the next line starts on a new line of the file."""
        with self._lock:
            handle = os.open(self._created(), os.O_WRONLY | os.O_APPEND)  # no `step`: it changes nothing
            try:
                torn, self._torn = self._torn, True
                step("journal", write_all, handle, b"\n" + line if torn else line)
                step("sync journal", os.fsync, handle)
                self._torn = False
            finally:
                os.close(handle)

    def create(self) -> None:
        """Create the file now, not with the first line."""
        with self._lock:
            self._created()

    def _created(self) -> Path:
        if self._path is None:
            make_folder(self._folder)
            earlier = [int(path.name[:6]) for path in self._folder.iterdir() if path.name[:6].isdecimal()]
            path = self._folder / f"{1 + max(earlier, default=0):06d}-{self.writer}.jsonl"
            os.close(step("create journal", os.open, path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666))
            step("sync folder", fsync_path, self._folder)
            self._path = path
        return self._path


def line_of(layout: Layout, level: int, index: int, files: Files) -> bytes:
    """Return the journal line of a block."""
    names = layout.files(level, index)
    listed = {name: written and [written.size, written.digest] for name, written in zip(names, files, strict=True)}
    return _line({"level": level, "block": index, "files": listed})


def lines_by(folder: Path, writer: str, blocks: Iterable[int]) -> dict[int, bytes]:
    """Return, by block, the lines of a writer on some blocks of level 0."""
    found, some = {}, set(blocks)
    # It has no name if it was killed before it wrote that.
    for path in (folder / FOLDER).glob(f"*-{writer}.jsonl") if writer else ():
        for line in path.read_bytes().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):  # a line cut short: that block is written again
                entry = json.loads(line)
                if entry["level"] == 0 and entry["block"] in some:
                    found[entry["block"]] = line
    return found


@contextmanager
def _named_faults() -> Iterator[None]:
    """Raise a `ValueError` in place of any error that JSON of an unexpected form causes."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError("it is not an entry of a journal") from error


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
