"""Where whatever a damaged file makes a library raise becomes one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from tilenet.address import is_address
from tilenet.errors import ImageError, SettingsError, TilenetError

# More than this is never decoded in one piece: such a tile is damaged, or meant to hurt.
LARGEST_PIECE = 2**30
LONGEST_AXIS = 2**31 - 1
DAMAGED = "The file is damaged, or of a kind that cannot be read; get it again"
_one_at_a_time = RLock()
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


class PiecesMissing(ImageError):
    """The file lacks tiles or planes, which nobody said are to be filled."""


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn any exception into an `ImageError` of one line: ``<what> (<why>). <remedy>``."""
    try:
        yield
    except TilenetError:
        raise
    except Exception as error:
        if isinstance(error, PermissionError) and error.filename:
            raise ImageError(f"{what} (permission denied: {error.filename}). Check its permissions") from error
        raise ImageError(f"{what} ({one_line(error)}). {remedy}") from error


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line of bounded length."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:160]}" if said else type(error).__name__


def positive(value: Any) -> float | None:
    """Return what a file says of a size as a number; None where it is none that a size can have.

    >>> positive("0.25"), positive("inf"), positive("-1"), positive(None)
    (0.25, None, None, None)
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


@contextmanager
def quietly(logger: str) -> Iterator[None]:
    """Keep a library from printing while it opens a file: what is wrong with it is raised instead."""
    log = logging.getLogger(logger)
    if _unless_quiet not in log.filters:
        log.addFilter(_unless_quiet)
    token = _quiet.set(True)
    try:
        # Python's list of warning filters is one for all threads.
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _quiet.reset(token)


def _unless_quiet(record: logging.LogRecord) -> bool:
    # A context variable, so that another thread that uses the library itself still hears it.
    return not _quiet.get()


def pixel_dtype(dtype: Any, name: str) -> np.dtype[Any]:
    """Return the native type of an image's pixels; Boolean ones are read as 0 and 1."""
    try:
        stored: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise ImageError(f"{name}: its pixels are {dtype}, no type of NumPy. Pass it as a NumPy array") from error
    if stored.kind == "b":
        return np.dtype(np.uint8)
    if stored.kind not in "uif" or stored.itemsize > 8:
        raise ImageError(
            f"{name}: its pixels are {stored}, not integers or floats of at most 64 bits. Convert them first"
        )
    return stored.newbyteorder("=")


def check_piece(n_bytes: int, what: str) -> None:
    """Refuse a piece of an image that is too large to be decoded at once."""
    if n_bytes > LARGEST_PIECE:
        raise ImageError(
            f"{what} decodes to {n_bytes / 2**30:.1f} GiB, more than {LARGEST_PIECE / 2**30:.0f} GiB. "
            f"Convert the image to smaller tiles"
        )


def check_level(level: int, n_levels: int, *, name: str) -> None:
    """Refuse a level that the image does not have."""
    if not 0 <= level < n_levels:
        raise SettingsError(f"{name}: has levels 0 to {n_levels - 1}, not {level}. Choose another with level (--level)")


def check_missing(count: int, missing: str, *, name: str, pieces: str = "tiles") -> None:
    """Refuse a file that lacks pieces, unless they are to be filled."""
    if count and missing == "error":
        verb, them = ("is", "it") if count == 1 else ("are", "them")
        raise PiecesMissing(
            f"{name}: {count} of its {pieces} {verb} missing. Get the whole file, or fill {them} with 0: --missing fill"
        )


def reopening(path: str, **options: Any) -> tuple[Any, ...]:
    """Return what `__reduce__` gives for an image that is opened anew, by path or address, where it is unpickled."""
    from tilenet.readers import open_image

    return partial(open_image, **options), (path if is_address(path) else str(Path(path).resolve()),)


@contextmanager
def needing(path: str, *, kind: str, library: str, extra: str) -> Iterator[None]:
    """Name the extra to install where an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise ImageError(
            f'{path}: is {kind}, read with {library}. Install it: pip install "tilenet[{extra}]"'
        ) from error
