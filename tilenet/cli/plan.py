"""The command ``tilenet plan``: parses, calls, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tilenet.cli.options import JSON, image_options, objects_options
from tilenet.cli.output import gigabytes, show, sides
from tilenet.geometry import Box

if TYPE_CHECKING:
    from tilenet.jobs.job import Job
    from tilenet.readers.image import Image

# More files than this in one mask burden file systems, and the one process that checks them all at the end.
MANY_FILES = 10**6


@click.command()
@click.argument("image")
@image_options
@objects_options
@JSON
def plan(image: str, objects: bool, as_json: bool, **options: Any) -> None:
    """Show tiles, memory and disk space of a run on IMAGE; reads no pixels, except a coarse level for --tissue."""
    from tilenet.jobs.options import Options, refuse_with_objects
    from tilenet.jobs.setup import make_job
    from tilenet.runs.room import room_of

    if objects:
        refuse_with_objects(options["output"])
        options["output"] = "objects"
    with make_job(image, options.pop("model"), Options(**options)) as job:
        result, rows = _planned(image, job, room_of(job, options["memory"]))
    show(result, "\n".join(rows), as_json=as_json)


def _planned(image: str, job: Job, room: dict[str, int]) -> tuple[dict[str, Any], list[str]]:
    """Return how an image would be cut, and the resources it takes, as a dict and as lines of text."""
    p, needs = job.plan, job.needs()
    result = {
        "shape": p.shape,
        "resolution": job.resolution.to_json() | {"why": job.resolution.text},
        "roi": job.record["roi"],
        "tile": p.tile,
        "block": p.block,
        "batch": p.batch,
        "blocks": len(p),
        "tiles": p.n_tiles,
        "largest_read": p.largest_read,
        "redundancy": round(p.redundancy, 3),
        **needs,
        **room,
    }
    device = f", {gigabytes(needs['device_bytes'])} device" if needs["device_bytes"] else ""
    roi = job.record["roi"]
    part = f", part {Box(*zip(*roi, strict=True))}" if roi else ""
    part += _overruled(job.image)
    rows = [
        f"image       {image}: {job.image.axes} {sides(job.image.shape)}, {job.image.dtype}{part}",
        f"resolution  {job.resolution.text}",
        f"model       {job.card.name}: step {job.footprint.step[-1]}, margin {job.footprint.margin[-1]} px",
        f"tiles       {p.n_tiles} of {sides(p.tile)} px written, {sides(p.largest_read)} read, {p.batch} per batch",
        f"blocks      {len(p)} of {sides(p.block)} px",
        f"redundancy  {p.redundancy:.2f} px read per px written",
        f"memory      {gigabytes(needs['host_bytes'])} host{device}",
        *_room_rows(room),
    ]
    if job.search.rule:
        result["tissue"], told = _tissue_of(job)
        rows.append(f"tissue      {told}")
    return result, rows


def _room_rows(room: dict[str, int]) -> list[str]:
    """Return lines about the room on disk; that before the mask is complete is told where it is larger."""
    disk = f"disk        at most {gigabytes(room['disk_bytes'])} before compression"
    files = f"files       at most {_count(room['files'])}"
    if room["working_bytes"] > room["disk_bytes"]:
        disk += f"; {gigabytes(room['working_bytes'])} while it runs"
        files += f"; {_count(room['working_files'])} while it runs"
    if room["files"] > MANY_FILES:
        files += ". Take parts, one mask each: --roi, see docs/cluster.md"
    return [disk, files]


def _count(n: int) -> str:
    """Return a number of files as text, in millions if it is large."""
    return f"{n / 1e6:.1f} million" if n > MANY_FILES else str(n)


def _overruled(image: Image) -> str:
    """Return a note with the axes and the pixel size that the file states, if the image is read with others."""
    from tilenet.readers.calibrated import overruled_size

    axes = image.stated_axes if image.stated_axes != image.axes else ""
    stated = [text for text in (axes, overruled_size(image)) if text]
    return f" (the file says {' and '.join(stated)})" if stated else ""


def _tissue_of(job: Job) -> tuple[dict[str, Any] | None, str]:
    """Return what would be skipped, as a dict and as text."""
    from tilenet.tissue.cells import pixels_read
    from tilenet.tissue.detection import remark

    if job.search.cheap and job.tissue:
        return job.tissue.to_json(job.plan), remark(job.tissue, job.plan)[1]
    return None, f"not looked for: there is no small level, {pixels_read(job.search.image)} px would be read"
