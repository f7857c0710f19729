"""Read arrays that Python code passes in: NumPy, zarr, dask."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers.axes import Span, axis_map_of, letters_of
from tilenet.readers.guards import as_image_errors, pixel_dtype
from tilenet.readers.image import Pixels
from tilenet.readers.stored import StoredImage, sizes_of_levels

# Bytes to hash at once.
HASHED = 2**24


class ArrayImage(StoredImage):
    """An image from an array with `shape`, `dtype` and NumPy's slicing, such as of NumPy, zarr or dask.

    Each read slices it; no pixels are computed or loaded before. `axes` (one letter of ``tczyx`` per dimension) are
    required for more than two dimensions, unless a zarr array has names for them.
    """

    reader, _color_by_shape = "array", True

    def __init__(self, array: Any, axes: str | None = None) -> None:
        self._array = array
        self._kept = hasattr(array, "dask") and client_of(array) is not None
        self.name = f"{type(array).__module__.partition('.')[0]} array"
        if isinstance(array, np.ma.MaskedArray):
            raise ImageError(f"{self.name}: is a masked array, and its mask would be ignored. Give array.filled(value)")
        names = _dimension_names(array)
        stored = letters_of(names, array.ndim) if names or axes is None else ["?"] * array.ndim
        if any(n != n for n in array.shape):
            raise ImageError(f"{self.name}: chunks of unknown sizes. Call compute_chunk_sizes() first")
        maps = [axis_map_of(stored, array.shape, axes=axes, name=self.name)]
        self.dtype = pixel_dtype(array.dtype, self.name)
        self._describe(maps, sizes_of_levels(maps, {}))
        self.stated_axes = ""  # there is no file

    @property
    def source(self) -> Any:
        return self._array

    def _read(self, box: Box, channels: Span | None) -> Pixels:
        out, stored = self._maps[0].empty(box, self.dtype, channels)
        with as_image_errors(f"{self.name}: {box} cannot be read", "Read it without tilenet to see why"):
            part = self._array[self._maps[0].stored_box(box, channels).slices]
            pixels = np.asarray(self._computed(part) if hasattr(part, "compute") else part)
            if pixels.shape != stored.shape or not np.can_cast(pixels.dtype, self.dtype):
                raise ImageError(  # tasks of dask may give other than the array says, and NumPy would convert it
                    f"{self.name}: {box} is {pixels.dtype} {pixels.shape}, and the array says {self.dtype} "
                    f"{stored.shape}. {self._way_out(pixels.dtype)}"
                )
            stored[...] = pixels
        return out

    def _way_out(self, computed: Any) -> str:
        """Return how an array that computes another dtype, or else another shape, than it says is to be mended."""
        if computed == self.dtype:
            return "Correct the chunks that it was made with"
        return f"Where it was made, such as in map_blocks, give dtype={computed}, or convert with .astype({self.dtype})"

    def _computed(self, part: Any) -> Any:
        client = client_of(self._array) if self._kept else None
        # Without a cluster, one thread is enough: the reads themselves already run in parallel.
        return part.compute(scheduler="synchronous" if client is None else client)

    def identity(self) -> dict[str, Any]:
        """Return shape, dtype, and the graph's name (dask), a hash of the metadata (zarr) or a hash of the pixels."""
        common = {"kind": self.name, "shape": list(self._array.shape), "dtype": str(self._array.dtype)}
        if hasattr(self._array, "dask"):
            return common | {"token": str(self._array.name)}
        if hasattr(self._array, "metadata"):
            about = json.dumps(self._array.metadata.to_dict(), sort_keys=True, default=str)
            return common | {"metadata_sha256": hashlib.sha256(about.encode()).hexdigest()}
        return common | {"pixels_sha256": _pixels_sha256(self._array)}


def _dimension_names(array: Any) -> Sequence[Any]:
    if type(array).__module__.partition(".")[0] != "zarr":  # others may have metadata of another kind
        return ()
    return getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()


def client_of(array: Any) -> Any:
    """Return the client of the cluster that holds parts of a dask array in memory; None if there is none."""
    if "distributed" not in sys.modules:
        return None
    future = sys.modules["distributed"].Future
    # Search materialized layers only: the others may have any number of chunks, and hold no futures.
    tasks = (task for layer in array.dask.layers.values() if layer.is_materialized() for task in layer.values())
    return next((task.client for task in tasks if isinstance(task, future)), None)


def _pixels_sha256(array: Any) -> str:
    digest, row = hashlib.sha256(), prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
    some = max(1, HASHED // max(1, row))
    for start in range(0, len(array), some):  # so that a memory-mapped array is never loaded whole
        digest.update(np.ascontiguousarray(array[start : start + some]).tobytes())
    return digest.hexdigest()
