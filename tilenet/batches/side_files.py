"""The files that a batch puts beside each mask: a picture, and a table and polygons of its regions or objects."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilenet.batches.image_list import BatchItem
from tilenet.errors import OutputError, SettingsError, TilenetError, one_line
from tilenet.export.areas import pixels_of_area
from tilenet.export.descriptors import COLUMNS as FORMS
from tilenet.export.intensities import Intensities
from tilenet.export.listed_objects import Listing
from tilenet.export.polygons_file import Polygons, is_polygons, rule_text, write_polygons
from tilenet.export.polygons_file import rule_of as rule_of_polygons
from tilenet.export.positive_rules import STAINS, is_judged_by
from tilenet.export.table import is_table, read_table, write_table
from tilenet.export.totals import Measured
from tilenet.footprint import Footprint
from tilenet.masks.protected import check_file_place, refuse_protected
from tilenet.models.named import load_named
from tilenet.pictures.files import check_picture_place, overview_beside, rule_of, save
from tilenet.pictures.overlays import overlay
from tilenet.predict.predictors import footprint_of
from tilenet.readers import open_image
from tilenet.store.file_system import faults_named
from tilenet.store.leftovers import sweep


@dataclass(frozen=True)
class Columns:
    """Which columns tables have beside those that all have, and polygons as measurements: options of `write_table`."""

    shapes: bool = False
    intensities: bool = False
    stains: bool = False

    def are_in(self, table: Path) -> bool:
        """Return whether a table has them."""
        with table.open(newline="", encoding="utf-8") as file:
            there = set(next(csv.reader(file), ()))
        of_stains = {f"sd_{stain}" for stain in STAINS}
        of_channels = {column for column in there if column.startswith("sd_")} - of_stains
        return (
            (not self.shapes or there.issuperset(FORMS))
            and (not self.intensities or bool(of_channels))
            and (not self.stains or there.issuperset(of_stains))
        )


@dataclass(frozen=True)
class SideFiles:
    """Which files to put beside each mask."""

    # Whether to draw NAME.overview.png, see `tilenet.overlay`: of objects, those that are counted, by the table.
    overview: bool = False
    # Whether to write NAME.csv, see `tilenet.write_table`.
    table: bool = False
    # Whether to write NAME.geojson, see `tilenet.write_geojson`: of what is counted.
    polygons: bool = False
    # Smallest area that is counted. The table lists smaller ones too, so that another area needs no new table.
    min_area: str | float | None = None
    # What else is in the table, and in the polygons.
    columns: Columns = Columns()

    def check(self, item: BatchItem, mask: Path, footprint: Footprint | None) -> None:
        """Raise before the mask is computed if another file is in the way, or if areas will have no meaning in it."""
        if self.overview:
            check_picture_place(overview_beside(mask), replace=True, image=item.image)
        if self.table:
            check_file_place(table_beside(mask), replace=True, is_ours=is_table, kind="a table", image=item.image)
        if self.polygons:
            polygons = polygons_beside(mask)
            check_file_place(polygons, replace=True, is_ours=is_polygons, kind="a GeoJSON", image=item.image)
            refuse_protected(polygons, regions=item.within[0].path if item.within else None)
            refuse_protected(polygons, tissue=item.options.tissue)
        if (self.table or self.polygons) and (self.min_area is not None or item.positive or self.columns.stains):
            self.check_image(item, footprint)

    def check_image(self, item: BatchItem, footprint: Footprint | None = None) -> None:
        """Raise `SettingsError` if areas will have no meaning in an image's mask, or it lacks a stain or channel."""
        options = item.options
        try:
            opened = open_image(item.image, **options.of_image)
        except TilenetError:  # the run will say why
            return
        with opened:
            Intensities(stains=self.columns.stains, positive=item.positive).check_image(opened)
            if self.min_area is None:
                return
            stack = max(opened.box_shape[:-2], default=1) > 1
            objects = stack and options.output == "objects"
            volumes = objects and (options.link is not None or _takes_volumes(item.model, footprint))
            if not (volumes and options.roi is not None):  # whether a part has several planes is not known yet
                if volumes and self.polygons:
                    raise SettingsError(
                        f"{opened.name}: polygons of volumes are outlines in planes, which have no volume. Leave the "
                        f"least volume or the polygons out"
                    )
                pixels_of_area(self.min_area, opened.name, opened.pixel_size, volumes=volumes)

    def make(self, item: BatchItem, mask: Path) -> None:
        """Make the files that are missing or older than the mask; remove what killed runs left beside them."""
        polygons = self._polygons_to_make(item, mask) if self.polygons else None
        how: dict[str, Any] = {"image": item.image, "overwrite": True}
        if self.table and self._lacks_table(item, mask):
            more = asdict(self.columns) | {"positive": item.positive}
            write_table(mask, table_beside(mask), geojson=polygons, **how, **more)
        elif polygons:
            columns = self.columns
            bright = Intensities(channels=columns.intensities, stains=columns.stains, positive=item.positive)
            write_polygons(mask, polygons, intensities=bright, shapes=columns.shapes, **how)
        if self.overview:
            self._draw(item, mask)
        wanted = zip(
            (self.table, self.polygons, self.overview),
            (table_beside(mask), polygons_beside(mask), overview_beside(mask)),
            strict=True,
        )
        for path in (path for is_wanted, path in wanted if is_wanted):
            with faults_named(path):
                sweep(path)  # a file that is whole is not written again, which would do so

    def _lacks_table(self, item: BatchItem, mask: Path) -> bool:
        table = table_beside(mask)
        return _is_older(table, mask) or _is_of_another_rule(table, item) or not self._has_columns(table)

    def _polygons_to_make(self, item: BatchItem, mask: Path) -> Polygons | None:
        """Return the polygons if they are missing, older than the mask, or were written with other options."""
        out = polygons_beside(mask)
        said = {"positive": item.positive, "min_area": self.min_area, **asdict(self.columns)}
        rule = rule_text(**said)
        if not _is_older(out, mask) and rule_of_polygons(out) == rule:
            return None
        return Polygons(out.absolute(), min_area=self.min_area, beside_table=self.table, rule=rule)

    def _draw(self, item: BatchItem, mask: Path) -> None:
        """Draw the picture if it is missing, older than what it shows, or drawn by another rule."""
        picture, table = overview_beside(mask), table_beside(mask)
        least = self.min_area if item.options.output == "objects" else None
        rule = _rule({"positive": item.positive, "min_area": least})
        listing = Listing(table, least, item.positive is not None) if rule else None
        if _is_older(picture, mask) or rule_of(picture) != rule or (rule and _is_before(picture, table)):
            save(overlay(item.image, mask, table=listing), picture, rule=rule)

    def measured(self, item: BatchItem, mask: Path, *, image: str | None) -> Measured | None:
        """Return what the table of a mask amounts to, if tables are wanted; without an image if that may be gone."""
        table, positive = table_beside(mask), item.positive is not None
        if not self.table:
            return None
        with _whole(table):
            return read_table(mask, table, image=image, min_area=self.min_area, drawn=item.within, positive=positive)

    def kept(self, item: BatchItem, mask: Path) -> Measured | None:
        """Return what the table of a complete mask says, if it is there, although its image may be gone."""
        table = table_beside(mask)
        if not self.table or _is_older(table, mask) or not is_table(table):
            return None
        if _is_of_another_rule(table, item):
            raise SettingsError(f"{table}: does not say where {item.positive}, and only the image does")
        return self.measured(item, mask, image=None)

    def _has_columns(self, table: Path) -> bool:
        with _whole(table):
            return self.columns.are_in(table)


