"""Comparison of the files of a store with what its journal says was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tilenet.store.journal import MERGED, Written
from tilenet.store.layout import Layout
from tilenet.store.metadata import OWN

if TYPE_CHECKING:
    from tilenet.store.blocks import Blocks


@dataclass(frozen=True)
class Damage:
    """One file that is not what the journal says was written."""

    # Relative to the store.
    file: str
    # ``missing``, ``changed``, ``unreadable``, ``extra`` or ``not in the journal``.
    what: str
    # Path of the array; empty for metadata.
    array: str = ""
    # Index of the block in that array's level; None where the file belongs to no block.
    block: int | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether tilenet did not write the file, and no block's file belongs there: it does the mask no harm."""
        return self.what == "extra" and self.block is None

    def __str__(self) -> str:
        where = f" (array {self.array}, block {self.block})" if self.block is not None else ""
        return f"{self.file}{where} is {self.what}"


def find_damage(blocks: Blocks) -> Iterator[Damage]:
    """Yield every damaged file, reading each once; of blocks that the journal lacks, see `blocks_lost`."""
    path, layout, journal = blocks.path, blocks.layout, blocks.journal
    for file, of_document in journal.documents.items():
        if what := _compare(path / file, of_document):
            yield Damage(file, what)
    for level in range(len(layout.levels)):
        for index in range(layout.n_blocks(level)):
            if written := journal.files(level, index):
                for file, of in zip(layout.files(level, index), written, strict=True):
                    if what := _compare(path / file, of):
                        yield Damage(file, what, layout.array_of(file), index)
    for array in layout.arrays:
        yield from _extra_files(path, layout, array)


def blocks_lost(blocks: Blocks) -> Iterator[Damage]:
    """Yield the files of those blocks of a complete store that its journal lacks."""
    layout, journal = blocks.layout, blocks.journal
    if not journal.documents:
        yield Damage(f"{OWN}/{MERGED}", "cut short or missing")
    for level in range(len(layout.levels)):
        for index in range(layout.n_blocks(level)):
            if (level, index) not in journal:
                for file in layout.files(level, index):
                    yield Damage(file, "not in the journal", layout.array_of(file), index)


def read_verified(path: Path, written: Written) -> bytes | None:
    """Return the content of a file if its size and checksum are as written, else None."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if Written.of(data) == written else None


def _compare(path: Path, written: Written | None) -> str:
    if written is None:
        return "extra" if path.exists() else ""
    if read_verified(path, written) is not None:
        return ""
    if not path.exists():
        return "missing"
    return "changed" if os.access(path, os.R_OK) else "unreadable"


def _extra_files(path: Path, layout: Layout, array: str) -> Iterator[Damage]:
    """Yield the files that are no block's shard, except hidden ones, which the operating system makes."""
    folder_of_blocks = layout.folder(array)
    top = path / folder_of_blocks
    for folder, _, names in os.walk(top):
        for name in names:
            if name.startswith("."):
                continue
            parts = (Path(folder) / name).relative_to(top).parts
            numbers = tuple(int(part) for part in parts if part.isdecimal())
            block = layout.block_of_file(array, numbers) if len(numbers) == len(parts) else None
            if block is None:
                yield Damage("/".join((folder_of_blocks, *parts)), "extra", array)
