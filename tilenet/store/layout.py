"""The layout of a store, decided before anything is written: pure integers and names.

OUT/zarr.json             OME-Zarr metadata, and how the mask was made
OUT/0/ 1/ 2/ ...          the mask and its pyramid, one shard (a file) per block
OUT/probabilities/0/      with classes: one shard per block and class
OUT/tissue/0/             with a tissue map: the map, in one shard
OUT/.tilenet/             journal and lock

This is zarr format 3, for OME-Zarr 0.5. A mask inside an OME-Zarr 0.4 image has format 2, which knows no shards: there
each block is one chunk (a file), and the metadata documents are ``.zattrs`` and ``.zarray``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isqrt, prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilenet.decide import PROBABILITY_DTYPES
from tilenet.errors import SettingsError
from tilenet.geometry import Box, ceil_div, cell_box, cell_position
from tilenet.store.tissue_map import Pixel, TissueMap

SMALLEST_LEVEL = 256
# Pixels of an inner chunk: 512 x 512, or 64 x 64 x 64.
CHUNK = 2**18
PROBABILITIES, TISSUE = "probabilities/0", "tissue/0"
# File names of the metadata documents of a group and of an array, by zarr format.
DOCUMENTS = {2: (".zattrs", ".zarray"), 3: ("zarr.json", "zarr.json")}


@dataclass(frozen=True)
class ArrayLayout:
    """One array; in zarr format 3, `block` has the sides of a shard and `chunk` those of the chunks inside it."""

    path: str
    axes: str
    shape: tuple[int, ...]
    block: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layout:
    """Axes, shape and blocks of a mask, from which all metadata of its arrays follow.

    Examples
    --------
    >>> layout = Layout("yx", (1000, 600), (512, 512), (0.5, 0.5), "demo", {1: ("nucleus", None)})
    >>> layout.levels, layout.grid(0), layout.box(0, 3)
    (((1000, 600), (500, 300), (250, 150)), (2, 2), Box(start=(512, 512), stop=(1000, 600)))
    >>> layout.files(0, 3)
    ('0/c/1/1',)
    """

    # The image's axes without ``c``: letters of ``tzyx``, ending in ``yx``.
    axes: str
    # Pixels along each axis, at full resolution.
    shape: tuple[int, ...]
    # Sides of a shard of every array; may exceed the shape.
    block: tuple[int, ...]
    # Micrometres along `axes`; None where unknown.
    pixel_size: tuple[float | None, ...]
    # A name for people to read.
    name: str
    # Mask value -> (name, colour as red, green, blue, alpha or None).
    labels: Mapping[int, tuple[str, tuple[int, ...] | None]] = field(default_factory=dict)
    # Number of classes whose probabilities the store holds, too; 0 for none.
    classes: int = 0
    # ``float32``, ``float16`` or ``float64``.
    probability_dtype: str = "float32"
    # Largest mask value, where it is not one of the labels, as for numbered objects.
    largest: int = 0
    # Pixel of the image at which the mask begins; empty for the first pixel.
    origin: tuple[int, ...] = ()
    # 3 (OME-Zarr 0.5), or 2 (OME-Zarr 0.4).
    zarr_format: Literal[2, 3] = 3
    # Path of the labelled image, relative to the store; empty for a mask that lies in no image.
    source: str = ""
    # For a mask of an OME-Zarr image, or inside one: ``axes``, ``scale`` of a mask pixel and ``translation`` of the
    # image's first pixel, in the units of that image. Empty: micrometres, no translation.
    frame: Mapping[str, Any] = field(default_factory=dict)
    # How far the centre of the first pixel lies beyond that of the stored image's first pixel, in mask pixels. Not
    # 0 where the image was resampled. Empty: no shift.
    shift: tuple[float, ...] = ()
    # Number of pyramid levels: labels MUST have as many as their image (OME-Zarr 0.4 and 0.5, "labels metadata").
    # 0: as many as it takes until y and x are 256 px or less.
    n_levels: int = 0
    # The `TissueMap` that decided which blocks were computed, as plain values. Empty: all blocks were computed.
    tissue: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.axes)
        if self.axes not in ("yx", "zyx", "tyx", "tzyx"):
            raise SettingsError(f"a mask has the axes yx, zyx, tyx or tzyx, not {self.axes!r}")
        if not len(self.shape) == len(self.block) == len(self.pixel_size) == n:
            raise SettingsError(f"axes {self.axes} do not fit {self.shape}, {self.block}, {self.pixel_size}")
        for what, along in (("origin", self.origin), ("shift", self.shift)):
            if along and len(along) != n:
                raise SettingsError(f"{what} {along} does not fit the axes {self.axes}")
        if min(self.shape) < 1 or min(self.block) < 1:
            raise SettingsError(f"shape {self.shape} and block {self.block} must be positive")
        if self.probability_dtype not in PROBABILITY_DTYPES:
            raise SettingsError(f"probabilities are float16, float32 or float64, not {self.probability_dtype}")
        if self.zarr_format not in DOCUMENTS:
            raise SettingsError(f"a mask is written in zarr format 2 or 3, not {self.zarr_format}")
        if any(value < 0 for value in self.labels) or self.classes < 0:
            raise SettingsError("mask values and the number of classes are not negative")
        ends = [a + n for a, n in zip(self.origin or (0,) * n, self.shape, strict=True)][-2:]
        if self.tissue_map and any(a > b for a, b in zip(ends, self.tissue_map.covers, strict=True)):
            raise SettingsError(f"a tissue map of {self.tissue_map.covers} px does not cover {ends}")

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the pyramid levels: y and x halved each time, rounded up."""
        shapes = [self.shape]
        while len(shapes) < self.n_levels or (not self.n_levels and max(shapes[-1][-2:]) > SMALLEST_LEVEL):
            y, x = shapes[-1][-2:]
            shapes.append((*self.shape[:-2], ceil_div(y, 2), ceil_div(x, 2)))
        return tuple(shapes)

    @cached_property
    def tissue_map(self) -> TissueMap | None:
        """The tissue map; None if none was asked for."""
        return TissueMap.from_json(self.tissue) if self.tissue else None

    def block_has_tissue_at(self, y: Pixel, x: Pixel) -> NDArray[np.bool_]:
        """Return whether the blocks of some rows and columns of pixels were not skipped for lack of tissue."""
        if self.tissue_map is None:
            return np.ones((len(y), len(x)), bool)
        return self.tissue_map.blocks_with_tissue(self)[np.ix_(y // self.block[-2], x // self.block[-1])]

    @cached_property
    def mask_dtype(self) -> str:
        """The smallest unsigned integer type that holds every mask value."""
        largest = max([self.largest, *self.labels])
        return next(f"uint{bits}" for bits in (8, 16, 32, 64) if largest < 2**bits)

    @cached_property
    def chunk(self) -> tuple[int, ...]:
        """Sides of an inner chunk: divisors of the block's sides, whose product is about 2**18 pixels."""
        planes = [nearest_divisor(n, 64) if axis == "z" else 1 for axis, n in zip(self.axes, self.block, strict=True)]
        side = isqrt(CHUNK // max(planes))
        return (*planes[:-2], *(nearest_divisor(n, side) for n in self.block[-2:]))

    def _chunk_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.chunk if self.zarr_format == 3 else tuple(map(min, self.block, shape))

    @property
    def root(self) -> str:
        """File name of the root document, which says what the store is."""
        return DOCUMENTS[self.zarr_format][0]

    def document(self, array: str) -> str:
        """Return the path of an array's metadata document, relative to the store."""
        return f"{array}/{DOCUMENTS[self.zarr_format][1]}"

    def folder(self, array: str) -> str:
        """Return the folder that holds the files of an array's blocks, relative to the store."""
        return f"{array}/c" if self.zarr_format == 3 else array

    @property
    def class_axis(self) -> int:
        """Position of ``c`` among the axes of the probabilities."""
        return int(self.axes.startswith("t"))

    @cached_property
    def arrays(self) -> dict[str, ArrayLayout]:
        """Every array by its path, the levels of the mask first."""
        masks = [
            ArrayLayout(str(i), self.axes, shape, self.block, self._chunk_of(shape), self.mask_dtype)
            for i, shape in enumerate(self.levels)
        ]
        found = {array.path: array for array in masks}
        if self.classes:
            axes = "".join(self.with_class(tuple(self.axes), "c"))
            shape, block = self.with_class(self.shape, self.classes), self.with_class(self.block, 1)
            chunk = self.with_class(self._chunk_of(self.shape), 1)
            found[PROBABILITIES] = ArrayLayout(PROBABILITIES, axes, shape, block, chunk, self.probability_dtype)
        return found

    def with_class(self, sides: tuple[Any, ...], of_class: Any) -> tuple[Any, ...]:
        """Return `sides`, one per axis of the mask, with `of_class` inserted at the position of ``c``."""
        return (*sides[: self.class_axis], of_class, *sides[self.class_axis :])

    def grid(self, level: int) -> tuple[int, ...]:
        """Return the number of blocks of a level along each axis."""
        return tuple(map(ceil_div, self.levels[level], self.block))

    def n_blocks(self, level: int) -> int:
        """Return the number of blocks of a level."""
        return prod(self.grid(level))

    def position(self, level: int, index: int) -> tuple[int, ...]:
        """Return the position of a block in its level's grid, which gives its shard's coordinates."""
        return cell_position(index, self.grid(level))

    def index(self, level: int, position: tuple[int, ...]) -> int:
        """Return the index of the block at a position in the grid."""
        return int(np.ravel_multi_index(position, self.grid(level)))

    def box(self, level: int, index: int) -> Box:
        """Return the pixels of a block, clipped to the level."""
        start = [p * b for p, b in zip(self.position(level, index), self.block, strict=True)]
        return cell_box(start, self.block, self.levels[level])

    def n_files(self, level: int) -> int:
        """Return the largest number of files that a block of this level can have."""
        return 1 + (self.classes if level == 0 else 0)

    def files(self, level: int, index: int) -> tuple[str, ...]:
        """Return a block's files, relative to the store: the mask's, then one per class."""
        place = tuple(map(str, self.position(level, index)))
        mask = "/".join((self.folder(str(level)), *place))
        if level:
            return (mask,)
        classes = (self.with_class(place, str(k)) for k in range(self.classes))
        return (mask, *("/".join((self.folder(PROBABILITIES), *at)) for at in classes))

    def array_of(self, file: str) -> str:
        """Return the array that a block's file belongs to."""
        return PROBABILITIES if file.startswith(f"{PROBABILITIES}/") else file.partition("/")[0]

    def block_of_file(self, array: str, coordinates: tuple[int, ...]) -> int | None:
        """Return the index of the block that a shard of an array belongs to; None if it is outside the grid."""
        level = 0 if array == PROBABILITIES else int(array)
        if array == PROBABILITIES and len(coordinates) > self.class_axis:
            if coordinates[self.class_axis] >= self.classes:
                return None
            coordinates = coordinates[: self.class_axis] + coordinates[self.class_axis + 1 :]
        grid = self.grid(level)
        if len(coordinates) != len(grid) or any(a >= n for a, n in zip(coordinates, grid, strict=True)):
            return None
        return self.index(level, coordinates)

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain values."""
        labels = {str(value): [name, color and list(color)] for value, (name, color) in self.labels.items()}
        values = asdict(self) | {"labels": labels}
        # Left out at their defaults, which most masks have.
        usual = {"zarr_format": 3, "source": "", "frame": {}, "n_levels": 0, "tissue": {}}
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Layout:
        """Return the layout that `to_json` described."""
        labels = {int(v): (name, color and tuple(color)) for v, (name, color) in values["labels"].items()}
        sides = {name: tuple(values.get(name, ())) for name in ("shape", "block", "pixel_size", "origin", "shift")}
        return cls(**{**values, **sides, "labels": labels})


def nearest_divisor(n: int, target: int) -> int:
    """Return the divisor of `n` that is nearest to `target` in ratio.

    >>> nearest_divisor(4096, 512), nearest_divisor(768, 512), nearest_divisor(97, 512), nearest_divisor(1, 64)
    (512, 384, 97, 1)
    """
    small = [d for d in range(1, isqrt(n) + 1) if n % d == 0]
    divisors = {*small, *(n // d for d in small)}
    return min(divisors, key=lambda d: (max(d, target) * 1000 // min(d, target), d))
