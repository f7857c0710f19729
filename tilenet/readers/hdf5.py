"""Read HDF5: one dataset (``volume.h5/path/to/dataset``), or an Imaris file, whose layout `imaris` knows.

A file is not shared with a process that was forked: unpickling opens it anew, by its path.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilenet.address import file_of, inside_of
from tilenet.errors import ImageError, closed_on_error
from tilenet.geometry import Box
from tilenet.readers.axes import axis_map_of, letters_of
from tilenet.readers.cache import PieceCache
from tilenet.readers.guards import DAMAGED, LISTED, as_image_errors, positive_or_none
from tilenet.readers.hdf5_file import (
    Stored,
    attribute_of,
    datasets_of,
    follow,
    open_file,
    text_of,
    what_is_inside,
)
from tilenet.readers.image import Pixels
from tilenet.readers.stored import ChunkedImage, sizes_of_levels

HEADER_BYTES = 1024
# Axes of three, and of two, numbers that state a pixel size.
SPACE = {3: "zyx", 2: "yx"}


@dataclass(frozen=True)
class LevelDatasets:
    """One level: equal datasets, side by side along axes of their own in front."""

    # The dataset at each place along the axes in front; with no such axes, one dataset at ``()``.
    datasets: Mapping[tuple[int, ...], Stored]
    # Pixels along the axes in front and along those of the datasets, which may be stored longer.
    shape: tuple[int, ...]

    @property
    def first(self) -> Stored:
        """The first dataset."""
        return next(iter(self.datasets.values()))

    @property
    def n_front(self) -> int:
        """Number of axes in front."""
        return len(next(iter(self.datasets)))

    @property
    def sides(self) -> tuple[int, ...]:
        """How long chunks are along all axes, or the datasets if they have no chunks."""
        return (1,) * self.n_front + (self.first.chunks or self.shape[self.n_front :])

    def read(self, piece: Box) -> Pixels:
        """Return the pixels of a piece."""
        n = self.n_front
        dataset, inner = self.datasets[piece.start[:n]], Box(piece.start[n:], piece.stop[n:])
        if dataset.chunks is None:
            return dataset.part(inner).reshape(piece.shape)
        pixels = dataset.chunk(inner.start)[tuple(slice(0, side) for side in inner.shape)]
        # Contiguous, so that the cache does not hold what lies beyond the image.
        return np.ascontiguousarray(pixels).reshape(piece.shape)


@dataclass(frozen=True)
class Contents:
    """What an image is made of, as its file describes it."""

    # Kind of file, for identities; `reader` is its name for people.
    kind: str
    reader: str
    # Levels, finest first.
    grids: tuple[LevelDatasets, ...]
    # One per dimension of the grids, as for `axis_map_of`.
    letters: tuple[str, ...]
    # Micrometres along some axes at level 0, by their letters.
    sizes: Mapping[str, float | None]
    # Empty if they have no names.
    channel_names: tuple[str, ...] = ()


class Hdf5Image(ChunkedImage):
    """One level of an image in an HDF5 file: of the dataset at a path inside it, or else of all of the file."""

    _color_by_shape = True

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        file = file_of(path)
        self.name, self._file, self._cache = path, open_file(str(file)), PieceCache()
        with as_image_errors(f"{path}: cannot be read as an image in HDF5", DAMAGED), closed_on_error(self):
            self._contents = contents = _contents(self._file, inside_of(path), path)
            with file.open("rb") as opened:
                self._header, self._bytes = opened.read(HEADER_BYTES), os.fstat(opened.fileno()).st_size
            self.reader, self.dtype = contents.reader, contents.grids[0].first.dtype
            maps = [axis_map_of(contents.letters, grid.shape, axes=axes, name=path) for grid in contents.grids]
            self._describe(maps, sizes_of_levels(maps, contents.sizes), contents.channel_names)

    @property
    def keeps_pieces(self) -> bool:  # type: ignore[override]
        return self._contents.grids[self.level].first.chunks is not None

    def _pieces(self, asked: Box, joined: str) -> Iterator[Box]:
        if not self._file:
            raise ImageError(f"{self.name}: is closed. Open it again")
        return super()._pieces(asked, joined)

    def _sides(self, joined: str) -> tuple[int, ...]:
        return self._contents.grids[self.level].sides

    def _decoded(self, piece: Box) -> Pixels:
        return self._contents.grids[self.level].read(piece)

    def identity(self) -> dict[str, Any]:
        """Return the file's size, the shapes of the levels, and a hash of its header and of where its data lie."""
        digest = hashlib.sha256(self._header)
        with as_image_errors(f"{self.name}: cannot be read", DAMAGED):
            for grid in self._contents.grids:
                for dataset in grid.datasets.values():
                    digest.update(dataset.fingerprint().encode())
        return {
            "kind": self._contents.kind,
            "bytes": self._bytes,
            "shapes": [list(level.shape) for level in self.levels],
            "dtype": str(self.dtype),
            "data_sha256": digest.hexdigest(),
        }

    def close(self) -> None:
        self._file.close()


def _contents(file: Any, inside: str, name: str) -> Contents:
    if not inside:
        from tilenet.readers import imaris

        if imaris.is_imaris(file):
            return imaris.contents(file, name)
        found = datasets_of(file)
        if len(found) != 1:
            count = len(found) if len(found) <= LISTED else f"more than {LISTED}"
            raise ImageError(f"{name}: holds {count} datasets that may be the image. {what_is_inside(file)}")
        inside = found[0]
    dataset = follow(file, inside, name)
    stored = Stored(dataset, name)
    grid = LevelDatasets({(): stored}, stored.shape)
    return Contents("hdf5", "HDF5 (h5py)", (grid,), _letters(dataset), _sizes(dataset))


def _letters(dataset: Any) -> tuple[str, ...]:
    """Return the letters of the dimensions, from their labels, or from the ``axistags`` of vigra and ilastik."""
    labels = attribute_of(dataset, "DIMENSION_LABELS")
    names: Sequence[Any] = [] if labels is None else np.ravel(labels).tolist()
    names = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names]
    if not any(names) and (tags := text_of(dataset, "axistags")):
        names = [str(axis.get("key", "")) for axis in json.loads(tags)["axes"]]
    names = names if any(names) else []
    if names and len(names) != dataset.ndim:
        raise ValueError(f"{len(names)} names for {dataset.ndim} axes")
    return letters_of(names, dataset.ndim)


def _sizes(dataset: Any) -> dict[str, float | None]:
    """Return the pixel size that Fiji's HDF5 plugin, and others after it, write: micrometres along z, y and x."""
    numbers = np.ravel(attribute_of(dataset, "element_size_um")).tolist()
    return dict(zip(SPACE.get(len(numbers), ""), map(positive_or_none, numbers), strict=False))
