"""The mask on disk: one shard a block, a journal, a lock, a pyramid."""

from tilenet.store.layout import Layout
from tilenet.store.mask import Mask, open_mask
from tilenet.store.writer import Damage, Store, check_free, read_attributes

__all__ = ["Damage", "Layout", "Mask", "Store", "check_free", "open_mask", "read_attributes"]
