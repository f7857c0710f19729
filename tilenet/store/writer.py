"""`Store`: the mask as it is written, block by block, by a run that may be killed at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import time
from typing import Any

from numpy.typing import NDArray

from tilenet.errors import OutputError, OutputIncomplete
from tilenet.store.blocks import Blocks, Shard, shards_of
from tilenet.store.build import build
from tilenet.store.damage import Damage, blocks_lost, find_damage, read_right
from tilenet.store.files import faults_named, remove_file, remove_tree, step, sync_folder, write_all, write_file
from tilenet.store.journal import FOLDER, MERGED, Written
from tilenet.store.layout import Layout
from tilenet.store.lease import Lease
from tilenet.store.metadata import OWN, read_root, root_document
from tilenet.store.place import REPLACED, check_free, left_behind, recover
from tilenet.store.pyramid import shrink

LOG = "log.jsonl"


class Store:
    """A mask that is being written; see `Store.create` and `Store.resume`.

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

    def __init__(self, path: Path, *, lease: Lease | None) -> None:
        self.path, self._lease = path, lease
        self.layout, self.info, self.complete = read_root(path)
        self._blocks = Blocks(path, self.layout, lease.holder.run if lease else "")

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
            store.log("created")
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

    def _take_up(self) -> None:
        """Put the store into the state from which a run goes on."""
        for left in (self.path / OWN).glob("*.part"):
            remove_file(left)
        if not self.complete:
            self.log("resumed")
            return
        damage = self.check()
        if any(found.file == self.layout.root for found in damage):
            raise OutputError(
                f"{self.path / self.layout.root}: was changed since it was written. Start again with --overwrite"
            )
        if not damage:  # killed after it was complete
            self._tidy()
            self.close()
            return
        self._write_root(complete=False)
        self._blocks.lose(damage)
        self.log("reopened", damaged=len(damage))

    def pending(self, level: int = 0) -> Iterator[int]:
        """Yield the blocks of a level that are not in the journal with files of the right sizes."""
        return self._blocks.pending(level)

    def write(self, index: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write one block: one whole shard of each array, then its line in the journal.

        Safe from several threads, for different blocks.

        Parameters
        ----------
        index : int
            Of the block at level 0.
        arrays : mapping
            ``mask`` of the block's clipped shape and, where the layout has classes,
            ``probabilities`` with the classes in front.

        Raises
        ------
        EnvironmentFault, OutputLocked
            If the disk is full or fails; if another run has taken over.
        """
        self._held().check(self.path)
        self._blocks.write(0, index, list(shards_of(self.layout, index, arrays)))

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
        self._refuse_pending(0)
        work = [(level, i) for level in range(1, len(self.layout.levels)) for i in self.pending(level)]
        for done, (level, index) in enumerate(work, start=1):
            self._held().check(self.path)
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
        self._held().check(self.path)
        for level in range(len(self.layout.levels)):
            self._refuse_pending(level)
        with faults_named(self.path):
            documents = self._settle_documents()
            damage = [found for found in find_damage(self.path, self._blocks) if found.block is not None]
            if damage:
                raise self._blocks.lose(damage)
            lines = self._blocks.journal.sorted_lines(documents)
            write_file(self.path / OWN / MERGED, lines, temporary=self._blocks.temporary())
            step("sync folder", sync_folder, self.path / OWN)
            self.log("finished")
            self._write_root(complete=True)
            # Only now: until here the mask that was replaced is the only complete one.
            self._tidy()
        self.close()

    def _settle_documents(self) -> dict[str, Written]:
        """Put every document but the root's right; return what all of them are at the end."""
        fixed = {name: Written.of(data) for name, data in self._blocks.documents.items()}
        for name, written in fixed.items():
            if read_right(self.path / name, written) is None:
                self._blocks.put(name, self._blocks.documents[name])
        self._blocks.journal.documents.clear()
        return fixed | {self.layout.root: Written.of(root_document(self.layout, self.info, complete=True))}

    def _tidy(self) -> None:
        """Remove what only a run in progress needs."""
        self._blocks.pen.close()
        remove_tree(self.path / OWN / FOLDER)
        remove_tree(self.path / OWN / REPLACED)

    def _write_root(self, *, complete: bool) -> None:
        document = root_document(self.layout, self.info, complete=complete)
        write_file(self.path / self.layout.root, [document], temporary=self._blocks.temporary())
        step("sync folder", sync_folder, self.path)
        self.complete = complete

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

    def _held(self) -> Lease:
        if self._lease is None:
            raise OutputError(f"{self.path}: is complete or closed, and cannot be written")
        return self._lease

    def _refuse_pending(self, level: int) -> None:
        if (first := next(self.pending(level), None)) is not None:
            where = f" of level {level}" if level else ""
            raise OutputIncomplete(f"{self.path}: block {first}{where} is not written. Run again with --resume")

    def log(self, event: str, **facts: Any) -> None:
        """Add a line to ``.tilenet/log.jsonl``, the one file that differs from run to run."""
        holder = self._held().holder
        line = {"time": round(time(), 3), "event": event, "host": holder.host, "pid": holder.pid, **facts}
        handle = step("open log", os.open, self.path / OWN / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            step("log", write_all, handle, json.dumps(line).encode() + b"\n")
        finally:
            os.close(handle)
