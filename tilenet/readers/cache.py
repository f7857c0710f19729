"""Caches of what was read of a file: its decoded pieces and, of a remote one, its parts as fetched."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import TypeVar

from tilenet.readers.image import CACHE_BYTES, Pixels

Key = TypeVar("Key", bound=Hashable)
# In addition to the cache of decoded chunks: this one holds shard indexes and compressed chunks, which are smaller.
KEPT_BYTES = 32 * 2**20
# Bytes counted per part in addition to its data, so that the number of missing parts is bounded too.
OVERHEAD = 1024


class PieceCache:
    """A least-recently-used cache of bounded bytes; a piece that two threads want at once is decoded once.

    The newest piece is kept even if it alone exceeds the bound: a strip that holds the whole
    image would otherwise be decoded again for every tile.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.n_decoded = 0
        self.n_bytes = 0
        self._pieces: OrderedDict[Hashable, Future[Pixels]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], Pixels]) -> Pixels:
        """Return the piece of a key, decoding it if it is not cached."""
        return self.get_all([key], lambda _: [decode()])[0]

    def get_all(self, keys: Sequence[Key], decode: Callable[[list[Key]], Sequence[Pixels]]) -> list[Pixels]:
        """Return the pieces of some keys; `decode` is called once, for all that are not cached."""
        with self._lock:
            mine: dict[Key, Future[Pixels]] = {key: Future() for key in keys if key not in self._pieces}
            for key in keys:
                if key not in mine:
                    self._pieces.move_to_end(key)
            self._pieces.update(mine.items())
            pieces = [self._pieces[key] for key in keys]
        if mine:
            # Decode before waiting for the pieces of other threads, so that no two threads wait for each other.
            self._decode(mine, decode)
        return [piece.result() for piece in pieces]

    def _decode(self, mine: dict[Key, Future[Pixels]], decode: Callable[[list[Key]], Sequence[Pixels]]) -> None:
        try:
            decoded = decode(list(mine))
            pieces = list(zip(mine.values(), decoded, strict=True))
        except BaseException as error:
            with self._lock:
                for key in mine:
                    del self._pieces[key]
            for piece in mine.values():
                piece.set_exception(error)
            raise
        for piece, pixels in pieces:
            piece.set_result(pixels)
        with self._lock:
            self.n_decoded += len(mine)
            self.n_bytes += sum(pixels.nbytes for pixels in decoded)
            self._make_room(newest=next(reversed(mine)))

    def _make_room(self, newest: Hashable) -> None:
        for key in list(self._pieces) if self.n_bytes > self.max_bytes else ():
            if self.n_bytes <= self.max_bytes:
                return
            piece = self._pieces[key]
            if key != newest and piece.done():
                del self._pieces[key]
                self.n_bytes -= piece.result().nbytes


class FetchCache:
    """A least-recently-used cache of parts of files, still compressed; a part that two readers want is fetched once.

    Only coroutines of one event loop (zarr's) use it, so it needs no lock. A missing part is cached as None.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.max_bytes, self.n_bytes = max_bytes, 0
        self._parts: OrderedDict[Hashable, asyncio.Future[bytes | None]] = OrderedDict()

    def find(self, key: Hashable) -> bytes | None:
        """Return a part from the cache; None if it is not cached, or known to be missing."""
        part = self._parts.get(key)
        return part.result() if part is not None and part.done() else None

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        """Return the part of a key, fetching it if it is not cached; None if it does not exist."""
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = asyncio.ensure_future(self._fetch(key, fetch))
        self._parts.move_to_end(key)
        return await asyncio.shield(part)  # if this waiter is cancelled, the others still get the part

    async def _fetch(self, key: Hashable, fetch: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        try:
            data = await fetch()
        except BaseException:
            del self._parts[key]
            raise
        self.n_bytes += len(data or b"") + OVERHEAD
        for old, part in list(self._parts.items()) if self.n_bytes > self.max_bytes else ():
            if old != key and part.done():
                self.n_bytes -= len(part.result() or b"") + OVERHEAD
                del self._parts[old]
                if self.n_bytes <= self.max_bytes:
                    break
        return data
