"""Dask clusters: local processes, an existing scheduler, or jobs of a batch system.

Schedulers and workers that are started here listen on the loopback interface only, unless configured
otherwise: anyone who can reach a scheduler can run code as its user.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilenet import machine
from tilenet.errors import EnvironmentFault, SettingsError
from tilenet.readers.boundary import one_line
from tilenet.workers import worker
from tilenet.workers.cluster_file import TYPES, Tls, read_description

if TYPE_CHECKING:
    from distributed import Client

SILENT = logging.CRITICAL
LOOPBACK = "127.0.0.1"
# Port 0 is any free port. On its default port, the scheduler's HTTP server would warn where another one has it.
NO_DASHBOARD = {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
INSTALL = 'Install it: pip install "tilenet[cluster]"'
# One task per worker: a second one that waits there would be lost with the worker.
CONFIG = {"distributed.scheduler.worker-saturation": 1.0, "distributed.comm.timeouts.connect": "10s"}
# How long a lost worker may take to return before it is closed and replaced. A process restarts by itself,
# which takes seconds, and longer on a busy machine. A lost job never returns.
LOST = "distributed.deploy.lost-worker-timeout"
LOST_PROCESS, LOST_JOB = "60s", "5s"
# The arguments in which jobs ask for GPUs, and options there that may name GPUs for another reason, such as a path.
ASKING = ("queue", "resource_spec", "job_extra_directives", "job_extra")
NAMED = "x|exclude|A|account|P|J|N|job-name|o|output|e|error|D|chdir|comment|export"
NAMING = re.compile(rf"(?<!\S)--?({NAMED})\b[\s=]*('[^']*'|\"[^\"]*\"|\S*)")
# Milliseconds between two checks for processes to replace.
LOOK = 2000


@contextmanager
def local_cluster(workers: int, *, device: str | None = None) -> Iterator[Client]:
    """Start worker processes on this machine, each with a GPU of its own as long as there are enough.

    While the cluster runs, the default of `threads` is this machine's number divided by `workers`.

    Parameters
    ----------
    workers : int
        Number of processes.
    device : str, optional
        Device of the run: with ``cpu`` no GPU is assigned.
    """
    with _quiet(lost=LOST_PROCESS):
        from distributed import Nanny, Scheduler, SpecCluster, fire_and_forget

        # The plan bounds a run's memory. Freed memory is kept by the process, so Dask's own limit would kill it.
        options = {"nthreads": 1, "host": LOOPBACK, "memory_limit": 0, "dashboard": False, "silence_logs": SILENT}
        gpus = machine.visible_gpus(device)
        environ = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}]
        specs = {i: {"cls": Nanny, "options": options | {"env": environ[i % len(environ)]}} for i in range(workers)}
        scheduler = {"cls": Scheduler, "options": {"host": LOOPBACK, "port": 0, **NO_DASHBOARD}}
        threads = max(1, machine.current_threads() // workers)
        with (
            SpecCluster(specs, scheduler, silence_logs=SILENT) as cluster,
            _replacing(cluster, workers),
            _client(cluster) as client,
            machine.threads(threads),
        ):
            # Workers load libraries, which takes seconds, while this process opens the image.
            fire_and_forget(client.map(worker.load, [device] * workers, key="tilenet-load", pure=False))
            yield client


@contextmanager
def _replacing(cluster: Any, workers: int) -> Iterator[None]:
    """Replace workers that their `Nanny` gives up, for example because the process was killed while it started."""
    from distributed.core import Status
    from tornado.ioloop import PeriodicCallback

    def replace() -> None:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.failed, Status.closed):
                del cluster.workers[name]
        cluster.scale(workers)  # starts the workers of the specification that are missing

    looking = PeriodicCallback(replace, LOOK)
    cluster.loop.add_callback(looking.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(looking.stop)


@contextmanager
def existing_cluster(scheduler: str, *, tls: Tls | None = None) -> Iterator[Client]:
    """Connect to a scheduler: ``tcp://host:port``, ``tls://host:port`` or a scheduler file.

    Raises
    ------
    EnvironmentFault
        If the scheduler does not answer.
    SettingsError
        If `scheduler` is neither an address nor a file, or if it needs TLS files and there are none.
    """
    is_address = "://" in scheduler
    if not (is_address or Path(scheduler).is_file()):
        raise SettingsError(f"{scheduler}: no such file, and no address. Give tcp://host:port or a scheduler file")
    where = {"address": scheduler} if is_address else {"scheduler_file": scheduler}
    encrypted = "tls://" in (scheduler if is_address else Path(scheduler).read_text(errors="replace"))
    with _quiet():
        if encrypted and not (tls or _dask_setting("distributed.comm.tls.ca-file")):
            raise SettingsError(f"{scheduler}: wants a certificate. Give --tls-ca-file, --tls-cert and --tls-key")
        with _client(name=scheduler, security=tls.security() if tls else None, **where) as client:
            yield client


def _dask_setting(name: str) -> Any:
    """Return a value of Dask's own configuration, which includes its files and environment variables."""
    import dask

    return dask.config.get(name, None)


