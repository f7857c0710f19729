"""Readers of all image formats, behind one function: `open_image`.

image, mirroring               the interface of all images; what lies beyond their borders
formats, guards, decoded_size  which reader opens what; errors and limits, as no file is trusted
axes, stored, cache            how dimensions of a file become axes; images read piece by piece, each decoded once
coordinates, open_file         where pixels lie, and units of length; a file that threads read at once
views, calibrated, resampled   an image with other channels, another pixel size, other pixels
array, picture, planes         arrays of Python; PNG, JPEG and BMP; folders of pictures
slide, dicom, czi, nd2, lif    formats that a library reads
tiff, hdf5, imaris, zarr       formats that are read here, by modules that begin with their names
remote                         zarr at an address
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from tilenet.address import absolute, file_of, is_address, parse_address, shown
from tilenet.arguments import known_options
from tilenet.errors import ImageError, ImageNotFound, SettingsError, TilenetError
from tilenet.readers.calibrated import CalibratedImage, parse_pixel_size
from tilenet.readers.formats import PICTURES, dicom_files, kind_of, refuse_remote_file
from tilenet.readers.guards import Missing, as_image_errors
from tilenet.readers.image import Image
from tilenet.readers.views import channel_numbers
from tilenet.readers.zarr_metadata import has_documents

__all__ = ["open_image"]

MISSING = get_args(Missing)
# Kinds of files that may hold several images, to which paths lead: ``volume.h5/raw``.
HOLDS_IMAGES = ("hdf5", "nd2", "lif")
# The module and the class that read each kind of file or folder; imported when there is one.
READERS = {
    "tiff": ("tiff", "TiffImage"),
    "slide": ("slide", "SlideImage"),
    "dicom": ("dicom", "DicomImage"),
    "czi": ("czi", "CziImage"),
    "nd2": ("nd2", "Nd2Image"),
    "lif": ("lif", "LifImage"),
    "hdf5": ("hdf5", "Hdf5Image"),
    "planes": ("planes", "PlanesImage"),
    **dict.fromkeys(PICTURES, ("picture", "PictureImage")),
}


@known_options()
def open_image(
    source: Any,
    *,
    level: int = 0,
    axes: str | None = None,
    pixel_size: float | str | Sequence[float] | None = None,
    channels: int | str | Sequence[int | str] | None = None,
    missing: Missing = "error",
) -> Image:
    """Open an image of any format without reading its pixels (except PNG, JPEG and BMP, which are decoded whole).

    Parameters
    ----------
    source : str, Path, numpy.ndarray, zarr.Array, dask.array.Array or Image
        A file or a folder (of zarr, DICOM or numbered planes; `readers.formats` describes which reader
        opens which format), a dataset in an HDF5 file (``volume.h5/raw``), a position in an ND2 file
        (``plate.nd2/2``), an image in a LIF file (``embryo.lif/Series 001``), the address of a zarr folder
        (``https://`` or ``s3://``), an array, or an open image, which is returned unchanged, or at `level` if
        that is not 0.
    level : int
        Resolution to read; 0 is the finest.
    axes : str, optional
        One letter of ``tczyx`` per axis, for arrays of more than two axes and for files that do not
        state their axes. In files that do, only t, z and the c of separate planes can be renamed. An open image
        keeps its own.
    pixel_size : float, str or sequence of float, optional
        Micrometres per pixel at level 0, in place of what the file states: one number for y and x, two
        (y, x) or three (z, y, x). Those of coarser levels follow from their lengths.
    channels : int, str or sequence of them, optional
        Number or name of the channel to read, or a list of several in the order wanted; all channels by default.
    missing : {"error", "fill"}
        Whether to refuse a file that lacks some of its tiles, or to read the missing tiles as 0.

    Returns
    -------
    Image
        Close it after use, or use it in a ``with`` statement.

    Raises
    ------
    ImageNotFound
        If there is nothing at the path.
    ImageError
        If the source is not an image, is damaged, or its axes are unknown.
    EnvironmentFault
        If the server of an address cannot be reached.
    SettingsError
        If the image has no such level; if `pixel_size` is not made of positive numbers, or has three and the
        image has no z.

    Examples
    --------
    >>> import numpy as np
    >>> open_image(np.zeros((70, 90), np.uint8), pixel_size=0.25).pixel_size
    (0.25, 0.25)
    """
    if missing not in MISSING:
        raise SettingsError(f"missing={missing!r} is none of {', '.join(MISSING)}")
    size = None if pixel_size is None else parse_pixel_size(pixel_size)
    image = _opened(source, axes.lower() if isinstance(axes, str) else axes, missing)  # others name axes in capitals
    try:
        opened = image.at_level(level) if level else image
        opened = opened if size is None else CalibratedImage(opened, size)
        return opened if channels is None else opened.with_channels(channel_numbers(opened, channels))
    except TilenetError:
        if not isinstance(source, Image):
            image.close()
        raise


def _opened(source: Any, axes: str | None, missing: Missing) -> Image:
    if isinstance(source, Image):
        if axes not in (None, source.axes):
            raise ImageError(
                f"{source.name}: was opened with the axes {source.axes}, not {axes}. Give axes to open_image"
            )
        return source
    if hasattr(source, "shape") and hasattr(source, "dtype"):  # before paths, because an open mask has one, too
        from tilenet.readers.array import ArrayImage

        return ArrayImage(source, axes)
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        image = _open_path(path, axes=axes, missing=missing)
        again = path if is_address(path) else str(Path(path).resolve())
        image.reopen = partial(open_image, again, axes=axes, missing=missing)
        return image
    kind = type(source).__name__
    one = "Give its path, or one of its arrays" if kind == "Group" else "Give one of them"
    raise ImageError(f"{kind}: is neither a path, an array nor an image. {one}")


def _open_path(path: str, *, axes: str | None, missing: Missing) -> Image:
    if is_address(path):
        return _open_address(path, axes=axes)
    if not path:
        raise ImageNotFound("the image path is empty. Give a path")
    with as_image_errors(f"{path}: cannot be opened", "Check the path and its permissions"):
        path = absolute(path)  # so that an open image is found from other working directories, too
        if Path(path).is_dir() or _inside_zarr(Path(path)):
            return _open_folder(path, axes=axes, missing=missing)
        return _open_file(path, _kind_inside(Path(path)) or kind_of(path), axes=axes, missing=missing)


def _open_address(address: str, *, axes: str | None) -> Image:
    refuse_remote_file(address)
    with as_image_errors(f"{shown(address)}: cannot be opened", "Check the address"):
        from tilenet.readers.remote import Remote
        from tilenet.readers.zarr import ZarrImage
        from tilenet.readers.zarr_remote import RemoteFolder

        parsed = parse_address(address)
        return ZarrImage(RemoteFolder(Remote(parsed), parsed.path), axes=axes)


def _open_file(path: str, kind: str, *, axes: str | None, missing: Missing) -> Image:
    module, name = READERS[kind]
    reader = getattr(import_module(f"tilenet.readers.{module}"), name)
    return reader(path, axes=axes, missing=missing)  # type: ignore[no-any-return]


def _open_folder(path: str, *, axes: str | None, missing: Missing) -> Image:
    if not Path(path).exists() or has_documents(path):
        from tilenet.readers.zarr import ZarrImage
        from tilenet.readers.zarr_local import LocalFolder

        return ZarrImage(LocalFolder(path), axes=axes)
    return _open_file(path, "dicom" if dicom_files(path) else "planes", axes=axes, missing=missing)


def _kind_inside(path: Path) -> str | None:
    """Return the kind of file that a path leads into; None if it leads to a file or a folder."""
    file = file_of(path)
    kind = kind_of(file) if file != path and file.is_file() else None
    return kind if kind in HOLDS_IMAGES else None


def _inside_zarr(path: Path) -> bool:
    """Return whether a path does not exist but points into an existing zarr folder."""
    return not path.exists() and any(p.suffix == ".zarr" and p.is_dir() for p in path.parents)
