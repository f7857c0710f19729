"""How much room on disk a run takes: bytes before compression, and files."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from tilenet.decide import ObjectRule
from tilenet.jobs.job import Job
from tilenet.runs.numbering import numbers_layout
from tilenet.runs.object_places import places_layout
from tilenet.sizes import DEFAULT_MEMORY
from tilenet.store import Layout
from tilenet.store.metadata import fixed_documents

# Files of a complete store beside those of its blocks and the documents of its arrays: the root document, the journal
# and the log. While it is written it also has a lock, the journal of its writer, and a temporary file.
OWN_FILES, TEMPORARY_FILES = 3, 3
# Files of a map of tissue, which a mask has, and what its objects are found in.
TISSUE_FILES = 3


def room_of(job: Job, memory: int | None) -> dict[str, int]:
    """Return the room that the mask of a job takes at most, and what the run needs at most before the mask is complete.

    A mask that the run replaces, and a TIFF made of the mask, are not counted.
    """
    mask, beside = job.layout, list[Layout]()
    if job.record["output"] == "objects":
        places = places_layout(job.layout, job.footprint.ndim, memory or DEFAULT_MEMORY)
        mask, beside = numbers_layout(job.layout, prod(job.layout.shape) // ObjectRule().min_size), [job.layout, places]
    # What objects are found in is removed before the pyramid is built.
    stages = [[mask], [*beside, replace(mask, n_levels=1)]]
    tissue = TISSUE_FILES if job.search.rule else 0
    return {
        "disk_bytes": _bytes(mask),
        "working_bytes": max(sum(map(_bytes, stores)) for stores in stages),
        "files": _files(mask) + tissue,
        "working_files": max(sum(_files(store) + TEMPORARY_FILES + tissue for store in stores) for stores in stages),
    }


def _bytes(layout: Layout) -> int:
    return sum(prod(array.shape) * np.dtype(array.dtype).itemsize for array in layout.arrays.values())


def _files(layout: Layout) -> int:
    shards = sum(layout.n_blocks(level) * layout.n_files(level) for level in range(len(layout.levels)))
    return shards + len(fixed_documents(layout)) + OWN_FILES
