"""The command ``tilenet export``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tilenet.cli_options import JSON, QUIET, progress_bar, show, sides
from tilenet.errors import SettingsError

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("mask", type=FILE)
@click.option("--geojson", type=FILE, help="Polygons of regions or objects, as QuPath imports them.")
@click.option("--tiff", type=FILE, help="A tiled, pyramidal OME-TIFF of labels.")
@click.option("--image", type=FILE, help="The image, if it is no longer where it was (for --geojson).")
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
    tiff: Path | None,
    image: Path | None,
    kind: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a complete MASK in another format."""
    if geojson is None and tiff is None:
        raise SettingsError("say what to write: --geojson out.geojson, --tiff out.ome.tif")
    result: dict[str, Any] = {}
    rows = []
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
        counts = ", ".join(f"{count} {name}" for name, count in sorted(found.features.items())) or "no regions"
        rows.append(f"{geojson}: {counts}, {found.vertices} vertices")
    show(result, "\n".join(rows), as_json=as_json, quiet=quiet)
