"""Read ND2 (Nikon NIS-Elements): ``t``, ``z``, channels and colours of one position, such as ``plate.nd2/2``.

The library nd2 says what was recorded, and where in the file it lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tilenet.address import file_of, inside_of
from tilenet.errors import ImageError, closed_on_error
from tilenet.geometry import Box
from tilenet.readers.axes import axis_map_of, letters_of_long
from tilenet.readers.cache import PieceCache
from tilenet.readers.guards import (
    DAMAGED,
    LONGEST_AXIS,
    as_image_errors,
    check_missing,
    check_piece,
    listed,
    needing,
    positive_or_none,
    quietly,
)
from tilenet.readers.image import RGB, Pixels
from tilenet.readers.nd2_file import Frames, Layout, parsed_parts
from tilenet.readers.open_file import OpenFile
from tilenet.readers.stored import ChunkedImage, sizes_of_levels

DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}
# Axes by the kinds of loops; ``p`` is that of positions.
LOOPS = {"TimeLoop": "t", "NETimeLoop": "t", "ZStackLoop": "z", "XYPosLoop": "p"}
# What `ePictureXAxis` and `ePictureYAxis` say of an axis along which not places differ, but times.
TIMES = 2


class Nd2Image(ChunkedImage):
    """One position of an ND2 file, as an image of one level."""

    reader = "ND2 (nd2)"

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        with needing(path, kind="an ND2 file", library="nd2", extra="nd2"):
            import nd2
        file = file_of(path)
        self.name, self._cache = path, PieceCache()
        with as_image_errors(f"{path}: cannot be read as an ND2", DAMAGED), quietly("nd2"):
            self._file = OpenFile(file, name=path)
            with closed_on_error(self), nd2.ND2File(file) as about:
                parts = _parts(about, nd2.__version__, path)
                parsed = parsed_parts(self._file, parts, about.version)
                self._sha256 = hashlib.sha256(repr((sorted(parts.items()), parsed)).encode()).hexdigest()
                layout = _layout(about.attributes, path)
                self._frames = Frames(self._file, parts, layout)
                self._read_metadata(about, file, layout, axes)
                check_missing(self.n_missing, missing, name=path, pieces=f"{prod(self._maps[0].shape[:2])} frames")

    def _read_metadata(self, about: Any, file: Path, layout: Layout, axes: str | None) -> None:
        self.dtype, self.keeps_pieces = layout.dtype, layout.is_compressed
        self.working_bytes = 2 * layout.padded_bytes if layout.is_compressed else 0
        loops, n_frames = _loops(about, max(self._frames.starts, default=0) + 1, self.name)
        first = "?" if "?" in loops else "t"
        (n_times, t_step), (n_planes, z_step), (n_positions, p_step) = (loops.get(a, (1, 0)) for a in (first, *"zp"))
        self._position = _position(self.name, file, n_positions, about.experiment)
        self._first, self._steps = self._position * p_step, (t_step, z_step)
        height, width, n_channels, n_samples = layout.shape
        shape = (n_times, n_planes, n_channels, height, width, n_samples)
        if max(shape) > LONGEST_AXIS:
            raise ImageError(f"{self.name}: has {shape} pixels along t, z, channels, y, x and colours. {DAMAGED}")
        letters = letters_of_long((first, *"zcyxs"), shape)
        maps = [axis_map_of(letters, shape, axes=axes, name=self.name)]
        said = _said(about)
        names = _channel_names(said.get("sPicturePlanes", {}), layout, self.name)
        self._describe(maps, sizes_of_levels(maps, _sizes(said, about.experiment)), names)
        held = [k for k in self._frames.starts if k < n_frames]
        mine = sum(p_step == 0 or k // p_step % n_positions == self._position for k in held)
        self.n_missing = n_times * n_planes - mine
        if beyond := len(self._frames.starts) - len(held):
            self.reader = f"{Nd2Image.reader}, without {beyond} frames that its loops do not count"

    def _sides(self, joined: str) -> tuple[int, ...]:
        return (1, 1, *self._maps[0].shape[2:])

    def _decoded(self, piece: Box) -> Pixels:
        number = self._first + sum(at * step for at, step in zip(piece.start, self._steps, strict=False))
        if number not in self._frames.starts:
            return np.zeros(piece.shape, self.dtype)
        channels, rows, columns = piece.slices[2:5]
        pixels = self._frames.unpacked(number) if self.keeps_pieces else self._frames.rows(number, rows, columns)
        # Colours are stored blue first, which nd2 does not say: https://github.com/ome/bioformats/pull/4321
        return pixels[:, :, channels, ::-1].transpose(2, 0, 1, 3).reshape(piece.shape)

    def identity(self) -> dict[str, Any]:
        """Return the file's size, the position, a hash of metadata and of places, and how many frames it lacks."""
        return {
            "kind": "nd2",
            "bytes": self._file.n_bytes,
            "position": self._position,
            "metadata_sha256": self._sha256,
            "missing": self.n_missing,
        }

    def close(self) -> None:
        self._file.close()


