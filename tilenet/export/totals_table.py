"""What tables of masks amount to, as a table: a line for each mask, drawn region and class, for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tilenet.errors import SettingsError
from tilenet.export.in_regions import InRegion
from tilenet.export.opened import check_export_place
from tilenet.export.placement import DECIMALS
from tilenet.export.totals import Measured
from tilenet.store import AnyMask
from tilenet.store.destination import put_whole

COLUMNS = (
    *("slide", "region", "class", "kind", "count", "left_out"),
    *("covered_px", "covered_share", "covered_um2", "covered_um3"),
    *("mm2", "mm3", "tissue_mm2", "in_tissue", "per_mm2", "per_mm3", "per_mm2_of_tissue"),
    *("positive", "positive_share"),
)
HEAD = ",".join(COLUMNS[:4]).encode()


def write_counts(path: Path, measured: Mapping[str, Measured]) -> None:
    """Write a table of the number of objects or regions of each class in each mask, replacing one that is there.

    `measured` is what `write_table` returned, by the names of the masks. The columns are ``slide``, ``region`` (that
    the user drew; empty for the whole mask), ``class``, ``kind`` (object or region of a class), ``count``, ``left_out``
    (how many of all classes are smaller than the minimum area), the total size of those counted (``covered_px`` of the
    mask, ``covered_share`` of it, ``covered_um2``, or ``covered_um3`` for objects of volumes), the size of the mask or
    region (``mm2`` or ``mm3``) and, if there is a tissue map, of its tissue (``tissue_mm2``) and how many lie in it
    (``in_tissue``), the counts per unit of these sizes (``per_mm2``, ``per_mm3``, ``per_mm2_of_tissue``), and how many
    are positive (``positive``, and ``positive_share`` of those that are positive or negative). Columns in units of
    length are empty if the pixel size is unknown, those of what is positive if that was not asked for.
    """
    put_table(path, COLUMNS, (line for slide, found in measured.items() for line in _lines(slide, found)))


def check_counts_place(path: Path, mask: AnyMask, *, replace: bool, table: Path, image: Any = None) -> None:
    """Raise if the counts of a `table` must not be put at a path; see `check_export_place`."""
    check_export_place(path, mask, image, replace=replace, is_ours=_is_counts, kind="a table of counts")
    if path.resolve() == table.resolve():
        raise SettingsError(f"{path}: is to be the table of all objects, too. Give the counts another name")


def put_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV table, whole or not at all."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    with put_whole(path) as part:
        part.write_text(table.getvalue(), encoding="utf-8", newline="")


def _lines(slide: str, found: Measured) -> Iterable[dict[str, Any]]:
    kind = "object" if found.objects else "region"
    for name, count in sorted(found.counts.items()):
        pixels = found.area_px[name]
        line: dict[str, Any] = {"slide": slide, "class": name, "kind": kind, "count": count, "left_out": found.left_out}
        line |= {"covered_px": pixels, "covered_share": round(found.covered_share(name), 6)}
        if found.tissue_share is not None:
            line["in_tissue"] = found.in_tissue[name]
        if (covered := found.covered_um(name)) is not None:
            line[f"covered_um{3 if found.volumes else 2}"] = round(covered, DECIMALS)
        for whole in ("mm2", "mm3", "tissue_mm2"):
            if (value := getattr(found, whole)) is not None:
                line[whole] = _size(value)
        for rate in ("per_mm2", "per_mm3", "per_mm2_of_tissue"):
            if (value := getattr(found, rate).get(name)) is not None:
                line[rate] = round(value, DECIMALS)
        yield line | _positive(found, name)
    yield from _lines_of_regions(slide, found, kind)


def _lines_of_regions(slide: str, found: Measured, kind: str) -> Iterable[dict[str, Any]]:
    for region in found.regions:
        for name, count in sorted(region.counts.items()):
            line: dict[str, Any] = {"slide": slide, "region": region.name, "class": name, "kind": kind, "count": count}
            if region.mm2 is not None:
                line["mm2"] = _size(region.mm2)
            if region.tissue_mm2 is not None:
                line |= {"tissue_mm2": _size(region.tissue_mm2), "in_tissue": region.in_tissue[name]}
            for rate in ("per_mm2", "per_mm2_of_tissue"):
                if (value := getattr(region, rate).get(name)) is not None:
                    line[rate] = round(value, DECIMALS)
            yield line | _positive(region, name)


def _size(value: float) -> float:
    """Round an area or a volume: to 6 decimals, or to 6 digits if it is below 1, as that of a small volume is."""
    return float(f"{value:.{2 * DECIMALS}g}") if value < 1 else round(value, 2 * DECIMALS)


def _positive(counted: Measured | InRegion, name: str) -> dict[str, Any]:
    if not counted.positive:
        return {}
    positive, judged = counted.positive[name], counted.judged[name]
    return {"positive": positive, "positive_share": round(positive / judged, 6) if judged else ""}


def _is_counts(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().startswith(HEAD)
