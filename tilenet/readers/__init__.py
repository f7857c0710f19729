"""Images of every kind, behind one function: `open_image`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilenet.errors import ImageError, ImageNotFound, SettingsError
from tilenet.readers.boundary import refusing
from tilenet.readers.image import Image

__all__ = ["open_image"]

MISSING = ("error", "fill")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PICTURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"BM": "bmp"}
# What is given by mistake, by its first bytes.
OTHERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file that it stands for. Fetch it: git lfs pull",
    b"PK\x03\x04": "is a zip archive. Unpack it first",
    b"\x1f\x8b": "is a gzip archive. Unpack it first",
    b"\x89HDF": "is an HDF5 file. Pass one of its arrays to the Python function, or convert it to zarr",
}
READABLE = "TIFF, OME-TIFF, SVS, NDPI, zarr, OME-Zarr, PNG, JPEG and BMP are read"


def open_image(
    source: Any,
    *,
    level: int = 0,
    axes: str | None = None,
    channels: Sequence[int | str] | None = None,
    missing: str = "error",
) -> Image:
    """Open an image of any kind, without reading its pixels (but for PNG, JPEG and BMP, which have no parts).

    Parameters
    ----------
    source : str, Path, numpy.ndarray, zarr.Array, dask.array.Array or Image
        A file or a zarr folder (what it is is told by its content, not its name), an array, or
        an open image, which is returned as it is, or at `level` where that is not 0.
    level : int
        Resolution to read; 0 is the finest.
    axes : str, optional
        One letter of ``tczyx`` per axis, for arrays of more than two axes and for files that
        do not say which axis is which.
    channels : sequence of int or str, optional
        Numbers or names of the channels to read, in that order; all by default.
    missing : {"error", "fill"}
        What to do about a file that lacks some of its tiles: refuse it, or read them as 0.

    Returns
    -------
    Image
        To be closed, or used in a ``with`` statement.

    Raises
    ------
    ImageNotFound
        There is nothing at the path.
    ImageError
        It is not an image, is damaged, or its axes cannot be told.
    SettingsError
        It has no such level.
    """
    if missing not in MISSING:
        raise SettingsError(f"missing={missing!r} is none of {', '.join(MISSING)}")
    if isinstance(source, Image):
        image = source.at_level(level) if level else source
    elif isinstance(source, str | os.PathLike):
        image = _open_path(os.fspath(source), level=level, axes=axes, missing=missing)
    elif hasattr(source, "shape") and hasattr(source, "dtype"):
        from tilenet.readers.array import ArrayImage

        image = ArrayImage(source, axes).at_level(level)
    else:
        raise ImageError(f"{type(source).__name__}: is neither a path, an array nor an image. Give one of them")
    return image if channels is None else image.with_channels(_numbers(channels, image))


def _open_path(path: str, *, level: int, axes: str | None, missing: str) -> Image:
    if "://" in path:
        raise ImageError(f"{path}: is an address, and only local files are read. Fetch it first")
    with refusing(f"{path}: cannot be opened", "Check the path and its permissions"):
        if Path(path).is_dir() or _inside_zarr(Path(path)):
            from tilenet.readers.zarr import open_zarr

            return open_zarr(path, level=level, axes=axes)
        head = _head(path)
        if head[:4] in TIFF:
            from tilenet.readers.tiff import open_tiff

            return open_tiff(path, level=level, axes=axes, missing=missing)
        for magic, kind in PICTURES.items():
            if head.startswith(magic):
                from tilenet.readers.picture import PictureImage

                return PictureImage(path, kind, axes=axes).at_level(level)
    what = next((text for magic, text in OTHERS.items() if head.startswith(magic)), None)
    raise ImageError(f"{path}: {what or f'is not an image that tilenet reads. {READABLE}'}")


def _inside_zarr(path: Path) -> bool:
    """Tell whether a path that does not exist would lie in a zarr folder."""
    return not path.exists() and any(p.suffix == ".zarr" and p.is_dir() for p in path.parents)


def _head(path: str) -> bytes:
    """Return the first bytes of a file, enough to tell its kind."""
    if not Path(path).exists():
        raise ImageNotFound(f"{path}: does not exist. Check the path")
    if not Path(path).is_file():
        raise ImageError(f"{path}: is neither a file nor a folder. Give an image")
    with Path(path).open("rb") as file:
        head = file.read(32)
    if not head:
        raise ImageError(f"{path}: is empty. Get it again")
    return head


def _numbers(channels: Sequence[int | str], image: Image) -> list[int]:
    """Return channel numbers for numbers and names."""
    numbers = []
    for channel in channels:
        if isinstance(channel, str) and channel not in image.channel_names:
            names = ", ".join(filter(None, image.channel_names)) or "no named channels"
            raise ImageError(f"{image.name}: has no channel {channel!r} ({names}). Choose another with channels")
        numbers.append(image.channel_names.index(channel) if isinstance(channel, str) else int(channel))
    return numbers
