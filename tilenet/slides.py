"""`batch`: many images, one mask each.

What is complete is skipped, what is not is gone on with, and one bad image stops no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tilenet.address import check_local, shown
from tilenet.compute import finish, run_job, skip_glass
from tilenet.distributed import check_sendable, task_of, work_off
from tilenet.errors import EnvironmentFault, SettingsError, TilenetError
from tilenet.flights import Slide
from tilenet.footprint import Footprint
from tilenet.options import Options, check_output_option
from tilenet.orders import Order, read_orders
from tilenet.outputs import check_folder_name, open_store, spare_the_input
from tilenet.picture_files import check_picture_place, overview_beside, save
from tilenet.pictures import overlay
from tilenet.readers.boundary import one_line
from tilenet.runner import Report
from tilenet.scaling import Scaling
from tilenet.settling import Wanted
from tilenet.store import Store, is_complete
from tilenet.summary import Result, write_summary

if TYPE_CHECKING:
    from distributed import Client

# Threads that build pyramids and verify, and masks that may wait for them.
FINISHERS, WAITING = 4, 8


def batch(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: Any = "nuclei",
    footprint: Footprint | None = None,
    client: Client | None = None,
    tell: Callable[[Result], None] = lambda result: None,
    overview: bool = False,
    **options: Any,
) -> list[Result]:
    """Segment many images into the masks ``OUT/<name>.zarr``, and write a summary beside them.

    Masks that are complete are left as they are, others are gone on with. What goes wrong with
    an image is noted, and the others are done.

    Parameters
    ----------
    images : path or sequence of path
        Images, patterns such as ``"slides/*.svs"``, and lists of images (``.txt``: a path a line;
        ``.csv``: a column ``image``, and ``name`` and options of `segment` where wanted). Paths in
        a list are relative to it.
    out : path
        A folder; made where there is none.
    model, footprint
        As for `segment`; a list may say another model for an image.
    client : distributed.Client, optional
        Have the workers of a Dask cluster compute the blocks of all images from one queue.
    tell : callable
        Called with each `Result`, as an image comes to its end; from any thread, one at a time.
    overview : bool
        Draw each mask over its image, see `tilenet.overlay`, in ``OUT/<name>.overview.png``.
    **options
        Of `segment`: ``level``, ``channels``, ``tile``, ``threads``, ``output`` and so on.

    Returns
    -------
    list of Result
        In the order of the images: name, ``done``, ``skipped`` or ``failed``, pixels, seconds, error.

    Raises
    ------
    SettingsError
        Before any work, if there is no image, if two would have the same name, if a list says
        what cannot be.
    EnvironmentFault
        If the scheduler is lost. The same call again goes on.

    Examples
    --------
    >>> import tilenet
    >>> tilenet.batch("slides/*.svs", "masks", tile=512)
    Traceback (most recent call last):
        ...
    tilenet.errors.SettingsError: slides/*.svs: no image matches. Check the pattern
    """
    if footprint is not None and not callable(model):
        raise SettingsError(f"{model} has a footprint of its own. Leave footprint out")
    try:
        common = Options(**options)
    except TypeError as error:
        raise SettingsError(f"batch has no such option: {one_line(error)}") from error
    orders = read_orders([images] if isinstance(images, str | Path) else images, model=model, options=common)
    for order in orders:
        check_output_option(order.options.output, stored=True)
        if client is not None:
            check_sendable(order.image, order.model)
    check_local(out)
    check_folder_name(Path(out))
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{out}: cannot be made a folder ({error.strerror}). Choose another path") from error
    return _Batch(orders, Path(out), footprint, tell, overview=overview).run(client)


class _Batch:
    """The state of one call: what is open, what came out."""

    def __init__(
        self,
        orders: Sequence[Order],
        out: Path,
        footprint: Footprint | None,
        tell: Callable[[Result], None],
        *,
        overview: bool,
    ) -> None:
        self._overview = overview
        self._orders, self._out, self._footprint, self._tell = orders, out, footprint, tell
        self._results: dict[str, Result] = {}
        self._started: dict[str, float] = {}
        self._open: dict[str, Slide] = {}
        self._one_at_a_time = threading.Lock()

    def run(self, client: Client | None) -> list[Result]:
        opener, finishers = ThreadPoolExecutor(1, "open"), ThreadPoolExecutor(FINISHERS, "finish")
        finishing: set[Future[None]] = set()
        try:
            slides = self._opened(opener)
            for slide in work_off(client, slides) if client is not None else _one_by_one(slides):
                finishing = _raised(*wait(finishing, timeout=0))
                finishing.add(finishers.submit(self._finish, slide))
                while len(finishing) > WAITING:
                    finishing = _raised(*wait(finishing, return_when=FIRST_COMPLETED))
            _raised(*wait(finishing))
        finally:
            opener.shutdown(cancel_futures=True)
            finishers.shutdown(wait=False, cancel_futures=True)
            for slide in list(self._open.values()):
                slide.store.close()
                slide.job.close()
            results = [self._results[order.name] for order in self._orders if order.name in self._results]
            write_summary(self._out, results)
        return results

    def _opened(self, opener: ThreadPoolExecutor) -> Iterator[Slide]:
        """Yield the images that are to be computed; each is opened while the one before it is computed."""
        orders = iter(self._orders)
        ahead = next((opener.submit(self._open_one, order) for order in orders), None)
        while ahead:
            slide = ahead.result()
            ahead = next((opener.submit(self._open_one, order) for order in orders), None)
            if slide:
                yield slide

    def _open_one(self, order: Order) -> Slide | None:
        self._started[order.name] = perf_counter()
        try:
            slide = self._slide_of(order)
        except Exception as error:  # one bad image must not stop the others
            self._note(order.name, "failed", error=error)
            return None
        if isinstance(slide, Store):
            self._note(order.name, "skipped", store=slide)
            return None
        self._open[order.name] = slide
        return slide

    def _slide_of(self, order: Order) -> Slide | Store:
        """Return what is to be computed, or the store that is complete."""
        out = self._out / f"{order.name}.zarr"
        spare_the_input(out, order.image)
        anew = "or give the batch another folder"
        footprint = self._footprint if callable(order.model) else None  # a list may say another model, by its name
        wanted = Wanted(order.image, order.model, order.options, footprint, anew=anew)
        if is_complete(out):
            store = _unchanged(out, wanted)
            if self._overview and not overview_beside(out).exists():
                save(overlay(order.image, out), overview_beside(out))
            return store
        if self._overview:
            check_picture_place(overview_beside(out), replace=True, image=order.image)
        store, job, _ = open_store(out, wanted, resume=True)
        if store.complete:  # another process was quicker, or only tidying was left
            job.close()
            return store
        try:
            report = Report(skipped=skip_glass(job, store, store.layout.tissue_map))
        except BaseException:
            store.close()
            job.close()
            raise
        return Slide(task_of(store, wanted), store, job, name=order.name, report=report)

    def _finish(self, slide: Slide) -> None:
        try:
            slide.raise_if_failed()
            finish(slide.store)
            if self._overview:
                save(overlay(slide.task.image, slide.store.path), overview_beside(slide.store.path))
        except Exception as error:
            self._note(slide.name, "failed", error=error, store=slide.store)
        else:
            self._note(slide.name, "done", store=slide.store)
        finally:
            slide.store.close()
            slide.job.close()
            del self._open[slide.name]

    def _note(self, name: str, status: str, *, store: Store | None = None, error: Exception | None = None) -> None:
        with self._one_at_a_time:
            order = next(order for order in self._orders if order.name == name)
            said = str(error) if isinstance(error, TilenetError) else one_line(error) if error else ""
            seconds = perf_counter() - self._started[name]
            pixels = prod(store.layout.shape) if store else 0
            glass = store.info.get("tissue", {}).get("skipped") if store else None
            tissue = None if glass is None else round(1 - glass, 6)
            result = Result(name, shown(order.image), status, pixels, tissue=tissue, seconds=seconds, error=said)
            self._results[name] = result
            self._tell(result)


def _raised(done: Iterable[Future[None]], waiting: set[Future[None]]) -> set[Future[None]]:
    """Return those that are waited for; raise what those that are done have raised, such as `tell` of the caller."""
    for future in done:
        future.result()
    return waiting


def _one_by_one(slides: Iterable[Slide]) -> Iterator[Slide]:
    """Compute the blocks of each image in this process."""
    for slide in slides:
        numbers = Scaling.from_json(slide.store.info["scaling"])
        try:
            slide.report = run_job(slide.job, numbers, slide.store, tissue=slide.store.layout.tissue_map)
        except Exception as error:
            slide.error = error
        yield slide


def _unchanged(out: Path, wanted: Wanted) -> Store:
    """Return the complete store of an image, if it is what these options would make."""
    store = Store.inspect(out)
    job, _ = wanted.settle_as(store.info, out)
    job.close()
    return store
