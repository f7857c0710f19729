"""`Store`: the mask as it is written, block by block, by a run that may be killed at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from numpy.typing import NDArray

from tilenet.errors import EnvironmentFault, OutputError, OutputIncomplete
from tilenet.store.blocks import Blocks, Shard, shards_of
from tilenet.store.build import build
from tilenet.store.damage import Damage, blocks_lost, find_damage
from tilenet.store.files import faults_named, remove_file
from tilenet.store.layout import Layout
from tilenet.store.lease import Joined, Lease
from tilenet.store.metadata import OWN, read_root
from tilenet.store.place import check_free, left_behind, recover
from tilenet.store.pyramid import shrink
from tilenet.store.seal import log, seal, tidy, write_root


class Store:
    """A mask that is being written; see `Store.create`, `Store.resume` and `Store.join`.

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

    def __init__(self, path: Path, *, lease: Lease | Joined | None) -> None:
        self.path, self._lease = path, lease
        self.layout, self.info, self.complete = read_root(path)
        # One process may have several writers, so each names its journal file anew.
        self._blocks = Blocks(path, self.layout, uuid4().hex, allowed=self._check_allowed)
        if not isinstance(lease, Joined):
            self._blocks.load()

    @classmethod
    def create(cls, path: str | Path, layout: Layout, info: Mapping[str, Any], *, overwrite: bool = False) -> Store:
        """Make a store without pixels, and the folders above it, and take its lease.

        Parameters
        ----------
        path : path
            Where; there must be nothing, or with `overwrite` a store that tilenet wrote. That
            one is kept inside the new one until the new one is complete.
        layout : Layout
            Axes, shape and blocks.
        info : mapping
            How the mask is made; plain values, for JSON.
        overwrite : bool
            Replace a store.

        Raises
        ------
        OutputExists, OutputLocked, EnvironmentFault
            If something is in the way, if another run is writing there, if the disk is full
            or cannot be written.
        """
        path = Path(path).absolute()
        check_free(path, overwrite=overwrite)
        with faults_named(path):
            store = cls._leased(path, build(path, layout, info, replace=path.exists()))
            store._log("created")
        return store

    @classmethod
    def resume(cls, path: str | Path) -> Store:
        """Open a store to go on with, and take its lease.

        A complete one is compared with its journal: if it is right, nothing is touched and
        nothing is pending; what is damaged is removed and pending again.

        Raises
        ------
        OutputNotFound, OutputError, OutputLocked
            If there is none, if tilenet did not write it, if another run is writing it.
        """
        path = Path(path).absolute()
        with faults_named(path):
            recover(path)
            if read_root(path)[2] and not left_behind(path / OWN):
                store = cls.inspect(path)
                if not store.check():
                    return store
            store = cls._leased(path, Lease.take(path / OWN, path))
            try:
                store._take_up()
            except BaseException:
                store.close()
                raise
            return store

    @classmethod
    def _leased(cls, path: Path, lease: Lease) -> Store:
        lease.start(path / OWN)
        try:
            return cls(path, lease=lease)
        except BaseException:
            lease.release()
            raise

    @classmethod
    def inspect(cls, path: str | Path) -> Store:
        """Open a store to look at; nothing can be written."""
        return cls(Path(path).absolute(), lease=None)

    @classmethod
    def join(cls, path: str | Path, run: str) -> Store:
        """Open a store to write some blocks of it for a run that another process leads.

        Takes no lease: the leader's, with its run id, must be there at every write. What is
        written goes into a journal file of its own, and the leader learns of it by `adopt`,
        or by reading the journals when it resumes. Only the leader can finish the store.

        Parameters
        ----------
        path : path
            The store.
        run : str
            `run` of the store as the leader opened it.

        Raises
        ------
        OutputNotFound, OutputError, OutputLocked
            If there is none; if it is complete, or tilenet did not write it; if it is not,
            or no longer, that run which writes it.
        """
        path = Path(path).absolute()
        with faults_named(path):
            store = cls(path, lease=Joined(path / OWN, run))
            if store.complete:
                raise OutputError(f"{path}: is complete, and cannot be written")
            store._check_allowed()
            store._blocks.pen.open()  # now, so that a late line cannot make a new file in a finished store
        return store

    @property
    def run(self) -> str:
        """The run id of the lease, with which other processes can `join`."""
        return self._held().run

    def _take_up(self) -> None:
        """Put the store into the state from which a run goes on."""
        for left in (self.path / OWN).glob("*.part"):
            remove_file(left)
        if not self.complete:
            self._log("resumed")
            return
        damage = self.check()
        if any(found.file == self.layout.root for found in damage):
            raise OutputError(
                f"{self.path / self.layout.root}: was changed since it was written. Start again with --overwrite"
            )
        if not damage:  # killed after it was complete
            tidy(self._blocks)
            self.close()
            return
        write_root(self._blocks, self.info, complete=False)
        self.complete = False
        self._blocks.lose(damage)
        self._log("reopened", damaged=len(damage))

    def pending(self, level: int = 0, among: range | None = None) -> Iterator[int]:
        """Yield the blocks, of a level or a range, that are not in the journal with files of the right sizes."""
        return self._blocks.pending(level, among)

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
        shards = list(shards_of(self.layout, index, arrays))
        try:
            return self._blocks.write(0, index, shards)
        except EnvironmentFault:
            self._check_allowed()  # a run that took over sweeps away what this one was writing
            raise

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

    def build_pyramid(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Write the coarser levels, shard by shard; goes on where it was interrupted.

        Parameters
        ----------
        progress : callable
            Called with the blocks done and the blocks in all.

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
        work = [(level, i) for level in range(1, len(self.layout.levels)) for i in self.pending(level)]
        for done, (level, index) in enumerate(work, start=1):
            pixels = shrink(self.layout, level, index, read=self._blocks.read)
            self._blocks.write(level, index, [Shard(str(level), self.layout.box(level, index), pixels)])
            if progress:
                progress(done, len(work))

    def finish(self) -> None:
        """Verify every file, write the sorted journal, then set ``complete: true``.

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
            # Only now: until here the mask that was replaced is the only complete one.
            tidy(self._blocks)
        self.close()

    def check(self) -> list[Damage]:
        """Return every file that is not what the journal says, reading them all.

        Blocks that are not written yet are no damage in a store that is not complete.
        """
        lost = blocks_lost(self._blocks) if self.complete else ()
        return [*lost, *find_damage(self.path, self._blocks)]

    @classmethod
    def damage_of(cls, path: str | Path) -> list[Damage]:
        """Return the damage of a store without taking its lease; see `check`."""
        return cls.inspect(path).check()

    def close(self) -> None:
        """Release the lease, complete or not; may be called twice."""
        self._blocks.pen.close()
        lease, self._lease = self._lease, None
        if lease:
            lease.release()

    def _held(self) -> Lease | Joined:
        if self._lease is None:
            raise OutputError(f"{self.path}: is complete or closed, and cannot be written")
        return self._lease

    def _lead(self) -> Lease:
        lease = self._held()
        if isinstance(lease, Joined):
            raise OutputError(f"{self.path}: only the run that was joined can do this, not one that joined it")
        return lease

    def _check_allowed(self) -> None:
        self._held().check(self.path)

    def _refuse_pending(self, level: int) -> None:
        if (first := next(self.pending(level), None)) is not None:
            where = f" of level {level}" if level else ""
            raise OutputIncomplete(f"{self.path}: block {first}{where} is not written. Run again with --resume")

    def _log(self, event: str, **facts: Any) -> None:
        log(self.path / OWN, self._lead().holder, event, **facts)
