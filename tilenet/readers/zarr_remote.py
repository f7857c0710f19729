"""A zarr folder at an address: files are fetched on demand, and folders are never listed.

A web server cannot list its files, so missing chunks are found only when they are read. A missing
chunk counts as never written only if the image itself still exists, which is checked each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from tilenet.errors import EnvironmentFault
from tilenet.readers.cache import KEPT_BYTES
from tilenet.readers.remote import BucketNotFound, Forbidden, Remote
from tilenet.readers.zarr_metadata import DEEPEST, DOCUMENTS, LARGEST_DOCUMENT, Folder
from tilenet.readers.zarr_store import CheckedStore

V3, *V2 = DOCUMENTS


class RemoteFolder(Folder):
    """A folder of a zarr hierarchy below an address, by its path from the root of the host or the bucket."""

    def __init__(self, remote: Remote, path: str, *, asked_for: bool = True) -> None:
        self._remote, self._path, self._asked_for = remote, path, asked_for

    def __str__(self) -> str:
        return self._remote.name_of(self._path)

    def documents(self) -> dict[str, bytes]:
        found, refused = {}, None
        for names in ((V3,), V2):  # v2 only if it is not v3
            for name, data in zip(names, sync(self._fetch(names)), strict=True):
                if isinstance(data, Forbidden):  # S3's answer for a missing file too, if listing is not allowed
                    refused = data
                elif isinstance(data, BaseException):
                    raise data
                elif data is not None:
                    found[name] = data
            if found:
                return found
        if refused and self._asked_for:
            raise refused
        return {}

    async def _fetch(self, names: Sequence[str]) -> list[bytes | BaseException | None]:
        fetches = (self._remote.fetch(self.key(name), largest=LARGEST_DOCUMENT) for name in names)
        return await asyncio.gather(*fetches, return_exceptions=True)

    def key(self, name: str) -> str:
        """Return the path of a file in the folder, from the root of the host or the bucket."""
        return f"{self._path}/{name}".strip("/")

    def inside(self, path: str) -> RemoteFolder:
        return RemoteFolder(self._remote, self.key(path))

    def above(self) -> Iterator[tuple[Folder, str]]:
        parts = self._path.split("/")
        for k in range(len(parts) - 1, max(-1, len(parts) - 1 - DEEPEST), -1):
            yield RemoteFolder(self._remote, "/".join(parts[:k]), asked_for=False), "/".join(parts[k:])

    def what_lacks(self) -> str:
        return "has no zarr metadata, and only zarr can be read remotely. Check the address, or download the file"

    def store(self) -> RemoteArray:
        return RemoteArray(self._remote, self, self.documents())

    @property
    def kept_bytes(self) -> int:
        return KEPT_BYTES


class RemoteArray(CheckedStore, ObjectStore[Any]):
    """A read-only store of one array; `documents` is its metadata at the time when it was opened."""

    def __init__(self, remote: Remote, folder: RemoteFolder, documents: dict[str, bytes]) -> None:
        ObjectStore.__init__(self, remote.store, read_only=True)
        self._remote, self._folder, self._documents = remote, folder, documents

    def __str__(self) -> str:
        return str(self._folder)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key in DOCUMENTS:
            data = self._documents.get(key)
        else:
            data = await self._chunk(key, byte_range)
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def _chunk(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        try:
            data = await self._remote.fetch(
                self._folder.key(key), largest=self.largest(key), part=_part(byte_range), absent=self._still_there
            )
        except (Forbidden, BucketNotFound) as error:  # the image could be opened, so this may be temporary
            raise EnvironmentFault(f"{error}. Then run again with --resume") from None
        if data is not None:
            self.check_content(key, data, byte_range)
        return data

    async def _still_there(self) -> None:
        """Raise `EnvironmentFault` if the image was removed or replaced, so that no chunk passes for unwritten."""
        name, document = next(iter(self._documents.items()))
        if await self._remote.fetch_anew(self._folder.key(name), largest=LARGEST_DOCUMENT) != document:
            raise EnvironmentFault(
                f"{self}: was removed or changed while it was being read. Put it back, and run again with --resume"
            )


def _part(byte_range: ByteRequest | None) -> dict[str, object] | None:
    if isinstance(byte_range, RangeByteRequest):
        return {"range": (byte_range.start, byte_range.end)}
    if isinstance(byte_range, SuffixByteRequest):
        return {"range": {"suffix": byte_range.suffix}}
    return {"range": {"offset": byte_range.offset}} if isinstance(byte_range, OffsetByteRequest) else None