def _parts(about: Any, version: str, name: str) -> dict[bytes, tuple[int, int]]:
    """Return where each part of the file begins, and its bytes; nd2 has no public way to tell a missing frame."""
    parts = getattr(getattr(about, "_rdr", None), "chunkmap", None)
    if not isinstance(parts, dict):
        raise ImageError(
            f"{name}: nd2 {version} does not say where the frames are. Install another version of it, such as 0.12.0"
        )
    return parts


def _layout(about: Any, name: str) -> Layout:
    if about.compressionType == "lossy":
        raise ImageError(f"{name}: is compressed with loss, which is not read. Save it without, or as OME-TIFF")
    bits, significant = about.bitsPerComponentInMemory, about.bitsPerComponentSignificant
    if bits not in DTYPES or (bits == 32 and significant != 32):
        raise ImageError(
            f"{name}: has pixels of {bits} bits, of which {significant} are used; 8 and 16 bits, and floats of 32, are "
            f"read. Convert it to OME-TIFF"
        )
    dtype, n_channels = np.dtype(DTYPES[bits]), about.channelCount or 1
    n_samples = 3 if about.componentCount == 3 * n_channels else 1
    shape = (about.heightPx, about.widthPx or 0, about.componentCount // n_samples, n_samples)
    row_bytes = prod(shape[1:]) * dtype.itemsize
    stated = about.widthBytes or row_bytes
    if not 0 < min(shape) <= max(shape) <= LONGEST_AXIS or stated < row_bytes:
        raise ImageError(f"{name}: has frames of {shape} y, x, channels and colours, in rows of {stated} B. {DAMAGED}")
    layout = Layout(shape, dtype, stated, about.compressionType == "lossless")
    if layout.is_compressed:
        check_piece(layout.padded_bytes, f"{name}: each of its frames")
    return layout


def _loops(about: Any, there: int, name: str) -> tuple[dict[str, tuple[int, int]], int]:
    """Return how many steps each loop has, and how many frames a step is; and how many frames all have.

    The letters are those of `LOOPS`; ``?`` stands for frames without loops. `there` is how many frames the file has.
    """
    loops: dict[str, tuple[int, int]] = {}
    step = 1
    for loop in reversed(about.experiment):
        letter = LOOPS.get(loop.type, "")
        if loop.count < 1:
            raise ImageError(f"{name}: has a {loop.type} of {loop.count} steps. {DAMAGED}")
        if loop.count > 1 and (not letter or letter in loops):
            what = f"two loops along {letter}" if letter else f"a loop of the kind {loop.type}"
            raise ImageError(f"{name}: has {what}, which tilenet does not read. Export one of its parts")
        if loop.count > 1:
            loops[letter] = (loop.count, step)
        step *= loop.count
    if step == 1:
        step = max(about.attributes.sequenceCount, there)
        return {"?": (step, 1)}, step
    if there >= 2 * step:
        raise ImageError(
            f"{name}: has {there} frames, and its loops count {step}: nd2 does not find all of its loops. Convert it "
            f"to OME-TIFF in NIS-Elements"
        )
    return loops, step


def _position(name: str, file: Path, count: int, experiment: Sequence[Any]) -> int:
    """Return the number of the position that a path names, or that is the only one."""
    inside = inside_of(name)
    if not inside and count == 1:
        return 0
    if inside.isdecimal() and int(inside) < count:
        return int(inside)
    points = next((loop.parameters.points for loop in experiment if loop.type == "XYPosLoop"), [None])
    called = [" ".join(str(point.name or "").split()) if point else "" for point in points]
    positions = listed([f"{k} ({each})" if each else str(k) for k, each in enumerate(called)])
    what = f"is none of the {count} positions" if inside else f"holds {count} positions"
    raise ImageError(f"{name}: {what}: {positions}. Give one by its number: {file}/0")


def _said(about: Any) -> Mapping[str, Any]:
    """Return what the file says of channels and pixel sizes: nd2's `metadata` fails if a channel has no probe."""
    part = f"ImageMetadataSeq{'LV' if about.version >= (3, 0) else ''}|0"
    said: Mapping[str, Any] = about.unstructured_metadata(strip_prefix=False, include={part})[part]
    return said.get("SLxPictureMetadata", said)  # type: ignore[no-any-return]


def _sizes(said: Mapping[str, Any], experiment: Sequence[Any]) -> dict[str, float | None]:
    """Return micrometres per pixel along x, y and z; None where unknown."""
    side = said.get("dCalibration") if said.get("bCalibrated") else None
    x, y = (None if said.get(f"ePicture{a}Axis") == TIMES else positive_or_none(side) for a in "XY")
    step = next((loop.parameters.stepUm for loop in experiment if loop.type == "ZStackLoop"), None)
    return {"x": x, "y": y, "z": positive_or_none(abs(step or 0))}


def _channel_names(said: Mapping[str, Any], layout: Layout, name: str) -> list[str]:
    planes = said.get("sPlaneNew") or said.get("sPlane") or {}
    if len(planes) != said.get("uiCount"):
        raise ImageError(f"{name}: says that it has {said.get('uiCount')} channels, and names {len(planes)}. {DAMAGED}")
    names = [str(plane.get("sDescription", "")) for plane in planes.values()]
    if layout.shape[3] == 1:
        return names
    return list(RGB) if len(names) == 1 else [f"{name} {colour}" for name in names for colour in RGB]
