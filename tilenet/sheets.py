"""Tables as spreadsheets save them: with commas, semicolons or tabs, quotes or none, and rows of empty cells."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tilenet.errors import SettingsError

# What stands between the values: a spreadsheet writes semicolons where the decimal mark is a comma.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def rows_of(text: TextIO) -> tuple[csv.DictReader[str], str]:
    """Return a reader of the rows of a table, for `name_columns`, and what separates their values.

    The text has the encoding ``utf-8-sig``, so that no byte order mark is left in it. Values of a row that have no
    column are a list under the name "".
    """
    separator = max(SEPARATORS, key=text.readline().count)
    text.seek(0)
    rows = csv.DictReader(text, restkey="", restval="", skipinitialspace=True, delimiter=separator)
    return rows, SEPARATORS[separator]


def name_columns(rows: csv.DictReader[str]) -> list[str]:
    """Read the names of the columns, and return them as rows will have them: in small letters, without blanks."""
    rows.fieldnames = header = [name.strip().lower() for name in rows.fieldnames or ()]
    return header


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the values of a row as text; those that have no column as one."""
    return ["".join(value) for value in row.values()]


@contextmanager
def as_settings_errors(rows: csv.DictReader[str], path: Path) -> Iterator[None]:
    """Raise `SettingsError` where rows cannot be told apart, such as for a value that is too long."""
    try:
        yield
    except csv.Error as error:
        raise SettingsError(f"{path}: line {rows.line_num}: {error}. Check that every quote is closed") from error
