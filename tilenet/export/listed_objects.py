"""The objects of a mask that a table lists, by their numbers: those that `tilenet.write_table` did not leave out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import OutputMismatch, SettingsError, refuse_special_file
from tilenet.export.areas import cut_size, least_of, pixel_sizes
from tilenet.export.opened import has_volumes
from tilenet.export.outlines import regions
from tilenet.export.placement import MaskPlacement
from tilenet.export.positive_rules import VERDICTS
from tilenet.export.shapes import plane_id, shape_id
from tilenet.sheets import as_settings_errors, cells, name_columns, rows_of
from tilenet.store import AnyMask

# What tables made with a rule say, as places in `tilenet.export.positive_rules.VERDICTS`.
TOLD = {verdict: place for place, verdict in enumerate(VERDICTS)}
# Columns by which an object is found in the mask, and the one that only an object of this mask can have there.
PLACE, ID = ("t", "front", "left", "top", "right", "bottom"), "id"
LOG = logging.getLogger("tilenet")


@dataclass(frozen=True)
class Listing:
    """A table of a mask, and what of it is wanted."""

    table: Path
    # What is smaller is left out, as for `tilenet.write_table`.
    min_area: str | float | None = None
    # Whether to take what the table says of positive objects.
    positive: bool = True


@dataclass(frozen=True)
class Listed:
    """The objects that a table lists."""

    # (n + 1): whether an object is listed, by its number; number 0 is not.
    there: NDArray[np.bool_]
    # (n + 1): whether it is positive, as a place in `VERDICTS`; None if the table does not say.
    positive: NDArray[np.int64] | None


def read_listed(mask: AnyMask, listing: Listing, grid: MaskPlacement) -> Listed:
    """Read which objects of a mask a table lists, also one that a spreadsheet saved, or that lacks columns.

    Without those by which an object is known to be of the mask, a warning is logged. `SettingsError` if the mask is a
    plain one, or the file is no table of objects; `OutputMismatch` if it is the table of another mask.
    """
    if not mask.has_objects:
        raise SettingsError(f"{mask.path}: is a plain mask, and a table chooses objects. Segment again with --objects")
    table, least = listing.table, least_of(mask, listing.min_area)
    pixel = pixel_sizes(mask)[has_volumes(mask)]
    there = np.zeros(mask.info["objects"] + 1, bool)
    positive, told, smallest = np.zeros(len(there), np.int64), False, None
    for line in _lines(listing):
        number, told = int(line["object"]), "positive" in line
        if not 0 < number < len(there):
            raise OutputMismatch(
                f"{table}: lists object {number}, and {mask.path} has {len(there) - 1}. Give the table of this mask"
            )
        there[number] = listing.min_area is None or not least.excludes(_size(line), _cut_size(line, pixel))
        positive[number] = TOLD[line.get("positive", "0")]
        smallest = min(smallest or line, line, key=_size)
    if smallest and (lacking := [column for column in (ID, *PLACE) if column not in smallest]):
        LOG.warning(
            "%s: has no column %s, so whether it is a table of %s was not checked", table, lacking[0], mask.path
        )
    elif smallest and not _is_of(mask, grid, smallest, table):
        raise OutputMismatch(
            f"{table}: its object {smallest['object']} is not that of {mask.path}. Give the table of this mask, or "
            f"export it again"
        )
    return Listed(there, positive if told and listing.positive else None)


def _lines(listing: Listing) -> Iterator[dict[str, str]]:
    """Yield the lines of a table of objects, which name their object, and all or none their size and what it is."""
    table = listing.table
    refuse_special_file(table)
    try:
        file = table.open(newline="", encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise SettingsError(f"{table}: cannot be read ({error.strerror}). Check the path") from error
    with file:
        rows, mark = rows_of(file)
        with as_settings_errors(rows, table):
            _check_columns(name_columns(rows), listing)
            for row in rows:
                if any(cells(row)):
                    _check_line(row, f"{table}: line {rows.line_num}", mark)
                    yield row


def _check_columns(columns: list[str], listing: Listing) -> None:
    needed = ("object", *(() if listing.min_area is None else ("area_px", "volume_px")))
    if lacking := [column for column in needed if column not in columns]:
        raise SettingsError(
            f"{listing.table}: has no column {lacking[0]} in its first line, so it is no table of objects. Give one as "
            f"export --csv writes it"
        )


def _check_line(row: dict[str, str], where: str, mark: str) -> None:
    if "" in row:
        raise SettingsError(f"{where} has more values than columns. Put values with {mark} in quotes")
    sized = _size_of(row).isdecimal() or not ("area_px" in row or "volume_px" in row)
    if not (row["object"].isdecimal() and sized and row.get("positive", "0") in TOLD):
        raise SettingsError(
            f"{where} is not that of an object, but {','.join(cells(row))[:60]}. Export it again, from a mask made "
            f"with --objects"
        )


def _size_of(line: dict[str, str]) -> str:
    return line.get("area_px") or line.get("volume_px") or ""


def _size(line: dict[str, str]) -> int:
    return int(_size_of(line) or 0)


def _cut_size(line: dict[str, str], pixel: float | None) -> float | None:
    return cut_size(_size(line), pixel, line.get("area_um2") or line.get("volume_um3") or "")


def _is_of(mask: AnyMask, grid: MaskPlacement, line: dict[str, str], table: Path) -> bool:
    """Return whether an object of a mask has the id that a line of a table says, which no other mask has."""
    if commas := [f"{column} {line[column]}" for column in PLACE if "," in line[column]]:
        raise SettingsError(f"{table}: has numbers with decimal commas, such as {commas[0]}. Save it with points")
    try:
        first = {"t": int(line["t"]), "z": int(line["front"])}
        corners = np.array([[float(line[x]), float(line[y])] for x, y in (("left", "top"), ("right", "bottom"))])
    except ValueError:
        return False
    plane = tuple(first[axis] - start for axis, start in zip(mask.axes[:-2], mask.origin, strict=False))
    # The table is rounded, and limited to the image: one pixel more on each side has all of the object.
    around = np.add(grid.locate(corners).round(), [[-1], [1]]).clip(0, mask.shape[-2:])
    (top, left), (bottom, right) = around.astype(int).tolist()
    there = all(0 <= n < length for n, length in zip(plane, mask.shape, strict=False))
    if not (there and top < bottom and left < right):
        return False
    pixels, number = mask.read(0, (*plane, slice(top, bottom), slice(left, right))), int(line["object"])
    found = next(regions([np.where(pixels == number, pixels, 0)]), None)
    if found is None:
        return False
    return str(shape_id(plane_id(mask, plane), number, found.rings[0][0] + [top, left])) == line["id"]
