"""Read DICOM whole-slide images through wsidicom: one file (one level), or a folder with all levels.

Optical paths are channels and focal planes are ``z``. A folder must hold one slide. wsidicom skips
files of another series, and levels that it cannot read; both are refused here. It can read from
several threads, and has its own cache of decoded tiles, which is limited to the size of the other
readers' caches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tilenet.errors import ImageError, TilenetError
from tilenet.geometry import Box
from tilenet.readers.axes import AxisMap, axis_map_of
from tilenet.readers.fixed_grid import assemble
from tilenet.readers.formats import dicom_files
from tilenet.readers.guards import (
    DAMAGED,
    LONGEST_AXIS,
    as_image_errors,
    check_missing,
    check_piece,
    needing,
    pixel_dtype,
    quietly,
    reduce_by_path,
)
from tilenet.readers.image import CACHE_BYTES, RGB, Image, Level, Pixels


class DicomImage(Image):
    """One level of a DICOM whole-slide image; the images of all levels share the open slide."""

    reader, keeps_pieces = "DICOM (wsidicom)", True

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        with needing(path, kind="a DICOM image", library="wsidicom", extra="dicom"):
            import wsidicom
            from wsidicom.config import Settings
        self.name, self._given_axes, self._missing = path, axes, missing
        self._slide: Any = None
        files = sorted(dicom_files(path)) if Path(path).is_dir() else [Path(path)]
        try:
            with quietly("wsidicom"), as_image_errors(f"{path}: cannot be read as a DICOM whole-slide image", DAMAGED):
                heads = _heads(files, path)
                self._identity = _identity(files, heads)
                # By default wsidicom caches 100 MB of encoded tiles besides the decoded ones.
                caches = Settings(decoded_frame_cache_size=CACHE_BYTES, encoded_frame_cache_size=0)
                self._slide = wsidicom.WsiDicom.open(files, settings=caches)
                self._read_metadata()
                self._check_levels(files, heads)
                check_missing(self.n_missing, missing, name=path)
        except TilenetError:
            self.close()
            raise

    def _read_metadata(self) -> None:
        if len(self._slide.pyramids) != 1:
            raise ImageError(f"{self.name}: holds {len(self._slide.pyramids)} pyramids. Give the files of one of them")
        self._groups = list(self._slide.levels)
        first = self._groups[0]
        self._planes, self._paths = list(first.focal_planes), list(first.optical_paths)
        image = first.default_instance.image_data
        self.dtype, self._samples = pixel_dtype(image.dtype, self.name), int(image.samples_per_pixel)
        self._axis_maps, self.n_missing = [self._axis_map(group) for group in self._groups], 0
        for group in self._groups:
            self.n_missing += sum(
                self._lacks(group, *at) for at in product(*self._tiles(group), self._planes, self._paths)
            )
        self.levels = tuple(map(self._level, self._groups, self._axis_maps))
        self.axes, self.stated_axes = self._axis_maps[0].axes, self._axis_maps[0].stated_axes
        colour = self.n_channels == 3 == self._samples
        self.channel_names = RGB if colour else ("",) * self.n_channels

    def _check_levels(self, files: Sequence[Path], heads: Sequence[Any]) -> None:
        """Refuse a slide with a level that wsidicom skipped, as level 0 would then be another resolution."""
        instances = (instance for group in self._groups for instance in group.instances.values())
        read = {str(dataset.uids.instance) for instance in instances for dataset in instance.datasets}
        for file, head in zip(files, heads, strict=True):
            is_level = list(head.get("ImageType", ()))[2:3] == ["VOLUME"]
            if is_level and str(head.get("SOPInstanceUID")) not in read:
                raise ImageError(f"{file}: is a level of the slide that wsidicom cannot read. {DAMAGED}")

    def _axis_map(self, group: Any) -> AxisMap:
        size, tile = group.size, group.tile_size
        image = group.default_instance.image_data
        same = list(group.focal_planes) == self._planes and list(group.optical_paths) == self._paths
        if not same or (image.dtype, image.samples_per_pixel) != (self.dtype, self._samples):
            raise ImageError(f"{self.name}: its levels differ in type, planes or channels. Give one level: one file")
        if max(size.width, size.height) > LONGEST_AXIS:
            raise ImageError(f"{self.name}: says that it has {size.width} x {size.height} px. {DAMAGED}")
        check_piece(tile.width * tile.height * self._samples * self.dtype.itemsize, f"{self.name}: one of its tiles")
        shape = (len(self._planes), len(self._paths), size.height, size.width, self._samples)
        letters = [a if n > 1 or a in "yx" else "" for a, n in zip("zcyxs", shape, strict=True)]
        return axis_map_of(letters, shape, axes=self._given_axes, name=self.name)

    def _level(self, group: Any, axis_map: AxisMap) -> Level:
        of = {"y": float(group.mpp.height), "x": float(group.mpp.width), "z": self._z_step()}
        sizes = [of.get(a) for a in axis_map.axes if a != "c"]
        return Level(axis_map.image_shape, tuple(n if n and 0 < n < float("inf") else None for n in sizes))

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

    def _piece(self, box: Box, plane: float, path: str) -> Pixels:
        """Return the pixels of one tile of the file: (samples, y, x)."""
        group = self._groups[self.level]
        tile = group.tile_size
        with as_image_errors(f"{self.name}: {box} of level {self.level} cannot be read", DAMAGED):
            if self.n_missing and self._lacks(
                group, box.start[1] // tile.width, box.start[0] // tile.height, plane, path
            ):
                return np.zeros((self._samples, *box.shape), self.dtype)
            pixels = self._slide.read_region(
                box.start[::-1], group.level, box.shape[::-1], z=plane, path=path, threads=1, as_array=True
            )
            return np.moveaxis(np.asarray(pixels).reshape(*box.shape, self._samples), 2, 0)

    def read_inside(self, box: Box) -> Pixels:
        """Return the pixels of a box inside the slide, decoding only the tiles that it touches."""
        axis_map, tile = self._axis_maps[self.level], self._groups[self.level].tile_size
        out, stored = axis_map.empty(box, self.dtype)
        (z0, z1), channels, rows, columns, _ = axis_map.ranges(box)
        plane = Box((rows[0], columns[0]), (rows[1], columns[1]))
        for z, c in product(range(z0, z1), range(*channels)):
            assemble(
                np.moveaxis(stored[z - z0, c], 2, 0),
                plane,
                shape=axis_map.shape[2:4],
                side=(tile.height, tile.width),
                piece=partial(self._piece, plane=self._planes[z], path=self._paths[c]),
            )
        return out

    def identity(self) -> dict[str, Any]:
        """Return the total size of the files, a hash of their instance UIDs, and the shapes of the levels."""
        return self._identity | {
            "shapes": [list(level.shape) for level in self.levels],
            "missing": self.n_missing,
        }

    def close(self) -> None:
        """Close the files, for the images of all levels."""
        if self._slide is not None:
            self._slide.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_by_path(self.name, level=self.level, axes=self._given_axes, missing=self._missing)


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
    """Return the size and hash that identify the files."""
    uids = sorted(str(head.file_meta.get("MediaStorageSOPInstanceUID", "")) for head in heads)
    return {
        "kind": "dicom",
        "bytes": sum(f.stat().st_size for f in files),
        "instances_sha256": hashlib.sha256("\n".join(uids).encode()).hexdigest(),
    }
