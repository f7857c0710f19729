"""A store as one process holds it: whole, one share of it, for another's run, or only to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from tilenet.errors import OutputError
from tilenet.store.blocks import Blocks
from tilenet.store.build import build
from tilenet.store.damage import Damage, blocks_lost, find_damage
from tilenet.store.files import faults_named, remove_parts
from tilenet.store.layout import Layout
from tilenet.store.lease import WHOLE, Joined, Lease, Share
from tilenet.store.listing import enlist, is_listed, withdraw
from tilenet.store.metadata import OWN, read_root
from tilenet.store.place import check_free, left_behind, recover, sweep
from tilenet.store.seal import SHARE, last_shares, log, tidy, write_root


class Held:
    """What a `Store` is before it writes anything; see there."""

    def __init__(self, path: Path, *, lease: Lease | Joined | None) -> None:
        self.path, self._lease = path, lease
        self.layout, self.info, self.complete = read_root(path)
        # One process may have several writers, so each names its journal file anew.
        self._blocks = Blocks(path, self.layout, uuid4().hex, allowed=self._check_allowed)
        if not isinstance(lease, Joined):
            self._blocks.load()

    @classmethod
    def create(
        cls,
        path: str | Path,
        layout: Layout,
        info: Mapping[str, Any],
        *,
        overwrite: bool = False,
        share: Share | None = None,
    ) -> Self:
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
        share : (int, int), optional
            Take only the lease of this share, which of how many, so that other processes can
            take theirs; see `take_share`.

        Raises
        ------
        OutputExists, OutputLocked, EnvironmentFault
            If something is in the way, if another run is writing there, if the disk is full
            or cannot be written.
        """
        path = Path(path).absolute()
        check_free(path, overwrite=overwrite)
        with faults_named(path):
            store = cls._leased(path, build(path, layout, info, replace=overwrite and path.exists(), share=share))
            store._log("created", **({SHARE: list(share)} if share else {}))
        return store

    @classmethod
    def resume(cls, path: str | Path) -> Self:
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
                if not store.check() and is_listed(path, store.layout):
                    return store
            store = cls._leased(path, Lease.take(path / OWN, path))
            try:
                store._take_up()
            except BaseException:
                store.close()
                raise
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

        Each process has the lease of its own share; all join one `run`, which the first of them
        began, and see the same run record. None can finish the store, which needs the lease of
        the whole (`resume`). A complete store is returned as it is, and cannot be written.

        Parameters
        ----------
        path : path
            The store.
        share : (int, int)
            Which, from 1, of how many.

        Raises
        ------
        OutputNotFound, OutputError, OutputLocked
            If there is none; if tilenet did not write it; if another process writes the same
            share, the whole store, or shares of another number.
        """
        path = Path(path).absolute()
        with faults_named(path):
            recover(path)
            if read_root(path)[2]:
                return cls.inspect(path)
            store = cls._leased(path, Lease.take(path / OWN, path, share))
            if store.complete:  # since a moment ago
                store.close()
            else:
                store._log(SHARE, share=list(share))
        return store

    @classmethod
    def join(cls, path: str | Path, run: str) -> Self:
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

    @classmethod
    def inspect(cls, path: str | Path) -> Self:
        """Open a store to look at; nothing can be written."""
        return cls(Path(path).absolute(), lease=None)

    @property
    def run(self) -> str:
        """The run id of the lease, with which other processes can `join`."""
        return self._held().run

    @property
    def shares(self) -> int:
        """Into how many shares it was last cut; 0 if into none."""
        return last_shares(self.path / OWN)

    def _take_up(self) -> None:
        """Put the store into the state from which a run goes on."""
        remove_parts(self.path / OWN)
        sweep(self.path)  # a share may have been killed while it made a store that another was quicker to make
        if not self.complete:
            self._log("resumed")
            return
        damage = self.check()
        if any(found.file == self.layout.root for found in damage):
            raise OutputError(
                f"{self.path / self.layout.root}: was changed since it was written. Start again with --overwrite"
            )
        if not damage:  # killed after it was complete
            enlist(self.path, self.layout)
            tidy(self._blocks)
            self.close()
            return
        withdraw(self.path, self.layout)
        write_root(self._blocks, self.info, complete=False)
        self.complete = False
        self._blocks.lose(damage)
        self._log("reopened", damaged=len(damage))

    def pending(self, level: int = 0, among: range | None = None) -> Iterator[int]:
        """Yield the blocks, of a level or a range, that are not in the journal with files of the right sizes."""
        return self._blocks.pending(level, among)

    def check(self) -> list[Damage]:
        """Return every file that is not what the journal says, reading them all.

        Blocks that are not written yet are no damage in a store that is not complete.
        """
        lost = blocks_lost(self._blocks) if self.complete else ()
        return [*lost, *find_damage(self.path, self._blocks)]

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
        if isinstance(lease, Joined) or lease.kind != WHOLE:
            raise OutputError(f"{self.path}: only a run that holds the whole of it can do this, not one of several")
        return lease

    def _check_allowed(self) -> None:
        self._held().check(self.path)

    def _log(self, event: str, **facts: Any) -> None:
        lease = self._held()
        assert isinstance(lease, Lease)
        log(self.path / OWN, lease.holder, event, **facts)
