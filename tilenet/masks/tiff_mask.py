"""A mask as one file: a tiled, pyramidal OME-TIFF of labels.

The levels are those of the store. Tiles are deflated without a predictor, which QuPath, Bio-Formats,
OpenSlide, napari and tifffile all read. How the mask was made is kept as JSON in the Description of
the OME-XML. Nothing in the file depends on when or where it was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tilenet import store
from tilenet.address import check_local
from tilenet.errors import BlocksFailed, ImageError, OutputError, OutputIncomplete, SettingsError, closed_on_error
from tilenet.geometry import Box, boxes_of
from tilenet.masks.protected import check_file_place
from tilenet.masks.tiff_store import is_tiff, store_beside
from tilenet.readers import open_image
from tilenet.readers.guards import quietly
from tilenet.readers.image import Image
from tilenet.region import spelt_out
from tilenet.store import AnyMask, Layout, Mask
from tilenet.store.metadata import MAKING, layout_of, not_ours, not_there
from tilenet.store.pyramid import doubled

TILE = 512


class TiffLevel:
    """One resolution level of a TIFF mask, indexed like an array."""

    def __init__(self, image: Image, axes: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._image, self.shape, self.dtype = image, shape, dtype
        self.ndim, self.size = len(shape), prod(shape)
        # The reader drops leading axes of length 1.
        self._kept = [i for i, axis in enumerate(axes) if axis in image.axes]
        expected = "".join(axes[i] for i in self._kept), tuple(shape[i] for i in self._kept), dtype
        if (image.axes, image.shape, image.dtype) != expected or prod(image.shape) != prod(shape):
            raise OutputError(f"{image.name}: its pages are not what its description says. Write it again")

    def read(self, box: Box) -> NDArray[Any]:
        """Return the pixels of a box that lies inside the level."""
        if not box.size:
            return np.empty(box.shape, self.dtype)
        inner = Box(tuple(box.start[i] for i in self._kept), tuple(box.stop[i] for i in self._kept))
        pixels: NDArray[Any] = self._image.read_inside(inner)[0]
        return pixels.reshape(box.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        box, inside = _box_of(index, self.shape)
        pixels: NDArray[Any] = self.read(box)[inside]
        return pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a level of a mask on disk cannot become an array without copying")
        return np.asarray(self[...], dtype=dtype)


class TiffMask(AnyMask):
    """A mask in a TIFF that tilenet wrote: index it like an array, or pass it to NumPy as a whole.

    Attributes
    ----------
    path : Path
        The file.
    info : dict
        How the mask was made.
    layout : Layout
        Axes, shape and blocks of the store that the TIFF was written from.
    levels : tuple of TiffLevel
        The pyramid, finest first.
    probabilities : None
        Always None, since a TIFF holds only the mask.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.probabilities, self._is_closed = path.absolute(), None, False
        try:
            self._image = open_image(path)  # first, because it refuses damaged and malicious files
        except (ImageError, SettingsError):
            raise not_ours(path) from None
        with closed_on_error(self._image):
            self.layout, self.info = _read_description(path)
            self._refuse_changed_info()
            self.levels = self._open_levels()

    def _open_levels(self) -> tuple[TiffLevel, ...]:
        shapes = self.layout.levels
        if len(self._image.levels) != len(shapes):
            raise OutputError(f"{self.path}: has {len(self._image.levels)} levels of {len(shapes)}. Write it again")
        return tuple(TiffLevel(self._image.at_level(k), self.axes, shape, self.dtype) for k, shape in enumerate(shapes))

    def check(self) -> list[str]:
        """Return the first damage, if any; decodes every tile, which verifies the tile's checksum (Adler-32)."""
        for level, current in enumerate(self.levels):
            for box in tile_boxes(current.shape):
                try:
                    pixels = current.read(box)
                    expected = _halved(self.levels[level - 1], box) if level else pixels
                except ImageError as error:
                    return [str(error)]
                if not np.array_equal(pixels, expected):
                    return [f"level {level} at {box} is not every second pixel of the finer level"]
        return []

    def refuse_damage(self) -> None:
        """Raise `BlocksFailed` if the file is damaged; decodes every tile."""
        if damage := self.check():
            raise BlocksFailed(f"{self.path}: {damage[0]}. Make it again")

    def read(self, level: int, index: Any) -> NDArray[Any]:
        """Return pixels of a level, by integers and slices; `OutputError` if the mask is closed."""
        if self._is_closed:
            raise OutputError(f"{self.path}: is closed. Open it again")
        return super().read(level, index)

    def close(self) -> None:
        """Close the file."""
        self._is_closed = True
        self._image.close()


