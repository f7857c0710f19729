"""The runs of a batch: complete masks are skipped, others resumed, and a bad image does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tilenet.batches.image_list import BatchItem
from tilenet.batches.results import Results, in_words
from tilenet.batches.side_files import SideFiles
from tilenet.batches.summary import Result
from tilenet.errors import (
    DeviceLost,
    DiskFault,
    EnvironmentFault,
    OutputLocked,
    OutputMismatch,
    closed_on_error,
    counted_of,
)
from tilenet.footprint import Footprint
from tilenet.interrupts import Interrupted
from tilenet.jobs.compute import fill_pending, finish, skip_background
from tilenet.jobs.request import Request
from tilenet.models.named import function_of, keeping_last
from tilenet.prefetch import prefetched
from tilenet.runner import Report
from tilenet.runs.numbering import store_objects
from tilenet.runs.object_outputs import refuse_begun
from tilenet.runs.outputs import open_store, protect_input
from tilenet.store import Share, Store, is_complete
from tilenet.workers.distributed import task_of, work_off
from tilenet.workers.flights import PendingOutput

if TYPE_CHECKING:
    from distributed import Client

LOG = logging.getLogger("tilenet")
# Threads that build pyramids and verify masks, and how many masks may be handed to them at once.
FINISHERS, WAITING = 4, 8
# What is done to an image without a complete mask; it returns an output to compute, or a complete store and a status.
Work = Callable[[BatchItem, Path, Request], tuple[PendingOutput | Store, str]]


class BatchRun:
    """One call of `batch`: its images, and those that are open."""

    def __init__(
        self,
        items: Sequence[BatchItem],
        out: Path,
        footprint: Footprint | None,
        tell: Callable[[Result], None],
        *,
        side_files: SideFiles,
        client: Client | None = None,
        objects: bool = False,
        share: Share | None = None,
    ) -> None:
        self._items = {item.name: item for item in items}
        self._out, self._footprint, self._results = out, footprint, Results(list(self._items), tell)
        self._side_files, self._client, self._objects, self._share = side_files, client, objects, share
        self._open: dict[str, PendingOutput] = {}
        self._busy: list[str] = []
        self._load = keeping_last()

    def run(self) -> list[Result]:
        """Run all items, on a client's workers or in this process: blocks from one queue, objects image by image."""
        try:
            self._run_all(self._items.values())
            self._run_all([self._items[name] for name in self._busy])  # the other processes may be done with these now
        except BaseException as error:
            left = f"{counted_of(len(self._items) - len(self._results), len(self._items), 'image')} not done"
            if isinstance(error, Interrupted):
                LOG.warning("%s: %s", self._out, left)
            with suppress(EnvironmentFault):  # why the batch ends is what was raised first
                self._write_results()
            if isinstance(error, EnvironmentFault):
                raise type(error)(f"{error}. {left}") from error
            raise
        return self._write_results()

    def _run_all(self, items: Iterable[BatchItem]) -> None:
        if not self._objects:
            self._compute(items)
            return
        for item in items:
            self._begin(item, self._numbered)

    def _write_results(self) -> list[Result]:
        return self._results.write(self._out, self._share, counts=self._side_files.table)

    def _compute(self, items: Iterable[BatchItem]) -> None:
        opener, finishers = ThreadPoolExecutor(1, "open"), ThreadPoolExecutor(FINISHERS, "finish")
        finishing: set[Future[None]] = set()
        try:
            outputs = self._opened(opener, items)
            for output in work_off(self._client, outputs) if self._client is not None else _one_by_one(outputs):
                finishing = _raised(*wait(finishing, timeout=0))
                finishing.add(finishers.submit(self._finish, output))
                while len(finishing) > WAITING:
                    finishing = _raised(*wait(finishing, return_when=FIRST_COMPLETED))
            _raised(*wait(finishing))
        except Exception:  # no interruption, which leaves seconds: masks that are being finished are not at fault
            finishers.shutdown(cancel_futures=True)
            raise
        finally:
            opener.shutdown(cancel_futures=True)
            # Not waiting for masks that are being finished: an interruption leaves seconds, and they can be resumed.
            finishers.shutdown(wait=False, cancel_futures=True)
            for output in list(self._open.values()):
                output.store.close()
                output.job.close()

    def _opened(self, opener: ThreadPoolExecutor, items: Iterable[BatchItem]) -> Iterator[PendingOutput]:
        """Yield the images that are to be computed; each is opened while the one before it is computed."""
        for opened in prefetched(lambda item: opener.submit(self._begin, item, self._output_of), items, 2):
            if output := opened.result():
                yield output

    def _begin(self, item: BatchItem, work: Work) -> PendingOutput | None:
        """Do some work on an image without a complete mask, and note the result unless it is an output to be computed.

        An image whose mask another process is writing is put off once.
        """
        self._results.begin(item)
        try:
            out, request = self._checked(item)
            output, status = (_unchanged(out, request), "skipped") if is_complete(out) else work(item, out, request)
            if isinstance(output, PendingOutput):
                self._open[item.name] = output
                return output
            self._make_side_files(item, output.path)
        except Exception as error:  # one bad image must not stop the others
            if isinstance(error, DiskFault) or (isinstance(error, DeviceLost) and self._client is None):
                raise  # so would the next image
            if isinstance(error, OutputLocked) and item.name not in self._busy:
                self._busy.append(item.name)
                return None
            self._results.note(item, "failed", error=error, store=self._kept(item))
        else:
            self._results.note(item, status, store=output)
        return None

    def _kept(self, item: BatchItem) -> Store | None:
        """Return the complete mask of an image that failed, if there is one, and count what its table says.

        A wrong option, or an image that was moved, takes no line out of the counts of a batch; another image does.
        """
        out, store = self._out / f"{item.name}.zarr", None
        try:
            store = self._same_image(item, out) if is_complete(out) else None
            if store:
                self._results.count(item, self._side_files.kept(item, out))
        except Exception as error:  # of any kind: this is about an image that failed already
            LOG.warning("%s: its complete mask cannot be counted: %s", item.name, in_words(error))
        return store

    def _same_image(self, item: BatchItem, out: Path) -> Store | None:
        """Return the complete mask of an image, or None if it is known to be of another image."""
        store = Store.inspect(out)
        try:
            self._request(item).refuse_another_image(store.info, out)
        except OutputMismatch:
            return None
        return store

    def _request(self, item: BatchItem) -> Request:
        own = callable(item.model) or function_of(item.model)  # a list may name another model, with its own footprint
        footprint = self._footprint if own else None
        return Request(item.image, item.model, item.options, footprint, load=self._load)

    def _checked(self, item: BatchItem) -> tuple[Path, Request]:
        """Return where the mask of an image goes, and what is wanted; raise if a file is in the way."""
        out, request = self._out / f"{item.name}.zarr", self._request(item)
        protect_input(out, item.image)
        self._side_files.check(item, out, request.footprint)
        return out, request

    def _numbered(self, item: BatchItem, out: Path, request: Request) -> tuple[Store, str]:
        """Give numbers to the objects of an image; return the complete store, and the image's status."""
        store_objects(out, request, resume=True, client=self._client)
        return Store.inspect(out), "done"

    def _output_of(self, item: BatchItem, out: Path, request: Request) -> tuple[PendingOutput | Store, str]:
        """Return the output whose blocks are to be computed, and ""; or a complete store, and the image's status."""
        refuse_begun(out, None, overwrite=False)
        store, job = open_store(out, request, resume=True)
        if store.complete:  # another process was quicker, or only tidying was left
            job.close()
            return store, "skipped"
        with closed_on_error(store, job):
            # In this process, `run_job` skips the background.
            report = Report(skipped=skip_background(job, store, store.layout.tissue_map) if self._client else 0)
        return PendingOutput(task_of(store, job, request), store, job, name=item.name, report=report), ""

    def _make_side_files(self, item: BatchItem, mask: Path) -> None:
        self._side_files.make(item, mask)
        self._results.count(item, self._side_files.measured(item, mask, image=item.image))

    def _finish(self, output: PendingOutput) -> None:
        item = self._items[output.name]
        try:
            output.raise_if_failed()
            finish(output.store)
            self._make_side_files(item, output.store.path)
        except DiskFault:  # the next image would fail, too
            raise
        except Exception as error:
            self._results.note(item, "failed", error=error, store=output.store)
        else:
            self._results.note(item, "done", store=output.store)
        finally:
            output.store.close()
            output.job.close()
            del self._open[output.name]


def _raised(done: Iterable[Future[None]], waiting: set[Future[None]]) -> set[Future[None]]:
    """Return the futures still waited for; raise the error of one that is done, such as one in the caller's `tell`."""
    for future in done:
        future.result()
    return waiting


def _one_by_one(outputs: Iterable[PendingOutput]) -> Iterator[PendingOutput]:
    for output in outputs:
        try:
            output.report = fill_pending(output.store, output.job)
        except (DeviceLost, DiskFault):  # the next image would fail, too
            raise
        except Exception as error:
            output.error = error
        yield output


def _unchanged(out: Path, request: Request) -> Store:
    """Return the complete store of an image; raise if these options would make another mask."""
    store = Store.inspect(out)
    request.job_like_complete(store.info, out).close()
    return store
