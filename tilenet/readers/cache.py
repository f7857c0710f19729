"""A cache of the decoded pieces of a file, shared by all its readers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import TypeVar

from tilenet.readers.image import CACHE_BYTES, Pixels

Key = TypeVar("Key", bound=Hashable)


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
