"""Jobs of a batch system: checked before any is submitted, and submitted again if the batch system refuses them."""

from __future__ import annotations

import logging
import re
import shutil
import signal
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from tilenet import machine
from tilenet.errors import SettingsError, one_line
from tilenet.workers.cluster_file import TYPES

INSTALL = 'Install it: pip install "tilenet[cluster]"'
# Remarks for the user; the command line prints them.
LOG = logging.getLogger("tilenet")
# Most characters that are shown of what a batch system says.
LONGEST = 300
# The arguments in which jobs ask for GPUs, and options there that may name GPUs for another reason, such as a path.
ASKING = ("queue", "resource_spec", "job_extra_directives", "job_extra")
NAMED = "x|exclude|A|account|P|J|N|job-name|o|output|e|error|D|chdir|comment|export"
NAMING = re.compile(rf"(?<!\S)--?({NAMED})\b[\s=]*('[^']*'|\"[^\"]*\"|\S*)")


def refuse_idle_gpus(path: str | Path, arguments: Mapping[str, Any], device: str | None) -> None:
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


def cluster_class(kind: str, arguments: Mapping[str, Any], path: str | Path) -> Any:
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
    if not shutil.which(command := cluster.job_cls.submit_command):
        raise SettingsError(f"{path}: needs {command}, which is not installed here. Start the command on a login node")
    return cluster


def with_refusals_logged(kind_of_job: Any) -> Any:
    """Return a class of jobs that say why they were refused, and whose `refusal` says so to `submit_again`.

    A busy batch system refuses some jobs. Dask takes these for started all the same, and waits for them forever.
    """
    from distributed.core import Status

    class Job(kind_of_job):  # type: ignore[misc]
        refusal, said = "", set[str]()

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, OSError) as error:  # the exit code of the command; the command cannot be started
                self.refusal = " ".join(str(error).rpartition("stderr:")[2].split())[:LONGEST] or one_line(error)
                self.status = Status.running  # Dask asserts this here
                if self.refusal not in self.said:
                    self.said.add(self.refusal)
                    LOG.warning("a job was refused (%s). It is submitted again every half minute", self.refusal)

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed  # Dask asserts in the end that no job is open

    return Job


def submit_again(cluster: Any) -> None:
    """Submit the jobs of a cluster again that the batch system refused."""
    refused = [name for name, job in cluster.workers.items() if job.refusal]
    for name in refused:
        cluster.loop.add_callback(cluster.workers.pop(name).close)
    if refused:
        cluster.scale(jobs=len(cluster.worker_spec))  # starts the jobs of the specification that are missing
