"""The machine's resources: devices, threads, and whether freed memory goes back to the kernel."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

from tilenet.errors import SettingsError

# Parameters of glibc's malloc; see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# Files of a control group that say how much memory it may use, in version 2 and in version 1.
MEMORY = ("memory.max", "memory.limit_in_bytes")

# The numbers set by the `threads` contexts that are still open, the newest last; and the number that the first found.
_set: dict[object, int] = {}
_found = [1]
# How many `exact` contexts are open, and the settings that the first of them found.
_exact = [0]
_inexact: list[tuple[Any, str, object]] = []
_changing = Lock()


def find_device(name: str) -> torch.device:
    """Return the device named ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"device {name!r} is none of auto, cpu, cuda, cuda:N, mps")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise SettingsError(
            f"device {name}: this machine has {count} CUDA devices. Use --device cpu, or another number"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("device mps: not available on this machine. Use --device cpu")
    return device


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Switch off the features that make a GPU's results vary: TF32, and autotuned algorithms.

    These settings are the process's, for all its threads. If contexts overlap, the last one to end restores what the
    first one found.
    """
    if device.type != "cuda":
        yield
        return
    with _changing:
        if not _exact[0]:
            settings = _exact_settings()
            _inexact[:] = [(of, name, getattr(of, name)) for of, name, _ in settings]
            _set_all(settings)
        _exact[0] += 1
    try:
        yield
    finally:
        with _changing:
            _exact[0] -= 1
            if not _exact[0]:
                _set_all(_inexact)


def _set_all(settings: list[tuple[Any, str, object]]) -> None:
    for of, name, value in settings:
        setattr(of, name, value)


def _exact_settings() -> list[tuple[Any, str, object]]:
    """Return the settings of PyTorch that a GPU's results depend on, and the values that make them exact."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    fixed: list[tuple[Any, str, object]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    try:
        _ = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:  # the caller has used the newer settings, one for each kind of operation
        return [*fixed, *((of, "fp32_precision", "ieee") for of in (matmul, cudnn.conv, cudnn.rnn))]
    return [*fixed, (matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def initialise(name: str) -> None:
    """Initialise a device, which takes a second or more with a GPU's driver."""
    torch.zeros(1, device=find_device(name))


def visible_gpus(device: str | None) -> list[str]:
    """Return the CUDA devices that a run on `device` may use, named as in CUDA_VISIBLE_DEVICES."""
    if device not in (None, "auto") and not str(device).startswith("cuda"):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    found = [name for name in named.split(",") if name] or list(map(str, range(torch.cuda.device_count())))
    _, _, index = (device or "").partition(":")
    return [found[int(index)]] if index.isdecimal() and int(index) < len(found) else found[: torch.cuda.device_count()]


def current_threads() -> int:
    """Return the number of threads that a run uses by default.

    It is PyTorch's, but no more than the cores that a container may use, at which PyTorch does not look: two threads
    on one core's time took 1.8 times as long as one.
    """
    threads, cores = torch.get_num_threads(), container_cores()
    return threads if cores is None or "OMP_NUM_THREADS" in os.environ else max(1, min(threads, int(cores)))


def container_cores(root: Path = Path("/")) -> float | None:
    """Return how many cores' time this process may use, as with ``docker run --cpus``; None if it is not limited.

    `dask.system` knows some of the places where this is said, but to import it takes 0.1 s.
    """
    limits = (
        [*_numbers(group, "cpu.max"), *_numbers(group, "cpu.cfs_quota_us", "cpu.cfs_period_us")]
        for group in _control_groups("cpu", root)
    )
    return min((quota / period for quota, period in filter(None, limits) if quota > 0), default=None)


def total_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory of this machine, or of the container if it has less; None if that is not known."""
    limits = [n for group in _control_groups("memory", root) for name in MEMORY for n in _numbers(group, name)]
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process: its own, and those around it.

    See cgroup-v2 and cgroup-v1 in the documentation of Linux.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            group = top / path.lstrip("/")
            # A container sees its own group at the top, but may be told the path that this has outside.
            yield from (each for each in (group, *group.parents) if each.is_relative_to(top))


def _numbers(group: Path, *names: str) -> list[int]:
    """Return the numbers in files of a control group; none if there is no such file, or no limit."""
    try:
        return [int(word) for name in names for word in (group / name).read_text().split()]
    except (OSError, ValueError):
        return []


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Set PyTorch's number of threads within a context; yields the number in force.

    PyTorch keeps a number for each Python thread, and one that new Python threads begin with. If contexts
    overlap, in several threads of the caller, new threads begin with the number of the newest context that is
    still open. The last one to end restores the number that the first one found.
    """
    with _changing:
        before, mine = torch.get_num_threads(), object()
        if not _set:
            _found[0] = before
        _set[mine] = count or before
        torch.set_num_threads(_set[mine])
    try:
        yield count or before
    finally:
        with _changing:
            del _set[mine]
            torch.set_num_threads(before if _set else _found[0])
            if _set and (newest := list(_set.values())[-1]) != before:
                _begin_threads_with(newest)


def _begin_threads_with(count: int) -> None:
    """Set the number that new Python threads begin with, and leave that of this thread as it is."""
    # `set_num_threads` sets both, for the thread that calls it.
    other = Thread(target=torch.set_num_threads, args=(count,))
    other.start()
    other.join()


def keep_freed_memory() -> None:
    """Tell glibc's malloc not to return large blocks to the kernel at each free.

    A forward pass allocates the same activations again and again. If they are mapped anew each time,
    page faults cost 30-45 % of its time. All threads share one arena, so that memory freed by one
    thread serves another. These settings affect the whole process, so use this only in tilenet's own.
    """
    if mallopt := _of_libc("mallopt"):
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Return all free memory to the kernel, as the next stage may be unable to use the pieces kept for activations."""
    if trim := _of_libc("malloc_trim"):
        trim(0)


def _of_libc(function: str) -> Any:
    """Return a function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
