"""How much room a run takes: memory of the host, and on disk, before compression, bytes and files."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from tilenet.byte_counts import library_bytes
from tilenet.decide import ObjectRule
from tilenet.jobs.job import Job
from tilenet.runs.numbering import numbers_layout
from tilenet.runs.object_places import places_layout, usual_bytes
from tilenet.sizes import DEFAULT_MEMORY
from tilenet.store import Layout
from tilenet.store.metadata import fixed_documents

# Files of a complete store beside those of its blocks and the documents of its arrays: the root document, the journal
# and the log. While it is written it also has a lock, the journal of its writer, and a temporary file.
OWN_FILES, TEMPORARY_FILES = 3, 3
# Files of a map of tissue, which a mask has, and what its objects are found in.
TISSUE_FILES = 3


def room_of(job: Job, memory: int | None) -> dict[str, int]:
    """Return the memory that a run takes, the room of its mask, at most, and that of all it keeps before that is whole.

    Objects are taken to be found by this process, or in as many as are allowed. A mask that the run replaces, and a
    TIFF made of the mask, are not counted.
    """
    mask, beside, needs = job.layout, list[Layout](), job.needs()
    if job.record["output"] == "objects":
        how = (job.layout, job.footprint.ndim, memory or DEFAULT_MEMORY)
        places = places_layout(*how)
        needs["host_bytes"] = max(needs["host_bytes"], library_bytes() + usual_bytes(*how))
        mask, beside = numbers_layout(job.layout, prod(job.layout.shape) // ObjectRule().min_size), [job.layout, places]
    # What objects are found in is removed before the pyramid is built.
    stages = [[mask], [*beside, replace(mask, n_levels=1)]]
    tissue = TISSUE_FILES if job.search.rule else 0
    return needs | {
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
