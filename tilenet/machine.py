"""What this machine offers to a network: devices, threads, and memory that is kept."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from tilenet.errors import SettingsError

# mallopt(3): the names of four parameters of glibc's malloc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8

# PyTorch's number of threads as `threads` found it: one for each that has not ended, the first one's first.
_found: list[int] = []
_changing = Lock()


def find_device(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
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
    """Have a device ready, which takes a GPU's driver a second or more."""
    torch.zeros(1, device=find_device(name or "auto"))


def visible_gpus(device: str | None) -> list[str]:
    """Return the CUDA devices that a run with this device may use, as CUDA_VISIBLE_DEVICES names them."""
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
    """Let PyTorch use so many threads for a while; yields the number in force.

    Where several overlap, in threads of the caller's, the last leaves the number that the first one found.
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
    """Tell glibc's malloc not to hand big blocks back to the kernel at each free.

    A forward pass allocates the same activations again and again; mapped afresh, they cost
    30-45 % of its time in page faults. Threads share one arena, so that what one frees serves
    another. Process-wide, so only for a process that is ours.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 1)
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Hand all that is free to the kernel: between two stages, so that the second does not add to the first one's peak.

    What is kept for activations lies in pieces that the next stage may not fit into.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
