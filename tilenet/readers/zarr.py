"""Read zarr folders, local or remote: OME-Zarr (images and labels, 0.1 to 0.5) and plain arrays, v2 and v3."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from tilenet.errors import ImageError, ImageNotFound
from tilenet.geometry import Box
from tilenet.readers.axes import AxisMap, axis_map_of, letters_of
from tilenet.readers.cache import PieceCache
from tilenet.readers.coordinates import CoordinateTransform, along, in_known_units
from tilenet.readers.guards import LONGEST_AXIS, as_image_errors, pixel_dtype, quietly
from tilenet.readers.image import Pixels
from tilenet.readers.stored import ChunkedImage, Sizes, sizes_of_levels
from tilenet.readers.zarr_metadata import Folder, Multiscales, Node, multiscales_of, read_node, what_is_inside

DAMAGED = "The image is damaged; get it again"
# Most bytes of chunks that one call to zarr decodes.
AT_ONCE = 2**24


class ZarrImage(ChunkedImage):
    """One level of an image in a zarr folder: an OME-Zarr group, one of its levels, or a plain array."""

    reader, keeps_pieces, _remedy, _color_by_shape = "zarr", True, DAMAGED, True

    def __init__(self, folder: Folder, *, axes: str | None) -> None:
        from tilenet.readers.zarr_store import open_array

        node = read_node(folder)
        if node is None:
            raise ImageNotFound(f"{folder}: {folder.what_lacks()}")
        nodes, about = _array(node) if node.is_array else _group(node)
        self.name, self._folder, self._about, self._cache = str(folder), folder, about, PieceCache()
        self._sha256 = hashlib.sha256("".join([node.sha256, *(n.sha256 for n in nodes)]).encode()).hexdigest()
        with quietly("zarr"), as_image_errors(f"{folder}: cannot be read as a zarr array", DAMAGED):
            self._arrays = [open_array(node.folder) for node in nodes]
        self.dtype = pixel_dtype(self._arrays[0].dtype, self.name)
        maps = [self._axis_map(node, array, axes) for node, array in zip(nodes, self._arrays, strict=True)]
        self._describe(maps, _pixel_sizes(maps, about.sizes), about.channel_names)

    def _axis_map(self, node: Node, array: Any, axes: str | None) -> AxisMap:
        letters = self._about.letters
        if len(letters) != array.ndim or max(array.shape) > LONGEST_AXIS or array.dtype != self._arrays[0].dtype:
            raise ImageError(
                f"{node.folder}: its shape {array.shape} and type {array.dtype} do not fit an image "
                f"of the axes {''.join(letters)}. {DAMAGED}"
            )
        return axis_map_of(letters, array.shape, axes=axes, name=self.name)

    @property
    def kept_bytes(self) -> int:
        return super().kept_bytes + self._folder.kept_bytes

    @property
    def frame(self) -> CoordinateTransform | None:
        found = self._about.frames[self.level]
        if found is None or self.axes != self.stated_axes:  # the caller renamed them
            return None
        return in_known_units(along(found, [self._about.letters.index(a) for a in self.box_axes], self.box_axes))

    @property
    def shift(self) -> tuple[float, ...]:
        return (0.0,) * len(self.box_axes)  # where each level lies, its frame says

    def _sides(self, joined: str) -> list[int]:
        axis_map, chunks = self._maps[self.level], self._arrays[self.level].chunks
        whole = zip(axis_map.letters, axis_map.shape, chunks, strict=True)
        return [n if letter in (joined, "") else chunk for letter, n, chunk in whole]

    def _decoded(self, piece: Box) -> Pixels:
        return np.asarray(self._arrays[self.level][piece.slices])

    def _all_decoded(self, pieces: list[Box]) -> list[Pixels]:
        """Decode pieces by few calls to zarr, because one call costs as much as decoding a chunk."""
        if (found := self._at_once(pieces)) is not None:
            return found
        rows = [list(row) for _, row in groupby(pieces, key=lambda piece: piece.start[:-1])]
        parts = rows if len(rows) > 1 else [[piece] for piece in pieces]
        return [pixels for part in parts for pixels in self._all_decoded(part)]

    def _at_once(self, pieces: list[Box]) -> list[Pixels] | None:
        """Decode pieces by one call to zarr; return None if they do not fill a box, or a box that is too large."""
        starts = zip(*(piece.start for piece in pieces), strict=True)
        stops = zip(*(piece.stop for piece in pieces), strict=True)
        hull = Box(tuple(map(min, starts)), tuple(map(max, stops)))
        if len(pieces) > 1 and (
            hull.size > sum(piece.size for piece in pieces) or hull.size * self.dtype.itemsize > AT_ONCE
        ):
            return None
        whole = self._decoded(hull)
        if len(pieces) == 1:
            return [whole]
        # Copied, so that evicting one piece from the cache frees its memory.
        return [whole[piece.relative_to(hull.start).slices].copy() for piece in pieces]

    def identity(self) -> dict[str, Any]:
        """Return the shapes of the levels, the dtype, and a hash of the metadata documents."""
        return {
            "kind": "zarr",
            "shapes": [list(array.shape) for array in self._arrays],
            "dtype": str(self._arrays[0].dtype),
            "metadata_sha256": self._sha256,
        }


def _group(node: Node) -> tuple[list[Node], Multiscales]:
    about = multiscales_of(node)
    if about is None:
        raise ImageError(f"{node.folder}: is a zarr group, not an image. {what_is_inside(node)}")
    nodes = [read_node(node.folder.inside(p)) for p in about.paths]
    missing = [p for p, n in zip(about.paths, nodes, strict=True) if n is None or not n.is_array]
    if missing:
        raise ImageError(
            f"{node.folder}: lists {len(nodes)} levels, but lacks {', '.join(missing)}. Get the whole image"
        )
    return [n for n in nodes if n is not None], about


def _array(node: Node) -> tuple[list[Node], Multiscales]:
    """Return an array and its metadata; if it is a level of an OME-Zarr image, with all coarser levels."""
    for group, own in node.folder.above():
        parent = read_node(group)
        about = multiscales_of(parent) if parent and not parent.is_array else None
        if parent and about and own in about.paths:
            nodes, k = _group(parent)[0], about.paths.index(own)
            return nodes[k:], about.coarser(k)
    letters = letters_of(node.dimension_names, node.ndim)
    return [node], Multiscales((".",), letters, ((None,) * len(letters),), (), (None,))


def _pixel_sizes(axis_maps: Sequence[AxisMap], stored: Sequence[Sequence[float | None]]) -> list[Sizes]:
    """Return the pixel size of each level along the axes without ``c``; a missing one follows from the first level."""
    said = [
        {a: n for a, n in zip(axis_map.letters, level, strict=True) if a and a != "c"}
        for axis_map, level in zip(axis_maps, stored, strict=True)
    ]
    derived = sizes_of_levels(axis_maps, said[0])
    return [
        tuple(other if own is None else own for own, other in zip(size.values(), others, strict=True))
        for size, others in zip(said, derived, strict=True)
    ]
