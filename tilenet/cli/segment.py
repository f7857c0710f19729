"""The commands ``tilenet segment`` and, for job arrays, ``tilenet finish``: parse, call, print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilenet.cli.cluster import cluster_of, cluster_options, refuse_with_shard
from tilenet.cli.options import FILE, JSON, OVERVIEW, QUIET, SHARE, image_options, objects_options
from tilenet.cli.output import profile_of, profile_rows, progress_bar, remarks, show
from tilenet.errors import SettingsError, counted
from tilenet.geometry import sides_text

if TYPE_CHECKING:
    from tilenet.runner import Report
    from tilenet.store import AnyMask


@click.command()
@click.argument("image")
@click.option("--out", "-o", type=FILE, help="The mask: OME-Zarr, or a TIFF by its ending.")
@click.option("--into", type=FILE, help="Instead of --out: an OME-Zarr image to write the labels into.")
@click.option("--name", help="Name of the labels, with --into.  [default: the model's]")
@image_options
@cluster_options
@click.option(
    "--shard",
    type=SHARE,
    help="Write share I of N (from 1) of OUT, beside others; implies --resume. With --objects, run all shares twice.",
)
@objects_options
@click.option("--resume", is_flag=True, help="Continue OUT, or start it if there is none.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, if tilenet wrote it.")
@OVERVIEW
@click.option("--profile", is_flag=True, help="Show where the time went.")
@JSON
@QUIET
def segment(
    image: str, out: Path | None, overview: bool, profile: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Segment IMAGE into the mask OUT.

    With --into, the mask becomes labels of an OME-Zarr image instead.
    """
    import numpy as np

    from tilenet import api, machine
    from tilenet.pictures import files, overlays

    refuse_with_shard(options)
    place = _place(out, options)
    picture = files.overview_beside(place, options["into"]) if overview else None
    if picture:
        again = options["resume"] or options["overwrite"] or options["shard"] is not None
        files.check_picture_place(picture, replace=again, image=image)
    machine.keep_freed_memory()
    started, reports = time.perf_counter(), list["Report"]()
    with remarks(shown=not (quiet or as_json)) as said:
        with cluster_of(options) as client, progress_bar("px", place, shown=not quiet) as progress:
            mask = api.segment(image, out, **options, client=client, progress=progress, report=reports.append)
        seconds = time.perf_counter() - started
        if picture and mask is not None:
            files.save(overlays.overlay(image, place), picture)
    assert not isinstance(mask, np.ndarray)
    if mask is None:
        result, text = _share_result(place, options["into"], options["shard"], seconds)
        result["remarks"] = said
    else:
        result, text = _result(mask, place, picture, seconds, said)
    if profile and reports and mask is not None:
        result["profile"] = profile_of(reports[0])
        text = "\n".join([text, *profile_rows(result["profile"])])
    show(result, text, as_json=as_json, quiet=quiet)


def _share_result(out: Path, into: Path | None, share: tuple[int, int], seconds: float) -> tuple[dict[str, Any], str]:
    """Return the result of a share whose store is not complete yet, as a dict and as text."""
    from tilenet.masks.label_target import open_target
    from tilenet.runs.object_shares import how_far
    from tilenet.runs.shares import written_of

    name, took = "{}/{}".format(*share), {"seconds": round(seconds, 2)}
    result = {"out": str(out), "share": name, "complete": False}
    if found := how_far(out, open_target(into) if into else None):
        result |= {"written": found.written, "blocks": found.blocks, "step": found.step, "to_do": found.to_do}
        return result | took, f"{out}: share {name} done, {found}, {seconds:.1f} s. {found.to_do}"
    written, blocks = written_of(out)
    there = f"{written} of {counted(blocks, 'block')} of the mask {'is' if blocks == 1 else 'are'} there"
    text = f"{out}: share {name} done, {there}, {seconds:.1f} s"
    return result | {"written": written, "blocks": blocks} | took, text


def _result(
    mask: AnyMask, place: Path, picture: Path | None, seconds: float, said: list[str]
) -> tuple[dict[str, Any], str]:
    """Return the facts about a mask and its picture, as a dict and as text."""
    record, labels, tissue = mask.info["record"], mask.info["card"]["labels"], mask.info.get("tissue")
    facts = {"out": str(place), "complete": True, "seconds": round(seconds, 2)}
    facts |= {"axes": mask.axes, "shape": mask.shape, "labels": labels}
    facts["resolution"] = {name: record[name] for name in ("level", "mpp", "factor")}
    what = ", ".join(f"{value} = {name}" for value, name in labels.items())
    if record["output"] == "objects":
        facts["objects"] = mask.info["objects"]
        what = counted(mask.info["objects"], "volume" if "link" in record else "object")
    if tissue:
        facts["tissue"] = tissue
        where = "outside of the regions" if "regions" in tissue else "as glass"
        what += f", {tissue['skipped']:.0%} skipped {where}"
    facts["remarks"] = said
    if picture:
        facts["overview"] = str(picture)
        what += f", see {picture}"
    return facts, f"{place}: {sides_text(mask.shape)} px, {what}, {seconds:.1f} s"


def _place(out: Path | None, options: dict[str, Any]) -> Path:
    """Return where the mask goes, as shown to the user: OUT, or labels in an image, whose name is then set."""
    into: Path | None = options["into"]
    if out is not None:
        return out
    if into is None:
        raise SettingsError("say where the mask goes: --out mask.zarr, or --into an OME-Zarr image")
    from tilenet.masks.label_target import open_target
    from tilenet.models.named import name_of

    # Named once, and not for an image that takes no labels: a function of Python may take long to make its network.
    if options["name"] is None:
        open_target(into)
        options["name"] = name_of(options["model"])
    return Path(into, "labels", options["name"])


@click.command()
@click.argument("out", type=FILE)
@JSON
@QUIET
def finish(out: Path, as_json: bool, quiet: bool) -> None:
    """Finish OUT, all of whose shares are written.

    This verifies it, builds its pyramid and calls it complete. The last share does so by itself; this is for when
    that one was killed.
    """
    from tilenet.runs.shares import finish_shares

    with progress_bar("blocks", out, shown=not quiet) as progress, remarks(shown=not (quiet or as_json)) as said:
        finish_shares(out, progress=progress)
    result = {"out": str(out), "complete": True, "remarks": said}
    show(result, f"{out}: complete, every file verified", as_json=as_json, quiet=quiet)
