"""Dask clusters: local processes, an existing scheduler, or jobs of a batch system.

Schedulers and workers that are started here listen on the loopback interface only, unless configured
otherwise: anyone who can reach a scheduler can run code as its user.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilenet import machine
from tilenet.errors import EnvironmentFault, SettingsError, one_line
from tilenet.workers import batch_jobs, worker
from tilenet.workers.batch_jobs import INSTALL
from tilenet.workers.cluster_file import Tls, read_description
from tilenet.workers.submitted_jobs import SubmittedJobs

if TYPE_CHECKING:
    from distributed import Client

SILENT = logging.CRITICAL
LOOPBACK = "127.0.0.1"
# Port 0 is any free port. On its default port, the scheduler's HTTP server would warn where another one has it.
NO_DASHBOARD = {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
# One task per worker: a second one that waits there would be lost with the worker.
CONFIG = {"distributed.scheduler.worker-saturation": 1.0, "distributed.comm.timeouts.connect": "10s"}
# How long a lost worker may take to return before it is closed and replaced. A process restarts by itself,
# which takes seconds, and longer on a busy machine. A lost job never returns.
LOST = "distributed.deploy.lost-worker-timeout"
LOST_PROCESS, LOST_JOB = "60s", "5s"
# Milliseconds between two checks for processes to replace, and for jobs to submit again.
LOOK, LOOK_AT_JOBS = 2000, 30_000


@contextmanager
def local_cluster(workers: int, *, device: str | None = None) -> Iterator[Client]:
    """Start worker processes on this machine, each with a GPU of its own as long as there are enough.

    While the cluster runs, the default of `threads` is this machine's number divided by `workers`.
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
            _repeating(cluster, partial(_replace, cluster, workers), LOOK),
            _client(cluster) as client,
            machine.threads(threads),
        ):
            # Workers load libraries, which takes seconds, while this process opens the image.
            fire_and_forget(client.map(worker.load, [device] * workers, key="tilenet-load", pure=False))
            yield client


def _replace(cluster: Any, workers: int) -> None:
    """Replace workers that their `Nanny` gave up, for example because the process was killed while it started."""
    from distributed.core import Status

    for name, nanny in list(cluster.workers.items()):
        if nanny.status in (Status.failed, Status.closed):
            del cluster.workers[name]
    cluster.scale(workers)  # starts the workers of the specification that are missing


@contextmanager
def _repeating(cluster: Any, function: Callable[[], Any], milliseconds: int) -> Iterator[None]:
    """Call a function again and again in the event loop of a cluster."""
    from tornado.ioloop import PeriodicCallback

    repeated = PeriodicCallback(function, milliseconds)
    cluster.loop.add_callback(repeated.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(repeated.stop)


@contextmanager
def existing_cluster(scheduler: str, *, tls: Tls | None = None) -> Iterator[Client]:
    """Connect to a scheduler: ``tcp://host:port``, ``tls://host:port`` or a scheduler file."""
    import dask

    address = scheduler if "://" in scheduler else _address_in(scheduler)
    encrypted = address.startswith("tls://")
    with _quiet():
        if encrypted and not (tls or dask.config.get("distributed.comm.tls.ca-file", None)):
            raise SettingsError(f"{scheduler}: wants a certificate. Give --tls-ca-file, --tls-cert and --tls-key")
        if tls and not encrypted:
            raise SettingsError(f"{scheduler}: is not encrypted. Give tls://..., or none of the --tls- options")
        with _client(address, name=scheduler, security=tls.security() if tls else None) as client:
            yield client


def _address_in(path: str) -> str:
    """Return the address of a scheduler from the file that it wrote."""
    if not Path(path).is_file():
        raise SettingsError(f"{path}: no such file, and no address. Give tcp://host:port or a scheduler file")
    with suppress(OSError, ValueError, TypeError, LookupError):
        if isinstance(address := json.loads(Path(path).read_text())["address"], str):
            return address
    raise SettingsError(f"{path}: is no scheduler file. Give the one of dask scheduler --scheduler-file")


@contextmanager
def described_cluster(path: str | Path, *, device: str | None = None) -> Iterator[Client]:
    """Start the cluster of jobs (Slurm, PBS, LSF, SGE) that a YAML file describes; see docs/cluster.md.

    While the cluster runs, the default of `threads` is a job's number of cores divided by its processes.
    """
    kind, arguments, adapt, tls = read_description(path)
    batch_jobs.refuse_idle_gpus(path, arguments, device)
    # dask-jobqueue's default is about the root of `cores`: processes that would have a few threads each.
    arguments.setdefault("processes", 1)
    with _quiet(lost=LOST_JOB):
        jobs = SubmittedJobs(path, kind)
        with _cluster_of_jobs(jobs, arguments, tls) as cluster:
            jobs.watch(cluster)
            cluster.adapt(minimum_jobs=adapt["minimum"], maximum_jobs=adapt["maximum"], target_duration="1s")
            again = _repeating(cluster, jobs.submit_again, LOOK_AT_JOBS)
            threads = max(1, arguments["cores"] // arguments["processes"])
            with again, _client(cluster) as client, machine.threads(threads):
                yield client


def _cluster_of_jobs(jobs: SubmittedJobs, arguments: dict[str, Any], tls: Tls | None) -> Any:
    """Return a cluster of dask-jobqueue without jobs yet."""
    cluster_class = batch_jobs.cluster_class(jobs.kind, arguments, jobs.path)
    made = arguments | {"job_cls": jobs.job_class(cluster_class.job_cls)}
    if tls:
        made |= {"security": tls.security(), "protocol": "tls://"}
    options = {**NO_DASHBOARD} | (made.pop("scheduler_options", None) or {})
    if not {"host", "interface"} & {*options, *made}:
        options["host"] = LOOPBACK
    # The last of several values holds. As for local workers, the plan bounds memory, and not Dask.
    extra = ["--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
    extra += made.pop("worker_extra_args", None) or []
    try:
        return cluster_class(scheduler_options=options, worker_extra_args=extra, **made)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise SettingsError(f"{jobs.path}: {jobs.kind} does not take these arguments ({one_line(error)})") from error


@contextmanager
def _client(address: Any, *, name: str = "the cluster", security: Any = None) -> Iterator[Client]:
    """Connect to a cluster, or to the scheduler at an address."""
    from distributed import Client

    try:
        client = Client(address, security=security, set_as_default=False)
    except (OSError, ValueError, TypeError, AssertionError) as error:  # the last two of addresses such as ucx://
        raise EnvironmentFault(f"{name}: no scheduler answers ({one_line(error)}). Is it running?") from error
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
