"""A zarr folder at an address: files are fetched when they are asked for, and nothing is listed.

A web server cannot say what it has, so a chunk that is not there cannot be told beforehand. It
is one that was never written only as long as the image is there: that is made sure of each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from tilenet.address import parse_address
from tilenet.errors import EnvironmentFault
from tilenet.readers.fetched import KEPT_BYTES
from tilenet.readers.remote import BucketNotFound, Forbidden, Remote
from tilenet.readers.zarr_metadata import DEEPEST, DOCUMENTS, LARGEST_DOCUMENT, Folder
from tilenet.readers.zarr_store import Bounded

V3, *V2 = DOCUMENTS


class RemoteFolder(Folder):
    """A folder of a zarr hierarchy below an address.

    Parameters
    ----------
    remote : Remote
        Shared by all folders of an image.
    path : str
        From the root of the host or the bucket.
    """

    def __init__(self, remote: Remote, path: str) -> None:
        self._remote, self._path = remote, path

    def __str__(self) -> str:
        return self._remote.name_of(self._path)

    def documents(self) -> dict[str, bytes]:
        """Return its metadata documents: that of zarr v3, or else those of v2."""
        found, refused = {}, None
        for names in ((V3,), V2):
            for name, data in zip(names, sync(self._fetch(names)), strict=True):
                if isinstance(data, Forbidden):  # S3 says so of what is not there, where listing is not allowed
                    refused = data
                elif isinstance(data, BaseException):
                    raise data
                elif data is not None:
                    found[name] = data
            if found:
                return found
        if refused:
            raise refused
        return {}

    async def _fetch(self, names: Sequence[str]) -> list[bytes | BaseException | None]:
        fetches = (self._remote.fetch(self.key(name), largest=LARGEST_DOCUMENT) for name in names)
        return await asyncio.gather(*fetches, return_exceptions=True)

    def key(self, name: str) -> str:
        """Return the path of a file in it."""
        return f"{self._path}/{name}".strip("/")

    def inside(self, path: str) -> RemoteFolder:
        """Return a folder in it."""
        return RemoteFolder(self._remote, self.key(path))

    def leads_out(self, path: str) -> bool:
        """Return False: there are no links, and obstore takes no path that goes up."""
        return False

    def above(self) -> Iterator[tuple[Folder, str]]:
        """Yield the folders that it lies in, the nearest first, and its path in each."""
        parts = self._path.split("/")
        for k in range(len(parts) - 1, max(-1, len(parts) - 1 - DEEPEST), -1):
            yield Above(self._remote, "/".join(parts[:k])), "/".join(parts[k:])

    def nodes_inside(self) -> list[str] | None:
        """Return None: nothing is listed."""
        return None

    def what_lacks(self) -> str:
        """Return what to say where it has no metadata documents."""
        return "has no zarr metadata, and only zarr is read from afar. Check the address, or fetch the file first"

    def store(self) -> RemoteArray:
        """Return a zarr store of the array in it."""
        return RemoteArray(self._remote, self, self.documents())

    @property
    def kept_bytes(self) -> int:
        """Most bytes of its files that are kept in memory."""
        return KEPT_BYTES

    def reopens_as(self) -> str:
        """Return the address as it was given, with what opens it."""
        return self._remote.text


class Above(RemoteFolder):
    """A folder that was not asked for: that it may not be seen is no error."""

    def documents(self) -> dict[str, bytes]:
        """Return its metadata documents, none where access is refused."""
        try:
            return super().documents()
        except Forbidden:
            return {}


class RemoteArray(Bounded, ObjectStore[Any]):
    """The array in a folder, read-only; `documents` are what it was when it was opened."""

    def __init__(self, remote: Remote, folder: RemoteFolder, documents: dict[str, bytes]) -> None:
        ObjectStore.__init__(self, remote.store, read_only=True)
        self._remote, self._folder, self._documents = remote, folder, documents

    def __str__(self) -> str:
        return str(self._folder)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file or a part of it, checked."""
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
        except (Forbidden, BucketNotFound) as error:  # it could be opened, so this passes
            raise EnvironmentFault(f"{error}. A run goes on with --resume") from None
        if data is not None:
            self.check_content(key, data, byte_range)
        return data

    async def _still_there(self) -> None:
        """Raise `EnvironmentFault` where the image was taken away or replaced: no chunk is taken for unwritten then."""
        name, document = next(iter(self._documents.items()))
        if await self._remote.fetch_anew(self._folder.key(name), largest=LARGEST_DOCUMENT) != document:
            raise EnvironmentFault(
                f"{self}: was taken away or changed while it was read. Put it back, and run again with --resume"
            )


def _part(byte_range: ByteRequest | None) -> dict[str, object] | None:
    if isinstance(byte_range, RangeByteRequest):
        return {"range": (byte_range.start, byte_range.end)}
    if isinstance(byte_range, SuffixByteRequest):
        return {"range": {"suffix": byte_range.suffix}}
    return {"range": {"offset": byte_range.offset}} if isinstance(byte_range, OffsetByteRequest) else None


def open_folder(text: str) -> RemoteFolder:
    """Return the folder at an address; nothing is fetched yet."""
    address = parse_address(text)
    return RemoteFolder(Remote(address, text), address.path)