def open_mask(path: str | PathLike[str]) -> Mask | TiffMask:
    """Open a complete mask that tilenet wrote, OME-Zarr or OME-TIFF.

    Parameters
    ----------
    path : path or Mask
        The OME-Zarr folder, or the OME-TIFF file; of a mask that is open, its own.

    Returns
    -------
    Mask or TiffMask

    Raises
    ------
    OutputNotFound, OutputIncomplete, OutputError
        If there is no mask; if blocks are missing; if tilenet did not write it.
    BlocksFailed
        If files are lost, or the record of how the mask was made.
    """
    check_local(path)
    return open_tiff_mask(path) if is_tiff(path) and not Path(path).is_dir() else store.open_mask(path)


def open_tiff_mask(path: str | PathLike[str]) -> TiffMask:
    """Open a TIFF mask that tilenet wrote.

    `OutputNotFound`, `OutputIncomplete` or `OutputError` if there is no mask; if it is still being made in a store; if
    tilenet did not write it.
    """
    path = Path(path)
    if not path.exists():
        store = store_beside(path)
        for made_in in (store, store.with_name(store.name + MAKING)):
            if made_in.exists():
                raise OutputIncomplete(
                    f"{path}: is not complete, and is made in {made_in.name}. Run the command again, with --resume"
                )
        raise not_there(path)
    return TiffMask(path)


def check_tiff_place(out: Path, *, replace: bool, mask: Any = None) -> None:
    """Raise if no TIFF mask can be put at `out`; see `tilenet.masks.protected.check_file_place`."""
    check_file_place(out, replace=replace, is_ours=_is_ours, kind="a mask", mask=mask)


def _is_ours(path: Path) -> bool:
    try:
        open_tiff_mask(path).close()
    except (OutputError, ImageError):
        return False
    return True


def is_tiff_mask(path: str | Path) -> bool:
    """Return whether a file is a TIFF whose description says that it is a mask of tilenet."""
    try:
        return is_tiff(path) and bool(_read_description(Path(path)))
    except OutputError:
        return False


def tile_boxes(shape: tuple[int, ...]) -> Iterator[Box]:
    """Return the boxes of a level's tiles in file order: planes, then rows, then columns.

    >>> [str(box) for box in tile_boxes((2, 300, 600))][:3]
    ['[0:1, 0:300, 0:512]', '[0:1, 0:300, 512:600]', '[1:2, 0:300, 0:512]']
    """
    sides = (1,) * (len(shape) - 2) + (TILE, TILE)
    return boxes_of(Box.of_shape(shape), sides)


def _halved(level: TiffLevel, box: Box) -> NDArray[Any]:
    """Return every second pixel of a level, which is what `box` of the next coarser level should hold."""
    return level.read(doubled(box) & Box.of_shape(level.shape))[..., ::2, ::2]


def _read_description(path: Path) -> tuple[Layout, dict[str, Any]]:
    import tifffile

    try:
        with quietly("tifffile"), tifffile.TiffFile(path) as tiff:
            texts = (
                e.text for e in ElementTree.fromstring(tiff.ome_metadata or "").iter() if e.tag.endswith("}Description")
            )
            own = json.loads(next(texts) or "")["tilenet"]
        return layout_of(path, own), own
    except OutputError:
        raise
    except Exception as error:  # text of unknown origin may make the parsers raise anything
        raise not_ours(path) from error


def _box_of(index: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[Any, ...]]:
    """Return the box that an index touches, and the index inside that box.

    >>> box, inside = _box_of((3, slice(None, None, 2)), (10, 7))
    >>> str(box), inside
    ('[3:4, 0:7]', (0, slice(0, None, 2)))
    """
    entries = spelt_out(index if isinstance(index, tuple) else (index,), len(shape))
    entries += [slice(None)] * (len(shape) - len(entries))
    if len(entries) != len(shape) or not all(isinstance(e, slice | int | np.integer) for e in entries):
        raise IndexError(f"integers and slices along {len(shape)} axes are taken, not {index}")
    start, stop, inside = [], [], []
    for entry, n in zip(entries, shape, strict=True):
        found = range(n)[entry] if isinstance(entry, slice) else range(n)[int(entry) :][:1]
        if not isinstance(entry, slice) and not -n <= entry < n:
            raise IndexError(f"index {entry} is outside an axis of {n} pixels")
        lowest, highest = min(found, default=0), max(found, default=-1)
        start.append(lowest)
        stop.append(highest + 1)
        inside.append(slice(found.start - lowest, None, found.step) if isinstance(entry, slice) else 0)
    return Box(tuple(start), tuple(stop)), tuple(inside)
