"""The objects of a mask that a table lists, by their numbers: those that `tilenet.write_table` did not leave out."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import OutputMismatch, SettingsError
from tilenet.export.intensities import VERDICTS
from tilenet.export.measures import is_table
from tilenet.export.outlines import regions
from tilenet.export.placement import Grid
from tilenet.export.shapes import Ids, cut_size, has_volumes, least_of, pixel_sizes
from tilenet.store import AnyMask

# What tables made with a rule say, as places in `tilenet.export.intensities.VERDICTS`.
TOLD = {verdict: place for place, verdict in enumerate(VERDICTS)}


@dataclass(frozen=True)
class Listing:
    """A table of a mask, and what of it is wanted.

    Attributes
    ----------
    table : Path
        The table.
    min_area : str or float, optional
        Leave out what is smaller, as for `tilenet.write_table`.
    positive : bool
        Whether to take what the table says of positive objects.
    """

    table: Path
    min_area: str | float | None = None
    positive: bool = True


@dataclass(frozen=True)
class Listed:
    """The objects that a table lists.

    Attributes
    ----------
    there : numpy.ndarray
        bool (n + 1): whether an object is listed, by its number; that of number 0 is False.
    positive : numpy.ndarray or None
        int (n + 1): whether it is positive, as a place in `VERDICTS`; None if the table does not say.
    """

    there: NDArray[np.bool_]
    positive: NDArray[np.int64] | None


def read_listed(mask: AnyMask, listing: Listing, grid: Grid) -> Listed:
    """Read which objects of a mask a table lists.

    Raises
    ------
    SettingsError
        If the mask has classes, or the file is no table of objects that tilenet wrote.
    OutputMismatch
        If it is the table of another mask.
    """
    if not mask.has_objects:
        raise SettingsError(f"{mask.path}: has classes, and a table chooses objects. Make it with --objects")
    table, least = listing.table, least_of(mask, listing.min_area)
    pixel = pixel_sizes(mask)[has_volumes(mask)]
    _refuse_foreign(table)
    there = np.zeros(mask.info["objects"] + 1, bool)
    positive, told, smallest = np.zeros(len(there), np.int64), False, None
    for line in _lines(table):
        number, told = int(line["object"]), "positive" in line
        if not 0 < number < len(there):
            raise OutputMismatch(
                f"{table}: lists object {number}, and {mask.path} has {len(there) - 1}. Give the table of this mask"
            )
        cut = cut_size(_size(line), pixel, line.get("area_um2") or line.get("volume_um3") or "")
        there[number] = not least.excludes(_size(line), cut)
        positive[number] = TOLD[line.get("positive", "0")]
        smallest = min(smallest or line, line, key=_size)
    if smallest and not _is_of(mask, grid, smallest):
        raise OutputMismatch(
            f"{table}: its object {smallest['object']} is not that of {mask.path}. Give the table of this mask, or "
            f"export it again"
        )
    return Listed(there, positive if told and listing.positive else None)


def _refuse_foreign(table: Path) -> None:
    try:
        ours = is_table(table)
    except OSError as error:
        raise SettingsError(f"{table}: cannot be read ({error.strerror}). Check the path") from error
    if not ours:
        raise SettingsError(
            f"{table}: is not a table that tilenet wrote: its first line does not begin with the names of its columns, "
            f"with commas between them. Give one as export --csv writes it"
        )


def _lines(table: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of a table of objects, each of which names its object and size, and all or none what it is."""
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.DictReader(file, restval="")
        for line in lines:
            if not (line["object"].isdecimal() and _size_of(line).isdecimal() and line.get("positive", "0") in TOLD):
                raise SettingsError(
                    f"{table}: line {lines.line_num} is not that of an object, but {_shown(line)}. Export it again, "
                    f"from a mask made with --objects"
                )
            yield line


def _shown(line: dict[str, str]) -> str:
    return ",".join(map(str, line.values()))[:60]


def _size_of(line: dict[str, str]) -> str:
    return line["area_px"] or line["volume_px"]


def _size(line: dict[str, str]) -> int:
    return int(_size_of(line))


def _is_of(mask: AnyMask, grid: Grid, line: dict[str, str]) -> bool:
    """Return whether an object of a mask has the id that a line of a table says, which no other mask has."""
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
    return found is not None and str(Ids(mask, plane).of(number, found.rings[0][0] + [top, left])) == line["id"]
