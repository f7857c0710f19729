"""A file of which any number of threads read parts at once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tilenet.errors import ImageError


class OpenFile:
    """A file that stays open until `close`; errors call it by a `name`."""

    def __init__(self, path: Path, *, name: str) -> None:
        self.name, self._file = name, os.open(path, os.O_RDONLY)
        self.n_bytes = os.fstat(self._file).st_size

    def read(self, start: int, n: int) -> memoryview:
        """Return n bytes from a place on, all of them (`ImageError` if the file ends before)."""
        self.check_open()
        self.check_end(start + n)
        data, done = np.empty(n, np.uint8).data, 0
        while done < n:
            read = os.preadv(self._file, [data[done:]], start + done)
            if not read:
                raise ImageError(f"{self.name}: is cut off at byte {start + done}. Get it again")
            done += read
        return data

    def check_open(self) -> None:
        """Refuse to read after `close`."""
        if self._file < 0:
            raise ImageError(f"{self.name}: is closed. Open it again")

    def check_end(self, end: int) -> None:
        """Refuse what ends behind the file."""
        if end > self.n_bytes:
            raise ImageError(f"{self.name}: is cut off at byte {self.n_bytes}, of {end} at least. Get it again")

    def close(self) -> None:
        """Close the file."""
        file, self._file = getattr(self, "_file", -1), -1
        if file >= 0:
            os.close(file)

    __del__ = close
