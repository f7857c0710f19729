"""Check the decompressed size of a chunk before a library allocates it."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

# Deflate never compresses better than this (zlib's technical details).
DEFLATE_RATIO = 1032
HARMLESS = 64 * 2**20
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def unpacks_to_more(data: bytes, codec: str, *, limit: int) -> bool:
    """Return whether compressed data decompress to more than `limit` bytes; False for unknown codecs."""
    return _MORE[codec](data, limit) if codec in _MORE and data else False


def _blosc(data: bytes, limit: int) -> bool:
    """Read the length in the 16-byte header (blosc 1)."""
    return len(data) >= 16 and int.from_bytes(data[4:8], "little") > limit


def _lz4(data: bytes, limit: int) -> bool:
    """Read the length that numcodecs puts in front of the compressed data."""
    return int.from_bytes(data[:4], "little") > limit


def _zstd(data: bytes, limit: int) -> bool:
    """Read the frame's content size (RFC 8878, 3.1.1.1); if it states none, decompress up to the limit."""
    if not data.startswith(ZSTD_MAGIC):
        return False
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


def _deflate(data: bytes, limit: int) -> bool:
    if len(data) * DEFLATE_RATIO <= max(limit, HARMLESS):
        return False
    return _bounded(zlib.decompressobj(wbits=47).decompress, data, limit)


def _bounded(decompress: Callable[[bytes, int], bytes], data: bytes, limit: int) -> bool:
    try:
        return len(decompress(data, limit + 1)) > limit
    except (zlib.error, lzma.LZMAError, OSError, EOFError, struct.error):
        return False  # damaged: the library that decodes it will raise


_MORE: dict[str, Callable[[bytes, int], bool]] = {
    "blosc": _blosc,
    "lz4": _lz4,
    "zstd": _zstd,
    "gzip": _deflate,
    "zlib": _deflate,
    "bz2": lambda data, limit: _bounded(bz2.BZ2Decompressor().decompress, data, limit),
    "lzma": lambda data, limit: _bounded(lzma.LZMADecompressor().decompress, data, limit),
}
