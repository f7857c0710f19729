"""`segment`: one image, one model, one mask."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Unpack, overload

from numpy.typing import NDArray

from tilenet.arguments import WORKERS, known_options
from tilenet.errors import SettingsError
from tilenet.footprint import Footprint
from tilenet.jobs.compute import to_array, to_objects
from tilenet.jobs.options import (
    ArrayOutput,
    Options,
    RunSettings,
    StoredOutput,
    checked_output,
    parameters_of,
)
from tilenet.jobs.request import Request
from tilenet.masks.tiff_mask import TiffMask
from tilenet.models.named import refuse_missing
from tilenet.runner import Report
from tilenet.runs import shares
from tilenet.runs.outputs import labels_place
from tilenet.runs.writing import write_mask
from tilenet.store import Mask, Progress
from tilenet.workers.distributed import check_client, check_sendable


class SegmentSettings(RunSettings, total=False):
    """Types of the keyword arguments that do not decide what `segment` returns."""

    model: Any
    footprint: Footprint | None
    objects: bool
    resume: bool
    overwrite: bool
    progress: Progress | None
    report: Callable[[Report], None] | None
    client: Any


@overload
def segment(
    image: Any,
    out: None = None,
    *,
    into: None = None,
    name: None = None,
    output: ArrayOutput | None = None,
    shard: None = None,
    **settings: Unpack[SegmentSettings],
) -> NDArray[Any]: ...
@overload
def segment(
    image: Any,
    out: str | PathLike[str],
    *,
    into: None = None,
    name: None = None,
    output: StoredOutput | None = None,
    shard: None = None,
    **settings: Unpack[SegmentSettings],
) -> Mask | TiffMask: ...
@overload
def segment(
    image: Any,
    out: None = None,
    *,
    into: str | Path,
    name: str | None = None,
    output: StoredOutput | None = None,
    shard: None = None,
    **settings: Unpack[SegmentSettings],
) -> Mask: ...
@overload
def segment(
    image: Any,
    out: str | PathLike[str] | None = None,
    *,
    into: str | Path | None = None,
    name: str | None = None,
    output: StoredOutput | None = None,
    shard: tuple[int, int],
    **settings: Unpack[SegmentSettings],
) -> Mask | TiffMask | None: ...
@known_options(WORKERS, parameters_of(RunSettings))
def segment(
    image: Any,
    out: str | PathLike[str] | None = None,
    *,
    into: str | Path | None = None,
    name: str | None = None,
    model: Any = "nuclei",
    footprint: Footprint | None = None,
    output: str | None = None,
    objects: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Report], None] | None = None,
    client: Any = None,
    shard: tuple[int, int] | None = None,
    **settings: Unpack[RunSettings],
) -> NDArray[Any] | Mask | TiffMask | None:
    """Segment an image of any size, exactly: the tiling leaves no trace in the result.

    Parameters
    ----------
    image : path, array or Image
        A file, or a NumPy, zarr or dask array.
    out : path, optional
        Where the mask goes: an OME-Zarr label image, or an OME-TIFF if the name ends in ``.tif`` or
        ``.tiff`` (made in the store ``OUT.zarr`` first). Endings of other file formats are refused.
        Default: the result is returned as an array.
    into : path, optional
        Instead of `out`: an OME-Zarr image, 0.4 or 0.5, to which the mask is added as
        ``labels/NAME``. It is the segmented image, or one with a level of the same shape.
    name : str, optional
        Name of the label group within `into`; default the model's name.
    model : str, path, torch.nn.Module or callable
        A packaged model's name, a weights file, any network with a ``footprint``, or, as
        ``"module:function"``, a function without arguments that returns one; see `tilenet.models.named`.
    footprint : Footprint, optional
        For a network that has none of its own.
    axes : str, optional
        Letters of ``tczyx``, one per axis; needed for an array with more than two axes.
    pixel_size : float, str or sequence of float, optional
        Micrometres per pixel at level 0, for arrays and files that do not state it, or in place of what they
        state: one number for y and x, two (y, x) or three (z, y, x).
    channels : int, str or sequence of them, optional
        Channels that the network sees, in the order in which it takes them: numbers, or channel
        names of the image; also ``"DAPI,2"``, as on the command line.
    level : int, optional
        Resolution level of the image; 0 is the finest.
    mpp : float, optional
        Micrometres per pixel that the network is to see: the coarsest level that is at least as
        fine is read, and resampled unless it is within 10 %. If neither `level` nor `mpp` is given,
        the pixel size on the model card is used if the image has a pixel size too; else level 0.
    roi : str, or sequence of slice or (start, stop), optional
        ``"512:1024,:2048"`` or one entry per axis: the part to segment, in pixels of the resolution
        that the network sees. A text that leaves out leading axes takes them whole; among slices, ``...`` stands for
        those left out, as in ``np.s_[..., 512:1024]``. The result is that part of the whole image's mask.
    tissue : bool, path or array, optional
        Skip blocks without tissue: they are 0 in mask and probabilities, and are not read. All
        other blocks are the same as without `tissue`. True: find tissue on a coarse level, see
        `tilenet.tissue.detection`; the map is kept in the output. A path or an array: a mask of the whole
        image, at any size, nonzero where there is tissue; it is taken as it is. A path ending in ``.geojson`` or
        ``.json``: regions of the image, as for `write_table`, in pixels at full resolution; all blocks that lie in
        them, or as near as the network's context reaches, are computed, and no others. Default: skip nothing.
    tile : int or sequence of int, optional
        Side in px of the region that a tile writes, a multiple of the network's step; see `plan_tiles`
        for this and the next two.
    batch : int, optional
        Maximum number of tiles per forward pass.
    memory : int or str, optional
        Bytes for the run, or a text such as ``"4GB"``, which is the default.
    threads : int, optional
        CPU threads of the network; default the number that PyTorch uses.
    device : str, optional
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    precision : str, optional
        ``auto`` (fp64 for a float64 network, else fp32), ``fp64``, ``fp32``, ``bf16`` or ``fp16``;
        the last two change the logits.
    engine : str, optional
        ``auto`` (the fastest with the same logits), ``plain``, or ``fast`` (refused if there is
        no fast path for the network); see `tilenet.predict.engine`.
    scaling : mapping or str, optional
        Rule for scaling intensities, instead of the model card's, such as ``{"method": "linear",
        "subtract": 0, "divide": 255}`` or ``"percentile:1,99.8"``; see `tilenet.scaling`.
    threshold : float, optional
        For a network with one output; default the card's, or 0.5.
    output : str, optional
        With `out`: ``mask`` or ``both`` (adds ``probabilities``). Without: ``mask``,
        ``probabilities`` or ``logits``.
    objects : bool
        Return numbered objects (1..n) instead of classes, see `tilenet.objects`; its `spacing` is the
        image's pixel size, if known. If the network runs plane by plane, objects are found in each plane
        separately. With `out`, images may have any size, and ``OUT.making`` keeps what a killed run
        has found. They are found in this process, or by the workers of `client`.
    least_depth : float, optional
        With `objects`: objects with no pixel of at least this depth, 0 to 1, are dropped as uncertain;
        default 0.75; see `tilenet.objects`.
    link : float, optional
        With `objects`, for a 2-D network and an image with ``z``: objects of neighbouring planes become one, a volume,
        if their intersection over union is at least this, such as 0.25, and each is the other's best partner; see
        `tilenet.instances.linking`.
    probability_dtype : str, optional
        ``float32``, ``float16`` or ``float64``.
    missing : {"error", "fill"}, optional
        Whether tiles that are missing from the file are an error, or read as 0.
    strict : bool
        Raise `ModelError` before anything is written, instead of warning, if the model's masks would have seams or
        could not be repeated, or if this could not be checked.
    resume : bool
        Continue `out`, or start it if it does not exist. Options that are not given are taken from `out`.
    overwrite : bool
        Replace `out`, if tilenet wrote it.
    progress : callable, optional
        Called with the number of pixels done and the total number of pixels; with `shard`, those of the share.
        With `objects` and `out`, each pixel counts twice: once when the network has run on it, and once when
        its objects are found. (With `shard` too, a share counts the pixels of the step that it does.)
    report : callable, optional
        Called at the end with a `tilenet.runner.Report`: what was done, and where the time went.
    client : distributed.Client, optional
        Compute the blocks on the workers of a Dask cluster. Needs `out`, and image and model given by
        path or name, since each worker opens them by itself. With the same `threads`, the bytes are
        the same as without a cluster.
    shard : (int, int), optional
        Compute only share I of N (I from 1) of the blocks of `out`, alongside other processes that
        compute the other shares; `resume` is implied. See `tilenet.runs.shares`. With `objects`, call each share
        twice: for the network and, when the network has run everywhere, for the objects; see
        `tilenet.runs.object_shares`.

    Returns
    -------
    numpy.ndarray, Mask or TiffMask
        Without `out`, an array: classes (the image's axes without ``c``), uint8; numbered objects, int32; or
        probabilities (`probability_dtype`) or logits (float32, or float64 in fp64), with the classes first, after ``t``
        if there is one: (K, y, x) for a plane, (t, K, y, x) for a series. With `out`, the opened mask, of uint8, or
        with `objects` of uint32. With `shard`, None while blocks of other shares are not written; the last share
        finishes the mask, and returns it.

    Raises
    ------
    TilenetError
        One of its subclasses, see `tilenet.errors`.

    Examples
    --------
    >>> import numpy as np
    >>> import tilenet
    >>> tilenet.segment(np.zeros((70, 90), np.uint8)).shape
    (70, 90)
    """
    _check_kinds(out, progress=progress, report=report)
    if resume and overwrite:
        raise SettingsError("resume and overwrite: give only one of them")
    target = None
    if into is not None or name is not None:
        target, out = labels_place(into, name, out, model)
    if out is None and (resume or overwrite):
        raise SettingsError("resume and overwrite are for a mask on disk: give out")
    output = checked_output(output, objects=objects, stored=out is not None)
    options = Options(**settings, output=output)
    refuse_missing(model)  # before what is at `out`, which would be all that is said
    request = Request(image, model, options, footprint, target)
    if client is not None:
        _check_workers(client, image, model, stored=out is not None)
    if shard is not None:
        shares.check_combination(out, target, overwrite=overwrite, client=client)
    if out is None:
        with request.new_job() as job:
            return (to_objects if objects else to_array)(job, job.resolve_scaling(), progress=progress, report=report)
    mask, done = write_mask(
        Path(out), request, shard=shard, client=client, progress=progress, resume=resume, overwrite=overwrite
    )
    if report:
        report(done)
    return mask


def _check_kinds(out: Any, **called: Any) -> None:
    """Refuse an `out` that is not a path, and callbacks that cannot be called."""
    if out is not None and not isinstance(out, str | PathLike):
        raise SettingsError(f"out is where the mask goes, not a {type(out).__name__}. Give a network as model=...")
    for name, function in called.items():
        if function is not None and not callable(function):
            raise SettingsError(f"{name} {function!r} is nothing that can be called. Give a function, or leave it out")


def _check_workers(client: Any, image: Any, model: Any, *, stored: bool) -> None:
    """Refuse what the workers of a cluster cannot do."""
    if not stored:
        raise SettingsError("workers write into a store: give out with client")
    check_sendable(image, model)
    check_client(client)
