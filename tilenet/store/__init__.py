"""The mask on disk: a sharded OME-Zarr 0.5 label image, written block by block.

A block is one shard of the mask, and with probabilities one more per class. Each shard is one file: encoded in
memory, written under a temporary name, synced, renamed into place, and then recorded in the journal with its size and
checksum. That a file exists proves nothing; only its journal entry does. Whenever a run is killed, the resumed run
ends with the same bytes.
"""

from tilenet.store.damage import Damage
from tilenet.store.destination import (
    can_resume,
    check_free,
    held_whole,
    is_complete,
    is_ours,
    refuse_shares,
    writers_of,
)
from tilenet.store.layout import Layout
from tilenet.store.lease import Share
from tilenet.store.mask import AnyMask, Mask, open_mask, refuse_unfinished
from tilenet.store.pyramid import CoarserBlock, ShardMaker
from tilenet.store.tissue_map import TissueMap
from tilenet.store.writer import Store

__all__ = [
    "AnyMask",
    "CoarserBlock",
    "Damage",
    "Layout",
    "Mask",
    "ShardMaker",
    "Share",
    "Store",
    "TissueMap",
    "can_resume",
    "check_free",
    "held_whole",
    "is_complete",
    "is_ours",
    "open_mask",
    "refuse_shares",
    "refuse_unfinished",
    "writers_of",
]
