"""The rows of a CSV file, those of objects in the order of their numbers.

Objects are found in the order of their last pixels. Their rows wait in a temporary file, as large as the table; memory
holds only where each of them lies there.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import numpy as np


class Rows:
    """Writes a CSV file: its header, then rows in the order in which they are added, or of their numbers.

    Numbers go from 1 to `n_numbers`, and each has at most one row; if that is None, rows stay as they are added.
    """

    def __init__(self, path: Path, columns: Sequence[str], n_numbers: int | None) -> None:
        self._file = path.open("wb")
        self._text = io.StringIO(newline="")
        self._csv = csv.DictWriter(self._text, columns, lineterminator="\n")
        self._csv.writeheader()
        self._file.write(self._taken())
        self._waiting = None if n_numbers is None else TemporaryFile(dir=path.parent)  # noqa: SIM115  (see `__exit__`)
        # By number: where its row begins among those that wait, and how long it is.
        self._places, self._end = np.zeros(((n_numbers or 0) + 1, 2), np.int64), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._write_waiting()
        finally:
            self._file.close()
            if self._waiting is not None:
                self._waiting.close()

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """Add a row of a number, which has no meaning if rows stay as they are added."""
        self._csv.writerow(row)
        text = self._taken()
        if self._waiting is None:
            self._file.write(text)
            return
        self._places[number] = self._end, len(text)
        self._end += self._waiting.write(text)

    def _taken(self) -> bytes:
        """Return, and forget, the text that was written since."""
        text = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        return text

    def _write_waiting(self) -> None:
        if self._waiting is None:
            return
        self._waiting.flush()
        # Unlike `seek` and `read`, this reads no more than the row.
        for start, length in self._places[self._places[:, 1] > 0].tolist():
            self._file.write(os.pread(self._waiting.fileno(), length, start))
