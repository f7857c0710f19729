"""The command ``tilenet export``: parses, calls, prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tilenet.cli.amounts import polygons_said, table_said
from tilenet.cli.options import FILE, JSON, MICROMETRES, QUIET
from tilenet.cli.output import progress_bar, remarks, show
from tilenet.errors import SettingsError, counted
from tilenet.geometry import sides_text

if TYPE_CHECKING:
    from tilenet.export.totals import Measured, Outlined

# Options of polygons and tables that a TIFF does not have.
IDLE_IN_TIFF = ("pixel_size", "min_area", "positive", "shapes", "intensities", "stains")


@click.command()
@click.argument("mask", type=FILE)
@click.option("--geojson", type=FILE, help="Polygons of regions or objects, as QuPath imports them.")
@click.option("--csv", type=FILE, help="A table of regions or objects: class, centroid, area, box.")
@click.option("--tiff", type=FILE, help="A tiled, pyramidal OME-TIFF of labels.")
@click.option("--image", type=FILE, help="The image, if it is no longer where it was (for --geojson and --csv).")
@click.option("--shapes", is_flag=True, help="Perimeter, circularity, axes, eccentricity and solidity of each.")
@click.option("--intensities", is_flag=True, help="Mean, sd, min and max of each channel over each object.")
@click.option("--stains", is_flag=True, help="The same for optical densities of haematoxylin, eosin, DAB.")
@click.option("--positive", metavar="RULE", help="When an object is positive: 'dab>0.2' (stain or channel), in quotes.")
@click.option("--within", type=FILE, help="With --csv: count in each region of this GeoJSON file, such as QuPath's.")
@click.option("--counts", type=FILE, help="With --csv: a table of the counts and densities, of each region too.")
@click.option(
    "--pixel-size",
    type=MICROMETRES,
    help="Micrometres per pixel of the image at level 0, where the mask has none.",
)
@click.option("--min-area", metavar="AREA", help="Leave smaller ones out: 20um2, 80px of the mask; 20um3 of volumes.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["detection", "annotation"]),
    default="detection",
    show_default=True,
    help="What polygons become in QuPath.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@JSON
@QUIET
def export(
    mask: Path, geojson: Path | None, csv: Path | None, tiff: Path | None, as_json: bool, quiet: bool, **said: Any
) -> None:
    """Write a complete MASK in another format."""
    if geojson is None and csv is None and tiff is None:
        raise SettingsError("say what to write: --geojson out.geojson, --csv out.csv, --tiff out.ome.tif")
    kind, of_table = said.pop("kind"), {name: said.pop(name) for name in ("within", "counts")}
    _refuse_idle(said if geojson is None and csv is None else {}, of_table if csv is None else {})
    result: dict[str, Any] = {}
    rows = []
    with remarks(shown=not (quiet or as_json)) as heard:
        if tiff is not None:
            result["tiff"], row = _tiff(mask, tiff, overwrite=said["overwrite"])
            rows.append(row)
        outlined, measured = _measured(mask, geojson, csv, kind=kind, of_table=of_table, quiet=quiet, **said)
        if outlined is not None:
            result["geojson"], row = polygons_said(outlined, geojson, said)
            rows.append(row)
        if measured is not None:
            result["csv"], row = table_said(measured, csv, said | of_table)
            rows.append(row)
    result["remarks"] = heard
    if any(written is not None and not written.objects for written in (outlined, measured)):
        rows.append(
            "connected regions are not objects: touching objects are one region, and specks count. Use segment "
            "--objects to separate them"
        )
    show(result, "\n".join(rows), as_json=as_json, quiet=quiet)


def _refuse_idle(said: Mapping[str, Any], of_table: Mapping[str, Any]) -> None:
    """Raise if an option was given that changes nothing in what is written."""
    for name in IDLE_IN_TIFF:
        value = said.get(name)
        if value is not None and value is not False:
            option = f"--{name.replace('_', '-')}"
            if value is not True:
                option += f" {value if isinstance(value, str) else ','.join(f'{n:g}' for n in value)}"
            raise SettingsError(f"{option} is for --geojson and --csv: a TIFF is the mask as it is")
    for name, value in of_table.items():
        if value:
            raise SettingsError(f"--{name} is for a table: say --csv out.csv, too")


def _tiff(mask: Path, out: Path, *, overwrite: bool) -> tuple[dict[str, Any], str]:
    """Write a TIFF; return its description as a dict and as text."""
    from tilenet.masks.tiff_export import write_tiff

    written = write_tiff(mask, out, overwrite=overwrite)
    facts = {"out": str(out), "axes": written.axes, "shape": written.shape}
    return facts, f"{out}: {sides_text(written.shape)} px, {counted(len(written.levels), 'level')}"


def _measured(
    mask: Path,
    geojson: Path | None,
    csv: Path | None,
    *,
    kind: Literal["detection", "annotation"],
    of_table: Mapping[str, Any],
    quiet: bool,
    **said: Any,
) -> tuple[Outlined | None, Measured | None]:
    """Write polygons and a table, as far as they are wanted; measure once for both. Return what each amounts to."""
    from tilenet.export.geojson import write_geojson
    from tilenet.export.polygons_file import Polygons
    from tilenet.export.table import write_table

    out = csv or geojson
    if out is None:
        return None, None
    with progress_bar("rows", out, shown=not quiet) as progress:
        if csv is None:
            return write_geojson(mask, out, kind=kind, progress=progress, **said), None
        polygons = None if geojson is None else Polygons(geojson.absolute(), kind, said["min_area"], beside_table=True)
        found = write_table(mask, csv, geojson=polygons, progress=progress, **of_table, **said)
    return found.outlined, found
