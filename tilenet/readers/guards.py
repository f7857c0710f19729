"""Turn the exceptions that libraries raise for damaged files into one-line errors, and check limits."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any, Literal

import numpy as np

from tilenet.errors import EnvironmentFault, ImageError, TilenetError, one_line

# Whether tiles that a file lacks are refused, or read as 0.
Missing = Literal["error", "fill"]
# Most bytes that are ever decoded in one piece: a larger tile is damaged or malicious.
LARGEST_PIECE = 2**30
LONGEST_AXIS = 2**31 - 1
# How many images of a file an error lists.
LISTED = 8
DAMAGED = "The file is damaged, or of a kind that cannot be read; get it again"
# Errors of the machine, which are likely to prevent all further reads, too.
OF_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
# What to do about errors that are not due to the content of the file.
FAILED_DISK = "The disk, or the connection to it, failed. Try again, or copy the file to another disk"
TOO_LITTLE_MEMORY = "Use a smaller --tile, or run fewer programs at once"
_one_at_a_time = RLock()
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


class PiecesMissing(ImageError):
    """The file lacks tiles or planes, and the caller did not ask to fill them."""


@contextmanager
def as_image_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn any exception except tilenet's own into an `ImageError` of one line: ``<what> (<why>). <remedy>``.

    Errors `OF_MACHINE` become an `EnvironmentFault`, which ends a run. A failing disk and a lack of memory do not,
    because the rest of the run may succeed: the disk may have one bad sector, and a damaged file may make a decoder
    ask for any amount of memory. These have their own remedies.
    """
    try:
        yield
    except TilenetError:
        raise
    except Exception as error:
        if isinstance(error, PermissionError) and error.filename:
            raise ImageError(f"{what} (permission denied: {error.filename}). Check its permissions") from error
        if isinstance(error, OSError) and error.errno in OF_MACHINE:
            raise EnvironmentFault(f"{what} ({one_line(error)}). Fix that, then run again with --resume") from error
        if isinstance(error, OSError) and error.errno == errno.EIO:
            remedy = FAILED_DISK
        if isinstance(error, MemoryError):
            remedy = TOO_LITTLE_MEMORY
        raise ImageError(f"{what} ({one_line(error)}). {remedy}") from error


def positive_or_none(value: Any) -> float | None:
    """Return a size from a file's metadata as a number; None unless it is positive and finite.

    >>> [positive_or_none(size) for size in ("0.25", "inf", "-1", None)]
    [0.25, None, None, None]
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


@contextmanager
def quietly(logger: str) -> Iterator[None]:
    """Suppress a library's warnings and log lines while it opens a file: faults of the file are raised as errors."""
    # The filters of a logger do not apply to the lines of its children, so all loggers of the library get one.
    names = [name for name in list(logging.root.manager.loggerDict) if name.startswith(f"{logger}.")]
    for log in map(logging.getLogger, [logger, *names]):
        if _unless_quiet not in log.filters:
            log.addFilter(_unless_quiet)
    token = _quiet.set(True)
    try:
        # All threads share Python's list of warning filters.
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _quiet.reset(token)


def _unless_quiet(record: logging.LogRecord) -> bool:
    # A context variable, so that other threads that use the same library still get its log lines.
    return not _quiet.get()


def pixel_dtype(dtype: Any, name: str) -> np.dtype[Any]:
    """Return the dtype of an image's pixels in native byte order; Boolean pixels are read as 0 and 1 (uint8)."""
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
    """Refuse a piece of an image that is too large to decode at once."""
    if n_bytes > LARGEST_PIECE:
        raise ImageError(
            f"{what} decodes to {n_bytes / 2**30:.1f} GiB, more than {LARGEST_PIECE / 2**30:.0f} GiB. "
            f"Convert the image to smaller tiles"
        )


def check_xml(xml: str, what: str, remedy: str, *, most: int) -> None:
    """Refuse XML that takes far more memory than its text: of very many elements, or with entities, which may grow.

    `most` is how many tags and attributes it may have; each takes up to 400 bytes, in OME-XML about 100.
    """
    n_marks = xml.count("<") + xml.count("=")
    if n_marks > most:
        raise ImageError(f"{what} has {n_marks} tags and attributes, over {most}. {remedy}")
    if "<!DOCTYPE" in xml:
        raise ImageError(f"{what} defines a type of its own, which is not read. {remedy}")


def check_missing(count: int, missing: str, *, name: str, pieces: str = "tiles") -> None:
    """Refuse a file that lacks pieces, unless the caller asked to fill them."""
    if count and missing == "error":
        verb, them = ("is", "it") if count == 1 else ("are", "them")
        raise PiecesMissing(
            f"{name}: {count} of its {pieces} {verb} missing. Get the whole file, or fill {them} with 0: --missing fill"
        )


def listed(names: Sequence[str]) -> str:
    """Return the first of some names.

    >>> listed(["one", "two"])
    'one, two'
    """
    return ", ".join(names[:LISTED]) + ", ..." * (len(names) > LISTED)


@contextmanager
def needing(path: str, *, kind: str, library: str, extra: str) -> Iterator[None]:
    """Turn a failed import in the body into an `ImageError` that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise ImageError(
            f'{path}: is {kind}, read with {library}. Install it: pip install "tilenet[{extra}]", or ".[{extra}]" in a '
            f"checkout"
        ) from error
