"""Which outputs are TIFFs, by their names, and the stores that these are made in.

A store that was made only for a TIFF is removed when that is written. Its log says which one it was made for.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from tilenet.store.file_system import ACCESSED, faults_named
from tilenet.store.metadata import OWN
from tilenet.store.seal import events, log

SUFFIXES = (".tif", ".tiff")
# The fact in the log of a store that is made for a TIFF: its name.
FOR_TIFF = "tiff"


def is_tiff(path: str | PathLike[str]) -> bool:
    """Return whether an output is to be a TIFF, judging by its name."""
    return Path(path).suffix.lower() in SUFFIXES


def name_of(mask: Path) -> str:
    """Return the name of a mask without its endings.

    >>> name_of(Path("masks/a.ome.tif"))
    'a'
    """
    name = mask.name
    for ending in (".zarr", ".tiff", ".tif", ".ome"):
        name = name.removesuffix(ending)
    return name or mask.name


def store_beside(out: Path) -> Path:
    """Return the store in which the mask of a TIFF is made: ``mask.tif.zarr`` beside ``mask.tif``."""
    return out.with_name(f"{out.name}.zarr")


def is_for_tiff(store: Path, out: Path) -> bool:
    """Return whether a store was made only for a TIFF, and is no mask of its own."""
    return _tiffs_of(store)[-1:] == [out.name]


def keep_store(store: Path) -> None:
    """Note that a store is a mask of its own from now on, if it was made for a TIFF."""
    if any(_tiffs_of(store)[-1:]):
        with faults_named(store):
            log(store / OWN, "kept", **{FOR_TIFF: None})


def _tiffs_of(store: Path) -> list[Any]:
    """Return the names of the TIFFs that a store was made for, by its log; None where it became a mask of its own."""
    with faults_named(store, what=ACCESSED):
        return [event[FOR_TIFF] for event in events(store / OWN) if FOR_TIFF in event]
