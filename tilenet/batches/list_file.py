"""Lists of images as tables that spreadsheets save: their rows, and the options in them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tilenet.card import parse_scaling
from tilenet.errors import SettingsError
from tilenet.jobs.options import parse_channels, parse_sides, parse_tissue
from tilenet.readers.calibrated import parse_pixel_size
from tilenet.sheets import SEPARATORS, as_settings_errors, cells, name_columns, rows_of

# Columns of a list that are options, and the functions that parse their text.
COLUMNS: Mapping[str, Callable[[str], Any]] = {
    "level": int,
    "mpp": float,
    "axes": str,
    "pixel_size": parse_pixel_size,
    "channels": parse_channels,
    "tile": parse_sides,
    "batch": int,
    "threads": int,
    "scaling": parse_scaling,
    "threshold": float,
    "least_depth": float,
    "link": float,
    "output": str,
    "missing": str,
    "tissue": parse_tissue,
}


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row of a list is, and what it says, by column; ``image`` among that."""
    rows, mark = _rows(path)
    for where, row in _filled(rows, path):
        if "" in row or not row["image"].strip():
            raise SettingsError(f"{where} has no image, or more values than columns. Put values with {mark} in quotes")
        said = {column: value.strip() for column, value in row.items() if value.strip()}
        _check_decimal_mark(said.get("pixel_size", ""), mark, where)
        yield where, said


def _filled(rows: csv.DictReader[str], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row of a list is, and the row, except for rows of empty cells, which spreadsheets append.

    A quote that is not closed is refused, because all lines below it would be taken for one value.
    """
    with as_settings_errors(rows, path):
        for row in rows:
            values = cells(row)
            if opened := [value for value in values if "\n" in value]:
                raise SettingsError(f"{path}: the quote before {opened[0].splitlines()[0]!r} is not closed in its line")
            if any(value.strip() for value in values):
                yield f"{path}: line {rows.line_num}", row


def _rows(path: Path) -> tuple[csv.DictReader[str], str]:
    """Return the rows of a list, by the names of its columns in small letters, and what separates their values."""
    rows, mark = rows_of(io.StringIO(text_of(path)))
    known = ("image", "name", "model", "within", "positive", *COLUMNS)
    with as_settings_errors(rows, path):
        header = name_columns(rows)
    if "image" not in header:
        raise SettingsError(f"{path}: has no column image. Its first line must name the columns")
    if unknown := [column for column in header if column not in known]:
        raise SettingsError(f"{path}: column {unknown[0]!r} is none of {', '.join(known)}")
    if twice := [column for column in known if header.count(column) > 1]:
        raise SettingsError(f"{path}: has two columns {twice[0]}. Remove one")
    return rows, mark


def _check_decimal_mark(size: str, mark: str, where: str) -> None:
    """Refuse a pixel size of whole numbers and one comma, in a list whose marks leave room for a decimal comma."""
    if mark != SEPARATORS[","] and size.count(",") == 1 and "." not in size:
        raise SettingsError(f"{where}: pixel_size {size!r} may be one number or two. Write points: 1.5, or 1.0,5.0")


def parsed_options(said: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that a row names, parsed from their texts."""
    options = {}
    for column, text in said.items():
        try:
            options[column] = COLUMNS[column](text)
        except SettingsError:
            raise
        except ValueError as error:
            comma = COLUMNS[column] is float and re.fullmatch(r"\d*,\d+", text)
            remedy = f"Write {text.replace(',', '.')}, with a point" if comma else "See tilenet segment --help"
            raise SettingsError(f"{column} cannot be {text!r}. {remedy}") from error
    return options


def text_of(path: Path) -> str:
    """Return the text of a list."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not text in UTF-8. Save it so (in Excel: CSV UTF-8)") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}). Check the file") from error
