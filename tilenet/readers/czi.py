"""Read CZI through pylibCZIrw: mosaics, channels, ``z`` and ``t``; the finest resolution only.

All scenes form one image, placed as they lie on the stage. Pixels between scenes, and wherever
else a mosaic has no tile, are 0. libCZI reads one box at a time, so threads wait for each other;
decoded pieces are cached for later reads.
"""

from __future__ import annotations

import hashlib
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tilenet.errors import ImageError, TilenetError
from tilenet.geometry import Box
from tilenet.readers.axes import axis_map_of
from tilenet.readers.cache import PieceCache
from tilenet.readers.fixed_grid import assemble
from tilenet.readers.guards import (
    DAMAGED,
    LONGEST_AXIS,
    as_image_errors,
    check_missing,
    needing,
    positive_or_none,
    reduce_by_path,
)
from tilenet.readers.image import RGB, Image, Level, Pixels

SIDE = (1024, 1024)
# Samples and dtype of each of libCZI's pixel types; colours are stored blue first.
PIXELS = {
    "Gray8": (1, np.uint8),
    "Gray16": (1, np.uint16),
    "Gray32Float": (1, np.float32),
    "Bgr24": (3, np.uint8),
    "Bgr48": (3, np.uint16),
    "Bgr96Float": (3, np.float32),
}
HEADER_BYTES = 1024
METRE = 1e6


