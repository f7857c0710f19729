"""What a cluster file says of the jobs of a batch system: checked before any is submitted."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from tilenet import machine
from tilenet.errors import SettingsError
from tilenet.workers.cluster_file import TYPES

INSTALL = 'Install it: pip install "tilenet[cluster]"'
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
