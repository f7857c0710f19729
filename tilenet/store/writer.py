"""The store: creates a mask on disk, takes whole blocks, and knows what is still missing.

OUT/
  zarr.json            `ome` metadata, and `tilenet`: how it was made, whether it is complete
  0/ 1/ 2/ ...         the mask and its pyramid
  probabilities/       if asked for: an OME-Zarr image
  .tilenet/
    journal/           lines of (level, block, files, sizes, checksums)
    lock, guard        the lease, while somebody writes
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import BlocksFailed, OutputError, OutputExists, OutputNotFound
from tilenet.store.files import faults, step, sweep, write_whole
from tilenet.store.journal import Journal
from tilenet.store.layout import MASK, PROBABILITIES, ArraySpec, Layout, image_metadata, label_metadata
from tilenet.store.lease import Lease, refuse_if_held
from tilenet.store.shards import Entry, checksum, group_metadata, metadata, write_shard

OWN = ".tilenet"


@dataclass(frozen=True)
class Damage:
    """One file that is not what was written.

    Attributes
    ----------
    level, index : int
        Its block; -1 for a file that nobody wrote.
    path : str
        Below the store.
    what : str
        Missing, of another size, changed, or not ours.
    """

    level: int
    index: int
    path: str
    what: str

    def __str__(self) -> str:
        block = f"block {self.index} of level {self.level}: " if self.index >= 0 else ""
        return f"{block}{self.path} {self.what}"


class Store:
    """A mask being written; made by `create` or `resume`.

    Attributes
    ----------
    path : Path
        Where it is.
    layout : Layout
        Its arrays.
    info : dict
        How it was made: what `create` was given.
    complete : bool
        Whether everything is there and verified.
    """

    def __init__(self, path: Path, run: str, *, lease: Lease | None) -> None:
        self.path, self._lease = path, lease
        self._attributes = read_attributes(path)
        self.info: dict[str, Any] = self._attributes["tilenet"]["info"]
        self.layout = Layout.from_json(self._attributes["tilenet"]["layout"])
        self.complete: bool = self._attributes["tilenet"]["complete"]
        self._journal = Journal(path / OWN / "journal", run)
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: str | Path, layout: Layout, info: dict[str, Any], *, overwrite: bool = False) -> Store:
        """Make an empty store, all of it or nothing, and take its lease.

        Parameters
        ----------
        path : path
            Missing parent folders are made.
        layout : Layout
            Its arrays.
        info : dict
            How it is made, ready for JSON; kept under the attribute ``tilenet``.
        overwrite : bool
            Replace a store that tilenet wrote; it is kept aside until this one is complete.
        """
        path = Path(path)
        check_free(path, overwrite=overwrite)
        run = uuid4().hex[:12]
        fresh = path.with_name(f".{path.name}.{run}.new")
        with faults(path):
            _sweep_beside(path)
            step("create")
            (fresh / OWN / "journal").mkdir(parents=True)
        for name, content in _documents(layout, info).items():
            write_whole(fresh / name, content)
        with faults(path):
            lease = Lease(fresh / OWN, run)
            try:
                if overwrite and path.exists():
                    step("aside")
                    _remove(_aside(path))
                    path.rename(_aside(path))
                step("publish")
                fresh.rename(path)
            except OSError as error:
                lease.release()
                _remove(fresh)
                if path.exists():  # somebody was faster
                    check_free(path)
                raise error
            lease.folder = path / OWN
        return cls(path, run, lease=lease)

    @classmethod
    def inspect(cls, path: str | Path) -> Store:
        """Open a store to look at: nothing can be written."""
        return cls(Path(path), "", lease=None)

    @classmethod
    def resume(cls, path: str | Path) -> Store:
        """Open a store to go on with it.

        A complete one is verified: if nothing is damaged it is opened as it is and nothing is
        touched, else the damaged blocks become pending again.
        """
        path, run = Path(path), uuid4().hex[:12]
        if read_attributes(path)["tilenet"]["complete"]:
            store = cls(path, run, lease=None)
            damaged = {(d.level, d.index) for d in store.check() if d.index >= 0}
            if not damaged:
                return store
            store._lease = Lease(path / OWN, run)
            store._set_complete(False)
            store._journal.drop(damaged)
            return store
        lease = Lease(path / OWN, run)
        sweep(path)
        return cls(path, run, lease=lease)

    def pending(self) -> Iterator[int]:
        """Yield the blocks of level 0 that are not journalled with the right file sizes."""
        return self._pending(0)

    def write(self, index: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Write all shards of a block, once, and then its line in the journal.

        Parameters
        ----------
        index : int
            In array order over the grid of blocks.
        arrays : dict
            ``mask`` (*box) and, if the layout has them, ``probabilities`` (K, *box), clipped to
            the image.
        """
        position = self.layout.position(0, index)
        files = self._write_shard(self.layout.array(0), position, arrays[MASK])
        spec, at = self.layout.probabilities, self.layout.channel_axis
        if spec is not None:
            for k, plane in enumerate(arrays[PROBABILITIES]):
                place = (*position[:at], k, *position[at:])
                files += self._write_shard(spec, place, np.expand_dims(plane.astype(spec.dtype), at))
        self._note(0, index, files)

    def build_pyramid(self) -> None:
        """Build the coarser levels from the finer ones, shard by shard."""
        import zarr

        for level in range(1, self.layout.n_levels):
            finer = zarr.open_array(self.path / str(level - 1), mode="r")
            shape, stride = self.layout.level_shape(level - 1), self.layout.stride(1)
            for index in self._pending(level):
                box = self.layout.box(level, index)
                region = tuple(
                    slice(a * s, min(b * s, n), s)
                    for a, b, s, n in zip(box.start, box.stop, stride, shape, strict=True)
                )
                spec, position = self.layout.array(level), self.layout.position(level, index)
                self._note(level, index, self._write_shard(spec, position, np.asarray(finer[region])))

    def finish(self) -> None:
        """Verify every file, merge the journal, and only then call the store complete.

        Raises
        ------
        BlocksFailed
            If files have been damaged meanwhile; resuming writes them again.
        """
        sweep(self.path)
        damage = self.check()
        if damage:
            self._journal.drop({(d.level, d.index) for d in damage if d.index >= 0})
            raise BlocksFailed(
                f"{self.path}: {len(damage)} files are not what was written ({damage[0]}). "
                f"Go on with --resume to write them again"
            )
        self._journal.merge()
        self._set_complete(True)
        _remove(_aside(self.path))
        self.close()

    def check(self) -> list[Damage]:
        """Return every file whose size or checksum is not the journal's, or that nobody wrote."""
        found, known = [], set()
        for (level, index), files in sorted(self._journal.entries.items()):
            for name, size, total in files:
                known.add(name)
                if what := _compare(self.path / name, size, total):
                    found.append(Damage(level, index, name, what))
        return found + [Damage(-1, -1, name, "was not written by this run") for name in self._shards() - known]

    def close(self) -> None:
        """Give the lease back; what is written stays."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _pending(self, level: int) -> Iterator[int]:
        entries = self._journal.entries
        for index in range(self.layout.n_blocks(level)):
            files = entries.get((level, index))
            if files is None or any(_size(self.path / name) != size for name, size, _ in files):
                yield index

    def _write_shard(self, spec: ArraySpec, position: tuple[int, ...], pixels: NDArray[Any]) -> list[Entry]:
        if self._lease is None:
            raise OutputError(f"{self.path}: is not open for writing")
        self._lease.check()
        return write_shard(self.path, spec, position, pixels)

    def _note(self, level: int, index: int, files: list[Entry]) -> None:
        with self._lock:
            self._journal.add(level, index, files)

    def _set_complete(self, complete: bool) -> None:
        self._attributes["tilenet"]["complete"] = self.complete = complete
        write_whole(self.path / "zarr.json", group_metadata(self._attributes))

    def _shards(self) -> set[str]:
        specs = [self.layout.array(k) for k in range(self.layout.n_levels)]
        specs += [self.layout.probabilities] if self.layout.probabilities else []
        files = (p for spec in specs for p in (self.path / spec.path / "c").rglob("*") if p.is_file())
        return {p.relative_to(self.path).as_posix() for p in files}


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a store (`OutputNotFound`, or `OutputError` if it is not tilenet's)."""
    if not path.exists():
        raise OutputNotFound(f"{path}: there is no such mask")
    try:
        attributes: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())["attributes"]
        if {"info", "layout", "complete"} <= attributes["tilenet"].keys():
            return attributes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise OutputError(f"{path}: is not a mask that tilenet wrote. Choose another path")


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, an output that exists or cannot be made.

    With `overwrite`, one that tilenet wrote and nobody is writing may be replaced.
    """
    parent = next(p for p in path.absolute().parents if p.exists())
    with faults(path):
        if not parent.is_dir():
            raise NotADirectoryError(20, f"{parent} is not a folder")
        if not os.access(parent, os.W_OK):
            raise PermissionError(13, f"{parent} is read-only")
    if not (path.exists() or path.is_symlink()):
        return
    if path.is_symlink() or not path.is_dir() or path.resolve() in (Path.home().resolve(), Path("/")):
        raise OutputExists(f"{path}: exists, and is not a mask that tilenet wrote. Choose another path")
    try:
        read_attributes(path)
    except OutputError as error:
        raise OutputExists(f"{path}: exists, and is not a mask that tilenet wrote. Choose another path") from error
    refuse_if_held(path / OWN)
    if not overwrite:
        raise OutputExists(f"{path}: exists. Go on with --resume, replace it with --overwrite, or choose another path")
    _check_ours(path)


def _check_ours(path: Path) -> None:
    layout = Layout.from_json(read_attributes(path)["tilenet"]["layout"])
    ours = {OWN, "zarr.json", PROBABILITIES, *map(str, range(layout.n_levels))}
    foreign = sorted(p.name for p in path.iterdir() if p.name not in ours)
    if foreign:
        raise OutputExists(f"{path}: holds {foreign[0]}, which tilenet did not write. Move it away first")


def _documents(layout: Layout, info: dict[str, Any]) -> dict[str, bytes]:
    """Return every metadata file of an empty store."""
    own = {"info": info, "layout": layout.to_json(), "complete": False}
    arrays = [layout.array(level) for level in range(layout.n_levels)]
    documents = {f"{spec.path}/zarr.json": metadata(spec) for spec in arrays}
    if layout.probabilities is not None:
        documents[f"{layout.probabilities.path}/zarr.json"] = metadata(layout.probabilities)
        documents[f"{PROBABILITIES}/zarr.json"] = group_metadata({"ome": image_metadata(layout)})
    return documents | {"zarr.json": group_metadata({"ome": label_metadata(layout), "tilenet": own})}


def _compare(path: Path, size: int, total: str) -> str | None:
    found = _size(path)
    if found is None:
        return "is missing"
    if found != size:
        return f"has {found} bytes, not {size}"
    return None if checksum(path.read_bytes()) == total else "has been changed"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def _remove(path: Path) -> None:
    """Remove a folder of ours: a store that was replaced, or one never published."""
    if path.is_dir() and not path.is_symlink():
        with faults(path):
            step("remove")
            shutil.rmtree(path)


def _sweep_beside(path: Path) -> None:
    """Remove stores that a killed run was about to publish under this name."""
    for fresh in path.parent.glob(f".{path.name}.*.new"):
        if (fresh / OWN).is_dir():
            try:
                refuse_if_held(fresh / OWN)
            except OutputError:
                continue
            if not (fresh / OWN / "lock").exists() and _young(fresh):
                continue
            _remove(fresh)


def _young(fresh: Path) -> bool:
    """Tell whether somebody may be making it this very minute."""
    import time

    return time.time() - fresh.stat().st_mtime < 60
