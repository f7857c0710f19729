"""The files that a batch puts beside each mask: a picture, and a table of its regions or objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tilenet.measures import Measured, check_table_place, read_table, write_table
from tilenet.picture_files import check_picture_place, overview_beside, save
from tilenet.pictures import overlay


@dataclass(frozen=True)
class Beside:
    """Which files to put beside each mask.

    Attributes
    ----------
    overview : bool
        Whether to draw NAME.overview.png, see `tilenet.overlay`.
    table : bool
        Whether to write NAME.csv, see `tilenet.write_table`.
    min_area : str or float, optional
        Smallest area that is counted. The table lists smaller ones too, so that another area needs no new table.
    """

    overview: bool = False
    table: bool = False
    min_area: str | float | None = None

    def check(self, image: str, mask: Path) -> None:
        """Raise if another file is in the way, before the mask is computed."""
        if self.overview:
            check_picture_place(overview_beside(mask), replace=True, image=image)
        if self.table:
            check_table_place(table_beside(mask), replace=True, image=image)

    def make(self, image: str, mask: Path) -> Measured | None:
        """Make the files that are missing or older than the mask; return its measurements if a table is wanted."""
        picture, table = overview_beside(mask), table_beside(mask)
        if self.overview and _is_older(picture, mask):
            save(overlay(image, mask), picture)
        if not self.table:
            return None
        if _is_older(table, mask):
            write_table(mask, table, image=image, overwrite=True)
        return read_table(mask, table, min_area=self.min_area)


def table_beside(mask: Path) -> Path:
    """Return where the table of a mask goes.

    >>> table_beside(Path("masks/a.zarr")).as_posix()
    'masks/a.csv'
    """
    return mask.with_name(f"{mask.name.removesuffix('.zarr')}.csv")


def _is_older(path: Path, mask: Path) -> bool:
    """Return whether a file is missing, or older than the mask."""
    # zarr.json is the last file that a store writes.
    return not path.exists() or path.stat().st_mtime_ns < (mask / "zarr.json").stat().st_mtime_ns
