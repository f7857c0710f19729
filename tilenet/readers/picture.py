"""Read PNG, JPEG and BMP: pictures that can only be decoded whole.

The decoded picture stays in memory (it cannot be read in parts), so its size is bounded. Pictures
are read as they are stored: an EXIF orientation is ignored.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers.axes import Span, axis_map_of
from tilenet.readers.decoded_size import picture_size
from tilenet.readers.formats import kind_of
from tilenet.readers.guards import as_image_errors, check_piece, pixel_dtype
from tilenet.readers.image import INKS, RGB, Pixels
from tilenet.readers.stored import StoredImage, sizes_of_levels

DECODERS = {"png": imagecodecs.png_decode, "jpeg": imagecodecs.jpeg_decode, "bmp": imagecodecs.bmp_decode}
# Markers (ITU-T T.81, B.1.1.3). Within a scan, a data byte FF is followed by 00, so neither occurs there by chance.
SCAN_OF_JPEG, END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
# Stored samples per pixel (grey, grey and alpha, RGB, RGBA), and how many of them are not alpha.
WITHOUT_ALPHA = {1: 1, 2: 1, 3: 3, 4: 3}


class PictureImage(StoredImage):
    """A PNG, JPEG or BMP file, as an image of one level."""

    reader = "picture (imagecodecs)"

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        self.name, kind = path, kind_of(path)
        with as_image_errors(f"{path}: cannot be read as a {kind.upper()}", "The file is damaged; get it again"):
            data = Path(path).read_bytes()
            self._identity = {"kind": kind, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            self._pixels, self.drops_alpha = _decode(data, kind, path=path)
        if self._pixels.shape[2] == 1:
            self._pixels = self._pixels[..., 0]
        self.dtype = self._pixels.dtype
        maps = [axis_map_of("yxs"[: self._pixels.ndim], self._pixels.shape, axes=axes, name=path)]
        self._describe(maps, sizes_of_levels(maps, {}), RGB if self._pixels.shape[2:] == (3,) else INKS)

    def _read(self, box: Box, channels: Span | None) -> Pixels:
        out, stored = self._maps[0].empty(box, self.dtype, channels)
        stored[...] = self._pixels[self._maps[0].stored_box(box, channels).slices]
        return out

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)


def _decode(data: bytes, kind: str, *, path: str) -> tuple[Pixels, bool]:
    """Return the decoded picture (y, x, samples) without alpha, and whether some of its pixels are transparent."""
    size = picture_size(data, kind)
    if size is None:
        raise ImageError(f"{path}: its header does not say how large it is. The file is damaged; get it again")
    # Eight bytes per pixel: four samples of 16 bits, the most that these formats hold.
    check_piece(size[0] * size[1] * 8, f"{path}: {size[0]} x {size[1]} px")
    if kind == "jpeg" and data.rfind(END_OF_JPEG) < data.rfind(SCAN_OF_JPEG):
        raise ImageError(f"{path}: is truncated: the JPEG has no end marker. Get the file again")
    pixels = np.atleast_3d(DECODERS[kind](data))
    samples = WITHOUT_ALPHA.get(pixels.shape[2]) if kind != "jpeg" else pixels.shape[2]
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    transparent = bool((pixels[..., samples:] != opaque).any())
    return np.ascontiguousarray(pixels[..., :samples].astype(pixel_dtype(pixels.dtype, path), copy=False)), transparent
