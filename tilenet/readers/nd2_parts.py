"""The parts of an ND2 file: where each lies, and those that nd2 parses, which it would unpack to any size."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping

from tilenet.errors import ImageError
from tilenet.readers.guards import DAMAGED, check_xml
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


def place_of(file: OpenFile, part: bytes, start: int, *, name: str) -> tuple[int, int]:
    """Return where the data of a part of a file begin, and how long they are; refuse another part in its place."""
    head = file.read(start, PART.size + len(part))
    mark, name_bytes, n_bytes = PART.unpack_from(head)
    if mark != MARK or head[PART.size :] != part:
        raise ImageError(
            f"{name}: {part.decode(errors='replace')} is not at byte {start}, where it should be. {DAMAGED}"
        )
    start += PART.size + name_bytes
    file.check_end(start + n_bytes)
    return start, n_bytes


def parsed_parts(
    file: OpenFile, parts: Mapping[bytes, tuple[int, int]], version: tuple[int, ...], *, name: str
) -> list[bytes]:
    """Return the parts that nd2 parses, as they are stored; refuse them if they, or what they unpack to, are large."""
    found = [each.format("LV" if version >= (3, 0) else "").encode() for each in PARSED]
    return [_checked(file, part, parts[part][0], name) for part in found if part in parts]


def _checked(file: OpenFile, part: bytes, start: int, name: str) -> bytes:
    start, n_bytes = place_of(file, part, start, name=name)
    data = whole = bytes(file.read(start, min(n_bytes, LARGEST + 1)))
    if data.startswith(PACKED):
        whole = zlib.decompressobj().decompress(data[PACKED_AT:], LARGEST + 1)
    if max(n_bytes, len(whole)) > LARGEST:
        raise ImageError(f"{name}: its {part.decode()} has more than {LARGEST} bytes. {DAMAGED}")
    if any(_is_packed(whole, found.start() + PACKED_AT) for found in PACKED_INSIDE.finditer(whole)):
        raise ImageError(f"{name}: its {part.decode()} is packed within, too. {DAMAGED}")
    if whole.startswith(b"<"):
        check_xml(whole.decode(errors="replace"), f"{name}: its {part.decode()}", DAMAGED, most=MOST_MARKS)
    return data


def _is_packed(data: bytes, at: int) -> bool:
    try:
        zlib.decompressobj().decompress(data[at : at + ENOUGH])
    except zlib.error:
        return False
    return True
