"""How one process opens a store: whole, for one share, for another process's run, or only to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from tilenet.errors import ANEW, OutputError, closed_on_error
from tilenet.store.blocks import Blocks
from tilenet.store.build import build
from tilenet.store.damage import Damage, blocks_lost, find_damage
from tilenet.store.destination import check_free
from tilenet.store.file_system import ACCESSED, faults_named, remove_parts
from tilenet.store.guarded_files import stamp_of
from tilenet.store.label_list import enlist, is_listed, withdraw
from tilenet.store.layout import Layout
from tilenet.store.lease import WHOLE, Joined, Lease, Share
from tilenet.store.leftovers import left_behind, recover, sweep
from tilenet.store.metadata import OWN, read_root
from tilenet.store.seal import SHARE, events, last_shares, log, tidy, write_root


class OpenedStore:
    """The part of `Store` that opens, checks and closes it; see there."""

    def __init__(self, path: Path, *, lease: Lease | Joined | None) -> None:
        self.path, self._lease = path, lease
        self.layout, self.info, self.complete = read_root(path)
        # One process may have several writers, so each gets a new name for its journal file.
        self._blocks = Blocks(path, self.layout, uuid4().hex, allowed=self._check_allowed)
        if not isinstance(lease, Joined):
            with faults_named(path, what=ACCESSED):
                _ = self._blocks.journal  # read now, as threads that share the store need it from the start

    @classmethod
    def create(
        cls,
        path: str | Path,
        layout: Layout,
        info: Mapping[str, Any],
        *,
        overwrite: bool = False,
        share: Share | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a store without pixels, with any missing parent folders, and take its lease, or that of a share.

        `info` says how the mask is made, as plain values for JSON; `facts` are for the first line of its log. With
        `overwrite`, a store that tilenet wrote is kept inside the new one until that is complete. `OutputExists` if
        anything else is in the way, `OutputLocked` if another run is writing there.
        """
        path = Path(path).absolute()
        replace = check_free(path, overwrite=overwrite)
        with faults_named(path, resumes=False):  # there is nothing to resume yet
            facts = ({SHARE: list(share)} if share else {}) | dict(facts or {})
            return cls._leased(path, build(path, layout, info, replace=replace, share=share, facts=facts))

    @classmethod
    def resume(cls, path: str | Path) -> Self:
        """Open a store to continue writing it, and take its lease; `OutputLocked` if another run is writing it.

        A complete store is compared with its journal. If every file is right, nothing is changed and nothing is
        pending. Damaged shards are removed, and their blocks are pending again.
        """
        path = Path(path).absolute()
        with faults_named(path):
            recover(path)
            damage, stamp = None, stamp_of(path)
            if read_root(path).complete and not left_behind(path / OWN):
                store = cls.inspect(path)
                damage = store._harm()
                if not damage and is_listed(path, store.layout):
                    return store
            store = cls._leased(path, Lease.take(path / OWN, path))
            with closed_on_error(store):
                # Another process may have repaired it before this one got the lease.
                store._take_up(damage if stamp_of(path) == stamp else None)
            return store

    @classmethod
    def _leased(cls, path: Path, lease: Lease) -> Self:
        lease.start(path / OWN)
        try:
            return cls(path, lease=lease)
        except BaseException:
            lease.release()
            raise

    @classmethod
    def take_share(cls, path: str | Path, share: Share) -> Self:
        """Open a store to write a share of its blocks, while other processes write theirs.

        All of them join one `run`, which the first of them began. None of them can finish the store, which needs the
        lease of the whole (`resume`). A complete store is returned as it is, and cannot be written. `OutputLocked` if
        another process writes the same share, the whole store, or shares of another number.
        """
        path = Path(path).absolute()
        with faults_named(path):
            recover(path)
            if read_root(path).complete:
                return cls.inspect(path)
            store = cls._leased(path, Lease.take(path / OWN, path, share))
            if store.complete:  # completed by another process just now
                store.close()
            else:
                with closed_on_error(store):
                    store.log(SHARE, share=list(share))
        return store

    @classmethod
    def join(cls, path: str | Path, run: str) -> Self:
        """Open a store to write some blocks of it for a `run` that another process leads.

        This takes no lease: at every write, the leader's lease with its run id must still be there (else
        `OutputLocked`). Blocks are recorded in a journal file of this writer's own. The leader learns of them by
        `adopt`, or by reading the journals when it resumes. Only the leader can finish the store.
        """
        path = Path(path).absolute()
        with faults_named(path):
            store = cls(path, lease=Joined(path / OWN, run))
            if store.complete:
                raise OutputError(f"{path}: is complete, and cannot be written")
            store._check_allowed()
            store._blocks.pen.create()  # now, so that a late line cannot create a journal in a finished store
        return store

    @classmethod
    def inspect(cls, path: str | Path) -> Self:
        """Open a store to read it; nothing can be written."""
        return cls(Path(path).absolute(), lease=None)

    @property
    def run(self) -> str:
        """The run id of the lease, which other processes pass to `join`."""
        return self._held().run

    @property
    def shares(self) -> int:
        """Number of shares into which the store was last divided; 0 if it never was."""
        return last_shares(self.path / OWN)

    def _take_up(self, damage: Sequence[Damage] | None) -> None:
        """Bring the store into a state from which a run can continue; `damage` is what an earlier check found."""
        remove_parts(self.path / OWN)
        sweep(self.path)  # a share may have been killed while creating a store that another share created first
        if not self.complete:
            self.log("resumed")
            return
        damage = self._harm() if damage is None else damage
        if any(found.file == self.layout.root for found in damage):
            raise OutputError(
                f"{self.path / self.layout.root}: was changed since it was written. To replace the mask, {ANEW}"
            )
        if not damage:  # killed after completing the store, before tidying up
            enlist(self.path, self.layout)
            tidy(self._blocks)
            self.close()
            return
        withdraw(self.path, self.layout)
        write_root(self._blocks, self.info, complete=False)
        self.complete = False
        self._blocks.lose(damage)
        self.log("reopened", damaged=len(damage))

    def pending(self, level: int = 0, among: range | None = None) -> Iterator[int]:
        """Yield the blocks of a level, all or in a range, that the journal lacks or whose files have other sizes."""
        with faults_named(self.path, what=ACCESSED):
            yield from self._blocks.pending(level, among)

    def lacks_blocks(self, among: range | None = None) -> bool:
        """Return whether any block of level 0 is pending, of all or of a range."""
        return next(self.pending(among=among), None) is not None

    def check(self) -> list[Damage]:
        """Read every file, and return those that are not what the journal says."""
        with faults_named(self.path, what=ACCESSED, resumes=False):
            lost = blocks_lost(self._blocks) if self.complete else ()
            return [*lost, *find_damage(self._blocks)]

    def _harm(self) -> list[Damage]:
        """Return the damage that writing blocks mends: all but foreign files."""
        return [found for found in self.check() if not found.is_foreign]

    def log(self, event: str, **facts: Any) -> None:
        """Append a line to the store's log, the one file that differs from run to run."""
        self._held()
        with faults_named(self.path):
            log(self.path / OWN, event, **facts)

    def events(self) -> list[dict[str, Any]]:
        """Return what the store's log says, line by line: the time, the event, and its facts."""
        with faults_named(self.path, what=ACCESSED):
            return list(events(self.path / OWN))

    def close(self) -> None:
        """Release the lease, whether or not the store is complete; may be called twice."""
        lease, self._lease = self._lease, None
        if lease:
            lease.release()

    def _held(self) -> Lease | Joined:
        if self._lease is None:
            raise OutputError(f"{self.path}: cannot be written: the store is complete or has been closed")
        return self._lease

    def _lead(self) -> Lease:
        lease = self._held()
        if isinstance(lease, Joined) or lease.kind != WHOLE:
            raise OutputError(f"{self.path}: only a run that holds the whole of it can do this, not one of several")
        return lease

    def _check_allowed(self) -> None:
        self._held().check(self.path)
