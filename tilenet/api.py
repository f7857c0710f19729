"""`segment`: one image, one model, one mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet import shares
from tilenet.address import check_local, is_address
from tilenet.compute import Progress, fill_store, finish, to_array, to_objects
from tilenet.errors import OutputError, OutputExists, SettingsError
from tilenet.footprint import Footprint
from tilenet.into import Target, open_target
from tilenet.job import Job, Options, check_info, check_output_option, refuse_contradiction, refuse_with_objects, settle
from tilenet.models import name_of
from tilenet.region import Roi
from tilenet.runner import Report
from tilenet.scaling import Scaling
from tilenet.store import Mask, Store, can_resume, check_free, is_complete, open_mask
from tilenet.tiff_export import deliver
from tilenet.tiff_mask import TiffMask, check_tiff_place, is_tiff, open_tiff_mask, store_beside


def segment(
    image: Any,
    out: str | Path | None = None,
    *,
    into: str | Path | None = None,
    name: str | None = None,
    model: Any = "nuclei",
    footprint: Footprint | None = None,
    axes: str | None = None,
    channels: Sequence[int] | None = None,
    level: int | None = None,
    mpp: float | None = None,
    roi: Roi | None = None,
    tissue: Any = None,
    tile: int | Sequence[int] | None = None,
    batch: int | None = None,
    memory: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    engine: str | None = None,
    scaling: Mapping[str, Any] | None = None,
    threshold: float | None = None,
    output: str | None = None,
    objects: bool = False,
    probability_dtype: str | None = None,
    missing: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Report], None] | None = None,
    client: Any = None,
    shard: tuple[int, int] | None = None,
) -> NDArray[Any] | Mask | TiffMask | None:
    """Segment an image of any size, exactly: no tile leaves a trace in the result.

    Parameters
    ----------
    image : path, array or Image
        A file, or a NumPy, zarr or dask array.
    out : path, optional
        Where the mask goes, as an OME-Zarr label image; as an OME-TIFF if the name ends in
        ``.tif``, kept in ``OUT.zarr`` while it is made. Default: returned as an array.
    into : path, optional
        In place of `out`: an OME-Zarr image, 0.4 or 0.5, that the mask is added to as its
        ``labels/NAME``; the image that is segmented, or one with a level of the same pixels.
    name : str, optional
        Of the labels, with `into`; default the model's name.
    model : str, path, torch.nn.Module or callable
        A packaged model's name, a weights file, or any network with a ``footprint``.
    footprint : Footprint, optional
        For a network that has none of its own.
    axes : str, optional
        Letters of ``tczyx``, one per axis; needed for an array of more than two.
    channels : sequence of int, optional
        Those the network sees, in its order.
    level : int, optional
        Resolution, 0 the finest.
    mpp : float, optional
        Micrometres per pixel that the network is to see: from the coarsest level that is at
        least as fine, resampled where it is not within 10 %. Where neither `level` nor `mpp`
        is said, the pixel size on the model's card, if the image has one too; else level 0.
    roi : sequence of slice or (start, stop), optional
        The part to segment, in pixels of the resolution that the network sees; axes in front
        that are not given are taken whole. The result is that part of the whole image's mask.
    tissue : bool, path or array, optional
        Skip blocks without tissue: they are 0 in mask and probabilities, and are not read. All
        others are as without it. True: tissue is found on a coarse level, see `tilenet.tissue`; the
        map is kept in the output. A path or an array: a mask of the whole image, at any size, not 0
        where there is tissue, taken as it is. Default: nothing is skipped.
    tile, batch, memory : int, optional
        Side in px of what a tile writes (a multiple of the network's step); most tiles per
        forward pass; bytes for the run (4 GB). See `plan_tiles`.
    threads : int, optional
        For the network on a CPU; default what PyTorch uses.
    device : str, optional
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    precision : str, optional
        ``auto`` (fp32), ``fp32``, ``bf16``, ``fp16``; the last two change the logits.
    engine : str, optional
        ``auto`` (the fastest with the same logits) or ``plain``; see `tilenet.engine`.
    scaling : mapping, optional
        Rule for intensities, in place of the model card's; see `tilenet.scaling`.
    threshold : float, optional
        For a network of one output; default 0.5, or the card's.
    output : str, optional
        With `out`: ``mask`` or ``both`` (adds ``probabilities``). Without: ``mask``,
        ``probabilities`` or ``logits``.
    objects : bool
        Give numbered objects (1..n) instead of classes, for an image that fits in memory; see
        `tilenet.objects`.
    probability_dtype : str, optional
        ``float32`` or ``float16``.
    missing : {"error", "fill"}, optional
        Whether empty file tiles are refused or read as 0.
    resume : bool
        Go on with `out`, or start it where there is none. What is unsaid is taken from it.
    overwrite : bool
        Replace `out`, if tilenet wrote it.
    progress : callable, optional
        Called with the pixels done and the pixels in all.
    report : callable, optional
        Called at the end, with `out`, with a `tilenet.runner.Report`: what was done, and where
        the time went.
    client : distributed.Client, optional
        Have the blocks computed by the workers of a Dask cluster, with `out` alone: image and
        model are paths or names then, since each worker opens them by itself. The same bytes as
        without, with the same `threads`.
    shard : (int, int), optional
        Compute only share I of N (I from 1) of the blocks of `out`, beside other processes that
        compute theirs; `resume` goes without saying. See `tilenet.shares`.

    Returns
    -------
    numpy.ndarray, Mask or TiffMask
        Classes (image's axes without ``c``), uint8; or probabilities or logits with ``c`` =
        classes, (K, y, x) for a plane. With `out`, the opened mask. With `shard`, None while
        blocks of other shares are not written; the last share finishes the mask, and returns it.

    Raises
    ------
    TilenetError
        One of its kinds, see `tilenet.errors`.

    Examples
    --------
    >>> import numpy as np
    >>> import tilenet
    >>> tilenet.segment(np.zeros((70, 90), np.uint8)).shape
    (70, 90)
    """
    target = None
    if into is not None or name is not None:
        target, out = _labels_place(into, name, out, model)
    if objects:
        refuse_with_objects(output=output, resume=resume)
        output = "objects"
    else:
        check_output_option(output, stored=out is not None)
    options = Options(
        level=level,
        roi=roi,
        tissue=tissue,
        mpp=mpp,
        axes=axes,
        channels=None if channels is None else tuple(channels),
        tile=_sides(tile),
        batch=batch,
        memory=memory,
        threads=threads,
        device=device,
        precision=precision,
        engine=engine,
        threshold=threshold,
        output=output,
        probability_dtype=probability_dtype,
        scaling=scaling,
        missing=missing,
    )
    if client is not None:
        _check_workers_can(image, model, out, objects=objects)
    if shard is not None:
        shares.check_combination(out, objects=objects, overwrite=overwrite, client=client)
    if out is None:
        job = settle(image, model, options, footprint=footprint)
        numbers = job.numbers()
        return (to_objects if objects else to_array)(job, numbers, progress=progress)
    out = Path(out)
    place = store_beside(out) if is_tiff(out) else out  # a TIFF is written when the mask is whole
    spare_the_input(out, image)
    if is_tiff(out):
        spare_the_input(place, image)
        _check_tiff(out, output, replace=resume or overwrite)
        if resume and out.exists() and not can_resume(place):
            return _same_tiff(out, image, model, options, footprint=footprint)
    if shard is not None:
        done = shares.fill_share(
            out, image, model, options, footprint=footprint, share=shard, target=target, progress=progress
        )
        if report:
            report(done)
        return open_mask(out) if is_complete(out) else None
    if objects:
        check_free(place, overwrite=overwrite)
        job = settle(image, model, options, footprint=footprint, target=target)
        _store_objects(place, job, overwrite=overwrite, progress=progress)
    else:
        store, job, numbers = open_store(
            place, image, model, options, footprint=footprint, target=target, resume=resume, overwrite=overwrite
        )
        if client is None:
            done = fill_store(store, job, numbers, progress=progress)
        else:
            from tilenet import distributed

            names = {"image": image, "model": model, "footprint": footprint}
            done = distributed.fill_by_workers(store, job, client, names=names, progress=progress)
        if report:
            report(done)
    return deliver(place, out) if is_tiff(out) else open_mask(out)


def _check_tiff(out: Path, output: str | None, *, replace: bool) -> None:
    """Refuse what cannot become a TIFF at `out`."""
    if output == "both":
        raise SettingsError(f"{out}: a TIFF holds the mask alone, and output 'both' was said. Give a name in .zarr")
    check_tiff_place(out, replace=replace)


def _same_tiff(out: Path, image: Any, model: Any, options: Options, *, footprint: Footprint | None) -> TiffMask:
    """Return a TIFF that is whole already, if it is right and was made from the same."""
    mask = open_tiff_mask(out)
    check_info(mask.info, out)
    job = settle(image, model, options.or_recorded(mask.info["record"]), footprint=footprint)
    refuse_contradiction(mask.info, job.info(Scaling.from_json(mask.info["scaling"])))
    job.image.close()
    if damage := mask.check():
        raise OutputError(f"{out}: {damage[0]}. Start again with --overwrite")
    return mask


def _check_workers_can(image: Any, model: Any, out: str | Path | None, *, objects: bool) -> None:
    from tilenet import distributed

    if out is None:
        raise SettingsError("workers write into a store: give out with client")
    if objects:
        raise SettingsError("objects are found in memory, by one process: leave the workers out")
    distributed.check_sendable(image, model)


def _labels_place(into: str | Path | None, name: str | None, out: str | Path | None, model: Any) -> tuple[Target, Path]:
    """Return the image that the mask goes into, and where in it."""
    if into is None:
        raise SettingsError(f"name {name!r} is of labels in an image: say which image, with into")
    if out is not None:
        raise SettingsError(f"out {out} and into {into}: say one of them")
    target = open_target(into)
    return target, target.place(name_of(model) if name is None else name)


def spare_the_input(out: Path, image: Any) -> None:
    """Refuse an output that is remote, the image itself, or a folder that holds it."""
    check_local(out)
    if isinstance(image, str | Path) and not is_address(image):
        source, target = Path(image).resolve(), out.resolve()
        if target == source or target in source.parents:
            raise OutputExists(f"{out}: is, or holds, the image that is to be read. Choose another path")


def open_store(
    out: Path,
    image: Any,
    model: Any,
    options: Options,
    *,
    footprint: Footprint | None,
    target: Target | None = None,
    resume: bool,
    overwrite: bool,
) -> tuple[Store, Job, Scaling]:
    """Create a store, or open one to go on with: what can be refused early is."""
    if not (resume and can_resume(out)):
        check_free(out, overwrite=overwrite)
        job = settle(image, model, options, footprint=footprint, target=target)
        layout, info, numbers = job.described()
        return Store.create(out, layout, info, overwrite=overwrite), job, numbers
    store = Store.resume(out)
    try:
        found = store.info
        check_info(found, out)
        job = settle(image, model, options.or_recorded(found["record"]), footprint=footprint)
        numbers = Scaling.from_json(found["scaling"])
        refuse_contradiction(found, job.info(numbers))
    except BaseException:
        store.close()
        raise
    return store, job, numbers


def _store_objects(out: Path, job: Job, *, overwrite: bool, progress: Progress | None) -> None:
    """Find objects in memory, then write them: there is nothing to resume."""
    layout, info, numbers = job.described()
    labels = to_objects(job, numbers, progress=progress).astype(np.uint32)
    layout = replace(layout, labels={}, largest=max(2**16, int(labels.max(initial=0))), classes=0)
    store = Store.create(out, layout, info, overwrite=overwrite)
    try:
        for index in store.pending():
            store.write(index, {"mask": labels[job.plan[index].box.slices]})
        finish(store)
    finally:
        store.close()
        job.image.close()


def _sides(tile: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    return tile if tile is None or isinstance(tile, int) else tuple(tile)
