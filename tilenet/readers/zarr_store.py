"""Files of one zarr array, none trusted: not its size, nor where a link leads, nor what it unpacks to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from tilenet.errors import ImageError
from tilenet.readers.boundary import LARGEST_PIECE, check_piece
from tilenet.readers.unpacked import unpacks_to_more
from tilenet.readers.zarr_metadata import DOCUMENTS, LARGEST_DOCUMENT

# A chunk that does not compress grows by a header; no codec doubles it.
SLACK = 2**16
# Chunk files looked at on opening; a mask of what is wrong with the rest comes when they are read.
PROBED = 4096
NO_CHUNK = 2**64 - 1


@dataclass(frozen=True)
class Bounds:
    """How large the files of an array may be, and what a chunk of it may unpack to.

    Attributes
    ----------
    file_bytes, chunk_bytes : int
        Largest file; largest chunk once unpacked.
    codec : str
        What packed the chunks, such as ``"zstd"``; empty for nothing known.
    index_bytes : int
        Of the index at the end of a shard, without its checksum; 0 without shards.
    """

    file_bytes: int
    chunk_bytes: int
    codec: str
    index_bytes: int


class BoundedStore(LocalStore):
    """A folder of one array, read-only; files that no sound array has are refused."""

    bounds: Bounds | None = None

    def __init__(self, root: Path) -> None:
        super().__init__(root, read_only=True)
        self._real = f"{os.path.realpath(root)}{os.sep}"

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file or a part of it, checked."""
        self._check_file(key)
        data = await super().get(key, prototype, byte_range)
        if data is not None and self.bounds and key not in DOCUMENTS:
            self._check_content(key, data.to_bytes(), byte_range)
        return data

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files, checked."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def _check_file(self, key: str) -> None:
        path = os.path.realpath(self.root / key)
        try:
            status = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        largest = self.bounds.file_bytes if self.bounds and key not in DOCUMENTS else LARGEST_DOCUMENT
        if not path.startswith(self._real):
            raise ImageError(f"{self.root}: {key} is a link that leads out of the image. Copy the image with its files")
        if S_ISREG(status.st_mode) and status.st_size > largest:
            raise ImageError(
                f"{self.root}: {key} has {status.st_size} bytes, more than the {largest} that it can have. "
                f"The file is damaged; get it again"
            )
        if not S_ISREG(status.st_mode) and not Path(path).is_dir():
            raise ImageError(f"{self.root}: {key} is not a file. Get the image again")

    def _check_content(self, key: str, data: bytes, byte_range: ByteRequest | None) -> None:
        bounds = self.bounds
        assert bounds is not None
        if isinstance(byte_range, SuffixByteRequest):  # the index of a shard
            return
        chunks = _chunks_of_shard(data, bounds.index_bytes) if bounds.index_bytes and byte_range is None else [data]
        if any(unpacks_to_more(chunk, bounds.codec, limit=bounds.chunk_bytes) for chunk in chunks):
            raise ImageError(
                f"{self.root}: {key} unpacks to more than the {bounds.chunk_bytes} bytes that it can have. "
                f"The file is damaged; get it again"
            )


def open_array(path: Path) -> Any:
    """Open the array in a folder, its metadata and the first of its files checked."""
    store = BoundedStore(path.absolute())
    array = zarr.open_array(store=store, mode="r")
    if min(array.shape, default=0) < 1 or min(array.chunks) < 1:
        raise ImageError(
            f"{path}: has the shape {array.shape} in chunks of {array.chunks}: no pixels. Give another image"
        )
    chunk_bytes = prod(array.chunks) * array.dtype.itemsize
    check_piece(chunk_bytes, f"{path}: one of its chunks of {array.chunks}")
    store.bounds = _bounds(array, chunk_bytes)
    check_piece(store.bounds.index_bytes, f"{path}: the index of one of its shards of {array.shards}")
    _probe(store)
    return array


def _bounds(array: Any, chunk_bytes: int) -> Bounds:
    metadata = array.metadata
    if metadata.zarr_format == 2:
        codec = getattr(metadata.compressor, "codec_id", "")
        index_bytes, file_bytes = 0, chunk_bytes
    else:
        sharding = next((c for c in metadata.codecs if isinstance(c, ShardingCodec)), None)
        packers = [c.to_dict()["name"] for c in (sharding.codecs if sharding else metadata.codecs)]
        codec = next((name.removeprefix("numcodecs.") for name in reversed(packers) if name != "crc32c"), "")
        whole = array.shards or array.chunks
        index_bytes = 16 * prod(whole) // prod(array.chunks) if sharding else 0
        file_bytes = prod(whole) * array.dtype.itemsize + index_bytes
        if sharding and not _index_is_usual(sharding):
            codec, index_bytes = "", 0
    # Filters may widen what a compressor gives: eight times is float64 out of bytes.
    unpacked = max(chunk_bytes, min(8 * chunk_bytes, LARGEST_PIECE))
    return Bounds(2 * file_bytes + SLACK, unpacked + SLACK, codec, index_bytes)


def _index_is_usual(sharding: ShardingCodec) -> bool:
    """Tell whether shards have the index that zarr writes by default; others are left to zarr to check."""
    codecs = [c.to_dict() for c in sharding.index_codecs]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return str(sharding.index_location.value) == "end" and codecs == [little, {"name": "crc32c"}]


def _chunks_of_shard(data: bytes, index_bytes: int) -> Iterator[bytes]:
    """Yield the packed chunks of a whole shard whose index, and its checksum, are at the end."""
    index = np.frombuffer(data[len(data) - index_bytes - 4 : -4], "<u8").reshape(-1, 2)
    for offset, count in index.tolist():
        if offset != NO_CHUNK:
            yield data[offset : offset + count]


def _probe(store: BoundedStore) -> None:
    """Look at the first files of an array without reading chunks: empty, too large, cut off, links."""
    index_bytes = store.bounds.index_bytes if store.bounds else 0
    for _, path in zip(range(PROBED), _files(Path(store.root)), strict=False):
        key = path.relative_to(store.root).as_posix()
        store._check_file(key)
        if path.is_dir() or path.name.startswith(".") or path.name in DOCUMENTS:
            continue
        size = path.stat().st_size
        if size == 0 or (index_bytes and not _shard_is_whole(path, size, index_bytes)):
            raise ImageError(f"{store.root}: {key} is cut off after {size} bytes. Get the image again")


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
