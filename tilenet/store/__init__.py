"""The mask on disk: a sharded OME-Zarr 0.5 label image, written block by block.

One block is one shard, and a shard is one file: encoded in memory, written under a temporary
name, synced, renamed, and then entered in the journal with size and checksum. A file that is
there proves nothing; the journal does. Whatever moment a run is killed at, the resumed one
ends with the same bytes.
"""

from tilenet.store.damage import Damage
from tilenet.store.layout import Layout
from tilenet.store.lease import Share
from tilenet.store.mask import Mask, open_mask, refuse_unfinished
from tilenet.store.place import can_resume, check_free, held_whole, is_complete, is_ours, refuse_shares
from tilenet.store.pyramid import Coarser, Spread
from tilenet.store.tissue_map import TissueMap
from tilenet.store.writer import Store

__all__ = [
    "Coarser",
    "Damage",
    "Layout",
    "Mask",
    "Share",
    "Spread",
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
]
