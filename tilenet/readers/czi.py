"""Read CZI through pylibCZIrw: mosaics, channels, ``z`` and ``t``; the finest resolution only.

All scenes form one image, placed as they lie on the stage. Pixels between scenes, and wherever
else a mosaic has no tile, are 0. libCZI reads one box at a time, so threads wait for each other;
decoded pieces are cached for later reads.
"""

from __future__ import annotations

import hashlib
import os
import struct
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tilenet.errors import ImageError, closed_on_error
from tilenet.geometry import Box
from tilenet.readers.axes import axis_map_of, letters_of_long
from tilenet.readers.cache import PieceCache
from tilenet.readers.guards import DAMAGED, LONGEST_AXIS, as_image_errors, check_missing, needing, positive_or_none
from tilenet.readers.image import RGB, Pixels
from tilenet.readers.stored import ChunkedImage, sizes_of_levels

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
# Where the header says at which bytes the directory, the metadata and the directory of attachments begin; and what each
# part of the file begins with: its kind, the bytes that are kept for it, and the bytes that it takes of these.
PLACES, PART = (84, struct.Struct("<qq4xq")), struct.Struct("<16sqq")


class CziImage(ChunkedImage):
    """A CZI file, as an image of one level."""

    reader, keeps_pieces = "CZI (pylibCZIrw)", True

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        with needing(path, kind="a CZI file", library="pylibCZIrw", extra="czi"):
            from pylibCZIrw import czi
        self.name, self._lock, self._cache = path, Lock(), PieceCache()
        self._czi: Any = None
        with as_image_errors(f"{path}: cannot be read as a CZI", DAMAGED), closed_on_error(self):
            _refuse_cut(path)
            self._czi = czi.CziReader(path)
            self._read_metadata(axes)
            check_missing(self.n_missing, missing, name=path, pieces=f"{prod(self._maps[0].shape[:3])} planes")

    def _read_metadata(self, axes: str | None) -> None:
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
        letters = letters_of_long("tzcyxs", full)
        about = self._czi.raw_metadata
        root, maps = ElementTree.fromstring(about), [axis_map_of(letters, full, axes=axes, name=self.name)]
        sizes = {d.get("Id", "").lower(): _micrometres(d.findtext("Value")) for d in root.iterfind(".//Items/Distance")}
        found = root.iterfind(".//Information/Image/Dimensions/Channels/Channel")
        self._describe(maps, sizes_of_levels(maps, sizes), [channel.get("Name", "") for channel in found])
        if samples == self.n_channels == 3:
            self.channel_names = RGB
        self.n_missing = prod(shape[:3]) - len(held)
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

    def _planes_held(self) -> set[tuple[int, ...]]:
        """Return t, z and c of the planes that have data in the file."""
        held = set()

        def note(_: int, about: Any) -> bool:
            at = {str(k).rpartition(".")[2]: v for k, v in about.coordinate.to_dict().items()}
            held.add(tuple(at.get(a, 0) for a in "TZC"))
            return True

        self._czi.enumerate_subblocks(note)
        return held

    def _sides(self, joined: str) -> tuple[int, ...]:
        return (1, 1, 1, *SIDE, self._maps[0].shape[-1])

    def _decoded(self, piece: Box) -> Pixels:
        at = {a: i + first for a, i, first in zip("TZC", piece.start, self._first, strict=False)}
        plane = Box(piece.start[3:5], piece.stop[3:5]).shifted(self._corner)
        with self._lock:
            if self._czi is None:
                raise ImageError(f"{self.name}: is closed. Open it again")
            # The type is given because pylibCZIrw would look up that of channel 0, which need not exist.
            roi = (*plane.start[::-1], *plane.shape[::-1])
            pixels: Pixels = self._czi.read(roi=roi, plane=at, pixel_type=self._pixel_type)  # (y, x, samples)
        return pixels[..., ::-1].astype(self.dtype).reshape(piece.shape)

    def identity(self) -> dict[str, Any]:
        """Return the file's size, a hash of its header (with its GUID) and metadata, and how many planes it lacks."""
        return {
            "kind": "czi",
            "bytes": Path(self.name).stat().st_size,
            "metadata_sha256": self._sha256,
            "missing": self.n_missing,
        }

    def close(self) -> None:
        with self._lock:
            czi, self._czi = self._czi, None
            if czi is not None:
                czi.close()


def _refuse_cut(path: str) -> None:
    """Refuse a file that ends within one of its last parts, which libCZI would notice when that is read, if ever."""
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(PLACES[0])
        at = max(0, *PLACES[1].unpack(file.read(PLACES[1].size)))
        while at + PART.size <= size:
            file.seek(at)
            kind, kept, used = PART.unpack(file.read(PART.size))
            if not kind.startswith((b"ZISRAW", b"DELETED")) or kept < 0:
                return
            if at + PART.size + used > size:
                raise ImageError(
                    f"{path}: is cut off at byte {size}, of {at + PART.size + used} at least. Get it again"
                )
            at += PART.size + kept


def _micrometres(metres: str | None) -> float | None:
    number = positive_or_none(metres)
    return None if number is None else number * METRE
