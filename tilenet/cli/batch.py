"""The command ``tilenet batch``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilenet.cli.cluster import cluster_of, cluster_options
from tilenet.cli.options import FILE, JSON, OVERVIEW, QUIET, SHARE, image_options, objects_options
from tilenet.cli.output import remarks, say, show
from tilenet.errors import BlocksFailed, counted

if TYPE_CHECKING:
    from tilenet.batches.summary import Result


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--out", "-o", required=True, type=FILE, help="The folder of the masks.")
@image_options
@cluster_options
@click.option("--shard", type=SHARE, help="Do only share I of N, every N-th image from the I-th, as a job of an array.")
@objects_options
@click.option("--csv", "table", is_flag=True, help="Measure what is in each mask: NAME.csv, and counts.csv for all.")
@click.option("--geojson", "polygons", is_flag=True, help="Polygons of what is in each mask for QuPath: NAME.geojson.")
@click.option("--min-area", metavar="AREA", help="Count and outline no smaller ones: 20um2, 80px of the mask, 20um3.")
@click.option("--positive", metavar="RULE", help="With --objects, for both: when one is positive: 'dab>0.2', quoted.")
@click.option("--shapes", is_flag=True, help="For both: perimeter, circularity, axes, eccentricity, solidity.")
@click.option("--intensities", is_flag=True, help="With --objects, for both: mean, sd, min and max of each channel.")
@click.option("--stains", is_flag=True, help="With --objects, for both: the same for the optical density of stains.")
@click.option("--resume", is_flag=True, hidden=True, expose_value=False)  # a batch resumes in any case
@OVERVIEW
@JSON
@QUIET
def batch(images: tuple[str, ...], out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Segment many IMAGES into OUT/<name>.zarr.

    IMAGES are files, patterns in quotes ("slides/*.svs"), and lists: .txt with one path per line, .csv
    with a column image and, optionally, name, model, within (a GeoJSON of regions to count in),
    positive, level, mpp, axes, pixel_size, channels, tile, batch, threads, scaling, threshold,
    least_depth, link, output, missing and tissue.
    Complete masks are skipped, others resumed: to continue a killed batch, run the same command
    again.
    """
    from tilenet import machine
    from tilenet.batches import run
    from tilenet.batches.summary import file_of

    def tell(result: Result) -> None:
        if not (quiet or as_json):
            say(_line(result))

    machine.keep_freed_memory()
    with remarks(shown=not (quiet or as_json)) as said, cluster_of(options) as client:
        results = run.batch(images, out, client=client, tell=tell, **options)
    share = options["shard"]
    counts = {status: sum(r.status == status for r in results) for status in ("done", "skipped", "failed")}
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    listed = {"out": str(out), **counts, "slides": [vars(result) for result in results], "remarks": said}
    if share:
        listed["share"] = "{}/{}".format(*share)
    tables = " and ".join(file_of(name, share) for name in ("summary", *(["counts"] if options["table"] else [])))
    show(listed, f"{out}: {statuses}; see {tables}", as_json=as_json, quiet=quiet)
    if failed := [result for result in results if result.status == "failed"]:
        why = "each for its own reason" if failed[1:] else "for the reason above"
        if quiet or as_json:
            why = f"{'the first ' if failed[1:] else ''}{failed[0].slide}: {failed[0].error}"
        raise BlocksFailed(f"{out}: {len(failed)} of {counted(len(results), 'image')} failed, {why}")


def _line(result: Result) -> str:
    if result.status == "failed":
        still = ". Its complete mask is still counted" if result.counts is not None else ""
        return f"{result.slide}  failed  {result.error}{still}"
    tissue = "" if result.tissue is None else f"  {result.tissue:.0%} computed"
    counts = "".join(
        f"  {count} {name}" + (_positive(result, name) if result.positive else "")
        for name, count in sorted((result.counts or {}).items())
    )
    return f"{result.slide}  {result.status}  {result.pixels} px{tissue}{counts}  {result.seconds:.1f} s"


def _positive(result: Result, name: str) -> str:
    """Return how many objects of a class are positive, and their share of those that are that or negative, as text."""
    assert result.positive is not None and result.judged is not None
    positive, judged = result.positive[name], result.judged[name]
    return f", {positive} positive" + (f" ({100 * positive / judged:.1f} %)" if judged else "")
