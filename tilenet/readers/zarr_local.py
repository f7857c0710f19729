"""A zarr folder on a local disk: links that lead out of it are refused, and its first files are checked on opening."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

import numpy as np
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from tilenet.errors import ImageError
from tilenet.readers.zarr_metadata import DAMAGED, DEEPEST, DOCUMENTS, LARGEST_DOCUMENT, Folder
from tilenet.readers.zarr_store import NO_CHUNK, CheckedStore

# Number of files checked on opening; faults of the others are found when they are read.
PROBED = 4096


class LocalFolder(Folder):
    """A folder of a zarr hierarchy at a local path."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def __str__(self) -> str:
        return str(self._path)

    def documents(self) -> dict[str, bytes]:
        return {name: _bytes(self._path / name) for name in DOCUMENTS if (self._path / name).is_file()}

    def inside(self, path: str) -> LocalFolder:
        return LocalFolder(self._path / path)

    def leads_out(self, path: str) -> bool:
        return not (self._path / path).resolve().is_relative_to(self._path.resolve())

    def above(self) -> Iterator[tuple[Folder, str]]:
        real = self._path.resolve()
        for group in list(real.parents)[:DEEPEST]:
            yield LocalFolder(group), real.relative_to(group).as_posix()

    def nodes_inside(self) -> list[str] | None:
        folders = (p for p in self._path.iterdir() if p.is_dir())
        return sorted(p.name for p in folders if any((p / name).is_file() for name in DOCUMENTS))

    def what_lacks(self) -> str:
        if not self._path.exists():
            return "there is no such image in the zarr folder. Check the path"
        return "is a folder without zarr metadata. Give an image file or a zarr folder"

    def store(self) -> LocalArray:
        return LocalArray(self._path.absolute())


class LocalArray(CheckedStore, LocalStore):
    """A read-only store of one array; links out of its folder, special files and oversized files are refused."""

    def __init__(self, root: Path) -> None:
        LocalStore.__init__(self, root, read_only=True)
        self._real = f"{os.path.realpath(root)}{os.sep}"

    def __str__(self) -> str:
        return str(self.root)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self._check_file(key)
        return self._checked(key, await LocalStore.get(self, key, prototype, byte_range), byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read without zarr's event loop, which it may be told to do since zarr 3.2."""
        self._check_file(key)
        data = LocalStore.get_sync(self, key, prototype=prototype, byte_range=byte_range)
        return self._checked(key, data, byte_range)

    def _checked(self, key: str, data: Buffer | None, byte_range: ByteRequest | None) -> Buffer | None:
        if data is not None:
            self.check_content(key, data, byte_range)
        return data

    def probe(self) -> None:
        """Refuse the array if one of its first files is empty, too large, cut off or a link out; no chunk is read."""
        index_bytes = self.bounds.index_bytes if self.bounds else 0
        for _, path in zip(range(PROBED), _files(Path(self.root)), strict=False):
            key = path.relative_to(self.root).as_posix()
            self._check_file(key)
            if path.is_dir() or path.name.startswith(".") or path.name in DOCUMENTS:
                continue
            size = path.stat().st_size
            if size == 0 or (index_bytes and not _shard_is_whole(path, size, index_bytes)):
                raise ImageError(f"{self.root}: {key} is cut off after {size} bytes. Get the image again")

    def _check_file(self, key: str) -> None:
        path = os.path.realpath(self.root / key)
        try:
            status = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        largest = self.largest(key)
        if not path.startswith(self._real):
            raise ImageError(f"{self.root}: {key} is a link that leads out of the image. Copy the image with its files")
        if S_ISREG(status.st_mode) and status.st_size > largest:
            raise ImageError(
                f"{self.root}: {key} has {status.st_size} bytes, more than the {largest} that it can have. "
                f"The file is damaged; get it again"
            )
        if not S_ISREG(status.st_mode) and not Path(path).is_dir():
            raise ImageError(f"{self.root}: {key} is not a file. Get the image again")


def _bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST_DOCUMENT:
        raise ImageError(f"{path}: has {size} bytes, too many for metadata. {DAMAGED}")
    return path.read_bytes()


def _files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))


def _shard_is_whole(path: Path, size: int, index_bytes: int) -> bool:
    if size < index_bytes + 4:
        return False
    with path.open("rb") as file:
        file.seek(size - index_bytes - 4)
        index = np.frombuffer(file.read(index_bytes), "<u8").reshape(-1, 2)
    held = index[index[:, 0] != NO_CHUNK]
    room = np.uint64(size - index_bytes - 4)
    return bool((held <= room).all() and (held.sum(axis=1) <= room).all())
