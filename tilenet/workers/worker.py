"""What a worker does with blocks: open image, model and output by path, compute, write, report.

A worker is sent only paths and block indices. It reads the settings that decide the bytes from the run
record in the output, and refuses if it would arrive at another record itself: another image at that
path, another engine, no such device.
"""

from __future__ import annotations

import atexit
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from time import monotonic
from typing import Any

from tilenet import machine
from tilenet.decide import Arrays
from tilenet.errors import DeviceLost, EnvironmentFault, OutputLocked, TilenetError, closed_on_error, first_line
from tilenet.footprint import Footprint
from tilenet.jobs.job import Job
from tilenet.jobs.request import Request
from tilenet.models.named import keeping_last
from tilenet.runner import Predictor, Report, run
from tilenet.scaling import Scaling
from tilenet.store import Store

# Jobs that a process keeps open: the current one, and its neighbours in the queue.
OPEN = 3


@dataclass(frozen=True)
class Task:
    """Where a worker finds everything that it needs for a run."""

    # The output, and the run id in its lock file.
    out: str
    run: str
    # Absolute path, or an address, which may contain credentials.
    image: str = field(repr=False)
    # A packaged model's name or an absolute path; or a callable that is pickled by reference.
    model: Any
    footprint: Footprint | None = None


@dataclass(frozen=True)
class BlockResult:
    """The result of one block: its journal line and its times, or why it cannot be computed."""

    line: bytes = b""
    report: Report = field(default_factory=Report)
    failure: str = ""


@dataclass(frozen=True)
class FlightResult:
    """The result of a flight, and why some of its blocks have no result.

    If neither `refusal`, `death` nor `fault` says why, the flight's time was up.
    """

    done: dict[int, BlockResult] = field(default_factory=dict)
    # Address of the worker.
    worker: str = ""
    # Why this worker cannot go on; another worker might.
    refusal: str = ""
    # Whether a worker died while it computed the first block without a result.
    death: bool = False
    # An error that ends the whole run; together with a refusal, only if other workers refuse, too.
    fault: TilenetError | None = None


class OpenTask:
    """Store, image and model of a task, opened once per process; image and model only once a block is computed."""

    def __init__(self, task: Task) -> None:
        self._task, self.store = task, Store.join(task.out, task.run)

    @cached_property
    def _job(self) -> Job:
        """The job as this worker makes it."""
        task = self._task
        model = _load(task.model) if isinstance(task.model, str) else task.model
        job = Request(task.image, model, footprint=task.footprint).job_like(self.store.info, task.out)
        with closed_on_error(job):
            job.remark_other_bits(self.store, f"{task.out} (on {socket.gethostname()})")
        return job

    @cached_property
    def _predictor(self) -> Predictor:
        return self._job.predictor(Scaling.from_json(self.store.info["scaling"]))

    def begin(self, flight: str, blocks: Iterable[int]) -> dict[int, BlockResult] | None:
        """Mark a flight as begun; if a worker began it before, return the results it wrote, else None."""
        if (lines := self.store.begin(flight, blocks)) is None:
            return None
        sizes = {index: self.store.layout.box(0, index).size for index in lines}
        return {index: BlockResult(line, Report(blocks=1, pixels=sizes[index])) for index, line in lines.items()}

    def compute(self, index: int) -> BlockResult:
        """Compute and write one block."""
        lines: list[bytes] = []

        def write(index: int, arrays: Arrays) -> None:
            lines.append(self.store.write(index, arrays))

        job = self._job
        with machine.threads(job.record["threads"]):
            report = run(job.plan, job.image, self._predictor, decide=job.decision, pending=[index], write=write)
        return BlockResult(b"".join(lines), report, failure=report.failures.get(index, ""))

    def close(self) -> None:
        """Close store and image."""
        self.store.close()
        if "_job" in vars(self):
            self._job.close()


_load = keeping_last(functions=True)
_opened: OrderedDict[tuple[str, str], OpenTask] = OrderedDict()
# PyTorch's number of threads is process-wide, and the memory is planned for one block.
_one_block_at_a_time = threading.Lock()


def compute_blocks(task: Task, blocks: Sequence[int], *, flight: str, seconds: float) -> FlightResult:
    """Compute blocks of a task in this process, one after the other; errors are returned in the `FlightResult`.

    After some `seconds` no further block is begun. If another worker has begun this flight, nothing is computed: that
    worker is dead, or was taken for dead, and one of the blocks may be the cause.
    """
    done: dict[int, BlockResult] = {}
    with _one_block_at_a_time:
        try:
            opened, until = _open(task), monotonic() + seconds
            if (found := opened.begin(flight, blocks)) is not None:
                return FlightResult(found, death=True)
            for index in blocks:
                done[index] = opened.compute(index)
                if monotonic() > until:
                    break
        except DeviceLost as error:
            return FlightResult(done, refusal=f"worker on {socket.gethostname()}: {first_line(error)}", fault=error)
        except (EnvironmentFault, OutputLocked) as error:
            return FlightResult(done, fault=error)
        except MemoryError:
            reason = "out of memory. Give workers more, or use a smaller --tile"
            return FlightResult(done, refusal=f"{socket.gethostname()}: {reason}")
        except Exception as error:  # of any kind: another worker may succeed
            return FlightResult(done, refusal=f"worker on {socket.gethostname()}: {first_line(error)}")
    return FlightResult(done)


def load(device: str | None) -> None:
    """Load libraries and initialise the device, which takes a new process seconds."""
    _prepare()
    with suppress(TilenetError, RuntimeError):  # the same error is reported when a block is computed
        # Its index is not that of the GPU here: a worker sees only its own (`tilenet.workers.clusters`).
        machine.initialise((device or "auto").partition(":")[0])


def close_all() -> None:
    """Close all tasks that this process keeps open."""
    while _opened:
        _opened.popitem()[1].close()


def _open(task: Task) -> OpenTask:
    _prepare()
    key = (task.out, task.run)
    if key not in _opened:
        while len(_opened) >= OPEN:
            _opened.popitem(last=False)[1].close()
        _opened[key] = OpenTask(task)
    _opened.move_to_end(key)
    return _opened[key]


@cache
def _prepare() -> None:
    """Set up the process before it creates its first tensor."""
    machine.keep_freed_memory()
    atexit.register(close_all)
