"""The mask on disk: a sharded OME-Zarr 0.5 label image, written block by block.

A block is one shard of the mask, and with probabilities one more per class. Each shard is one file: encoded in
memory, written under a temporary name, synced, renamed into place, and then recorded in the journal with its size and
checksum. That a file exists proves nothing; only its journal entry does. Whenever a run is killed, the resumed run
ends with the same bytes.

layout, tissue_map, metadata     what lies where in a mask; where there is tissue; the documents that say so
codec, blocks, pyramid           shards in memory; the blocks on disk; coarser levels
journal, journal_parser, damage  which blocks are written; its lines, many at once; files that are not as written
file_system, destination, build  each change of the disk; where a store may go; how it is made there, whole
lease, lease_holder              who may write, by files with a heartbeat; the process that holds one
leftovers, shared_run            what killed processes left beside a store; the run that shares have in common
opening, writer, seal            a store that is being written: opened, filled, finished
mask, guarded_files              a complete mask, and its files, of which none may be lost
label_list                       the labels that an OME-Zarr image lists
"""

from tilenet.store.destination import can_resume as can_resume
from tilenet.store.destination import check_free as check_free
from tilenet.store.destination import held_whole as held_whole
from tilenet.store.destination import is_complete as is_complete
from tilenet.store.destination import refuse_shares as refuse_shares
from tilenet.store.destination import writers_of as writers_of
from tilenet.store.layout import Layout as Layout
from tilenet.store.lease import Share as Share
from tilenet.store.mask import AnyMask as AnyMask
from tilenet.store.mask import Mask as Mask
from tilenet.store.mask import open_mask as open_mask
from tilenet.store.mask import refuse_unfinished as refuse_unfinished
from tilenet.store.metadata import is_ours as is_ours
from tilenet.store.pyramid import CoarserBlock as CoarserBlock
from tilenet.store.pyramid import ShardMaker as ShardMaker
from tilenet.store.tissue_map import TissueMap as TissueMap
from tilenet.store.writer import Progress as Progress
from tilenet.store.writer import Store as Store
