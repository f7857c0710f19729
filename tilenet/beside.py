"""What a batch puts beside each mask: a picture of it, a table of what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tilenet.measures import Measured, check_table_place, read_table, write_table
from tilenet.picture_files import check_picture_place, overview_beside, save
from tilenet.pictures import overlay


@dataclass(frozen=True)
class Beside:
    """What is wanted.

    Attributes
    ----------
    overview : bool
        NAME.overview.png, see `tilenet.overlay`.
    table : bool
        NAME.csv, see `tilenet.write_table`.
    min_area : str or float, optional
        Of what is counted; the table lists smaller ones, too, so that another area needs no other table.
    """

    overview: bool = False
    table: bool = False
    min_area: str | float | None = None

    def check(self, image: str, mask: Path) -> None:
        """Raise where something is in the way, before a mask is computed."""
        if self.overview:
            check_picture_place(overview_beside(mask), replace=True, image=image)
        if self.table:
            check_table_place(table_beside(mask), replace=True, image=image)

    def make(self, image: str, mask: Path) -> Measured | None:
        """Make what is not there, or is older than the mask; return what is in it, if there is to be a table."""
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
    """Tell whether a file is not there, or was made of a mask that was there before."""
    # What a store writes last.
    return not path.exists() or path.stat().st_mtime_ns < (mask / "zarr.json").stat().st_mtime_ns
