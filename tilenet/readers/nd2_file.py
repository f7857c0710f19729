"""The parts of an ND2 file, read without trusting it: those that nd2 parses, and the frames.

nd2 would unpack what it parses to any size. It gives zeros for a frame that is missing or cut off, takes what lies in
the wrong place for a frame, and unpacks one to any size, too. So frames are read here, from the places that nd2 finds.
Each holds all channels of one plane, pixel by pixel, and may be compressed as a whole.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tilenet.errors import ImageError
from tilenet.readers.guards import DAMAGED, check_xml
from tilenet.readers.image import Pixels
from tilenet.readers.open_file import OpenFile

# What each part of the file begins with: a mark, the bytes of its name, which follows, and those of its data.
PART, MARK = struct.Struct("<4sIQ"), b"\xda\xce\xbe\x0a"
# Parts that nd2 parses; version 3 of the format puts LV in the place of the braces.
PARSED = ("ImageAttributes{}!", "ImageMetadataSeq{}|0!", "ImageMetadata{}!", "ImageTextInfo{}!")
# Most bytes of such a part, unpacked too.
LARGEST = 2**24
# Most tags and attributes of one that is XML.
MOST_MARKS = 1_200_000
# How something packed begins, before data of zlib.
PACKED, PACKED_AT = b"L", 12
PACKED_INSIDE = re.compile(rb"L(?=[\s\S]{11}[\x08\x18\x28\x38\x48\x58\x68\x78])")
# Bytes of such data that tell whether they are.
ENOUGH = 64
FRAME, END = b"ImageDataSeq|", b"!"
# Bytes of a frame in front of its pixels, which tell when it was recorded.
TIME_BYTES = 8
# A compressed frame may be longer than its pixels by this much.
SLACK = 2**16


def place_of(file: OpenFile, part: bytes, start: int) -> tuple[int, int]:
    """Return where the data of a part of a file begin, and how long they are; refuse another part in its place."""
    head = file.read(start, PART.size + len(part))
    mark, name_bytes, n_bytes = PART.unpack_from(head)
    if mark != MARK or head[PART.size :] != part:
        raise ImageError(
            f"{file.name}: {part.decode(errors='replace')} is not at byte {start}, where it should be. {DAMAGED}"
        )
    start += PART.size + name_bytes
    file.check_end(start + n_bytes)
    return start, n_bytes


def parsed_parts(file: OpenFile, parts: Mapping[bytes, tuple[int, int]], version: tuple[int, ...]) -> list[bytes]:
    """Return the parts that nd2 parses, as they are stored; refuse them if they, or what they unpack to, are large."""
    found = [each.format("LV" if version >= (3, 0) else "").encode() for each in PARSED]
    return [_checked(file, part, parts[part][0]) for part in found if part in parts]


def _checked(file: OpenFile, part: bytes, start: int) -> bytes:
    what = f"{file.name}: its {part.decode()}"
    start, n_bytes = place_of(file, part, start)
    data = whole = bytes(file.read(start, min(n_bytes, LARGEST + 1)))
    if data.startswith(PACKED):
        whole = zlib.decompressobj().decompress(data[PACKED_AT:], LARGEST + 1)
    if max(n_bytes, len(whole)) > LARGEST:
        raise ImageError(f"{what} has more than {LARGEST} bytes. {DAMAGED}")
    if any(_is_packed(whole, found.start() + PACKED_AT) for found in PACKED_INSIDE.finditer(whole)):
        raise ImageError(f"{what} is packed within, too. {DAMAGED}")
    if whole.startswith(b"<"):
        check_xml(whole.decode(errors="replace"), what, DAMAGED, most=MOST_MARKS)
    return data


def _is_packed(data: bytes, at: int) -> bool:
    try:
        zlib.decompressobj().decompress(data[at : at + ENOUGH])
    except zlib.error:
        return False
    return True


@dataclass(frozen=True)
class Layout:
    """How the pixels of a frame lie."""

    # Along y and x, then channels, then samples of a channel: three if it is in colour, blue first.
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    # From one row to the next, as rows may be padded.
    row_bytes: int
    is_compressed: bool

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all channels of a pixel."""
        return prod(self.shape[2:]) * self.dtype.itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes from the first pixel to the end of the last."""
        return (self.shape[0] - 1) * self.row_bytes + self.shape[1] * self.pixel_bytes

    @property
    def padded_bytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes


class Frames:
    """The frames of an ND2 file; several threads may read at once."""

    def __init__(self, file: OpenFile, parts: Mapping[bytes, tuple[int, int]], layout: Layout) -> None:
        self._name, self._layout, self._file = file.name, layout, file
        # Where the frames begin that lie in the file, by their numbers.
        self.starts: dict[int, int] = {}
        least = 0 if layout.is_compressed else layout.n_bytes
        for part, (start, n_bytes) in parts.items():
            number = part.removeprefix(FRAME).removesuffix(END)
            is_frame = number.isdigit() and part == frame_name(int(number))
            if is_frame and start + PART.size + max(n_bytes, least) <= file.n_bytes:
                self.starts[int(number)] = start

    def rows(self, number: int, rows: slice, columns: slice) -> Pixels:
        """Return an area (y, x, channels, samples) of a frame that is not compressed; nothing else is read."""
        layout, width = self._layout, columns.stop - columns.start
        start, n_bytes = self._place(number)
        if n_bytes < TIME_BYTES + layout.n_bytes:
            raise ImageError(f"{self._name}: frame {number} has {n_bytes} bytes, too few for its pixels. {DAMAGED}")
        start += TIME_BYTES + columns.start * layout.pixel_bytes
        pixels = np.empty((rows.stop - rows.start, width, *layout.shape[2:]), layout.dtype)
        for row, y in zip(pixels, range(rows.start, rows.stop), strict=True):
            data = self._file.read(start + y * layout.row_bytes, width * layout.pixel_bytes)
            row[...] = np.frombuffer(data, layout.dtype).reshape(row.shape)
        return pixels

    def unpacked(self, number: int) -> Pixels:
        """Return a compressed frame (y, x, channels, samples)."""
        layout, unpacker = self._layout, zlib.decompressobj()
        start, n_bytes = self._place(number)
        packed = self._file.read(start + TIME_BYTES, min(max(0, n_bytes - TIME_BYTES), 2 * layout.padded_bytes + SLACK))
        # One byte more than fits, so that a longer frame is noticed; to the end, so that its checksum is compared.
        data = unpacker.decompress(packed, layout.padded_bytes + 1)
        if not layout.n_bytes <= len(data) <= layout.padded_bytes or not unpacker.eof:
            raise ImageError(
                f"{self._name}: frame {number} does not unpack to the {layout.padded_bytes} bytes of its pixels. "
                f"{DAMAGED}"
            )
        step = layout.dtype.itemsize
        strides = (layout.row_bytes, layout.pixel_bytes, layout.shape[3] * step, step)
        return np.ndarray(layout.shape, layout.dtype, data, strides=strides)

    def _place(self, number: int) -> tuple[int, int]:
        return place_of(self._file, frame_name(number), self.starts[number])


def frame_name(number: int) -> bytes:
    """Return the name of the part that is a frame.

    >>> frame_name(7)
    b'ImageDataSeq|7!'
    """
    return FRAME + b"%d" % number + END
