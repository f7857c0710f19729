"""A mask that is to be exported: whether it has volumes, where it lies in its image, and where files of it may go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from tilenet.errors import SettingsError
from tilenet.export.placement import MaskPlacement, find_grid
from tilenet.masks.protected import check_file_place, refuse_protected
from tilenet.masks.tiff_mask import open_mask
from tilenet.readers.calibrated import parse_pixel_size, sizes_differ
from tilenet.resolution import size_text
from tilenet.store import AnyMask

LOG = logging.getLogger("tilenet")
ENDINGS = {"a table": (".csv",), "a table of counts": (".csv",), "a GeoJSON": (".geojson", ".json")}


def has_volumes(mask: AnyMask) -> bool:
    """Return whether objects extend over planes: those of a network of three axes, or those that were linked."""
    if not mask.has_objects or max(mask.shape[:-2], default=1) == 1:
        return False
    return len(mask.info["model"]["footprint"]) > 2 or "link" in mask.info["record"]


@contextmanager
def open_placed(mask: str | PathLike[str], image: Any, *, pixel_size: Any) -> Iterator[tuple[AnyMask, MaskPlacement]]:
    """Open a mask to export, and find where it lies in its image; the arguments are those of `tilenet.write_geojson`.

    The caller checks the mask for damage, which reads all of it, when nothing else can be refused any more.
    """
    with open_mask(mask) as opened:
        grid = find_grid(opened, image)
        if pixel_size is not None:
            opened.given_pixel_size = _given_size(pixel_size, opened, grid)
        yield opened, grid


def check_export_place(
    out: Path,
    mask: AnyMask,
    image: Any,
    *,
    replace: bool,
    is_ours: Callable[[Path], bool],
    kind: str,
) -> None:
    """Raise if a file that says what is in a mask must not be put at a path, or has another ending than its `kind`.

    See `tilenet.masks.protected.check_file_place` for the arguments.
    """
    refuse_protected(out, image=mask.info["image"]["path"])
    check_file_place(out, replace=replace, is_ours=is_ours, kind=kind, image=image, mask=mask.path)
    if out.suffix.lower() not in ENDINGS[kind]:
        raise SettingsError(f"{out}: {kind} is written as {' or '.join(ENDINGS[kind])}. Change the ending")


def _given_size(pixel_size: Any, mask: AnyMask, grid: MaskPlacement) -> tuple[float, ...]:
    """Return micrometres along the last axes of a mask that lacks some, given those of its image at level 0."""
    sizes = parse_pixel_size(pixel_size)
    if len(sizes) > 2 and "z" not in mask.axes:
        raise SettingsError(f"{mask.path}: has no axis z. Give --pixel-size for y and x")
    known = mask.pixel_size[-len(sizes) :]
    if len(sizes) > 2 and _states_z_alone(mask):
        known = (None, *known[1:])
    if None not in known:
        lacks_z = len(sizes) == 2 and "z" in mask.axes and mask.pixel_size[-3] is None
        leave_out = "Leave --pixel-size out. If that is wrong, segment again with --pixel-size"
        raise SettingsError(
            f"{mask.path}: has pixels of {' x '.join(f'{n:g}' for n in known)} um already. "
            f"{'Give --pixel-size for z, too: Z,Y,X' if lacks_z else leave_out}"
        )
    steps = tuple(map(float, (grid.thickness, *grid.step)))[-len(sizes) :]
    stated = [n and n / step for n, step in zip(known, steps, strict=True)]
    if sizes_differ(sizes, stated):
        raise SettingsError(
            f"{mask.path}: the pixels of its image are known to be {size_text(stated)}, and --pixel-size is "
            f"{size_text(sizes)}. Give the known sizes as they are"
        )
    found = tuple(n or size * step for n, size, step in zip(known, sizes, steps, strict=True))
    _remark_z(mask, found)
    return found


def _states_z_alone(mask: AnyMask) -> bool:
    """Return whether a size along z is all that the file of an image stated of its pixels, as far as its mask tells.

    Such a size is often a default of the program that wrote the file, so that another may replace it.
    """
    return None in mask.pixel_size[-2:] or len(mask.info["record"].get("pixel_size") or ()) == 2


def _remark_z(mask: AnyMask, sizes: Sequence[float]) -> None:
    """Say which size along z a volume has, if its mask states one and the caller gave sizes."""
    if not has_volumes(mask) or (stated := mask.pixel_size[-3]) is None:
        return
    if len(sizes) == 2:
        LOG.warning("%s: along z its pixels stay %s. Give Z,Y,X to replace it", mask.path, size_text([stated]))
    elif sizes_differ(sizes[:1], [stated]):
        LOG.warning(
            "%s: its pixels along z are taken as %s, as asked; the mask says %s%s",
            *(mask.path, size_text(sizes[:1]), size_text([stated])),
            ", by which its objects were separated. Segment again to separate them by the new size"
            if mask.info["record"].get("spacing")
            else "",
        )
