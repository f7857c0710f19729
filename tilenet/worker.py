"""What a worker does with blocks: open everything where it is, compute, write, report.

A worker is told paths and the numbers of blocks, and nothing else. What decides the bytes
it reads from the run record in the output, and it refuses if here the same record would
not come out: another image under that path, another engine, no such device.
"""

from __future__ import annotations

import atexit
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

from tilenet import machine
from tilenet.decide import Arrays
from tilenet.errors import EnvironmentFault, OutputLocked, TilenetError
from tilenet.footprint import Footprint
from tilenet.job import Job
from tilenet.models import load_model
from tilenet.runner import Predictor, Report, run
from tilenet.scaling import Scaling
from tilenet.settling import Wanted
from tilenet.store import Store

# Jobs that a process keeps open: the one at hand, and those that came before and behind it in the queue.
OPEN = 3


@dataclass(frozen=True)
class Task:
    """Where a worker finds all that a run is about.

    Attributes
    ----------
    out, run : str
        The output, and the run id in its lock.
    image : str
        Absolute path, or an address with what opens it, which nothing prints.
    model : str or callable
        A packaged name or an absolute path; or a callable that is pickled by its name.
    footprint : Footprint, optional
        For a callable that has none of its own.
    """

    out: str
    run: str
    image: str = field(repr=False)
    model: Any
    footprint: Footprint | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one block.

    Attributes
    ----------
    line : bytes
        The journal's entry, if it was written.
    report : Report
        What that took.
    failure : str
        Why it cannot be computed.
    """

    line: bytes = b""
    report: Report = field(default_factory=Report)
    failure: str = ""


@dataclass(frozen=True)
class Answer:
    """What became of a flight of blocks, and why there is nothing of the others; if nothing says so, time was over.

    Attributes
    ----------
    outcomes : dict of int to Outcome
        By block.
    worker : str
        Whose answer it is.
    refusal : str
        Why this worker cannot go on; another might.
    death : bool
        Whether a worker died of the first of the others.
    fault : TilenetError or None
        What ends the whole run.
    """

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    worker: str = ""
    refusal: str = ""
    death: bool = False
    fault: TilenetError | None = None


class Opened:
    """Store, image and model of a task, opened once per process, the last two when a block is there for them."""

    def __init__(self, task: Task) -> None:
        self._task, self.store = task, Store.join(task.out, task.run)

    @cached_property
    def job(self) -> Job:
        """The job as it is settled here."""
        task = self._task
        model = _network(task.model) if isinstance(task.model, str) else task.model
        job, _ = Wanted(task.image, model, footprint=task.footprint).settle_as(self.store.info, task.out)
        return job

    @property
    def _numbers(self) -> Scaling:
        return Scaling.from_json(self.store.info["scaling"])

    @cached_property
    def _predictor(self) -> Predictor:
        predictor: Predictor = self.job.predictor(self._numbers)
        return predictor

    def recall(self, flight: str, blocks: Iterable[int]) -> dict[int, Outcome] | None:
        """Return None if nobody has begun that flight before, else what was written of it."""
        if (lines := self.store.begin(flight, blocks)) is None:
            return None
        sizes = {index: self.store.layout.box(0, index).size for index in lines}
        return {index: Outcome(line, Report(blocks=1, pixels=sizes[index])) for index, line in lines.items()}

    def compute(self, index: int) -> Outcome:
        """Compute and write one block."""
        job, sink = self.job, OneBlock(self.store, index)
        with machine.threads(job.record["threads"]):
            report = run(job.plan, job.image, self._predictor, decide=job.decision, sink=sink)
        return Outcome(sink.line, report, failure=report.failures.get(index, ""))

    def close(self) -> None:
        """Let go of files."""
        self.store.close()
        if "job" in vars(self):
            self.job.close()


class OneBlock:
    """A sink for a single block; see `tilenet.runner.Sink`."""

    def __init__(self, store: Store, index: int) -> None:
        self._store, self._index, self.line = store, index, b""

    def pending(self) -> Iterable[int]:
        """Return the one block."""
        return (self._index,)

    def write(self, index: int, arrays: Arrays) -> None:
        """Write it, and keep its journal line."""
        self.line = self._store.write(index, arrays)


_opened: OrderedDict[tuple[str, str], Opened] = OrderedDict()
# The number of threads is one setting of the whole process, and memory was promised for one block.
_one_block_at_a_time = threading.Lock()


def compute_blocks(task: Task, blocks: Sequence[int], *, flight: str, seconds: float) -> Answer:
    """Compute blocks of a task in this process, one after the other; what goes wrong comes back as an `Answer`.

    Parameters
    ----------
    task, blocks
        What.
    flight : str
        Names these blocks. Whoever is sent them after another had begun them does not begin: that
        one is dead, or was taken for dead, and one of the blocks may be why.
    seconds : float
        No other block is begun after so many.
    """
    outcomes: dict[int, Outcome] = {}
    with _one_block_at_a_time:
        try:
            opened, until = _open(task), monotonic() + seconds
            if (found := opened.recall(flight, blocks)) is not None:
                return Answer(found, death=True)
            for index in blocks:
                outcomes[index] = opened.compute(index)
                if monotonic() > until:
                    break
        except (EnvironmentFault, OutputLocked) as error:
            return Answer(outcomes, fault=error)
        except MemoryError:
            reason = "out of memory. Give workers more, or use a smaller --tile"
            return Answer(outcomes, refusal=f"{socket.gethostname()}: {reason}")
        except Exception as error:  # of whatever kind: this worker cannot, another might
            return Answer(outcomes, refusal=f"worker on {socket.gethostname()}: {error or type(error).__name__}")
    return Answer(outcomes)


def load(device: str | None) -> None:
    """Load libraries, and begin with the device: what takes a new process seconds."""
    _prepare()
    with suppress(TilenetError, RuntimeError):  # whoever computes is told
        machine.begin(device)


def close_all() -> None:
    """Close what this process keeps open."""
    while _opened:
        _opened.popitem()[1].close()


def _open(task: Task) -> Opened:
    _prepare()
    key = (task.out, task.run)
    if key not in _opened:
        while len(_opened) >= OPEN:
            _opened.popitem(last=False)[1].close()
        _opened[key] = Opened(task)
    _opened.move_to_end(key)
    return _opened[key]


@cache
def _prepare() -> None:
    """Set up the process, before its first tensor."""
    machine.keep_freed_memory()
    atexit.register(close_all)


def _network(model: str) -> Any:
    """Return the network of a name or path; the last one is kept for the slides to come."""
    return _loaded(model, Path(model).stat().st_mtime_ns if Path(model).exists() else 0)


@lru_cache(maxsize=1)
def _loaded(model: str, modified: int) -> Any:
    return load_model(model)
