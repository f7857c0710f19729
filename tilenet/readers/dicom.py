"""Read DICOM whole-slide images through wsidicom: one file (one level), or a folder with all levels.

Optical paths are channels and focal planes are ``z``. A folder must hold one slide. wsidicom skips
files of another series, and levels that it cannot read; both are refused here. It can read from
several threads, and has its own cache of decoded tiles, which is limited to the size of the other
readers' caches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tilenet.errors import ImageError, closed_on_error
from tilenet.geometry import Box
from tilenet.readers.axes import AxisMap, axis_map_of, letters_of_long
from tilenet.readers.cache import PieceCache
from tilenet.readers.formats import dicom_files
from tilenet.readers.guards import (
    DAMAGED,
    LONGEST_AXIS,
    as_image_errors,
    check_missing,
    check_piece,
    needing,
    pixel_dtype,
    positive_or_none,
    quietly,
)
from tilenet.readers.image import RGB, Pixels
from tilenet.readers.stored import ChunkedImage, Sizes


class DicomImage(ChunkedImage):
    """One level of a DICOM whole-slide image; the images of all levels share the open slide."""

    reader, keeps_pieces = "DICOM (wsidicom)", True

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        with needing(path, kind="a DICOM image", library="wsidicom", extra="dicom"):
            import wsidicom
            from wsidicom.config import Settings
        self.name, self._cache = path, PieceCache()
        self._slide: Any = None
        files = sorted(dicom_files(path)) if Path(path).is_dir() else [Path(path)]
        what = f"{path}: cannot be read as a DICOM whole-slide image"
        with quietly("wsidicom"), as_image_errors(what, DAMAGED), closed_on_error(self):
            heads = _heads(files, path)
            self._identity = _identity(files, heads)
            # Tiles are kept once, in tilenet's own cache.
            caches = Settings(decoded_frame_cache_size=0, encoded_frame_cache_size=0)
            self._slide = wsidicom.WsiDicom.open(files, settings=caches)
            self._read_metadata(axes)
            self._check_levels(files, heads)
            check_missing(self.n_missing, missing, name=path)

    def _read_metadata(self, axes: str | None) -> None:
        if len(self._slide.pyramids) != 1:
            raise ImageError(f"{self.name}: holds {len(self._slide.pyramids)} pyramids. Give the files of one of them")
        self._groups = list(self._slide.levels)
        first = self._groups[0]
        self._planes, self._paths = list(first.focal_planes), list(first.optical_paths)
        image = first.default_instance.image_data
        self.dtype, self._samples = pixel_dtype(image.dtype, self.name), int(image.samples_per_pixel)
        maps = [self._axis_map(group, axes) for group in self._groups]
        self.n_missing = sum(
            self._lacks(group, *at)
            for group in self._groups
            for at in product(*self._tiles(group), self._planes, self._paths)
        )
        self._describe(maps, list(map(self._sizes, self._groups, maps)), RGB if self._samples == 3 else ())

    def _check_levels(self, files: Sequence[Path], heads: Sequence[Any]) -> None:
        """Refuse a slide with a level that wsidicom skipped, as level 0 would then be another resolution."""
        instances = (instance for group in self._groups for instance in group.instances.values())
        read = {str(dataset.uids.instance) for instance in instances for dataset in instance.datasets}
        for file, head in zip(files, heads, strict=True):
            is_level = list(head.get("ImageType", ()))[2:3] == ["VOLUME"]
            if is_level and str(head.get("SOPInstanceUID")) not in read:
                raise ImageError(f"{file}: is a level of the slide that wsidicom cannot read. {DAMAGED}")

    def _axis_map(self, group: Any, axes: str | None) -> AxisMap:
        size, tile = group.size, group.tile_size
        image = group.default_instance.image_data
        same = list(group.focal_planes) == self._planes and list(group.optical_paths) == self._paths
        if not same or (image.dtype, image.samples_per_pixel) != (self.dtype, self._samples):
            raise ImageError(f"{self.name}: its levels differ in type, planes or channels. Give one level: one file")
        if max(size.width, size.height) > LONGEST_AXIS:
            raise ImageError(f"{self.name}: says that it has {size.width} x {size.height} px. {DAMAGED}")
        check_piece(tile.width * tile.height * self._samples * self.dtype.itemsize, f"{self.name}: one of its tiles")
        shape = (len(self._planes), len(self._paths), size.height, size.width, self._samples)
        letters = letters_of_long("zcyxs", shape)
        return axis_map_of(letters, shape, axes=axes, name=self.name)

    def _sizes(self, group: Any, axis_map: AxisMap) -> Sizes:
        of = {"y": float(group.mpp.height), "x": float(group.mpp.width), "z": self._z_step()}
        return tuple(positive_or_none(of.get(a)) for a in axis_map.axes if a != "c")

    def _z_step(self) -> float | None:
        """Return the distance between focal planes in micrometres; None unless they are equally spaced."""
        steps = np.diff(self._planes)
        return float(steps.mean()) if len(steps) and np.allclose(steps, steps.mean(), rtol=1e-3) else None

    def _tiles(self, group: Any) -> tuple[range, range]:
        """Return the columns and rows in which tiles may be missing; empty ranges if the file claims to be full."""
        tiled = group.default_instance.image_data.tiled_size
        full = all(str(instance.dataset.tile_type.name) == "FULL" for instance in group.instances.values())
        return (range(0), range(0)) if full else (range(tiled.width), range(tiled.height))

    def _lacks(self, group: Any, column: int, row: int, plane: float, path: str) -> bool:
        from wsidicom.geometry import Point

        data = group.get_instance(plane, path).image_data
        return bool(data.is_sparse(Point(column, row), plane, path))

    def _sides(self, joined: str) -> tuple[int, ...]:
        tile = self._groups[self.level].tile_size
        return (1, 1, tile.height, tile.width, self._samples)

    def _decoded(self, piece: Box) -> Pixels:
        group, (z, c, y, x, _), (height, width) = self._groups[self.level], piece.start, piece.shape[2:4]
        plane, path, tile = self._planes[z], self._paths[c], group.tile_size
        if self.n_missing and self._lacks(group, x // tile.width, y // tile.height, plane, path):
            return np.zeros(piece.shape, self.dtype)
        pixels = self._slide.read_region(
            (x, y), group.level, (width, height), z=plane, path=path, threads=1, as_array=True
        )
        return np.asarray(pixels).reshape(piece.shape)

    def identity(self) -> dict[str, Any]:
        """Return the total size of the files, a hash of their instance UIDs, and the shapes of the levels."""
        return self._identity | {
            "shapes": [list(level.shape) for level in self.levels],
            "missing": self.n_missing,
        }

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()


def _heads(files: Sequence[Path], path: str) -> list[Any]:
    """Return series, instance UID and image type of each file; refuse several series."""
    import pydicom

    tags = ["SeriesInstanceUID", "SOPInstanceUID", "ImageType"]
    heads = [pydicom.dcmread(f, stop_before_pixels=True, specific_tags=tags) for f in files]
    series = {str(head.get("SeriesInstanceUID", "")) for head in heads}
    if len(series) > 1:
        raise ImageError(f"{path}: holds files of {len(series)} series. Give a folder of one slide, or one file")
    return heads


def _identity(files: Sequence[Path], heads: Sequence[Any]) -> dict[str, Any]:
    uids = sorted(str(head.file_meta.get("MediaStorageSOPInstanceUID", "")) for head in heads)
    return {
        "kind": "dicom",
        "bytes": sum(f.stat().st_size for f in files),
        "instances_sha256": hashlib.sha256("\n".join(uids).encode()).hexdigest(),
    }
