"""How large encoded pictures and chunks become, to be checked before a decoder trusts them and a library allocates it.

A picture's header states its size. The decoders of gzip, bz2, lzma and zstd go on to the next stream where one ends, so
all streams of a chunk count.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO

PNG, JPEG, BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"
J2K = b"\xff\x4f\xff\x51"
# Deflate never compresses better than this (zlib's technical details).
DEFLATE_RATIO = 1032
HARMLESS = 64 * 2**20
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Bytes to decompress at once.
PIECE = 2**20
Decoded = gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile


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


def is_known(codec: str) -> bool:
    """Return whether `unpacks_to_more` checks data of a codec."""
    return codec in _MORE


def unpacks_to_more(data: bytes, codec: str, *, limit: int) -> bool:
    """Return whether compressed data decompress to more than `limit` bytes; False for unknown codecs."""
    return _MORE[codec](data, limit) if codec in _MORE and data else False


def _zstd(data: bytes, limit: int) -> bool:
    """Read the frame's content size (RFC 8878, 3.1.1.1); if it states none, decompress up to the limit."""
    found = data.count(ZSTD_MAGIC)
    if not found or len(data) == len(ZSTD_MAGIC):
        return False  # no frame that holds anything
    if found > 1 or not data.startswith(ZSTD_MAGIC):  # several frames, a skippable one, or the magic number by chance
        return _zstd_unpacked(data, limit)
    descriptor = data[4]
    single, width = bool(descriptor & 0x20), descriptor >> 6
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    if width == 0 and not single:
        return _zstd_unpacked(data, limit)
    n = (1, 2, 4, 8)[width]
    size = int.from_bytes(data[at : at + n], "little") + (256 if n == 2 else 0)
    return size > limit


def _zstd_unpacked(data: bytes, limit: int) -> bool:
    import imagecodecs

    try:
        imagecodecs.zstd_decode(data, out=limit)
    except imagecodecs.ZstdError:
        return True
    return False


def _zlib(data: bytes, limit: int) -> bool:
    if len(data) * DEFLATE_RATIO <= max(limit, HARMLESS):
        return False
    try:
        return len(zlib.decompressobj().decompress(data, limit + 1)) > limit
    except zlib.error:
        return False  # damaged: the library that decodes it will raise


def _gzip(data: bytes, limit: int) -> bool:
    return len(data) * DEFLATE_RATIO > max(limit, HARMLESS) and _longer(
        lambda file: gzip.GzipFile(fileobj=file), data, limit
    )


def _longer(opened: Callable[[BytesIO], Decoded], data: bytes, limit: int) -> bool:
    """Decompress stream after stream, up to the limit."""
    n_bytes = 0
    try:
        with opened(BytesIO(data)) as file:
            while n_bytes <= limit and (piece := file.read(PIECE)):
                n_bytes += len(piece)
    except (zlib.error, lzma.LZMAError, OSError, EOFError):
        return False  # damaged: the library that decodes it will raise
    return n_bytes > limit


_MORE: dict[str, Callable[[bytes, int], bool]] = {
    # The length is in the 16-byte header (blosc 1), or in front of the compressed data, where numcodecs puts it.
    "blosc": lambda data, limit: len(data) >= 16 and int.from_bytes(data[4:8], "little") > limit,
    "lz4": lambda data, limit: int.from_bytes(data[:4], "little") > limit,
    "zstd": _zstd,
    "gzip": _gzip,
    "zlib": _zlib,
    "bz2": partial(_longer, bz2.BZ2File),
    "lzma": partial(_longer, lzma.LZMAFile),
}
