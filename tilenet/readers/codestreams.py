"""Read the size of an encoded picture from its header, to check it before a decoder trusts it."""

from __future__ import annotations

import struct

PNG, JPEG, BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"
J2K = b"\xff\x4f\xff\x51"


def picture_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Return (height, width) as the header states them; None if there is no such header.

    `data` is all of the codestream, or enough of its beginning; `kind` is ``png``, ``jpeg``, ``jpeg2000`` or ``bmp``.
    """
    try:
        return {"png": _png, "jpeg": _jpeg, "jpeg2000": _jpeg2000, "bmp": _bmp}[kind](data)
    except struct.error:
        return None


def _png(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(PNG) or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _bmp(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(BMP):
        return None
    width, height = struct.unpack("<ii", data[18:26])
    return abs(height), abs(width)


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Walk the marker segments up to the start of frame (ITU T.81, B.2.2)."""
    if not data.startswith(JPEG[:2]):
        return None
    at = 2
    while True:
        mark, marker, length = struct.unpack(">BBH", data[at : at + 4])
        if mark != 0xFF:
            return None
        if marker == 0xFF:  # padding before a marker
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        else:
            at += 2 + length


def _jpeg2000(data: bytes) -> tuple[int, int] | None:
    """Read the SIZ segment (ITU T.800, A.5.1) of a bare codestream, or of one in a JP2 file."""
    at = data.find(J2K)
    if at < 0:
        return None
    width, height, left, top = struct.unpack(">IIII", data[at + 8 : at + 24])
    return height - top, width - left
