"""Read LIF (Leica) through liffile: one of the images in a file, ``embryo.lif/Series 001``.

liffile finds the images and the bytes of their pixels. These are not compressed; they are read here, by any number of
threads at once.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tilenet.address import file_of, inside_of
from tilenet.errors import ImageError, closed_on_error
from tilenet.geometry import Box
from tilenet.readers.axes import axis_map_of, letters_of_long
from tilenet.readers.cache import PieceCache
from tilenet.readers.guards import (
    DAMAGED,
    LARGEST_PIECE,
    as_image_errors,
    check_xml,
    listed,
    needing,
    pixel_dtype,
    quietly,
)
from tilenet.readers.image import Pixels
from tilenet.readers.lif_layout import images_of, layout_of
from tilenet.readers.open_file import OpenFile
from tilenet.readers.stored import ChunkedImage, sizes_of_levels

# What a file begins with; the last number is that of the characters of its XML, of two bytes each.
HEADER = struct.Struct("<IIBI")
# Most bytes of this in the file, and most tags and attributes, which take up to 0.9 GB.
LARGEST_XML, MOST_MARKS = 2**27, 3_000_000
FEWER_IMAGES = "If the file is not damaged, save fewer images in it, in LAS X"
# Pixels are read with what lies between them if that is not more than they are.
SPARSE = 2


class LifImage(ChunkedImage):
    """An image in a LIF file: the one at a path inside it, or else the only one."""

    reader = "LIF (liffile)"

    def __init__(self, path: str, *, axes: str | None, missing: str) -> None:
        with needing(path, kind="a LIF file", library="liffile", extra="lif"):
            import liffile
        self.name, self._cache, file = path, PieceCache(), file_of(path)
        with as_image_errors(f"{path}: cannot be read as a LIF", DAMAGED):
            self._file = OpenFile(file, name=path)
            with closed_on_error(self), file.open("rb") as opened:
                self._check_xml()
                # From an open file, as with a path liffile would also open the files that the XML names.
                with quietly("liffile"):
                    lif = liffile.LifFile(opened)
                if lif.type is not liffile.LifFileType.LIF:
                    raise ImageError(f"{path}: is a part of a project ({lif.type.value}). Save that as LIF, in LAS X")
                self._read_metadata(lif, inside_of(path), axes)

    def _check_xml(self) -> None:
        *_, n_characters = HEADER.unpack(self._file.read(0, HEADER.size))
        what, n_bytes = f"{self.name}: its XML", 2 * n_characters
        if n_bytes > LARGEST_XML:
            raise ImageError(f"{what} has {n_bytes} bytes, over {LARGEST_XML}. {FEWER_IMAGES}")
        xml = str(self._file.read(HEADER.size, n_bytes), "utf-16-le")
        check_xml(xml, what, FEWER_IMAGES, most=MOST_MARKS)

    def _read_metadata(self, lif: Any, inside: str, axes: str | None) -> None:
        image = self._chosen(lif.xml_element, _plain(inside))
        self._layout = layout = layout_of(image, self.name)
        shape = [d.length for d in layout.dims]
        letters = letters_of_long((d.letter for d in layout.dims), shape)
        self.dtype = pixel_dtype(layout.dtype, self.name)
        maps = [axis_map_of(letters, shape, axes=axes, name=self.name)]
        sizes = {a: d.um for a, d in zip(maps[0].letters, layout.dims, strict=True) if a in ("z", "y", "x")}
        self._describe(maps, sizes_of_levels(maps, sizes), layout.channel_names)
        memory = image.find("./Memory")
        block = lif.memory_blocks.get("" if memory is None else memory.get("MemoryBlockID"))
        held = max(0, min(block.size, self._file.n_bytes - block.offset)) if block else 0
        if held < layout.n_bytes:
            raise ImageError(f"{self.name}: lacks pixels: it has {held} of {layout.n_bytes} bytes. Get the whole file")
        self._start = block.offset + layout.start
        self._sha256 = hashlib.sha256(f"{self._start} ".encode() + ElementTree.tostring(image)).hexdigest()

    def _chosen(self, root: Any, wanted: str) -> Any:
        """Return the image at a path inside the file, which is empty if the file has only one."""
        images = [(_plain(path), image) for path, image in images_of(root)]
        found = [image for path, image in images if wanted in ("", path)]
        if len(found) == 1:
            return found[0]
        file = file_of(self.name)
        if not images:
            raise ImageError(f"{file}: holds no image. Give another file")
        if wanted and found:
            raise ImageError(f"{self.name}: is the name of {len(found)} images. Rename them in LAS X")
        what = f"has no image called {wanted!r}" if wanted else f"holds {len(images)} images"
        names = listed([f"{file}/{path}" for path, _ in images])
        raise ImageError(f"{file}: {what}. Give one of its images: {names}")

    def _sides(self, joined: str) -> tuple[int, ...]:
        dims = zip(self._layout.dims, self._maps[0].letters, strict=True)
        return tuple(d.length if a in ("y", "x") or d.letter == "s" else 1 for d, a in dims)

    def _decoded(self, piece: Box) -> Pixels:
        pixels = np.empty(piece.shape, self.dtype)
        steps = tuple(d.step for d in self._layout.dims)
        self._fill(pixels, self._start + sum(i * step for i, step in zip(piece.start, steps, strict=True)), steps)
        return pixels[..., ::-1] if self._layout.blue_first else pixels

    def _fill(self, pixels: Pixels, at: int, steps: tuple[int, ...]) -> None:
        """Fill an array with pixels, the first of which begins at a byte; if they lie far apart, part by part."""
        extents = [(n - 1) * step for n, step in zip(pixels.shape, steps, strict=True)]
        span, axis = sum(extents) + pixels.itemsize, extents.index(max(extents))
        if span <= min(SPARSE * pixels.nbytes, LARGEST_PIECE) or not extents[axis]:
            data = self._file.read(at, span)
            pixels[...] = np.ndarray(pixels.shape, self._layout.dtype, data, strides=steps)
            return
        for i in range(pixels.shape[axis]):
            part = tuple(slice(i, i + 1) if k == axis else slice(None) for k in range(pixels.ndim))
            self._fill(pixels[part], at + i * steps[axis], steps)

    def identity(self) -> dict[str, Any]:
        """Return the file's size, the image's shape, and a hash of where it lies and of what the file says of it."""
        return {
            "kind": "lif",
            "bytes": self._file.n_bytes,
            "shape": list(self.shape),
            "metadata_sha256": self._sha256,
        }

    def close(self) -> None:
        self._file.close()


def _plain(path: str) -> str:
    """Return a path as `pathlib` writes it."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))
