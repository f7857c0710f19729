"""The command ``tilenet plan``: parses, calls, prints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilenet.address import shown, without_name
from tilenet.byte_counts import gigabytes
from tilenet.cli.options import JSON, image_options, objects_options
from tilenet.cli.output import remarks, say, show
from tilenet.errors import EnvironmentFault, SettingsError, TilenetError, counted
from tilenet.geometry import Box, sides_text

if TYPE_CHECKING:
    from tilenet.batches.image_list import BatchItem
    from tilenet.jobs.job import Job
    from tilenet.readers.image import Image

# More files than this in one mask burden file systems, and the one process that checks them all at the end.
MANY_FILES = 10**6
# What several images take together, and what the one that needs most of it takes.
SUMS = ("pixels", "blocks", "disk_bytes", "files")
LARGEST = ("host_bytes", "device_bytes", "working_bytes", "working_files")


@click.command()
@click.argument("images", nargs=-1, required=True)
@image_options
@objects_options
@JSON
def plan(images: tuple[str, ...], objects: bool, as_json: bool, **options: Any) -> None:
    """Show what a run on IMAGES takes: memory, disk, tiles.

    It reads no pixels, except a coarse level for --tissue. IMAGES are an image or, as for batch, several, patterns in
    quotes, and lists: these get a line each, and their sum.
    """
    from tilenet import machine
    from tilenet.batches.image_list import read_image_list
    from tilenet.batches.run import check_item
    from tilenet.jobs.options import Options
    from tilenet.models.named import keeping_last
    from tilenet.workers.processes import several_processes

    items = read_image_list(images, model=options.pop("model"), options=Options(**options))
    for item in items:  # tables, for which some lists give rules and regions, are no option here
        check_item(item, objects=objects, table=bool(item.positive or item.within))
    job_of = partial(_job_of, objects=objects, load=keeping_last())
    # Warnings alone: what a run would remark is in the plan.
    with (
        remarks(shown=not as_json, level=logging.WARNING) as said,
        several_processes(options["threads"] or machine.current_threads()),  # also where this machine has fewer cores
    ):
        if [item.image for item in items] == [*images[:1]]:
            with job_of(items[0]) as job:
                result, rows = _planned(images[0], job, _needs_of(job, items[0]))
        else:
            result = _all_planned([_one_of_many(item, job_of, as_json) for item in items])
            rows = _sum_rows(result, objects=objects)
    if rows or as_json:
        show(result | {"remarks": said}, "\n".join(rows), as_json=as_json)
    if failed := [of for of in result.get("images", ()) if "error" in of]:
        raise SettingsError(
            f"{len(failed)} of {counted(len(items), 'image')} would fail, the first one {failed[0]['error']}"
        )


def _job_of(item: BatchItem, *, objects: bool, load: Callable[[str | Path], Any]) -> Job:
    """Return the job of a run; refuse what `batch` would refuse of the image, too. `load` returns a model by name."""
    from tilenet.batches.side_files import SideFiles
    from tilenet.jobs.request import Request

    if item.positive:
        SideFiles(table=True).check_image(item)
    options = replace(item.options, output="objects") if objects else item.options
    return Request(item.image, item.model, options, load=load).new_job()


def _needs_of(job: Job, item: BatchItem) -> dict[str, int]:
    from tilenet.runs.room import room_of

    return room_of(job, item.options.memory)


def _one_of_many(item: BatchItem, job_of: Callable[[BatchItem], Job], as_json: bool) -> dict[str, Any]:
    """Return what a run on one of several images takes, or why it would fail; tell it in a line."""
    result: dict[str, Any] = {"image": shown(item.image)}
    try:
        with job_of(item) as job:
            result |= {"shape": job.plan.shape, "pixels": prod(job.plan.shape), "blocks": len(job.plan)}
            result |= _needs_of(job, item)
        line = (
            f"{sides_text(result['shape'])} px, {gigabytes(result['disk_bytes'])}, {counted(result['files'], 'file')}"
        )
    except EnvironmentFault:  # of no image alone, and gone when it is tried again
        raise
    except TilenetError as error:
        result["error"] = str(error)
        line = f"fails: {without_name(str(error), result['image'])}"
    if not as_json:
        say(f"{result['image']}  {line}")
    return result


def _all_planned(each: list[dict[str, Any]]) -> dict[str, Any]:
    planned = [result for result in each if "error" not in result]
    result = {"images": each, "failed": len(each) - len(planned)}
    result |= {name: sum(of[name] for of in planned) for name in SUMS}
    return result | {name: max([of[name] for of in planned], default=0) for name in LARGEST}


def _sum_rows(result: dict[str, Any], *, objects: bool) -> list[str]:
    """Return what several images take together, line by line; nothing if all would fail."""
    planned = len(result["images"]) - result["failed"]
    if not planned:
        return []
    return [
        f"{counted(planned, 'image')}: {result['pixels']} px, {counted(result['blocks'], 'block')}",
        f"memory      {gigabytes(result['host_bytes'])} host, for the largest",
        *_room_rows(result, "the largest", objects=objects),
    ]


def _planned(image: str, job: Job, needs: dict[str, int]) -> tuple[dict[str, Any], list[str]]:
    """Return how an image would be cut, and the resources it takes, as a dict and as lines of text."""
    result, rows = _facts_of(job, needs), _rows_of(image, job, needs)
    if job.search.rule:
        result["tissue"], told = _tissue_of(job)
        rows.append(f"tissue      {told}")
    return result, rows


def _facts_of(job: Job, needs: dict[str, int]) -> dict[str, Any]:
    p = job.plan
    return {
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
    }


def _rows_of(image: str, job: Job, needs: dict[str, int]) -> list[str]:
    p, roi = job.plan, job.record["roi"]
    device = f", {gigabytes(needs['device_bytes'])} device" if needs["device_bytes"] else ""
    part = f", part {Box(*zip(*roi, strict=True))}" if roi else ""
    part += _overruled(job.image)
    read = sides_text(p.largest_read)
    rows = [
        f"image       {image}: {job.image.axes} {sides_text(job.image.shape)}, {job.image.dtype}{part}",
        f"resolution  {job.resolution.text}",
        f"model       {job.card.name}: step {job.footprint.step[-1]}, margin {job.footprint.margin[-1]} px",
        f"tiles       {p.n_tiles} of {sides_text(p.tile)} px written, {read} read, {p.batch} per batch",
        f"blocks      {len(p)} of {sides_text(p.block)} px",
        f"redundancy  {p.redundancy:.2f} px read per px written",
        f"memory      {gigabytes(needs['host_bytes'])} host{device}",
        *_room_rows(needs, "it", objects=job.record["output"] == "objects"),
    ]
    if needs["files"] > MANY_FILES:
        rows[-1] += ". Take parts, one mask each: --roi"
    return rows


def _room_rows(room: dict[str, int], what: str, *, objects: bool) -> list[str]:
    """Return lines about the room on disk; with objects, also about that before the mask is complete."""
    disk = f"disk        at most {gigabytes(room['disk_bytes'])} before compression"
    files = f"files       at most {_count(room['files'])}"
    if objects:
        disk += f"; {gigabytes(room['working_bytes'])} while {what} runs"
        files += f"; {_count(room['working_files'])} while {what} runs"
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
