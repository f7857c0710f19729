"""Open a zarr array without trusting its files: their sizes and decompressed sizes are checked."""

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype

from tilenet.errors import ImageError
from tilenet.readers.decoded_size import is_known, unpacks_to_more
from tilenet.readers.guards import LARGEST_PIECE, check_piece
from tilenet.readers.zarr_metadata import DOCUMENTS, LARGEST_DOCUMENT, Folder

# Bytes allowed for headers: an incompressible chunk grows by a header, but no codec doubles its size.
SLACK = 2**16
NO_CHUNK = 2**64 - 1


@dataclass(frozen=True)
class Bounds:
    """Limits on the files of an array and on its decompressed chunks."""

    # Most bytes of a file, and of a decompressed chunk.
    file_bytes: int
    chunk_bytes: int
    # Last codec of the chunks, such as ``"zstd"``; empty if there is none, or if chunks are not to be checked.
    codec: str
    # Bytes of the index at the end of a shard, without its checksum; 0 if there is no such index.
    index_bytes: int


class EachPartAlone(Store):
    """A store that reads each part of a file by itself.

    Of several parts, zarr 3.2 and later reads neighbouring ones as one, whose content cannot be checked, and hides the
    error of a part in a group of errors.
    """

    # Of the stores that zarr can read without its event loop.
    get_sync: Callable[..., Buffer | None]

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **limits: int
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield the number and the content of every part of a file, all at once."""
        yield list(enumerate(await gather(*(self.get(key, prototype, part) for part in byte_ranges))))

    def get_ranges_sync(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **limits: int
    ) -> Sequence[tuple[int, Buffer | None]]:
        """Return the number and the content of every part of a file."""
        parts = (self.get_sync(key, prototype=prototype, byte_range=part) for part in byte_ranges)
        return list(enumerate(parts))


class CheckedStore(EachPartAlone):
    """Base class of the local and the remote store of an array, which check that its files keep to `bounds`."""

    bounds: Bounds | None = None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def largest(self, key: str) -> int:
        """Return the most bytes that a file may have."""
        return self.bounds.file_bytes if self.bounds and key not in DOCUMENTS else LARGEST_DOCUMENT

    def check_content(self, key: str, data: Buffer | bytes, byte_range: ByteRequest | None) -> None:
        """Refuse chunks that decompress to more bytes than a chunk can have."""
        bounds = self.bounds
        if bounds is None or not is_known(bounds.codec) or key in DOCUMENTS:
            return
        if isinstance(byte_range, SuffixByteRequest):  # the index of a shard
            return
        data = data if isinstance(data, bytes) else data.to_bytes()  # a copy, which uncompressed chunks do without
        chunks = _chunks_of_shard(data, bounds.index_bytes) if bounds.index_bytes and byte_range is None else [data]
        if any(unpacks_to_more(chunk, bounds.codec, limit=bounds.chunk_bytes) for chunk in chunks):
            raise ImageError(
                f"{self}: {key} unpacks to more than the {bounds.chunk_bytes} bytes that it can have. "
                f"The file is damaged; get it again"
            )

    def probe(self) -> None:
        """Check the files for faults that are cheap to find; by default, check nothing."""


def open_array(folder: Folder) -> Any:
    """Open the array in a folder, after checking its metadata and its first files."""
    store = folder.store()
    array = zarr.open_array(store=store, mode="r")
    if min(array.shape, default=0) < 1 or min(array.chunks) < 1:
        raise ImageError(
            f"{folder}: has the shape {array.shape} in chunks of {array.chunks}: no pixels. Give another image"
        )
    chunk_bytes = prod(array.chunks) * array.dtype.itemsize
    check_piece(chunk_bytes, f"{folder}: one of its chunks of {array.chunks}")
    store.bounds = _bounds(array, chunk_bytes)
    check_piece(store.bounds.index_bytes, f"{folder}: the index of one of its shards of {array.shards}")
    store.probe()
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
    # A filter may have widened the data before compression, at most eightfold: from bytes to float64.
    unpacked = max(chunk_bytes, min(8 * chunk_bytes, LARGEST_PIECE))
    return Bounds(2 * file_bytes + SLACK, unpacked + SLACK, codec, index_bytes)


def _index_is_usual(sharding: ShardingCodec) -> bool:
    """Return whether shards have the index that zarr writes by default; shards with another are not checked here."""
    codecs = [c.to_dict() for c in sharding.index_codecs]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    place = getattr(sharding.index_location, "value", sharding.index_location)  # a text since zarr 3.2
    return str(place) == "end" and codecs == [little, {"name": "crc32c"}]


def _chunks_of_shard(data: bytes, index_bytes: int) -> Iterator[bytes]:
    """Yield the compressed chunks of a whole shard, whose index and its checksum are at the end."""
    index = np.frombuffer(data[len(data) - index_bytes - 4 : -4], "<u8").reshape(-1, 2)
    for offset, count in index.tolist():
        if offset != NO_CHUNK:
            yield data[offset : offset + count]