class CziImage(Image):
    """A CZI file, as an image of one level."""

    reader, keeps_pieces = "CZI (pylibCZIrw)", True

    def __init__(self, path: str, *, axes: str | None = None, missing: str = "error") -> None:
        with needing(path, kind="a CZI file", library="pylibCZIrw", extra="czi"):
            from pylibCZIrw import czi
        self.name, self._given_axes, self._missing = path, axes, missing
        self._lock, self._cache = Lock(), PieceCache()
        self._czi: Any = None
        try:
            with as_image_errors(f"{path}: cannot be read as a CZI", DAMAGED):
                self._czi = czi.CziReader(path)
                self._read_metadata()
        except TilenetError:
            self.close()
            raise

    def _read_metadata(self) -> None:
        extents: dict[str, tuple[int, int]] = self._czi.total_bounding_box_no_pyramid
        more = [a for a, (start, stop) in extents.items() if a not in "TZCXY" and stop - start > 1]
        if more:
            raise ImageError(
                f"{self.name}: has an axis {more[0]}, which tilenet does not support. Export one of its parts"
            )
        shape = [extents[a][1] - extents[a][0] for a in "TZCYX"]
        if not 0 < min(shape) <= max(shape) <= LONGEST_AXIS:
            raise ImageError(f"{self.name}: has {shape} pixels along t, z, c, y and x. {DAMAGED}")
        self._corner = (extents["Y"][0], extents["X"][0])
        held = self._planes_held()
        # Files cut out of larger ones keep their numbers of planes; of these, `extents` has the count alone.
        self._first = tuple(map(min, zip(*held, strict=True))) or (0, 0, 0)
        samples = self._read_pixel_type(range(self._first[2], self._first[2] + shape[2]))
        full = (*shape, samples)
        letters = [a if n > 1 or a in "yx" else "" for a, n in zip("tzcyxs", full, strict=True)]
        self._axis_map = axis_map_of(letters, full, axes=self._given_axes, name=self.name)
        self.axes, self.stated_axes = self._axis_map.axes, self._axis_map.stated_axes
        about = self._czi.raw_metadata
        self._read_sizes_and_names(ElementTree.fromstring(about), samples)
        self.n_missing = prod(shape[:3]) - len(held)
        check_missing(self.n_missing, self._missing, name=self.name, pieces=f"{prod(shape[:3])} planes")
        with Path(self.name).open("rb") as file:
            self._sha256 = hashlib.sha256(file.read(HEADER_BYTES) + about.encode()).hexdigest()

    def _read_pixel_type(self, channels: range) -> int:
        """Set the dtype from the pixel type of the channels; return the number of samples per pixel."""
        kinds = [self._czi.get_channel_pixel_type(c) for c in channels]
        if len(set(kinds)) > 1 or kinds[0] not in PIXELS:
            raise ImageError(
                f"{self.name}: has pixels of type {', '.join(dict.fromkeys(kinds))}; supported types are "
                f"{', '.join(PIXELS)}, the same for all channels. Convert it to OME-TIFF"
            )
        self._pixel_type = kinds[0]
        samples, dtype = PIXELS[self._pixel_type]
        self.dtype = np.dtype(dtype)
        return samples

    def _read_sizes_and_names(self, root: ElementTree.Element, samples: int) -> None:
        sizes = {d.get("Id", "").lower(): _micrometres(d.findtext("Value")) for d in root.iterfind(".//Items/Distance")}
        self.levels = (Level(self._axis_map.image_shape, tuple(sizes.get(a) for a in self.axes if a != "c")),)
        found = root.iterfind(".//Information/Image/Dimensions/Channels/Channel")
        names = tuple(channel.get("Name", "") for channel in found)
        if samples == self.n_channels == 3:
            names = RGB
        self.channel_names = names if len(names) == self.n_channels else ("",) * self.n_channels

    def _planes_held(self) -> set[tuple[int, ...]]:
        """Return t, z and c of the planes that have data in the file."""
        held = set()

        def note(_: int, about: Any) -> bool:
            at = {str(k).rpartition(".")[2]: v for k, v in about.coordinate.to_dict().items()}
            held.add(tuple(at.get(a, 0) for a in "TZC"))
            return True

        self._czi.enumerate_subblocks(note)
        return held

    def read_inside(self, box: Box) -> Pixels:
        """Return the pixels of a box inside the image."""
        out, stored = self._axis_map.empty(box, self.dtype)
        *outer, rows, columns, _ = self._axis_map.ranges(box)
        plane = Box((rows[0], columns[0]), (rows[1], columns[1]))
        for index in product(*(range(a, b) for a, b in outer)):
            at = {a: i + first for a, i, first in zip("TZC", index, self._first, strict=True)}
            place = tuple(i - a for i, (a, _) in zip(index, outer, strict=True))
            assemble(
                np.moveaxis(stored[place], 2, 0),
                plane,
                shape=self._axis_map.shape[3:5],
                side=SIDE,
                piece=partial(self._piece, at),
            )
        return out

    def _piece(self, at: dict[str, int], box: Box) -> Pixels:
        return self._cache.get((*at.values(), box), lambda: self._decoded(at, box))

    def _decoded(self, at: dict[str, int], box: Box) -> Pixels:
        """Return a piece of a plane (samples, y, x)."""
        corner = box.shifted(self._corner).start
        with self._lock, as_image_errors(f"{self.name}: {box} of {at} cannot be read", DAMAGED):
            if self._czi is None:
                raise ImageError(f"{self.name}: is closed. Open it again")
            # The type is given because pylibCZIrw would look up that of channel 0, which need not exist.
            roi = (*corner[::-1], *box.shape[::-1])
            pixels: Pixels = self._czi.read(roi=roi, plane=at, pixel_type=self._pixel_type)  # (y, x, samples)
            return np.moveaxis(pixels[..., ::-1], 2, 0).astype(self.dtype)

    def identity(self) -> dict[str, Any]:
        """Return the file's size, a hash of its header (with its GUID) and metadata, and how many planes it lacks."""
        return {
            "kind": "czi",
            "bytes": Path(self.name).stat().st_size,
            "metadata_sha256": self._sha256,
            "missing": self.n_missing,
        }

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            czi, self._czi = self._czi, None
            if czi is not None:
                czi.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_by_path(self.name, axes=self._given_axes, missing=self._missing)


def _micrometres(metres: str | None) -> float | None:
    number = positive_or_none(metres)
    return None if number is None else number * METRE
