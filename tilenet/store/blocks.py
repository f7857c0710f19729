"""The blocks of a store: written whole, recorded in the journal, read back only if size and checksum match."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import BlocksFailed, counted
from tilenet.geometry import Box, round_down
from tilenet.store import codec
from tilenet.store.damage import Damage
from tilenet.store.file_system import faults_named, fsync_path, make_folder, remove_file, step, write_file
from tilenet.store.journal import Journal, Pen, Written, line_of
from tilenet.store.journal_parser import NO_FILE, UNKNOWN
from tilenet.store.layout import PROBABILITIES, Layout
from tilenet.store.metadata import OWN, fixed_documents
from tilenet.store.pyramid import CoarserBlock, sources


class Blocks:
    """The shards and the journal of one store.

    The name of this `writer` is part of that of its journal file. Before each file is put in place or removed,
    `allowed` raises if it may not write any more.
    """

    def __init__(self, path: Path, layout: Layout, writer: str, *, allowed: Callable[[], None] = lambda: None) -> None:
        self.path, self.layout = path, layout
        self.pen = Pen(path / OWN, writer)
        self._allowed = allowed

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """Every metadata document but the root's, by its path in the store; made, and validated, on first access."""
        return fixed_documents(self.layout)

    @cached_property
    def journal(self) -> Journal:
        """The journal: read from disk on first access, then updated with what this process records."""
        journal = Journal(self.layout)
        journal.load(self.path / OWN)
        return journal

    def pending(self, level: int, among: range | None = None) -> Iterator[int]:
        """Yield the blocks, all or in a range, that the journal lacks or whose files have other sizes than it says."""
        among = range(self.layout.n_blocks(level)) if among is None else among
        along = self.layout.grid(level)[-1]
        places = {str(place): place for place in range(along)}
        for start in range(round_down(among.start, along), among.stop, along):
            row = range(start, start + along)
            for place in np.flatnonzero(self._wrong_sizes(level, row, places)).tolist():
                if row[place] in among:
                    yield row[place]

    def _wrong_sizes(self, level: int, row: range, places: Mapping[str, int]) -> NDArray[np.bool_]:
        """Return which blocks of one grid row are pending; their files lie in one folder per array and class."""
        known = self.journal.sizes(level, row)  # (blocks, files)
        unknown: NDArray[np.bool_] = known[:, 0] == UNKNOWN
        if unknown.all():
            return unknown
        folders = [f"{self.path}/{file.rpartition('/')[0]}" for file in self.layout.files(level, row.start)]
        found = np.stack([_sizes_in(folder, places) for folder in folders], axis=1)
        wrong: NDArray[np.bool_] = unknown | (known != found).any(axis=1)
        return wrong

    def put_all(self, level: int, index: int, shards: Iterable[bytes | None]) -> bytes:
        """Write a block from encoded shards (None: background), then its journal line; return that line."""
        with faults_named(self.path):
            self._allowed()
        names = self.layout.files(level, index)
        files = [self._put_or_remove(name, data) for name, data in zip(names, shards, strict=True)]
        written = [self.path / name for name, of in zip(names, files, strict=True) if of]
        with faults_named(self.path):
            for folder in sorted({path.parent for path in written}):
                step("sync folder", fsync_path, folder)
            line = line_of(self.layout, level, index, files)
            self.pen.append(line)
            if "journal" in vars(self):  # a writer that joined a run is told its blocks, and never loads it
                self.journal.record(level, index, files)
        return line

    def shards(self, index: int, arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes | None]:
        """Check the arrays ``mask`` and ``probabilities`` of a block of level 0; encode its shards one by one."""
        layout = self.layout
        if not 0 <= index < layout.n_blocks(0):
            raise IndexError(f"the mask has {layout.n_blocks(0)} blocks, no block {index}")
        box = layout.box(0, index)
        parts = [("0", box, _checked(arrays["mask"], box.shape, layout.mask_dtype))]
        if layout.classes:
            shape = (layout.classes, *box.shape)
            for k, values in enumerate(_checked(arrays["probabilities"], shape, layout.probability_dtype)):
                place = Box(layout.with_class(box.start, k), layout.with_class(box.stop, k + 1))
                parts.append((PROBABILITIES, place, np.expand_dims(values, layout.class_axis)))
        return (codec.encode(self.documents[layout.document(array)], place, values) for array, place, values in parts)

    def _put_or_remove(self, name: str, data: bytes | None) -> Written | None:
        if data is not None:
            return self.put(name, data)
        with faults_named(self.path / name):
            self._allowed()
            remove_file(self.path / name)
        return None

    def put(self, name: str, data: bytes) -> Written:
        """Put a whole file in place, without syncing its folder."""
        with faults_named(self.path / name, needed=len(data)):
            make_folder((self.path / name).parent)
            write_file(self.path / name, [data], within=self.path / OWN, allowed=self._allowed)
        return Written.of(data)

    def coarser(self, level: int, index: int) -> CoarserBlock:
        """Return everything needed to make a block of a coarser level."""
        finer = {i: (self.journal.files(level - 1, i) or (None,))[0] for i in sources(self.layout, level, index)}
        return CoarserBlock(self.path, self.layout, level, index, finer)

    def lose(self, damage: Sequence[Damage]) -> BlocksFailed:
        """Remove damaged shards, which makes their blocks pending again; return the error to raise."""
        for found in damage:
            if found.block is not None:
                with faults_named(self.path / found.file):
                    remove_file(self.path / found.file)
        return BlocksFailed(
            f"{self.path}: {counted(len(damage), 'file')} not as written ({damage[0]}). The disk may be failing. "
            "To rewrite them, run again with --resume"
        )


def _checked(values: NDArray[Any], shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    if values.shape != shape:
        raise ValueError(f"a block of shape {shape} was expected, not {values.shape}")
    if not np.can_cast(values.dtype, dtype, "safe"):
        raise ValueError(f"pixels of {dtype} were expected, not {values.dtype}")
    return values


def _sizes_in(folder: str, places: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the sizes of the files named in `places`, each at its index there; `NO_FILE` where one is missing."""
    sizes = [NO_FILE] * len(places)
    with suppress(FileNotFoundError, NotADirectoryError):
        # Relative to an open folder, sizes of a million files are found in half the time.
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(handle):  # noqa: PTH208 - of an open folder
                if name in places:
                    sizes[places[name]] = _size_of(name, handle)
        finally:
            os.close(handle)
    return np.array(sizes, np.int64)


def _size_of(name: str, folder: int) -> int:
    try:
        return os.stat(name, dir_fd=folder).st_size
    except FileNotFoundError:  # a dangling link
        return NO_FILE