@contextmanager
def described_cluster(path: str | Path, *, device: str | None = None) -> Iterator[Client]:
    """Start the cluster of jobs (Slurm, PBS, LSF, SGE) that a YAML file describes; see docs/cluster.md.

    While the cluster runs, the default of `threads` is a job's number of cores divided by its processes.

    Parameters
    ----------
    path : path
        The YAML file.
    device : str, optional
        Device of the run.

    Raises
    ------
    SettingsError
        If the file is invalid, if dask-jobqueue is not installed, or if jobs have GPUs that no worker would use.
    """
    kind, arguments, adapt, tls = read_description(path)
    _refuse_idle_gpus(path, arguments, device)
    with _quiet(lost=LOST_JOB):
        kind_of_cluster = _jobqueue(kind, arguments, path)
        if tls:
            arguments |= {"security": tls.security(), "protocol": "tls://"}
        options = {**NO_DASHBOARD} | (arguments.pop("scheduler_options", None) or {})
        if not {"host", "interface"} & {*options, *arguments}:
            options["host"] = LOOPBACK
        # The last of several values holds. As for local workers, the plan bounds memory, and not Dask.
        extra = ["--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
        extra += arguments.pop("worker_extra_args", None) or []
        # dask-jobqueue's default is about the root of `cores`: processes that would have a few threads each.
        arguments.setdefault("processes", 1)
        try:
            threads = max(1, int(arguments["cores"]) // int(arguments["processes"]))
            cluster = kind_of_cluster(scheduler_options=options, worker_extra_args=extra, **arguments)
        except (TypeError, ValueError, OSError, RuntimeError, ZeroDivisionError) as error:
            raise SettingsError(f"{path}: {kind} does not take these arguments ({one_line(error)})") from error
        with cluster:
            cluster.adapt(minimum_jobs=adapt["minimum"], maximum_jobs=adapt["maximum"], target_duration="1s")
            with _client(cluster) as client, machine.threads(threads):
                yield client


def _refuse_idle_gpus(path: str | Path, arguments: Mapping[str, Any], device: str | None) -> None:
    """Raise if jobs ask for GPUs, and this process would choose another device, which all workers then use."""
    if device in (None, "auto") and _asks_for_gpus(arguments) and not machine.visible_gpus(device):
        raise SettingsError(
            f"{path}: asks for GPUs, and this machine, which decides the device of all workers, has none. Start the "
            f"command in a job with a GPU, or give --device cpu"
        )


def _asks_for_gpus(arguments: Mapping[str, Any]) -> bool:
    values = [arguments.get(name) for name in ASKING]
    each = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return any("gpu" in NAMING.sub("", str(part)).lower() for part in each)


def _jobqueue(kind: str, arguments: Mapping[str, Any], path: str | Path) -> Any:
    """Return the cluster class of a batch system; checks the arguments, since a half-built cluster cannot be closed."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise SettingsError(f"{path}: needs dask-jobqueue, which is not installed. {INSTALL}") from error
    # Its import installs a handler with which Ctrl-C ends the process with exit code 0, as if the run were done.
    if signal.getsignal(signal.SIGINT) is not handler:
        signal.signal(signal.SIGINT, handler)
    cluster = getattr(dask_jobqueue, TYPES[kind])
    makers = [*cluster.__mro__, *cluster.job_cls.__mro__]
    known = {name for maker in makers for name in signature(maker.__init__).parameters}
    if unknown := sorted(map(str, set(arguments) - known)):
        raise SettingsError(f"{path}: {cluster.__name__} has no argument {unknown[0]}. See dask-jobqueue's pages")
    if missing := [name for name in ("cores", "memory") if name not in arguments]:
        raise SettingsError(f"{path}: arguments must say the {missing[0]} of a job")
    return cluster


@contextmanager
def _client(cluster: Any = None, *, name: str = "", **where: Any) -> Iterator[Client]:
    from distributed import Client

    if cluster:
        where["address"] = cluster
    try:
        client = Client(set_as_default=False, **where)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"{name or 'the cluster'}: no scheduler answers ({one_line(error)}). Is it running?"
        ) from error
    with client:
        yield client


@contextmanager
def _quiet(*, lost: str = LOST_JOB) -> Iterator[None]:
    """Configure Dask, and keep its log messages from the terminal: errors come back as outcomes."""
    try:
        import dask
        import distributed  # noqa: F401
    except ImportError as error:
        raise SettingsError(f"workers need Dask's distributed, which is not installed. {INSTALL}") from error
    # Some of Dask's loggers have a level of their own, so each one is silenced.
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(SILENT)
    try:
        with dask.config.set(CONFIG | {LOST: lost}):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
