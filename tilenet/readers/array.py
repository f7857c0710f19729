"""Arrays that are in memory or lazy already: NumPy, zarr, dask."""

from __future__ import annotations

import hashlib
import json
import sys
from math import prod
from typing import Any

import numpy as np

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers.axes import Span, layout_of
from tilenet.readers.boundary import check_level, pixel_dtype, refusing
from tilenet.readers.image import Image, Level, Pixels, names_of_array

# Bytes that are hashed at once.
HASHED = 2**24


class ArrayImage(Image):
    """An array with `shape`, `dtype` and NumPy's slicing.

    Parameters
    ----------
    array : numpy.ndarray, zarr.Array, dask.array.Array or the like
        Read box by box; nothing is computed or loaded before.
    axes : str, optional
        One letter of ``tczyx`` per dimension; needed for more than two.
    """

    reader = "array"

    def __init__(self, array: Any, axes: str | None = None) -> None:
        self._array = array
        self._kept = hasattr(array, "dask") and client_of(array) is not None
        self.name = f"{type(array).__module__.partition('.')[0]} array"
        if isinstance(array, np.ma.MaskedArray):
            raise ImageError(f"{self.name}: is masked, and its mask would not be heeded. Give array.filled(value)")
        stored = "yx" if array.ndim == 2 and axes is None else ["?"] * array.ndim
        if any(n != n for n in array.shape):
            raise ImageError(f"{self.name}: chunks of unknown sizes. Call compute_chunk_sizes() first")
        self._layout = layout_of(stored, array.shape, axes=axes, name=self.name)
        self.axes, self.level = self._layout.axes, 0
        self.dtype = pixel_dtype(array.dtype, self.name)
        self.levels = (Level(self._layout.image_shape, (None,) * len(self.axes.replace("c", ""))),)
        self.channel_names = names_of_array(self.axes, self.n_channels, self.dtype)

    def at_level(self, level: int) -> Image:
        """Return this image: there is no other level."""
        check_level(level, 1, name=self.name)
        return self

    def read_inside(self, box: Box) -> Pixels:
        """Return the pixels of a box inside the array."""
        return self._read(box, None)

    @property
    def parts_channels(self) -> bool:
        """Whether channels lie apart."""
        return self._layout.parts_channels

    def read_channels(self, box: Box, channels: Span) -> Pixels:
        """Return the same of some channels; the others are not computed."""
        return self._read(box, channels)

    def _read(self, box: Box, channels: Span | None) -> Pixels:
        out, stored = self._layout.empty(box, self.dtype, channels)
        with refusing(f"{self.name}: {box} cannot be read", "Read it without tilenet to see why"):
            part = self._array[tuple(slice(a, b) for a, b in self._layout.ranges(box, channels))]
            stored[...] = self._computed(part) if hasattr(part, "compute") else part
        return out

    def _computed(self, part: Any) -> Any:
        client = client_of(self._array) if self._kept else None
        # Else one thread: the reads themselves already run in parallel.
        return part.compute(scheduler="synchronous" if client is None else client)

    def identity(self) -> dict[str, Any]:
        """Return shape, type and a hash: of the metadata (zarr), the graph's name (dask), or else of the pixels."""
        common = {"kind": self.name, "shape": list(self._array.shape), "dtype": str(self._array.dtype)}
        if hasattr(self._array, "dask"):
            return common | {"token": str(self._array.name)}
        if hasattr(self._array, "metadata"):
            return common | {"metadata_sha256": _metadata_sha256(self._array)}
        return common | {"pixels_sha256": _pixels_sha256(self._array)}


def client_of(array: Any) -> Any:
    """Return the client of the cluster that keeps parts of a dask array in its memory; None if none does."""
    if "distributed" not in sys.modules:
        return None
    future = sys.modules["distributed"].Future
    # Only layers that are there as tasks: others may be of any number of chunks, and hold none.
    tasks = (task for layer in array.dask.layers.values() if layer.is_materialized() for task in layer.values())
    return next((task.client for task in tasks if isinstance(task, future)), None)


def _pixels_sha256(array: Any) -> str:
    digest, row = hashlib.sha256(), prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
    some = max(1, HASHED // max(1, row))
    for start in range(0, len(array), some):  # one in a file is never held whole
        digest.update(np.ascontiguousarray(array[start : start + some]).tobytes())
    return digest.hexdigest()


def _metadata_sha256(array: Any) -> str:
    return hashlib.sha256(json.dumps(array.metadata.to_dict(), sort_keys=True, default=str).encode()).hexdigest()
