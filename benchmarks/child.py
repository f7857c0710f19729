"""Measuring in a process of its own, whose memory and libraries are its alone."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of a module returns in a new process, which imports that module."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory(name: str = "VmHWM", pid: int | str = "self") -> int:
    """Return the memory of a process in bytes: its peak, or what it has now (``VmRSS``)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
