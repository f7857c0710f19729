"""Encoding and decoding of shards (in zarr format 2: chunks) in memory, by zarr itself.

If a shard were written in several calls, zarr would read it, change it and write it again each time, and two writers
would lose each other's pixels. So each shard is encoded once, whole.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import Box
from tilenet.store.layout import DOCUMENTS

if TYPE_CHECKING:
    import zarr
    from zarr.core.buffer import BufferPrototype


def encode(document: bytes, box: Box, values: NDArray[Any]) -> bytes | None:
    """Return the shard with the `values` of a `box`, clipped to the array of a document; None if all is background."""
    array, content = _opened(document, {})
    known = set(content)
    # To write part of a chunk within a shard, as at the edge of an array, zarr accepts only its own buffers.
    whole = all(n % side == 0 for n, side in zip(box.start + box.stop, array.chunks * 2, strict=True))
    array.set_basic_selection(box.slices, values, prototype=_comparing_integers() if whole else None)
    shards = [data.to_bytes() for key, data in content.items() if key not in known]
    if len(shards) > 1:
        raise ValueError(f"{box} is not one shard but {len(shards)}")
    return shards[0] if shards else None


def decode(document: bytes, key: str, shard: bytes, box: Box) -> NDArray[Any]:
    """Return the pixels in `box` from the shard with this key, such as ``c/0/1`` (format 2: ``0/1``)."""
    array, _ = _opened(document, {key: shard})
    return np.asarray(array[box.slices])


def _opened(document: bytes, shards: dict[str, bytes]) -> tuple[zarr.Array[Any], dict[str, Any]]:
    """Open an array in memory; return it, and the dict in which zarr keeps its files."""
    import zarr
    from zarr.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    make = default_buffer_prototype().buffer.from_bytes
    zarr_format = json.loads(document)["zarr_format"]
    content = {key: make(data) for key, data in {DOCUMENTS[zarr_format][1]: document, **shards}.items()}
    config = {"write_empty_chunks": False}
    return zarr.open_array(MemoryStore(content), mode="r+", zarr_format=zarr_format, config=config), content


@cache
def _comparing_integers() -> BufferPrototype:
    """Return zarr's own buffers, with a faster test of whether all of an integer chunk is background."""
    from zarr.buffer import cpu, default_buffer_prototype

    # zarr looks for NaN in integers, too (zarr-python 3.1.6, pull request 4382), which takes half the time of a shard.
    class ComparingIntegers(cpu.NDBuffer):
        def all_equal(self, other: Any, equal_nan: bool = True) -> bool:
            if other is not None and self.dtype.kind in "ui":
                return not (self.as_numpy_array() != self.dtype.type(other)).any()
            return super().all_equal(other, equal_nan)

    return default_buffer_prototype()._replace(nd_buffer=ComparingIntegers)
