"""A run whose mask goes to disk: alone or as a share, with objects or without, as a folder, a TIFF or labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tilenet.jobs.compute import Progress
from tilenet.jobs.request import Request
from tilenet.masks.tiff_export import deliver
from tilenet.masks.tiff_mask import FOR_TIFF, TiffMask, is_tiff, keep_store, store_beside
from tilenet.runner import Report
from tilenet.runs import object_shares, shares
from tilenet.runs.numbering import store_objects
from tilenet.runs.object_outputs import in_making, refuse_begun, was_begun
from tilenet.runs.outputs import check_name, check_tiff, fill_output, protect_input, same_tiff
from tilenet.store import Mask, Share, can_resume, is_complete, open_mask


def write_mask(
    out: Path,
    request: Request,
    *,
    shard: Share | None,
    client: Any,
    progress: Progress | None,
    resume: bool,
    overwrite: bool,
) -> tuple[Mask | TiffMask | None, Report]:
    """Write a mask in the way that the options ask for; return it, or None if shares are pending, and what was done."""
    target = request.target
    tiff = target is None and is_tiff(out)  # labels are a folder, whatever their name
    place = store_beside(out) if tiff else out  # a TIFF is written when the mask is whole
    protect_input(out, request.image, inside=target is not None)
    if target is None:
        check_name(out)
    if tiff:
        request = replace(request, facts={FOR_TIFF: out.name})
        protect_input(place, request.image)
        check_tiff(out, request.options.output, resume=resume, overwrite=overwrite)
        begun = can_resume(place) or in_making(place, target)
        if resume and out.exists() and not begun:
            return same_tiff(out, request), Report()
    if shard is not None:
        done = _fill_share(place, request, shard, progress)
        # A mask beside which objects are still being found is an old one, which a run is about to replace.
        if not is_complete(place) or in_making(place, target):
            return None, done
    else:
        # What was begun with objects goes on with them: whoever resumes it may leave the option out.
        with_objects = request.options.output == "objects" or (resume and was_begun(place, target))
        if not with_objects:
            refuse_begun(place, target, overwrite=overwrite)
        fill = store_objects if with_objects else fill_output
        done = fill(place, request, resume=resume, overwrite=overwrite, client=client, progress=progress)
    if tiff:
        return deliver(place, out), done
    if is_tiff(out.with_suffix("")):
        keep_store(out)
    return open_mask(out), done


def _fill_share(out: Path, request: Request, shard: Share, progress: Progress | None) -> Report:
    if request.options.output == "objects":
        return object_shares.fill_objects(out, request, shard, progress=progress)
    refuse_begun(out, request.target, overwrite=False)
    return shares.fill_share(out, request, shard, progress=progress)
