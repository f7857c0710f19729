"""What was fetched from afar, kept while there is room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

# Beside the pixels of decoded chunks, which are kept too: indices of shards, and what is packed smaller.
KEPT_BYTES = 32 * 2**20
# What a part takes beside its bytes, so that parts that are not there are bounded too.
OVERHEAD = 1024


class FetchCache:
    """The parts of files fetched last, packed as they are; a part that two readers want is fetched once.

    It is used by coroutines of one event loop, that of zarr. What is not there is kept as None.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.max_bytes, self.n_bytes = max_bytes, 0
        self._parts: OrderedDict[Hashable, asyncio.Future[bytes | None]] = OrderedDict()

    def find(self, key: Hashable) -> bytes | None:
        """Return a part that is here, None if it is not."""
        part = self._parts.get(key)
        return part.result() if part is not None and part.done() else None

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        """Return the part of that key, fetching it if it is not here."""
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = asyncio.ensure_future(self._fetch(key, fetch))
        self._parts.move_to_end(key)
        return await asyncio.shield(part)  # whoever else waits for it still gets it

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
