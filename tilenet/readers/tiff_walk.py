"""A walk along the directories (IFDs) of a TIFF before tifffile trusts them.

tifffile follows a loop of more than 100 directories for ever, and reads a tag of any length
that fits into the file. Here only counts and offsets are looked at, nothing is loaded.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tilenet.errors import ImageError

MOST_TAGS = 4096
MOST_DIRECTORIES = 2**20
# Tables of tile offsets and byte counts: 2**22 tiles of 256 px are an image of 524288 x 524288.
TABLES = (273, 279, 324, 325)
MOST_TILES = 2**22
# All else: descriptions, ICC profiles, JPEG tables. NDPI's McuStarts is a table, too.
LARGEST_TAG = 64 * 2**20
BYTES_OF_TYPE = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
SUB_IFDS = 330


@dataclass(frozen=True)
class Format:
    """How a TIFF writes its numbers: byte order, and the sizes of counts and offsets."""

    order: str
    count: str
    offset: str
    entry: str
    next_offset: str

    @classmethod
    def of(cls, head: bytes, *, ndpi: bool) -> Format:
        """Return the format that the first bytes of a file announce."""
        order = "<" if head[:2] == b"II" else ">"
        if struct.unpack(f"{order}H", head[2:4])[0] == 43:
            return cls(order, "Q", "Q", "HHQ8s", "Q")
        # NDPI is a classic TIFF whose offsets between directories have 64 bits.
        return cls(order, "H", "I", "HHI4s", "Q" if ndpi and order == "<" else "I")


def check_directories(path: str) -> None:
    """Refuse a TIFF whose directories loop, lie outside of it, or hold absurd tags."""
    with Path(path).open("rb") as file:
        _check_chain(file, size=os.fstat(file.fileno()).st_size, name=path)


def _check_chain(file: BinaryIO, *, size: int, name: str) -> None:
    head = file.read(16)
    if len(head) < 8:
        raise ImageError(f"{name}: ends in its header, after {size} bytes. Get the whole file")
    form = Format.of(head, ndpi=name.lower().endswith(".ndpi"))
    at = 8 if form.count == "Q" else 4
    (first,) = struct.unpack_from(form.order + form.next_offset, head, at)
    if first == 0:
        raise ImageError(f"{name}: holds no image, only the header of a TIFF. Get the file again")
    seen: set[int] = set()
    inside: list[int] = []
    offset = first
    while offset:
        if offset in seen:
            raise ImageError(f"{name}: its directories run in a circle at byte {offset}. The file is damaged")
        if len(seen) >= MOST_DIRECTORIES:
            raise ImageError(f"{name}: has more than {MOST_DIRECTORIES} directories. Convert it to a zarr")
        seen.add(offset)
        offset, listed = _directory(file, form, offset, size, name)
        inside.extend(listed)
    for offset in inside:  # pyramid levels; what follows one in a chain, tifffile does not read
        _directory(file, form, offset, size, name)


def _directory(file: BinaryIO, form: Format, offset: int, size: int, name: str) -> tuple[int, list[int]]:
    """Check one directory; return the offsets of the next and of those inside it."""
    beyond = ImageError(
        f"{name}: is cut off or damaged: it has {size} bytes, but its directory at byte {offset} ends beyond that. "
        f"Get the whole file"
    )
    count_size = struct.calcsize(form.order + form.count)
    entry = struct.Struct(form.order + form.entry)
    if offset < 8 or offset + count_size > size:
        raise beyond
    file.seek(offset)
    (n_tags,) = struct.unpack(form.order + form.count, file.read(count_size))
    if not 0 < n_tags <= MOST_TAGS:
        raise ImageError(f"{name}: has a directory of {n_tags} tags at byte {offset}. The file is damaged")
    data = file.read(n_tags * entry.size + struct.calcsize(form.order + form.next_offset))
    if len(data) < n_tags * entry.size + struct.calcsize(form.order + form.next_offset):
        raise beyond
    inner: list[int] = []
    for code, kind, count, value in entry.iter_unpack(data[: n_tags * entry.size]):
        _check_tag(code, kind, count, name)
        if code == SUB_IFDS:
            inner = _offsets(file, form, kind, count, value, size, name)
    (following,) = struct.unpack_from(form.order + form.next_offset, data, n_tags * entry.size)
    return int(following), inner


def _check_tag(code: int, kind: int, count: int, name: str) -> None:
    n_bytes = count * (BYTES_OF_TYPE[kind] if kind < len(BYTES_OF_TYPE) else 1)
    if code in TABLES and count > MOST_TILES:
        raise ImageError(f"{name}: lists {count} tiles on a page, more than {MOST_TILES}. Convert it to larger tiles")
    if code not in TABLES and n_bytes > LARGEST_TAG and count > 1:
        raise ImageError(f"{name}: has {n_bytes} bytes in its tag {code}. The file is damaged")


def _offsets(file: BinaryIO, form: Format, kind: int, count: int, value: bytes, size: int, name: str) -> list[int]:
    """Return the offsets that a SubIFDs tag lists."""
    letter = "Q" if kind in (16, 18) else "I"
    n_bytes = count * struct.calcsize("=" + letter)
    if n_bytes > len(value):
        (at,) = struct.unpack(form.order + form.offset, value)
        if at + n_bytes > size:
            raise ImageError(f"{name}: its table of pyramid levels lies beyond its {size} bytes. Get the whole file")
        file.seek(at)
        value = file.read(n_bytes)
    return [o for o in struct.unpack(f"{form.order}{count}{letter}", value[:n_bytes]) if o]
