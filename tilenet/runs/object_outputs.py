"""How a run that numbers objects begins: what it left in OUT.making, what is at OUT, and whether either goes on.

The folder OUT.making has the stores of the first two steps of `tilenet.runs.numbering`.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from tilenet.errors import ANEW, OutputExists
from tilenet.jobs.mismatch import check_info, contradiction
from tilenet.jobs.request import Request
from tilenet.masks.label_target import LabelTarget
from tilenet.store import Store, can_resume, check_free, is_complete, is_ours
from tilenet.store.destination import discard, holding
from tilenet.store.file_system import faults_named
from tilenet.store.leftovers import sweep
from tilenet.store.metadata import MAKING, read_root

DEPTHS, PLACES = "depths.zarr", "places.zarr"


def making_of(out: Path, target: LabelTarget | None) -> Path:
    """Return the folder for the first two steps: beside the mask, or beside the OME-Zarr image that gets the labels."""
    beside = out if target is None else target.path.with_name(f"{target.path.name}.{out.name}")
    return beside.with_name(beside.name + MAKING).absolute()


def in_making(out: Path, target: LabelTarget | None) -> bool:
    """Return whether a run with objects was started for `out`, and has not ended."""
    return is_ours(making_of(out, target) / DEPTHS)


def was_begun(out: Path, target: LabelTarget | None) -> bool:
    """Return whether a run with objects was started for `out`, or wrote it."""
    if in_making(out, target):
        return True
    # zarr.json may have been edited by hand, so the type is checked.
    record = read_root(out).info.get("record") if is_ours(out) else None
    return isinstance(record, dict) and record.get("output") == "objects"


def refuse_begun(out: Path, target: LabelTarget | None, *, overwrite: bool) -> None:
    """Refuse an output for which a run with objects was started; with `overwrite`, remove what that run left."""
    making = making_of(out, target)
    if overwrite:
        remove_making(making)
    elif is_ours(making / DEPTHS):
        raise OutputExists(
            f"{making}: belongs to a run with --objects. Continue that run, or start again with --overwrite (a batch, "
            "or with --shard: remove this folder first)"
        )


def refuse_link(making: Path) -> None:
    """Refuse a folder for the first two steps that is a symbolic link."""
    if making.is_symlink():
        raise OutputExists(f"{making}: is a symbolic link, and intermediate results would be written there. Remove it")


def remove_making(making: Path, *, held: bool = False) -> None:
    """Remove the stores of the first two steps, the first `held` by the caller, and their folder if it is empty."""
    for store in (making / DEPTHS, making / PLACES):
        if not store.exists():
            continue
        if not is_ours(store):
            raise OutputExists(f"{store}: is not a store, or is damaged, and the run needs this place. Remove {making}")
        with nullcontext() if held and store.name == DEPTHS else holding(store):
            discard(store)
    with faults_named(making):
        for name in (DEPTHS, PLACES):
            sweep(making / name)
        with suppress(OSError):
            making.rmdir()


def mask_to_continue(
    out: Path, request: Request, making: Path, *, resume: bool, overwrite: bool
) -> tuple[Store | None, bool]:
    """Return the mask to continue, if any, and whether what is at `out` is replaced."""
    if overwrite:
        remove_making(making)
    if resume and can_resume(out) and (store := _resumed(out, request, making)):
        return store, overwrite
    if is_ours(making / DEPTHS) and not resume:
        raise OutputExists(f"{out}: was begun, and is not complete. Go on (--resume), or {ANEW}")
    overwrite = overwrite or (resume and was_begun(out, request.target))
    check_free(out, overwrite=overwrite)
    return None, overwrite


def _resumed(out: Path, request: Request, making: Path) -> Store | None:
    """Open the mask to continue; return None if the mask at `out` is an old one that a run is about to replace."""
    network_done = False
    if is_ours(making / DEPTHS):
        info, depths = read_root(out.absolute()).info, read_root(making / DEPTHS)
        check_info(info, out)
        # Only what decides the bytes: a repair may be made by another version, or after the image was moved.
        if is_complete(out) or contradiction(depths.info, info):
            return None
        network_done = depths.complete
    store = Store.resume(out)
    request.job_for(store, network_done=network_done).close()
    return store


def with_recorded_options(request: Request, store: Store) -> Request:
    """Return what is wanted with the options that a mask was made with, and with its tissue map if the user gave it."""
    options, record = request.options, store.info["record"]
    if options.tissue is None and store.layout.tissue_map and (record["tissue"] or {}).get("method") == "given":
        options = replace(options, tissue=store.layout.tissue_map.cells.astype(np.uint8))
    return replace(request, options=options.filled_from(record))
