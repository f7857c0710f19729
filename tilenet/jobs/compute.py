"""Run a job: into a store, into an array, or into numbered objects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from math import prod
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilenet import machine
from tilenet.decide import Arrays, ObjectRule, zeros_like
from tilenet.errors import ANEW, BlocksFailed, counted
from tilenet.instances.components import View
from tilenet.instances.in_memory import numbered
from tilenet.instances.linking import linked
from tilenet.jobs.job import Job
from tilenet.runner import OF_THE_IMAGE, Report, run
from tilenet.scaling import Scaling
from tilenet.store import Progress, ShardMaker, Store, TissueMap

LOG = logging.getLogger("tilenet")
Reported = Callable[[Report], None]
# How many failed blocks an error message names.
NAMED = 4
# Fraction of the foreground in no object above which the message says what to do about it.
MANY = 0.1


def fill_store(store: Store, job: Job, *, progress: Progress | None) -> Report:
    """Compute the pending blocks of a store and finish it; closes store and job in any case."""
    try:
        report = fill_pending(store, job, progress=progress)
        raise_if_failed(report, job)
        started = perf_counter()
        machine.give_back_freed_memory()
        finish(store)
        report.finished = perf_counter() - started
        return report
    finally:
        store.close()
        job.close()


def fill_pending(store: Store, job: Job, *, progress: Progress | None = None, among: range | None = None) -> Report:
    """Compute the pending blocks of a store, all or in a range, with the scaling and the tissue that it records."""
    if store.complete:
        return Report()
    scaling, tissue = Scaling.from_json(store.info["scaling"]), store.layout.tissue_map
    return run_job(job, scaling, store, tissue=tissue, progress=progress, among=among)


def raise_if_failed(report: Report, job: Job) -> None:
    """Raise `BlocksFailed`, naming the first failed blocks, if any block of a store could not be computed."""
    if report.failures:
        remedy = "What is done is kept. Fix the cause, then run again with --resume"
        if _of_the_image(report):
            remedy = (
                f"Replace them in the image, then {ANEW}. A run that is resumed keeps the blocks that are done, which "
                "is right only if no other pixels change"
            )
        raise BlocksFailed(f"{_failed(report, job)}. {remedy}")


def finish(store: Store, *, progress: Progress | None = None, make_shards: ShardMaker | None = None) -> None:
    """Build the pyramid of a store whose level 0 is written, verify every file, and mark the store complete."""
    if not store.complete:
        store.build_pyramid(progress, make_shards=make_shards)
        store.finish()


def run_job(
    job: Job,
    scaling: Scaling,
    sink: Store | ArraySink,
    *,
    tissue: TissueMap | None,
    progress: Progress | None,
    among: range | None = None,
) -> Report:
    """Compute the pending blocks of a sink, all or in a range; blocks without tissue are background."""
    skipped = skip_background(job, sink, tissue, among=among)
    advance = progress_counter(job, sink.pending(among=among), progress, among=among)
    pending, write = sink.pending(among=among), sink.write
    with machine.threads(job.record["threads"]):
        predictor = job.predictor(scaling)
        report = run(
            job.plan, job.image, predictor, decide=job.decision, pending=pending, write=write, progress=advance
        )
    report.skipped = skipped
    return report


def skip_background(job: Job, sink: Store | ArraySink, tissue: TissueMap | None, *, among: range | None = None) -> int:
    """Write the pending blocks without tissue as background, reading no pixels; return their number."""
    if tissue is None:
        return 0
    # The map covers one plane, and applies to every plane of a stack.
    with_tissue = tissue.blocks_with_tissue(job.plan).ravel()
    background = [index for index in sink.pending(among=among) if not with_tissue[index % with_tissue.size]]
    for index in background:
        sink.write_background(index)
    return len(background)


def progress_counter(
    job: Job, pending: Iterable[int], progress: Progress | None, *, among: range | None = None
) -> Callable[[int], None]:
    """Return a function that adds pixels to those done, of all blocks or a range, and reports the sum to `progress`."""
    if progress is None:
        return lambda pixels: None
    total = prod(job.plan.shape) if among is None else sum(job.plan[i].box.size for i in among)
    done = total - sum(job.plan[i].box.size for i in pending)

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        progress(done, total)

    return advance


def to_array(
    job: Job, scaling: Scaling, *, progress: Progress | None = None, report: Reported | None = None
) -> NDArray[Any]:
    """Return the job's single output array, whole: classes (*n), or (K, *n) with ``c`` behind ``t``."""
    (array,) = _to_arrays(job, scaling, progress, report).values()
    classes_first = array.ndim > len(job.plan.shape)
    return np.moveaxis(array, 0, 1) if classes_first and job.image.box_axes.startswith("t") else array


