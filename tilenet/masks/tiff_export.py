"""Write a mask as a TIFF: streamed from a complete store, read back, and only then renamed into place."""

from __future__ import annotations

import json
import logging
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from numpy.typing import NDArray

from tilenet.address import check_local
from tilenet.arguments import known_options
from tilenet.errors import BlocksFailed, SettingsError
from tilenet.masks.tiff_mask import TILE, TiffMask, check_tiff_place, open_tiff_mask, tile_boxes
from tilenet.masks.tiff_store import is_for_tiff, is_tiff
from tilenet.store import Layout, Mask, open_mask
from tilenet.store.destination import discard, holding, put_whole
from tilenet.store.metadata import FORMAT

LOG = logging.getLogger("tilenet")
# A classic TIFF holds 4 GiB. The margin is for the tables, and for tiles that do not compress.
MOST_CLASSIC = 2**32 * 15 // 16
# Micrometres per centimetre, the unit of the resolution tags.
CENTIMETER = 10_000


@known_options()
def write_tiff(mask: str | PathLike[str], out: str | PathLike[str], *, overwrite: bool = False) -> TiffMask:
    """Write a complete mask as a tiled, pyramidal OME-TIFF; only a few tiles are in memory at a time.

    The file is written under a temporary name beside `out`, read back and compared tile by tile, and only
    then renamed to `out`.

    Parameters
    ----------
    mask : path or Mask
        A complete mask that tilenet wrote (OME-Zarr).
    out : path
        The TIFF file; by convention its name ends in ``.ome.tif``.
    overwrite : bool
        Replace a TIFF mask that tilenet wrote.

    Returns
    -------
    TiffMask

    Raises
    ------
    OutputExists, OutputNotFound, OutputIncomplete, BlocksFailed, EnvironmentFault
        If something exists at `out`; if the mask is missing, incomplete or damaged; if the disk is full.
    """
    check_local(mask)
    mask, out = Path(mask), Path(out).absolute()
    if not is_tiff(out):
        raise SettingsError(f"{out}: is no name of a TIFF. Give one that ends in .ome.tif")
    check_tiff_place(out, replace=overwrite, mask=mask)
    if is_tiff(mask) and mask.is_file():
        raise SettingsError(f"{mask}: is a TIFF already. Give a mask.zarr")
    opened = open_mask(mask)
    opened.refuse_damage()
    with put_whole(out) as path:
        _write(path, opened)
        _compare(path, opened)
    return open_tiff_mask(out)


def deliver(store: Path, out: Path) -> TiffMask:
    """Convert the complete store beside `out` to a TIFF at `out`, then remove the store, if it was made for that.

    If the process is killed at any time, the whole store, the whole TIFF, or both are left.
    """
    with holding(store):
        mask = write_tiff(store, out, overwrite=True)
        if is_for_tiff(store, out):
            discard(store)
        else:
            LOG.info("%s: stays, because its log does not say that it was made for %s", store, out.name)
    return mask


def _write(path: Path, mask: Mask) -> None:
    import tifffile

    layout = mask.layout
    sizes = dict(zip(layout.axes, layout.pixel_size, strict=True))
    pixels = sum(map(prod, layout.levels)) * np.dtype(layout.mask_dtype).itemsize
    finest = {"subifds": len(layout.levels) - 1 or None, "metadata": _ome(mask)}
    with tifffile.TiffWriter(path, bigtiff=pixels > MOST_CLASSIC, byteorder="<", ome=True) as tiff:
        for level, shape in enumerate(layout.levels):
            tiff.write(
                (_padded(mask.read(level, box.slices)) for box in tile_boxes(shape)),
                shape=shape,
                dtype=layout.mask_dtype,
                tile=(TILE, TILE),
                compression="zlib",
                predictor=False,
                photometric="minisblack",
                software="tilenet",
                maxworkers=1,
                **_resolution(sizes, 2**level),
                **(finest if not level else {"subfiletype": 1, "metadata": None}),
            )


def _ome(mask: Mask) -> dict[str, Any]:
    layout = mask.layout
    if layout.mask_dtype == "uint64":
        raise SettingsError(f"{mask.path}: its labels are uint64, and OME-TIFF goes to uint32. Keep the zarr")
    own = {"tilenet": {**mask.info, "format": FORMAT, "layout": layout.to_json()}}
    description = json.dumps(own, sort_keys=True)
    found: dict[str, Any] = {"axes": layout.axes.upper(), "Name": layout.name, "Description": description}
    found |= {"UUID": str(uuid5(NAMESPACE_OID, description)), "Creator": "tilenet"}
    for axis, size in zip(layout.axes, layout.pixel_size, strict=True):
        if size and axis != "t":
            found |= {f"PhysicalSize{axis.upper()}": size, f"PhysicalSize{axis.upper()}Unit": "µm"}
    return found | _position(layout)


def _position(layout: Layout) -> dict[str, Any]:
    """Return the position of a mask of a part of an image: µm from the image's upper left corner, for each plane."""
    planes, plane = prod(layout.shape[:-2]), dict[str, Any]()
    for axis, first, size in list(zip(layout.axes, layout.origin, layout.pixel_size, strict=False))[-2:]:
        if any(layout.origin) and size:
            plane |= {f"Position{axis.upper()}": [first * size] * planes}
            plane |= {f"Position{axis.upper()}Unit": ["µm"] * planes}
    return {"Plane": plane} if plane else {}


def _resolution(sizes: dict[str, float | None], factor: int) -> dict[str, Any]:
    x, y = sizes["x"], sizes["y"]
    if not x or not y:
        return {}
    per_pixel = CENTIMETER / (x * factor), CENTIMETER / (y * factor)
    return {"resolution": per_pixel, "resolutionunit": "CENTIMETER"}


def _padded(pixels: NDArray[Any]) -> NDArray[Any]:
    height, width = pixels.shape[-2:]
    return np.pad(pixels.reshape(height, width), ((0, TILE - height), (0, TILE - width)))


def _compare(path: Path, mask: Mask) -> None:
    with open_tiff_mask(path) as written:
        for level, shape in enumerate(mask.layout.levels):
            for box in tile_boxes(shape):
                if not np.array_equal(written.levels[level].read(box), mask.read(level, box.slices)):
                    raise BlocksFailed(
                        f"{path}: level {level} at {box} reads back differently: the disk may be failing. Run it again"
                    )
