"""The command ``tilenet export``: parses, calls, prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilenet.cli_options import JSON, QUIET, progress_bar, show, sides
from tilenet.errors import SettingsError

if TYPE_CHECKING:
    from tilenet.geojson import Outlined

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("mask", type=FILE)
@click.option("--geojson", type=FILE, help="Polygons of regions or objects, as QuPath imports them.")
@click.option("--csv", type=FILE, help="A table of regions or objects: class, centroid, area, box.")
@click.option("--tiff", type=FILE, help="A tiled, pyramidal OME-TIFF of labels.")
@click.option("--image", type=FILE, help="The image, if it is no longer where it was (for --geojson and --csv).")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["detection", "annotation"]),
    default="detection",
    show_default=True,
    help="What polygons are in QuPath.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@JSON
@QUIET
def export(
    mask: Path,
    geojson: Path | None,
    csv: Path | None,
    tiff: Path | None,
    image: Path | None,
    kind: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a complete MASK in another format."""
    if geojson is None and csv is None and tiff is None:
        raise SettingsError("say what to write: --geojson out.geojson, --csv out.csv, --tiff out.ome.tif")
    result: dict[str, Any] = {}
    rows = []
    objects = True
    if tiff is not None:
        from tilenet.tiff_export import write_tiff

        written = write_tiff(mask, tiff, overwrite=overwrite)
        result["tiff"] = {"out": str(tiff), "axes": written.axes, "shape": written.shape}
        rows.append(f"{tiff}: {sides(written.shape)} px, {len(written.levels)} levels")
    if geojson is not None:
        from tilenet.geojson import write_geojson

        with progress_bar("rows", shown=not quiet) as progress:
            found = write_geojson(mask, geojson, image=image, kind=kind, overwrite=overwrite, progress=progress)
        result["geojson"] = {"out": str(geojson), "features": dict(found.features), "vertices": found.vertices}
        rows.append(f"{geojson}: {_counts(found.features, kind=_kind(found))}, {found.vertices} vertices")
        objects = found.objects
    if csv is not None:
        from tilenet.measures import write_table

        with progress_bar("rows", shown=not quiet) as progress:
            table = write_table(mask, csv, image=image, overwrite=overwrite, progress=progress)
        space, numbers = ("mm3", table.per_mm3) if table.volumes else ("mm2", table.per_mm2)
        density = {name: round(value, 2) for name, value in numbers.items()}
        result["csv"] = {"out": str(csv), "counts": dict(table.counts), "area_px": dict(table.area_px)}
        result["csv"] |= {
            "area_um2_of_a_pixel": table.pixel_um2,
            "um3_of_a_voxel": table.voxel_um3,
            f"per_{space}": density,
        }
        per = "".join(f", {value:g} {name} per {space}" for name, value in sorted(density.items()) if value)
        rows.append(f"{csv}: {_counts(table.counts, kind='' if table.objects else ' regions')}{per}")
        objects = table.objects
    if not objects:
        rows.append(
            "regions are no objects: touching ones are one, and specks count. segment --objects tells objects apart"
        )
    show(result, "\n".join(rows), as_json=as_json, quiet=quiet)


def _kind(found: Outlined) -> str:
    """Return what features are of a class."""
    return " outlines in planes" if found.volumes else "" if found.objects else " regions"


def _counts(counts: Mapping[str, int], *, kind: str) -> str:
    """Return how many there are of each class."""
    return ", ".join(f"{count} {name}{kind}" for name, count in sorted(counts.items()) if count) or "no regions"
