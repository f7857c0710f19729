"""`open_mask`: a complete mask, read through zarr."""

from __future__ import annotations

from math import prod
from numbers import Number
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import REPAIR, BlocksFailed, OutputIncomplete, counted, first_line, one_line
from tilenet.geometry import Box
from tilenet.store.blocks import Blocks
from tilenet.store.damage import blocks_lost, find_damage
from tilenet.store.file_system import ACCESSED, faults_named
from tilenet.store.guarded_files import GuardedFiles, Replaced, Stamp, stamp_of
from tilenet.store.layout import PROBABILITIES, Layout
from tilenet.store.metadata import is_ours, lacking_parts, placement, read_root
from tilenet.store.tissue_map import TissueMap

if TYPE_CHECKING:
    import zarr

    Array = zarr.Array[Any]


class AnyMask:
    """What masks have in common, whether a folder or a TIFF holds them: all but how their levels are opened."""

    path: Path
    info: dict[str, Any]
    layout: Layout
    levels: tuple[Any, ...]
    probabilities: Any
    # Micrometres along the last axes, as the caller gives them where the mask has none.
    given_pixel_size: tuple[float, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Number) or (hasattr(other, "__array__") and not isinstance(other, AnyMask)):
            raise TypeError(
                f"{self.path}: a mask is equal to no {type(other).__name__}. Compare pixels: mask[...] == 1"
            )
        return self is other

    __hash__ = object.__hash__

    def close(self) -> None:
        """Close open files: none for a folder, the file for a TIFF."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def axes(self) -> str:
        """The axes, letters of ``tzyx``."""
        return self.layout.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along the axes."""
        return self.layout.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the mask values."""
        return np.dtype(self.layout.mask_dtype)

    @property
    def pixel_size(self) -> tuple[float | None, ...]:
        """Micrometres along the axes; None where unknown."""
        return (*self.layout.pixel_size[: self.ndim - len(self.given_pixel_size)], *self.given_pixel_size)

    @property
    def origin(self) -> tuple[int, ...]:
        """Pixel of the image at which the mask begins: zeros unless the mask is of a part (`roi`)."""
        return self.layout.origin or (0,) * len(self.shape)

    @property
    def box(self) -> Box:
        """The part of the image that the mask covers."""
        return Box.of_shape(self.shape).shifted(self.origin)

    @property
    def tissue(self) -> TissueMap | None:
        """The tissue map, which decided which blocks were skipped; None if none was asked for."""
        return self.layout.tissue_map

    @property
    def has_objects(self) -> bool:
        """Whether its values are numbers of objects, not classes."""
        return bool(self.info["record"]["output"] == "objects")

    def refuse_damage(self) -> None:
        """Raise `BlocksFailed` if files differ from what was written; reads all of them."""
        raise NotImplementedError

    def _refuse_changed_info(self) -> None:
        """Raise `BlocksFailed` if `info` lacks what every mask says of how it was made."""
        lacking = lacking_parts(self.info)
        if not lacking and not isinstance(self.info["card"].get("labels"), dict):
            lacking = ["labels"]
        if lacking:
            raise BlocksFailed(f"{self.path}: was changed: it lacks its {', '.join(lacking)}. Copy or make it again")

    def layer(self) -> dict[str, Any]:
        """Return what napari needs to show the mask over its image: ``viewer.add_labels(**mask.layer())``.

        Returns
        -------
        dict
            ``data`` (the levels), ``name`` (that of labels in an image, else the model's), and ``scale`` and
            ``translate`` along the axes: in the units of an OME-Zarr image, of any other in micrometres. Where the
            pixel size is unknown, a pixel is 1.
        """
        scale, translate = placement(self.layout)
        name = self.path.name if self.layout.source else self.layout.name
        return {"data": list(self.levels), "name": name, "scale": scale, "translate": translate}

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return self.read(0, index)

    def read(self, level: int, index: Any) -> NDArray[Any]:
        """Return pixels of a level, by integers and slices; `BlocksFailed` if one of its files is damaged or lost.

        Steps of slices are positive. A mask in a folder takes arrays of integers or booleans, too.
        """
        try:
            return np.asarray(self.levels[level][index])
        except Replaced as error:
            raise BlocksFailed(str(error)) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise BlocksFailed(
                f"{self.path}: level {level} cannot be read ({first_line(error)}). tilenet verify names the files that "
                f"are damaged. Repair it: {REPAIR}"
            ) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a mask on disk cannot become an array without copying")
        return np.asarray(self[...], dtype=dtype)

    def __repr__(self) -> str:
        sides = ", ".join(f"{axis} {n}" for axis, n in zip(self.axes, self.shape, strict=True))
        more = ", with probabilities" if self.probabilities is not None else ""
        levels = counted(len(self.levels), "level")
        return f"<{type(self).__name__} {self.path.name}: {sides}, {self.dtype}, {levels}{more}>"


class Mask(AnyMask):
    """A complete mask in a folder: index it like an array, or hand it to NumPy whole.

    Attributes
    ----------
    path : Path
        Where it is.
    info : dict
        How it was made: ``version``, ``image``, ``model``, ``card``, ``record``, ``scaling``, ``computed``; with a
        tissue map ``tissue``, and for numbered objects ``objects``, their number.
    layout : Layout
        Its axes, shape and blocks.
    levels : tuple of zarr.Array
        The pyramid, finest first.
    probabilities : zarr.Array or None
        (K, *axes) for K classes, after ``t`` if there is one, in the type that was asked for; None if probabilities
        were not asked for.
    """

    levels: tuple[Array, ...]

    def __init__(self, path: Path, layout: Layout, info: dict[str, Any], stamp: Stamp | None) -> None:
        path = path.absolute()  # so that it is read from other working directories, too
        self.path, self.info, self.layout = path, info, layout
        self._refuse_changed_info()
        _refuse_lost(path, layout)
        self.levels = tuple(_open(path, str(i), layout, stamp) for i in range(len(layout.levels)))
        self.probabilities: Array | None = _open(path, PROBABILITIES, layout, stamp) if layout.classes else None

    def refuse_damage(self) -> None:
        """Raise `BlocksFailed` if files differ from what was written; reads all of them."""
        blocks = Blocks(self.path, self.layout, "")
        with faults_named(self.path, what=ACCESSED, resumes=False):
            damage = [found for found in (*blocks_lost(blocks), *find_damage(blocks)) if not found.is_foreign]
        if damage:
            raise BlocksFailed(
                f"{self.path}: {counted(len(damage), 'file')} not as written ({damage[0]}). Repair it: {REPAIR}"
            )


def open_mask(path: str | PathLike[str]) -> Mask:
    """Open a complete mask that tilenet wrote; refuse it if a file is missing or has another size than was written.

    Parameters
    ----------
    path : path
        The folder.

    Returns
    -------
    Mask

    Raises
    ------
    OutputNotFound, OutputIncomplete, OutputError
        If there is none; if it is incomplete; if tilenet did not write it.
    BlocksFailed
        If files are lost, or the record of how the mask was made. (`tilenet.verify` checks the content of files.)
    """
    path = Path(path)
    stamp = stamp_of(path)  # before anything is read, so that later reads detect a replacement
    layout, info, complete = read_root(path)
    if not complete:
        raise OutputIncomplete(
            f"{path}: is not complete. Wait for the run that writes it, or run its command again, with --resume"
        )
    return Mask(path, layout, info, stamp)


def refuse_unfinished(path: str | Path) -> None:
    """Refuse what `open_mask` refuses, before a mask is read as an image: missing blocks would read as background."""
    if is_ours(Path(path)):
        open_mask(path)


def _refuse_lost(path: Path, layout: Layout) -> None:
    """Refuse a mask that lacks files: zarr would read missing files as background."""
    blocks = Blocks(path, layout, "")
    for level in range(len(layout.levels)):
        with faults_named(path, what=ACCESSED, resumes=False):
            lost = next(blocks.pending(level), None)
        if lost is not None:
            names = ", ".join(layout.files(level, lost))
            raise BlocksFailed(
                f"{path}: {names} (level {level}, block {lost}) is not as it was written, or missing. Repair it: "
                f"{REPAIR}"
            )


def _open(path: Path, array: str, layout: Layout, stamp: Stamp | None) -> Array:
    import zarr

    if not (path / layout.document(array)).exists():
        raise BlocksFailed(f"{path / array}: has lost its metadata. Repair the mask: {REPAIR}")
    try:
        store = GuardedFiles(path / array, mask=path, array=array, layout=layout, stamp=stamp)
        opened: Array = zarr.open_array(store, mode="r", zarr_format=layout.zarr_format)
    except Exception as error:  # damage can make zarr raise anything
        raise BlocksFailed(
            f"{path / array}: its metadata cannot be read ({one_line(error)}). Repair the mask: {REPAIR}"
        ) from error
    wanted = layout.arrays[array]
    if (opened.shape, opened.dtype) != (wanted.shape, np.dtype(wanted.dtype)):
        raise BlocksFailed(
            f"{path / array}: its metadata gives another shape or data type than was written. Repair the mask: {REPAIR}"
        )
    return opened
