"""Decoded pieces of a file, kept while there is room and shared by all readers of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock

from tilenet.readers.image import Pixels

CACHE_BYTES = 128 * 2**20


class PieceCache:
    """The pieces used last, of bounded bytes; a piece that two threads want is decoded once.

    The newest piece is kept even where it alone is larger than the bound: a strip that holds
    the whole image would otherwise be decoded again for every tile.

    Attributes
    ----------
    n_decoded : int
        Pieces decoded so far.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.n_decoded = 0
        self.n_bytes = 0
        self._pieces: OrderedDict[Hashable, Future[Pixels]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], Pixels]) -> Pixels:
        """Return the piece of that key, decoding it if it is not there."""
        with self._lock:
            piece = self._pieces.get(key)
            if piece is not None:
                self._pieces.move_to_end(key)
            else:
                mine = self._pieces[key] = Future()
        return piece.result() if piece is not None else self._decode(key, decode, mine)

    def _decode(self, key: Hashable, decode: Callable[[], Pixels], piece: Future[Pixels]) -> Pixels:
        try:
            pixels = decode()
        except BaseException as error:
            with self._lock:
                del self._pieces[key]
            piece.set_exception(error)
            raise
        piece.set_result(pixels)
        with self._lock:
            self.n_decoded += 1
            self.n_bytes += pixels.nbytes
            self._make_room(key)
        return pixels

    def _make_room(self, newest: Hashable) -> None:
        for key in list(self._pieces) if self.n_bytes > self.max_bytes else ():
            if self.n_bytes <= self.max_bytes:
                return
            piece = self._pieces[key]
            if key != newest and piece.done():
                del self._pieces[key]
                self.n_bytes -= piece.result().nbytes
