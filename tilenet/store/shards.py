"""Shards, encoded by zarr in memory and written by us: size and checksum come for free.

A shard is one file. zarr would read an existing one before replacing it, and does not bring
it to the disk; one writer that encodes a whole shard needs neither.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.store.files import write_whole
from tilenet.store.layout import ArraySpec

ZSTD_LEVEL = 3
# Path below the store, size in bytes, checksum.
Entry = tuple[str, int, str]


def encode(spec: ArraySpec, pixels: NDArray[Any]) -> bytes | None:
    """Return the bytes of one shard, or None for a shard of background alone.

    `pixels` may be shorter than the shard, at the array's end.
    """
    content: dict[str, Any] = {}
    shard = _create(spec, spec.shard, content)
    whole = pixels
    if pixels.shape != spec.shard:
        whole = np.zeros(spec.shard, spec.dtype)
        whole[tuple(map(slice, pixels.shape))] = pixels
    shard[...] = whole
    key = "c/" + "/".join("0" for _ in spec.shard)
    return bytes(content[key].to_bytes()) if key in content else None


def metadata(spec: ArraySpec) -> bytes:
    """Return the ``zarr.json`` of an array."""
    content: dict[str, Any] = {}
    _create(spec, spec.shape, content)
    return bytes(content["zarr.json"].to_bytes())


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """Return the ``zarr.json`` of a group."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(document, indent=1, sort_keys=True).encode()


def write_shard(root: Path, spec: ArraySpec, position: tuple[int, ...], pixels: NDArray[Any]) -> list[Entry]:
    """Write one shard; return its journal entry, or none if it is background alone."""
    name = f"{spec.path}/c/{'/'.join(map(str, position))}"
    content = encode(spec, pixels)
    if content is None:
        (root / name).unlink(missing_ok=True)  # of an earlier, damaged run
        return []
    write_whole(root / name, content)
    return [(name, len(content), checksum(content))]


def checksum(content: bytes) -> str:
    """Return a checksum that no accident, and no hand, meets by chance."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _create(spec: ArraySpec, shape: tuple[int, ...], content: dict[str, Any]) -> Any:
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    return zarr.create_array(
        MemoryStore(content),
        shape=shape,
        shards=spec.shard,
        chunks=spec.chunk,
        dtype=spec.dtype,
        # Without its checksum zstd hands out a flipped byte as data.
        compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
        fill_value=0,
        dimension_names=list(spec.axes),
    )
