"""The command ``tilenet overlay``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tilenet.cli.options import FILE, JSON, NUMBERS, PART
from tilenet.cli.output import remarks, show


@click.command()
@click.argument("image")
@click.argument("mask", type=FILE)
@click.option("--out", "-o", required=True, type=FILE, help="The picture: .png, .jpg, .tif or .webp.")
@click.option("--roi", type=PART, help="The part to draw, as for segment.  [default: all of the mask]")
@click.option("--plane", type=NUMBERS, help="Of a stack: Z, or T,Z of a series of stacks.  [default: the middle]")
@click.option(
    "--table",
    type=FILE,
    help="Draw only the objects in this table of export --csv, and if it says which are positive, those in red.",
)
@click.option("--within", type=FILE, help="Draw the regions of this GeoJSON file too, such as QuPath's annotations.")
@click.option("--tissue", is_flag=True, help="Draw the tissue map, and darken what was skipped.")
@click.option("--fill", is_flag=True, help="Tint objects rather than outline them.")
@click.option("--max-side", type=click.IntRange(1), default=2048, show_default=True, help="Longest side in px.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, if tilenet drew it.")
@JSON
def overlay(image: str, mask: Path, out: Path, overwrite: bool, as_json: bool, **how: Any) -> None:
    """Draw MASK over its IMAGE into OUT, small enough to look at."""
    from tilenet.pictures import files, overlays

    files.check_picture_place(out, replace=overwrite, image=image, mask=mask)
    with remarks(shown=not as_json) as said:
        picture = overlays.overlay(image, mask, **how)
    files.save(picture, out)
    h, w = picture.shape[:2]
    show({"out": str(out), "shape": [h, w], "remarks": said}, f"{out}: {h} x {w} px", as_json=as_json)
