"""Check `out`, and create or resume it: a store, objects, a TIFF, or labels within an image."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from tilenet.address import check_local
from tilenet.errors import ANEW, OutputError, OutputExists, SettingsError, closed_on_error
from tilenet.jobs.compute import fill_store
from tilenet.jobs.image_times import note_image
from tilenet.jobs.job import Job
from tilenet.jobs.request import Request
from tilenet.masks.label_target import LabelTarget, open_target
from tilenet.masks.protected import paths_of, refuse_protected
from tilenet.masks.tiff_mask import TiffMask, check_tiff_place, open_tiff_mask
from tilenet.masks.tiff_store import is_for_tiff, is_tiff, store_beside
from tilenet.models.named import name_of
from tilenet.readers.formats import SLIDE_NAMES
from tilenet.runner import Report
from tilenet.store import Progress, Share, Store, can_resume, check_free, is_ours
from tilenet.workers import distributed

# File endings that are refused, since a folder would appear under that name; and how to get such a file instead.
ZARR_OR_TIFF = "Give a name in .zarr, or in .ome.tif"
PICTURE = f"{ZARR_OR_TIFF}; --overview draws the mask beside it, and tilenet overlay as you like"
POLYGONS = "Write mask.zarr, then run: tilenet export mask.zarr --geojson mask.geojson"
OTHER_KINDS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".jp2", ".pdf", ".svg"), PICTURE),
    **dict.fromkeys((".geojson", ".json", ".xml"), POLYGONS),
    **dict.fromkeys((".nii", ".gz", ".npy", ".npz", ".h5", ".hdf5", ".mat", ".nrrd", ".mha", ".mhd"), ZARR_OR_TIFF),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".zip", ".tar", ".n5", ".nd2", ".lif", ".safetensors"), ZARR_OR_TIFF),
    **dict.fromkeys((".svs", ".ndpi", ".czi", ".dcm", ".ims", *SLIDE_NAMES), ZARR_OR_TIFF),
}


def check_name(out: Path) -> None:
    """Refuse a name with the ending of a file format that is not written."""
    if not out.name:
        raise SettingsError(f"out {str(out)!r} is no name of a mask. {ZARR_OR_TIFF}")
    ending = out.suffix.lower()
    if ending in OTHER_KINDS:
        raise SettingsError(f"{out}: a mask is an OME-Zarr folder or an OME-TIFF, not {ending}. {OTHER_KINDS[ending]}")


def check_folder_name(out: Path) -> None:
    """Refuse a name for a folder of masks that has the ending of a file format."""
    ending = out.suffix.lower()
    if ending in OTHER_KINDS or is_tiff(out):
        raise SettingsError(f"{out}: becomes a folder of masks, one NAME.zarr an image. Give a name without {ending}")


def labels_place(
    into: str | Path | None, name: str | None, out: str | PathLike[str] | None, model: Any
) -> tuple[LabelTarget, Path]:
    """Return the image that the mask goes into, and the path of the mask within it."""
    if into is None:
        raise SettingsError(f"name {name!r} is of labels in an image: say which image, with into (--into)")
    if out is not None:
        raise SettingsError(f"out {out} and into {into}: give only one of them")
    target = open_target(into)
    return target, target.place(name_of(model) if name is None else name)


def protect_input(out: Path, image: Any, *, inside: bool = False) -> None:
    """Refuse an output that is remote, is the image, contains it or, unless it is labels, lies `inside` the image."""
    check_local(out)
    if not inside:
        refuse_protected(out, image=image)
    target = out.resolve()
    if any(target in (path, *path.parents) for path in paths_of(image)):
        raise OutputExists(f"{out}: holds the image that is to be read. Choose another path")


def open_store(out: Path, request: Request, *, resume: bool = False, overwrite: bool = False) -> tuple[Store, Job]:
    """Create a store, or open an existing one for resuming; checks `out` before anything expensive."""
    if not (resume and can_resume(out)):
        try:
            check_free(out, overwrite=overwrite)
            return create_store(out, request, overwrite=overwrite)
        except OutputExists:  # another run may have created it first
            if not (resume and can_resume(out)):
                raise
    store = Store.resume(out)
    return store, request.job_to_fill(store)


def create_store(
    out: Path, request: Request, *, overwrite: bool = False, share: Share | None = None
) -> tuple[Store, Job]:
    """Create a store, with the lease of the whole or of one share of it."""
    job = request.new_job()
    with closed_on_error(job):
        store = Store.create(out, *job.described(), overwrite=overwrite, share=share, facts=request.facts)
        with closed_on_error(store):
            note_image(store, job.image.name)
    return store, job


def fill_output(
    out: Path,
    request: Request,
    *,
    resume: bool = False,
    overwrite: bool = False,
    client: Any = None,
    progress: Progress | None = None,
) -> Report:
    """Open a store, and fill and finish it in this process or on the workers of a cluster."""
    store, job = open_store(out, request, resume=resume, overwrite=overwrite)
    if client is None:
        return fill_store(store, job, progress=progress)
    return distributed.fill_by_workers(store, job, client, request, progress=progress)


def check_tiff(out: Path, output: str | None, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output that cannot be written as a TIFF at `out`, or for which another mask would be replaced."""
    if output == "both":
        raise SettingsError(f"{out}: a TIFF holds the mask alone, and output 'both' was said. Give a name in .zarr")
    check_tiff_place(out, replace=resume or overwrite)
    place = store_beside(out)
    if not resume and can_resume(place) and is_ours(place) and not is_for_tiff(place, out):
        raise OutputExists(
            f"{place}: exists, and its log does not say that it was made for {out.name}. Make that of it (--resume), "
            f"remove it or move it away, or choose another path"
        )


def same_tiff(out: Path, request: Request) -> TiffMask:
    """Return the TIFF that exists at `out`, if it is undamaged and was made with the same settings."""
    mask = open_tiff_mask(out)
    request.job_like_complete(mask.info, out).close()
    if damage := mask.check():
        raise OutputError(f"{out}: {damage[0]}. To replace the mask, {ANEW}")
    return mask