@contextmanager
def _whole(table: Path) -> Iterator[None]:
    """Raise `OutputError` if a table cannot be read to its end, for example because a line was cut off."""
    try:
        yield
    except TilenetError:
        raise
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        said = f"{table}: is no whole table of its mask ({one_line(error)})"
        raise OutputError(f"{said}. Delete it, and the same command writes it anew") from error


def _takes_volumes(model: Any, footprint: Footprint | None) -> bool:
    """Return whether a network has three axes; one of two finds the objects of each plane of a stack by itself."""
    try:
        network = load_named(model) if isinstance(model, str | Path) else model
        return footprint_of(network, footprint).ndim > 2
    except TilenetError:  # the run will say why
        return False


def table_beside(mask: Path) -> Path:
    """Return where the table of a mask goes.

    >>> table_beside(Path("masks/a.zarr")).as_posix()
    'masks/a.csv'
    """
    return mask.with_name(f"{mask.name.removesuffix('.zarr')}.csv")


def polygons_beside(mask: Path) -> Path:
    """Return where the polygons of a mask go, as `table_beside` does."""
    return table_beside(mask).with_suffix(".geojson")


def _rule(said: Mapping[str, Any]) -> str:
    """Return as text which options that choose or describe objects were given; empty if none was."""
    given = {name: value for name, value in said.items() if value}
    return json.dumps(given) if given else ""


def _is_of_another_rule(table: Path, item: BatchItem) -> bool:
    """Return whether a table does not say what is positive, where that is asked for, or says it by another rule."""
    with _whole(table):
        return item.positive is not None and not is_judged_by(table, item.positive)


def _is_older(path: Path, mask: Path) -> bool:
    """Return whether a file is missing, or older than the mask."""
    # zarr.json is the last file that a store writes.
    return not path.exists() or _is_before(path, mask / "zarr.json")


def _is_before(path: Path, other: Path) -> bool:
    return path.stat().st_mtime_ns < other.stat().st_mtime_ns
