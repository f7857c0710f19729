"""Read a folder of numbered planes (TIFF, PNG, JPEG or BMP) as a stack along z.

File names must differ in one number only. Planes are in the order of that number, and none may be
missing. A plane is read when a box needs it, and is cached decoded. Of planes larger than the
cache, only the part that the box touches is read.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from tilenet.errors import ImageError, counted
from tilenet.geometry import Box
from tilenet.readers.axes import axis_map_of
from tilenet.readers.cache import PieceCache
from tilenet.readers.decoded_size import picture_size
from tilenet.readers.formats import PICTURES, kind_of
from tilenet.readers.guards import Missing, as_image_errors
from tilenet.readers.image import CACHE_BYTES, Image, Level, Pixels

HEADER_BYTES = 2**16
# Files that file managers leave in folders; they are ignored.
LITTER = ("thumbs.db", "desktop.ini")


class PlanesImage(Image):
    """A stack of planes, one file each, as an image of one level."""

    reader = "folder of planes"

    def __init__(self, path: str, *, axes: str | None, missing: Missing) -> None:
        self.name, self._missing = path, missing
        with as_image_errors(f"{path}: cannot be read as a folder of planes", "Check the folder and its permissions"):
            self._files = numbered_files(Path(path))
            with self._open(0) as first:
                _check_plane(first)
                self._plane_axes, self._plane_shape, self.dtype = first.axes, first.shape, first.dtype
                self._plane, size = Box.of_shape(first.box_shape), first.pixel_size
                self.channel_names, self.drops_alpha = first.channel_names, first.drops_alpha
            self.n_missing = 0
            self._sha256 = hashlib.sha256("\n".join(map(self._probe, range(len(self._files)))).encode()).hexdigest()
        axis_map = axis_map_of(f"z{self._plane_axes}", (len(self._files), *self._plane_shape), axes=axes, name=path)
        if axis_map.axes not in (f"z{self._plane_axes}", f"t{self._plane_axes}"):
            raise ImageError(
                f"{path}: holds planes of the axes {self._plane_axes}, which axes={axes!r} does not describe. "
                f"Say z{self._plane_axes} or t{self._plane_axes}"
            )
        self.axes, self.levels = axis_map.axes, (Level(axis_map.image_shape, (None, *size)),)
        self._whole, self.keeps_pieces = PieceCache(), True

    def read_inside(self, box: Box) -> Pixels:
        plane = Box(box.start[1:], box.stop[1:])
        out = self.empty(box)
        for place, index in enumerate(range(box.start[0], box.stop[0])):
            with as_image_errors(f"{self._files[index]}: {plane} cannot be read", "The file is damaged; get it again"):
                out[:, place] = self._part(index, plane)
        return out

    def identity(self) -> dict[str, Any]:
        """Return the number of planes, a hash of their names, sizes and headers, and the number of missing tiles."""
        return {
            "kind": "planes",
            "planes": len(self._files),
            "files_sha256": self._sha256,
            "missing": self.n_missing,
        }

    def _probe(self, index: int) -> str:
        """Return a text that changes when a plane changes; refuse a plane whose header differs from the first."""
        file = self._files[index]
        kind = kind_of(file)
        if kind not in PICTURES:
            with self._open(index) as image:
                self._check_like_first(index, image)
                self.n_missing += image.n_missing
                return f"{file.name} {image.identity()}"
        with file.open("rb") as opened:
            head = opened.read(HEADER_BYTES)
        size = picture_size(head, kind)
        if size is not None and size != tuple(self._plane_shape[self._plane_axes.index(a)] for a in "yx"):
            raise self._unlike(index, f"{size[0]} x {size[1]} px")
        return f"{file.name} {file.stat().st_size} {hashlib.sha256(head).hexdigest()}"

    def _open(self, index: int) -> Image:
        from tilenet.readers import open_image

        return open_image(self._files[index], missing=self._missing)

    def _part(self, index: int, box: Box) -> Pixels:
        """Return the pixels of a box of a plane: (C, y, x)."""
        small = prod(self._plane_shape) * self.dtype.itemsize <= CACHE_BYTES
        if small or kind_of(self._files[index]) in PICTURES:
            return self._whole.get(index, lambda: self._read(index, self._plane))[:, *box.slices]
        return self._read(index, box)

    def _read(self, index: int, box: Box) -> Pixels:
        with self._open(index) as image:
            self._check_like_first(index, image)  # until now, only the headers of pictures were checked
            return image.read_inside(box)

    def _check_like_first(self, index: int, image: Image) -> None:
        _check_plane(image)
        if (image.axes, image.shape, image.dtype) != (self._plane_axes, self._plane_shape, self.dtype):
            raise self._unlike(index, f"{image.axes} {image.shape} of {image.dtype}")

    def _unlike(self, index: int, found: str) -> ImageError:
        first = f"{self._plane_axes} {self._plane_shape} of {self.dtype}"
        return ImageError(
            f"{self._files[index]}: is {found}, but {self._files[0].name} is {first}. "
            f"Give a folder of planes of one size and type{_or_batch(self.name)}"
        )


def _check_plane(image: Image) -> None:
    if not set(image.axes) <= set("cyx"):
        raise ImageError(f"{image.name}: has the axes {image.axes}, not those of one plane. Open it by itself")


def numbered_files(folder: Path) -> list[Path]:
    """Return the files of a folder in the order of their numbers; refuse a folder that is not one numbered series."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in LITTER]
    folders = sorted(p.name for p in files if not p.is_file())
    way_out = f"Give an image file, a zarr folder, or a folder that holds only numbered planes{_or_batch(folder)}"
    if folders or len(files) < 2:
        what = f"holds the folder {folders[0]}" if folders else f"holds {counted(len(files), 'file')}"
        raise ImageError(f"{folder}: has no zarr metadata and {what}, so it is no stack of planes. {way_out}")
    parts = {p: re.split(r"(\d+)", p.name) for p in files}
    names = sorted(parts.values())
    # What most files are called, of those with a number: a single other file is the one to name.
    forms = Counter(tuple(own[::2]) for own in names if len(own) > 1).most_common(1)
    first = next((own for own in names if forms and tuple(own[::2]) == forms[0][0]), names[0])
    if odd := next((own for own in names if own is not first and (own[::2] != first[::2] or len(own) < 2)), None):
        raise ImageError(
            f"{folder}: {''.join(odd)} is not named like {''.join(first)}, so it is no stack of planes. {way_out}"
        )
    numbers = {p: tuple(map(int, own[1::2])) for p, own in parts.items()}
    varying = [k for k in range(len(first) // 2) if len({n[k] for n in numbers.values()}) > 1]
    if len(varying) != 1:
        raise ImageError(
            f"{folder}: the names of its planes differ in {len(varying)} numbers, not in one. "
            f"Give a folder of one stack, its planes numbered{_or_batch(folder)}"
        )
    return _without_gaps({p: n[varying[0]] for p, n in numbers.items()}, folder)


def _without_gaps(numbers: dict[Path, int], folder: Path) -> list[Path]:
    files = sorted(numbers, key=lambda p: (numbers[p], p.name))
    for before, after in pairwise(files):
        step = numbers[after] - numbers[before]
        if step != 1:
            lacks = "1 plane is missing" if step == 2 else f"{step - 1} planes are missing"
            what = "have the same number" if step == 0 else f"are next to each other: {lacks}"
            raise ImageError(
                f"{folder}: {before.name} and {after.name} {what}. "
                f"Number the planes 0, 1, 2, ... without gaps{_or_batch(folder)}"
            )
    return files


def _or_batch(folder: Path | str) -> str:
    """Return the way out, at the end of an error, for a folder of images that are no planes."""
    return f'; many images: tilenet batch "{folder}/*"'
