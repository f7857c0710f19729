"""What a mask on disk looks like: shapes, shards, OME-Zarr metadata. Pure but for NumPy types.

References
----------
OME-Zarr 0.5: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from tilenet.geometry import Box, ceil_div

SMALLEST_LEVEL = 256
# Side of a chunk inside a shard, by the number of axes that a block is long in.
CHUNK = {1: 2**18, 2: 512, 3: 64}
DOWNSAMPLED = "yx"
MASK, PROBABILITIES = "mask", "probabilities"
Labels = Mapping[int, tuple[str, tuple[int, ...] | None]]


@dataclass(frozen=True)
class ArraySpec:
    """One zarr array of the store.

    Attributes
    ----------
    path : str
        Below the store, such as ``"0"`` or ``"probabilities/0"``.
    axes : str
        One letter per axis.
    shape, shard, chunk : tuple of int
        Pixels; a chunk divides the shard.
    dtype : numpy.dtype
        Type of the pixels.
    """

    path: str
    axes: str
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Layout:
    """All that decides the arrays of a mask.

    Attributes
    ----------
    axes : str
        The image's without ``c``.
    shape : tuple of int
        Of level 0.
    block : tuple of int
        The plan's: one block is one shard of every array.
    pixel_size : tuple of float or None
        Micrometres along `axes`; None where unknown.
    name : str
        Of the multiscale.
    labels : mapping
        Name and colour (or None) of each mask value but background.
    classes : int
        Channels of the probabilities; 0 for none.
    probability_dtype : str
        ``float32`` or ``float16``.
    """

    axes: str
    shape: tuple[int, ...]
    block: tuple[int, ...]
    pixel_size: tuple[float | None, ...]
    name: str = ""
    labels: Labels = field(default_factory=dict)
    classes: int = 0
    probability_dtype: str = "float32"

    @property
    def n_levels(self) -> int:
        """Number of resolutions: halved until the plane fits a thumbnail."""
        plane = max(n for n, axis in zip(self.shape, self.axes, strict=True) if axis in DOWNSAMPLED)
        levels = 1
        while ceil_div(plane, 2**levels) >= SMALLEST_LEVEL:
            levels += 1
        return levels

    def stride(self, level: int) -> tuple[int, ...]:
        """Return how many level-0 pixels a pixel of a level stands for, per axis."""
        return tuple(2**level if axis in DOWNSAMPLED else 1 for axis in self.axes)

    def level_shape(self, level: int) -> tuple[int, ...]:
        """Return the shape of a level, rounded up."""
        return tuple(map(ceil_div, self.shape, self.stride(level)))

    def grid(self, level: int) -> tuple[int, ...]:
        """Return the number of shards along each axis of a level."""
        return tuple(map(ceil_div, self.level_shape(level), self.block))

    def n_blocks(self, level: int) -> int:
        """Return the number of shards of a level."""
        return prod(self.grid(level))

    def position(self, level: int, index: int) -> tuple[int, ...]:
        """Return the place of a shard in its level's grid, from its index in array order."""
        return tuple(int(i) for i in np.unravel_index(index, self.grid(level)))

    def box(self, level: int, index: int) -> Box:
        """Return the pixels of a shard, clipped to its level."""
        start = tuple(p * b for p, b in zip(self.position(level, index), self.block, strict=True))
        stop = tuple(min(a + b, n) for a, b, n in zip(start, self.block, self.level_shape(level), strict=True))
        return Box(start, stop)

    def array(self, level: int) -> ArraySpec:
        """Return the mask's array at a level."""
        return ArraySpec(
            str(level), self.axes, self.level_shape(level), self.block, chunk_of(self.block), np.dtype(np.uint8)
        )

    @property
    def channel_axis(self) -> int:
        """Where ``c`` stands among the probabilities' axes: behind ``t``, as OME-Zarr wants it."""
        return 1 if self.axes.startswith("t") else 0

    @property
    def probabilities(self) -> ArraySpec | None:
        """The array of probabilities, one class per shard, or None."""
        if not self.classes:
            return None

        def with_channel(sides: tuple[int, ...], n: int) -> tuple[int, ...]:
            return (*sides[: self.channel_axis], n, *sides[self.channel_axis :])

        axes = self.axes[: self.channel_axis] + "c" + self.axes[self.channel_axis :]
        return ArraySpec(
            "probabilities/0",
            axes,
            with_channel(self.shape, self.classes),
            with_channel(self.block, 1),
            with_channel(chunk_of(self.block), 1),
            np.dtype(self.probability_dtype),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the layout for the store's own record."""
        return {
            "axes": self.axes,
            "shape": list(self.shape),
            "block": list(self.block),
            "pixel_size": list(self.pixel_size),
            "name": self.name,
            "labels": [[value, name, list(color) if color else None] for value, (name, color) in self.labels.items()],
            "classes": self.classes,
            "probability_dtype": self.probability_dtype,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Layout:
        """Return the layout of a store's record."""
        labels = {int(v): (name, tuple(color) if color else None) for v, name, color in found["labels"]}
        tuples = {key: tuple(found[key]) for key in ("shape", "block", "pixel_size")}
        return cls(**(dict(found) | tuples | {"labels": labels}))


def chunk_of(block: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunk inside a shard: the largest even division of the block that is small.

    >>> chunk_of((1, 4096, 1040)), chunk_of((256, 256, 256))
    ((1, 512, 260), (64, 64, 64))
    """
    largest = CHUNK[min(3, max(1, sum(side > 1 for side in block)))]

    def divided(side: int) -> int:
        parts = next(k for k in range(1, side + 1) if side % k == 0 and side // k <= largest)
        # A side with no useful divisor (a prime, say) is better left whole than cut to crumbs.
        return side // parts if side // parts * 4 >= min(side, largest) else side

    return tuple(map(divided, block))


def label_metadata(layout: Layout) -> dict[str, Any]:
    """Return the ``ome`` attribute of the mask's group, validated."""
    from yaozarrs import v05

    values = list(layout.labels)
    colors = [{"label-value": v, "rgba": list(c)} for v, (_, c) in layout.labels.items() if c]
    about: dict[str, Any] = {"version": "0.5"}
    about["properties"] = [{"label-value": v, "name": name} for v, (name, _) in layout.labels.items()]
    if values and len(colors) == len(values):  # viewers hide labels that a list of colours leaves out
        about["colors"] = colors
    if not about["properties"]:
        del about["properties"]
    scales = [_scale(layout, layout.stride(k)) for k in range(layout.n_levels)]
    datasets = [_dataset(str(k), scale) for k, scale in enumerate(scales)]
    ome = {"version": "0.5", "multiscales": [_multiscale(layout.name, _axes(layout), datasets)], "image-label": about}
    v05.LabelImage.model_validate(ome)
    return ome


def image_metadata(layout: Layout) -> dict[str, Any]:
    """Return the ``ome`` attribute of the probabilities' group, validated."""
    from yaozarrs import v05

    axes, scale, at = _axes(layout), _scale(layout, layout.stride(0)), layout.channel_axis
    axes.insert(at, {"name": "c", "type": "channel"})
    scale.insert(at, 1.0)
    ome = {"version": "0.5", "multiscales": [_multiscale(layout.name, axes, [_dataset("0", scale)])]}
    v05.Image.model_validate(ome)
    return ome


def _axes(layout: Layout) -> list[dict[str, str]]:
    axes = []
    for axis, size in zip(layout.axes, layout.pixel_size, strict=True):
        unit = {"unit": "micrometer"} if axis != "t" and size else {}
        axes.append({"name": axis, "type": "time" if axis == "t" else "space", **unit})
    return axes


def _scale(layout: Layout, stride: tuple[int, ...]) -> list[float]:
    return [float((size or 1.0) * n) for size, n in zip(layout.pixel_size, stride, strict=True)]


def _dataset(path: str, scale: list[float]) -> dict[str, Any]:
    return {"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]}


def _multiscale(name: str, axes: list[dict[str, str]], datasets: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "axes": axes, "datasets": datasets}
