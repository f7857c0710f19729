"""The machine's resources: devices, threads, and whether freed memory goes back to the kernel."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from tilenet.errors import SettingsError

# Parameters of glibc's malloc; see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8

# PyTorch's number of threads before each `threads` context that is still open; the oldest comes first.
_found: list[int] = []
_changing = Lock()


def find_device(name: str) -> torch.device:
    """Return the device named ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"device {name!r} is none of auto, cpu, cuda, cuda:N, mps") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise SettingsError(
            f"device {name}: this machine has {count} CUDA devices. Use --device cpu, or another number"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("device mps: not available on this machine. Use --device cpu")
    return device


def begin(name: str | None) -> None:
    """Initialise a device, which takes a second or more with a GPU's driver."""
    torch.zeros(1, device=find_device(name or "auto"))


def visible_gpus(device: str | None) -> list[str]:
    """Return the CUDA devices that a run on `device` may use, named as in CUDA_VISIBLE_DEVICES."""
    if device not in (None, "auto") and not str(device).startswith("cuda"):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    found = [name for name in named.split(",") if name] or list(map(str, range(torch.cuda.device_count())))
    _, _, index = (device or "").partition(":")
    return [found[int(index)]] if index.isdecimal() and int(index) < len(found) else found[: torch.cuda.device_count()]


def current_threads() -> int:
    """Return the number of threads that PyTorch uses."""
    return torch.get_num_threads()


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Set PyTorch's number of threads within a context; yields the number in force.

    If contexts overlap, in several threads of the caller, the last one to end restores the number that
    the first one found.
    """
    with _changing:
        before = torch.get_num_threads()
        _found.append(before)
        torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        with _changing:
            first = _found[0]
            _found.pop()
            torch.set_num_threads(before if _found else first)


def keep_freed_memory() -> None:
    """Tell glibc's malloc not to return large blocks to the kernel at each free.

    A forward pass allocates the same activations again and again. If they are mapped anew each time,
    page faults cost 30-45 % of its time. All threads share one arena, so that memory freed by one
    thread serves another. These settings affect the whole process, so use this only in tilenet's own.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 1)
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Return all free memory to the kernel, so that the next stage of a run does not add to the peak of the last one.

    The memory kept for activations is in pieces that the next stage may be unable to use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
