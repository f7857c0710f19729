"""A cache of remote files and parts of them, as fetched."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

# In addition to the cache of decoded chunks: this one holds shard indexes and compressed chunks, which are smaller.
KEPT_BYTES = 32 * 2**20
# Bytes counted per part in addition to its data, so that the number of missing parts is bounded too.
OVERHEAD = 1024


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
