"""`Store`: the mask as it is written, block by block, by runs that may be killed at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from tilenet.errors import EnvironmentFault, OutputError, OutputIncomplete
from tilenet.store import begun
from tilenet.store.blocks import Shard, shards_of
from tilenet.store.files import faults_named
from tilenet.store.held import Held
from tilenet.store.listing import enlist
from tilenet.store.metadata import OWN
from tilenet.store.pyramid import Damaged, Spread, here
from tilenet.store.seal import seal, tidy, write_root


class Store(Held):
    """A mask that is being written; see `create`, `resume`, `take_share` and `join`.

    Attributes
    ----------
    path : Path
        The folder.
    layout : Layout
        Axes, shape and blocks.
    info : dict
        How the mask is made, as given to `create`.
    complete : bool
        Whether every block is written and verified; then nothing can be written any more.
    """

    def write(self, index: int, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        """Write one block: one whole shard of each array, then its line in the journal.

        Safe from several threads, for different blocks.

        Parameters
        ----------
        index : int
            Of the block at level 0.
        arrays : mapping
            ``mask`` of the block's clipped shape and, where the layout has classes,
            ``probabilities`` with the classes in front.

        Returns
        -------
        bytes
            The line in the journal, for `adopt`.

        Raises
        ------
        EnvironmentFault, OutputLocked
            If the disk is full or fails; if another run has taken over.
        """
        self._held()
        return self._write(index, list(shards_of(self.layout, index, arrays)))

    def write_background(self, index: int) -> bytes:
        """Write one block as background, in every array: its line in the journal, and no file; see `write`."""
        self._held()
        return self._write(index, [None] * self.layout.n_files(0))

    def _write(self, index: int, shards: Sequence[Shard | None]) -> bytes:
        try:
            return self._blocks.write(0, index, shards)
        except EnvironmentFault:
            with suppress(OSError):  # the folder is gone, and that is what is wrong
                self._check_allowed()  # a run that took over sweeps away what this one was writing
            raise

    def begin(self, flight: str, blocks: Iterable[int]) -> dict[int, bytes] | None:
        """Note that this writer begins to write some blocks, for a run that it joined.

        Parameters
        ----------
        flight : str
            Names these blocks, and nothing else in this store.
        blocks : iterable of int
            At level 0.

        Returns
        -------
        dict of int to bytes or None
            None if nobody has begun them before. Else what that writer has entered in its
            journal, by block: lines for `adopt`.

        Raises
        ------
        EnvironmentFault, OutputLocked
            As `write`.
        """
        try:
            self._check_allowed()
            with faults_named(self.path):
                before = begun.begin(self.path / OWN, flight, self._blocks.pen.writer)
                return None if before is None else begun.lines_by(self.path / OWN, before, blocks)
        except EnvironmentFault:
            self._check_allowed()
            raise

    def is_begun(self, flight: str) -> bool:
        """Tell whether a writer that joined has begun some blocks, and has not come to their end."""
        with faults_named(self.path):
            return begun.is_begun(self.path / OWN, flight)

    def forget(self, flight: str) -> None:
        """Remove the note that blocks were begun: what became of them is recorded."""
        with faults_named(self.path):
            begun.forget(self.path / OWN, flight)

    def adopt(self, line: bytes) -> None:
        """Note what a writer that joined has written, as if this one had.

        Parameters
        ----------
        line : bytes
            What its `write` returned.

        Raises
        ------
        OutputError
            If it is no line about a block of this store.
        """
        self._lead()
        try:
            self._blocks.journal.note_block(line)
        except ValueError as error:
            raise OutputError(f"{self.path}: {error}: {line[:80]!r}. Write that block again") from error

    def build_pyramid(
        self, progress: Callable[[int, int], None] | None = None, *, spread: Spread | None = None
    ) -> None:
        """Write the coarser levels, shard by shard; goes on where it was interrupted.

        Parameters
        ----------
        progress : callable
            Called with the blocks done and the blocks in all.
        spread : callable
            Makes the shards of blocks, in their order; default this thread.

        Raises
        ------
        OutputIncomplete
            If blocks of level 0 are pending.
        BlocksFailed
            If a block to be read is damaged; it is pending again.
        """
        if not self.complete:
            self._lead()
        self._refuse_pending(0)
        work = [(level, list(self.pending(level))) for level in range(1, len(self.layout.levels))]
        done, total = 0, sum(len(indices) for _, indices in work)
        for level, indices in work:  # one after the other: each is made of the one before it
            shards = self._shards(level, indices, spread or here)
            for index, shard in zip(indices, shards, strict=True):
                self._blocks.put_all(level, index, [shard])
                done += 1
                if progress:
                    progress(done, total)

    def _shards(self, level: int, indices: Iterable[int], spread: Spread) -> Iterator[bytes | None]:
        try:
            yield from spread(self._blocks.coarser(level, index) for index in indices)
        except Damaged as error:
            raise self._blocks.lose([*error.args]) from error

    def finish(self) -> None:
        """Verify every file, write the sorted journal, then set ``complete: true``; in an image, list the mask.

        Raises
        ------
        OutputIncomplete
            If blocks are pending.
        BlocksFailed
            If files are not as they were written; their blocks are pending again.
        """
        if self.complete:
            return
        self._lead()
        self._check_allowed()
        for level in range(len(self.layout.levels)):
            self._refuse_pending(level)
        with faults_named(self.path):
            seal(self._blocks, self.info)
            self._log("finished")
            write_root(self._blocks, self.info, complete=True)
            self.complete = True
            enlist(self.path, self.layout)
            # Only now: until here the mask that was replaced is the only complete one.
            tidy(self._blocks)
        self.close()

    def _refuse_pending(self, level: int) -> None:
        if (first := next(self.pending(level), None)) is not None:
            where = f" of level {level}" if level else ""
            raise OutputIncomplete(f"{self.path}: block {first}{where} is not written. Run again with --resume")