def to_objects(
    job: Job, scaling: Scaling, *, progress: Progress | None = None, report: Reported | None = None
) -> NDArray[np.int32]:
    """Return the numbered objects (*n) of an image that fits in memory: those of each plane, or of the volume."""
    arrays, rule = _to_arrays(job, scaling, progress, report), ObjectRule.recorded(job.record)
    foreground, depths = arrays["mask"] > 0, arrays.get("probabilities")
    found, n, left_out = np.zeros(job.plan.shape, np.int32), 0, 0
    for plane in np.ndindex(*job.plan.shape[: -job.footprint.ndim]):
        depth = None if depths is None else depths[(0, *plane)].astype(np.float32)
        labels, more = numbered(View(foreground[plane], depth), rule)
        found[plane] = np.where(labels > 0, labels + n, 0)
        n += int(labels.max(initial=0))
        left_out += more
    pixels = int(np.count_nonzero(foreground))
    lost = Lost(pixels, pixels - int(np.count_nonzero(found)), n, left_out)
    remark_lost(job.image.name, lost, job.record)
    if rule.link is not None:
        numbers = linked(found, job.image.box_axes, found.shape, rule.link)
        found = np.insert(numbers, 0, 0).astype(np.int32)[found]
    return found


class Lost(NamedTuple):
    """What becomes no object."""

    # Pixels of the foreground, and those of them that belong to no object.
    foreground: int
    lost: int
    objects: int
    # Other objects, which are nowhere deep enough; None if they were not counted.
    left_out: int | None


def remark_lost(name: str, found: Lost, record: Mapping[str, Any]) -> None:
    """Say what becomes no object, and, if it is much, what to do about it."""
    if not found.lost:
        return
    least = record.get("least_depth")
    message = f"{name}: {found.lost} of {found.foreground} foreground pixels belong to no object: specks"
    if least is not None and found.left_out != 0:
        what = "what" if found.left_out is None else f"{counted(found.left_out, 'object')} that"
        message += f", and {what} --least-depth {least:g} leaves out ({found.objects} are kept)"
        if "link" in record:  # which makes volumes of them, and the run gives the number of these
            message += ", counted in each plane, before they are linked"
        if found.lost > MANY * found.foreground or (found.left_out or 0) > MANY * found.objects:
            message += ". A smaller one keeps more of them; at another --mpp the network may be surer"
    LOG.info("%s", message)


def _to_arrays(job: Job, scaling: Scaling, progress: Progress | None, report: Reported | None) -> Arrays:
    """Return the job's output arrays by name, classes first."""
    sink, tissue = ArraySink(job), job.tissue
    done = run_job(job, scaling, sink, tissue=tissue.map if tissue else None, progress=progress)
    if done.failures:
        remedy = "Replace them in the image" if _of_the_image(done) else "Fix the image or the model"
        raise BlocksFailed(f"{_failed(done, job)}. {remedy}")
    if report:
        report(done)
    return sink.arrays


class ArraySink:
    """Copies blocks into arrays in memory; has the methods of a `Store` that a run calls."""

    def __init__(self, job: Job) -> None:
        self._plan, self.arrays = job.plan, Arrays()
        self._decide, self._classes, self._ndim = job.decision, len(job.card.classes), job.footprint.ndim
        self._written: set[int] = set()

    def pending(self, *, among: range | None = None) -> Iterable[int]:
        """Return the blocks, all or in a range, that are not written yet."""
        among = range(len(self._plan)) if among is None else among
        return (index for index in among if index not in self._written)

    def write_background(self, index: int) -> None:
        """Leave a block 0 in every array."""
        if not self.arrays:  # no block may ever be computed, so a zero pixel gives names, shapes and dtypes
            pixel = self._decide(np.zeros((self._classes, *(1,) * self._ndim), np.float32))
            self.arrays = zeros_like(pixel, self._ndim, self._plan.shape)
        self._written.add(index)

    def write(self, index: int, arrays: Arrays) -> None:
        """Copy a block into its place."""
        if not self.arrays:
            self.arrays = zeros_like(arrays, len(self._plan.shape), self._plan.shape)
        for name, block in arrays.items():
            place: tuple[Any, ...] = (..., *self._plan[index].box.slices)
            self.arrays[name][place] = block
        self._written.add(index)


def _of_the_image(report: Report) -> bool:
    """Return whether pixels of the image are why every failed block failed."""
    return all(reason.endswith(OF_THE_IMAGE) for reason in report.failures.values())


def _failed(report: Report, job: Job) -> str:
    named = [f"block {i} at {job.plan[i].box}: {report.failures[i]}" for i in sorted(report.failures)[:NAMED]]
    more = len(report.failures) - len(named)
    where = f"{job.image.name}: {len(report.failures)} of {counted(len(job.plan), 'block')} failed"
    return "; ".join([where, *named, *([f"and {more} more"] if more else [])])
