"""What to do about an error, in a batch: it resumes without an option, and never replaces a mask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tilenet.errors import TilenetError

# What messages say to users of `tilenet segment`, and what a batch says instead.
INSTEAD = (
    (r"run the command that made (?:it|the mask) again, with --resume", "remove the mask, and run the batch again"),
    (
        r"start again with --overwrite \([^)]*\); --resume keeps",
        "remove the mask before you run the batch again: it keeps",
    ),
    (r"Continue that run, or start again with --overwrite", "Continue that run, or give the batch another folder"),
    (r"Start again with --overwrite", "Remove the mask, and run the batch again"),
    (r",? with --resume(?: if a mask was begun)?", ""),
)


def in_batch(said: str) -> str:
    """Return an error message with the ways out that a batch has.

    >>> in_batch("a.tif: cannot be read. Fix that, then run again with --resume")
    'a.tif: cannot be read. Fix that, then run again'
    """
    for there, here in INSTEAD:
        said = re.sub(there, here, said)
    return said


@contextmanager
def ways_of_batch() -> Iterator[None]:
    """Give the errors of tilenet the ways out that a batch has."""
    try:
        yield
    except TilenetError as error:
        error.args = (in_batch(str(error)),)
        raise
