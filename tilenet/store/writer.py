"""`Store`: a mask that is being written, block by block, by runs that may be killed at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tilenet.errors import EnvironmentFault, OutputError, OutputIncomplete
from tilenet.store.file_system import ACCESSED, faults_named, put_bytes, remove_file
from tilenet.store.journal import FOLDER, lines_by
from tilenet.store.label_list import enlist
from tilenet.store.metadata import OWN
from tilenet.store.opening import OpenedStore
from tilenet.store.pyramid import Damaged, ShardMaker
from tilenet.store.seal import seal, tidy, write_root

# Called with the number done, and of all.
Progress = Callable[[int, int], None]


class Store(OpenedStore):
    """A mask that is being written, until it is `complete`: every block is written and verified."""

    def write(self, index: int, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        """Write one block of level 0: one whole shard of each array, then its line in the journal, which is returned.

        The arrays are ``mask`` in the block's shape, clipped to the mask, and, where the layout has classes,
        ``probabilities`` with the classes as first axis. Safe to call from several threads, for different blocks.
        """
        self._held()
        return self._write(index, self._blocks.shards(index, arrays))

    def write_background(self, index: int) -> bytes:
        """Write one block as background in every array: a line in the journal, but no file; see `write`."""
        self._held()
        return self._write(index, [None] * self.layout.n_files(0))

    def _write(self, index: int, shards: Iterable[bytes | None]) -> bytes:
        try:
            return self._blocks.put_all(0, index, shards)
        except EnvironmentFault:
            with suppress(OSError):  # the folder itself is gone: raise the first error
                self._check_allowed()  # a run that took over removes the files that this one was writing
            raise

    def begin(self, flight: str, blocks: Iterable[int]) -> dict[int, bytes] | None:
        """Note that this writer begins a flight, of an id unique in this store: some blocks, for a run that it joined.

        Return the journal lines, by block, of the writer that has begun the flight before; None if there was none. A
        killed writer cannot report anything. But only one can create the note on a flight, so a second one that is sent
        the same blocks finds it, and in it the name of the first, whose journal file lists what it has written.
        """
        note = self._note_on(flight)
        try:
            self._check_allowed()
            with faults_named(self.path):
                try:
                    put_bytes(note, os.O_EXCL, self._blocks.pen.writer.encode(), names=("begin", "write"))
                except FileExistsError:
                    return lines_by(self.path / OWN, note.read_text(), blocks)
                return None
        except EnvironmentFault:
            self._check_allowed()
            raise

    def is_begun(self, flight: str) -> bool:
        """Return whether a writer that joined has begun a flight that has not ended."""
        with faults_named(self.path, what=ACCESSED):
            return self._note_on(flight).exists()

    def forget(self, flight: str) -> None:
        """Remove the note that a flight was begun, once its outcome is known."""
        with faults_named(self.path):
            remove_file(self._note_on(flight))

    def _note_on(self, flight: str) -> Path:
        # Finishing the store removes this folder, so that no writer can begin a flight after that.
        return self.path / OWN / FOLDER / f"begun-{flight}"

    def adopt(self, line: bytes) -> None:
        """Record a block that a writer that joined has written, by the line that its `write` returned."""
        self._lead()
        try:
            self._blocks.journal.note_block(line)
        except ValueError as error:
            raise OutputError(f"{self.path}: {error}: {line[:80]!r}. Write that block again") from error

    def build_pyramid(self, progress: Progress | None = None, *, make_shards: ShardMaker | None = None) -> None:
        """Write the coarser levels, shard by shard; continues where it was interrupted.

        `progress` is called with the number of blocks done and of blocks in all. `BlocksFailed` if a block to be read
        is damaged, which makes it pending again.
        """
        if not self.complete:
            self._lead()
        self._refuse_pending(0)
        work = [(level, list(self.pending(level))) for level in range(1, len(self.layout.levels))]
        done, total = 0, sum(len(indices) for _, indices in work)
        for level, indices in work:  # in order: each level is made from the one before
            # In no variable: if writing fails, the iterator is closed at once, and workers are asked for no more.
            for index, shard in zip(indices, self._shards(level, indices, make_shards), strict=True):
                self._blocks.put_all(level, index, [shard])
                done += 1
                if progress:
                    progress(done, total)

    def _shards(self, level: int, indices: Iterable[int], make_shards: ShardMaker | None) -> Iterator[bytes | None]:
        blocks = (self._blocks.coarser(level, index) for index in indices)
        try:
            # One by one in this thread: with two threads, a run of a small network took 543 MB instead of 456.
            yield from make_shards(blocks) if make_shards else (block.shard() for block in blocks)
        except Damaged as error:
            raise self._blocks.lose([*error.args]) from error

    def finish(self) -> None:
        """Verify every file, write the sorted journal, set ``complete: true``; list the mask if it lies in an image.

        `BlocksFailed` if files are not as they were written; their blocks are pending again.
        """
        if self.complete:
            return
        self._lead()
        self._check_allowed()
        for level in range(len(self.layout.levels)):
            self._refuse_pending(level)
        with faults_named(self.path):
            seal(self._blocks, self.info)
            self.log("finished")
            write_root(self._blocks, self.info, complete=True)
            self.complete = True
            enlist(self.path, self.layout)
            # Only now: this removes the mask that was replaced, until here the only complete one.
            tidy(self._blocks)
        self.close()

    def _refuse_pending(self, level: int) -> None:
        if (first := next(self.pending(level), None)) is not None:
            where = f" of level {level}" if level else ""
            raise OutputIncomplete(f"{self.path}: block {first}{where} is not written. Run again with --resume")
