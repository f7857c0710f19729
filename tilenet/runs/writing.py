"""A run whose mask goes to disk: alone or as a share, with objects or without, as a folder, a TIFF or labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tilenet.jobs.request import Request
from tilenet.masks.tiff_export import deliver
from tilenet.masks.tiff_mask import TiffMask
from tilenet.masks.tiff_store import FOR_TIFF, is_tiff, keep_store, store_beside
from tilenet.runner import Report
from tilenet.runs import object_shares, shares
from tilenet.runs.numbering import store_objects
from tilenet.runs.object_outputs import in_making, refuse_begun, was_begun
from tilenet.runs.outputs import check_name, check_tiff, fill_output, protect_input, same_tiff
from tilenet.store import Mask, Progress, Share, can_resume, is_complete, open_mask


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
    protect_input(out, request.image, inside=target is not None)
    if target is None:
        check_name(out)
    how: dict[str, Any] = {"client": client, "progress": progress, "resume": resume, "overwrite": overwrite}
    if target is None and is_tiff(out):  # labels are a folder, whatever their name
        return _write_tiff(out, request, **how)
    if shard is None:
        done = _fill_whole(out, request, **how)
    else:
        done = _fill_share(out, request, shard, progress)
        # A mask beside which objects are still being found is an old one, which a run is about to replace.
        if not is_complete(out) or in_making(out, target):
            return None, done
    if is_tiff(out.with_suffix("")):
        keep_store(out)
    return open_mask(out), done


def _write_tiff(out: Path, request: Request, *, resume: bool, overwrite: bool, **how: Any) -> tuple[TiffMask, Report]:
    """Make the mask in a store beside `out`, and a TIFF of it when it is whole; no shares do this."""
    place = store_beside(out)
    protect_input(place, request.image)
    check_tiff(out, request.options.output, resume=resume, overwrite=overwrite)
    if resume and out.exists() and not (can_resume(place) or in_making(place, None)):
        return same_tiff(out, request), Report()
    named = replace(request, facts={FOR_TIFF: out.name})
    done = _fill_whole(place, named, resume=resume, overwrite=overwrite, **how)
    return deliver(place, out), done


def _fill_whole(out: Path, request: Request, *, resume: bool, overwrite: bool, **how: Any) -> Report:
    # What was begun with objects goes on with them: whoever resumes it may leave the option out.
    if request.options.output == "objects" or (resume and was_begun(out, request.target)):
        return store_objects(out, request, resume=resume, overwrite=overwrite, **how)
    refuse_begun(out, request.target, overwrite=overwrite)
    return fill_output(out, request, resume=resume, overwrite=overwrite, **how)


def _fill_share(out: Path, request: Request, shard: Share, progress: Progress | None) -> Report:
    if request.options.output == "objects":
        return object_shares.fill_objects(out, request, shard, progress=progress)
    refuse_begun(out, request.target, overwrite=False)
    return shares.fill_share(out, request, shard, progress=progress)
