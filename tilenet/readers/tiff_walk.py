"""Check the directories (IFDs) of a TIFF before tifffile trusts them.

tifffile follows a loop of more than 100 directories forever, searches forever for the pages of an image of a negative
length, and reads a tag of any length that fits into the file. tifffile also decodes all pages of an image as it decodes
one of them, so this module notes how each page is stored. It reads counts, offsets and single numbers only.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from tilenet.errors import ImageError

MOST_TAGS = 4096
MOST_DIRECTORIES = 2**18
# Tags with tables of tile (or strip) offsets and byte counts: 2**22 tiles of 256 px are an image of 524288 x 524288.
TABLES = (273, 279, 324, 325)
MOST_TILES = 2**22
# Most bytes of any other tag: descriptions, ICC profiles, JPEG tables, and NDPI's McuStarts, which is a table too.
LARGEST_TAG = 64 * 2**20
# Descriptions (OME-XML among them), resolutions, and ImageJ's metadata. They may be the end of a file, and tifffile
# takes what it finds of them: axes and pixel sizes would silently be others.
METADATA = (270, 282, 283, 50838, 50839)
# Tags with lengths of an image and of its tiles, along x, y and z, and types of whole numbers that are not negative.
LENGTHS = (256, 257, 322, 323, 32997, 32998)
UNSIGNED = (1, 3, 4, 16)
BYTES_OF_TYPE = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
SUB_IFDS = 330
# Bits per sample, compression, fill order, predictor and sample format. All are 1 where a page lacks the tag.
STORED_AS = (258, 259, 266, 317, 339)
# Byte order, and the tags of STORED_AS that are not 1.
Storage = tuple[str, dict[int, int]]


def check_directories(path: str) -> dict[int, Storage]:
    """Return how the page of each directory is stored, by the directory's offset.

    A TIFF is refused if its directories form a loop, lie outside the file, or hold implausibly large tags.
    """
    with Path(path).open("rb") as file:
        walk = Walk(file, path)
        walk.along()
        return walk.storage


class Walk:
    """A walk along the directories of one open TIFF.

    Counts and offsets have one of three formats: classic, BigTIFF, or NDPI, which is classic
    except for 64-bit offsets from one directory to the next.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.size = file, name, os.fstat(file.fileno()).st_size
        self.head = file.read(16)
        if len(self.head) < 8:
            raise ImageError(f"{name}: ends in its header, after {self.size} bytes. Get the whole file")
        order = "<" if self.head[:2] == b"II" else ">"
        self.big = struct.unpack(f"{order}H", self.head[2:4])[0] == 43
        self.ndpi = order == "<" and name.lower().endswith(".ndpi")
        self.count = struct.Struct(f"{order}Q" if self.big else f"{order}H")
        self.entry = struct.Struct(f"{order}HHQ8s" if self.big else f"{order}HHI4s")
        self.following = struct.Struct(f"{order}Q" if self.big or self.ndpi else f"{order}I")
        self.order = order
        self.storage: dict[int, Storage] = {}

    def along(self) -> None:
        """Check the chain of directories, and the directories listed in their SubIFDs tags."""
        (offset,) = self.following.unpack_from(self.head, 8 if self.big else 4)
        if offset == 0:
            raise ImageError(f"{self.name}: holds no image, only the header of a TIFF. Get the file again")
        seen: set[int] = set()
        inside: list[int] = []
        while offset:
            if offset in seen:
                raise ImageError(f"{self.name}: its directories run in a circle at byte {offset}. The file is damaged")
            seen.add(offset)
            offset, listed = self.directory(offset)
            inside.extend(listed)
            if len(seen) + len(inside) > MOST_DIRECTORIES:
                raise ImageError(f"{self.name}: has more than {MOST_DIRECTORIES} directories. Convert it to zarr")
        for offset in inside:  # pyramid levels; tifffile does not follow the chain from one of these to the next
            self.directory(offset)

    def directory(self, offset: int) -> tuple[int, list[int]]:
        """Check one directory; return the offset of the next, and the offsets in its SubIFDs tag."""
        beyond = ImageError(
            f"{self.name}: is cut off or damaged: it has {self.size} bytes, but its directory at byte {offset} "
            f"ends beyond that. Get the whole file"
        )
        if offset < 8 or offset + self.count.size > self.size:
            raise beyond
        self.file.seek(offset)
        (n_tags,) = self.count.unpack(self.file.read(self.count.size))
        if not 0 < n_tags <= MOST_TAGS:
            raise ImageError(f"{self.name}: has a directory of {n_tags} tags at byte {offset}. The file is damaged")
        n_bytes = n_tags * self.entry.size
        data = self.file.read(n_bytes + self.following.size)
        if len(data) < n_bytes + self.following.size:
            raise beyond
        inner: list[int] = []
        stored: dict[int, int] = {}
        for tag in self.entry.iter_unpack(data[:n_bytes]):
            inner += self.tag(*tag)
            stored |= self.stored_as(*tag)
        self.storage[offset] = self.order, stored
        (following,) = self.following.unpack_from(data, n_bytes)
        return int(following), inner

    def tag(self, code: int, kind: int, count: int, value: bytes) -> list[int]:
        """Check one tag; return the offsets of directories that it lists (SubIFDs only)."""
        n_bytes = count * (BYTES_OF_TYPE[kind] if kind < len(BYTES_OF_TYPE) else 1)
        if code in LENGTHS and kind not in UNSIGNED:
            raise ImageError(f"{self.name}: has a length of the type {kind} in its tag {code}. The file is damaged")
        if code in TABLES and count > MOST_TILES:
            raise ImageError(
                f"{self.name}: lists {count} tiles on a page, more than {MOST_TILES}. Convert it to larger tiles"
            )
        if code not in TABLES and n_bytes > LARGEST_TAG and count > 1:
            raise ImageError(f"{self.name}: has {n_bytes} bytes in its tag {code}. The file is damaged")
        # Offsets of NDPI may have more bits, which are not here.
        if code in METADATA and n_bytes > len(value) and not self.ndpi and self.number(value) + n_bytes > self.size:
            raise ImageError(
                f"{self.name}: is cut off or damaged: it has {self.size} bytes, but its tag {code} ends beyond that. "
                f"Get the whole file"
            )
        return self.listed(kind, count, value=value) if code == SUB_IFDS else []

    def number(self, value: bytes) -> int:
        """Return the whole number of some bytes of the file."""
        return int.from_bytes(value, "little" if self.order == "<" else "big")

    def stored_as(self, code: int, kind: int, count: int, value: bytes) -> dict[int, int]:
        """Return the number of a tag of `STORED_AS`; nothing if it is 1, or if it is not in the directory itself."""
        n_bytes = count * BYTES_OF_TYPE[kind] if kind < len(BYTES_OF_TYPE) else 0
        if code not in STORED_AS or n_bytes > len(value):
            return {}
        number = self.number(value[:n_bytes])
        return {code: number} if number != 1 else {}

    def listed(self, kind: int, count: int, *, value: bytes) -> list[int]:
        """Return the offsets that a SubIFDs tag lists."""
        numbers = struct.Struct(f"{self.order}{count}{'Q' if kind in (16, 18) else 'I'}")
        if numbers.size > len(value):
            at = self.number(value)
            if count > MOST_DIRECTORIES or at + numbers.size > self.size:
                raise ImageError(f"{self.name}: its table of pyramid levels lies beyond its end. Get the whole file")
            here = self.file.tell()
            self.file.seek(at)
            value = self.file.read(numbers.size)
            self.file.seek(here)
        return [offset for offset in numbers.unpack(value[: numbers.size]) if offset]
