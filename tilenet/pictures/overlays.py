"""`overlay`: a picture of an image with the outlines of its mask, small enough to look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import log, prod
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.arguments import known_options
from tilenet.drawn_regions import Drawn, covered, first_three, outlines, read_regions
from tilenet.errors import OutputMismatch, SettingsError, counted
from tilenet.export.listed_objects import Listed, Listing, read_listed
from tilenet.export.placement import MaskPlacement, grid_in
from tilenet.geometry import Box
from tilenet.masks.provenance import open_as_segmented, remark, resolution_of
from tilenet.masks.tiff_mask import open_mask
from tilenet.pictures.drawing import (
    REGION,
    Colours,
    Picture,
    RegionLines,
    colours_of,
    draw_bar,
    draw_regions,
    in_ascii,
    paint,
    paint_tissue,
    stain_colours,
)
from tilenet.pictures.reduced import photo, values_of
from tilenet.readers.image import Image, closing
from tilenet.readers.resampled import at_resolution
from tilenet.region import Roi, find_roi
from tilenet.scaling import Scaling
from tilenet.store import AnyMask

LOG = logging.getLogger("tilenet")
# Two pixel sizes count as equal up to this logarithm of their ratio.
MAX_LOG_RATIO = 0.1


@known_options()
def overlay(
    image: Any,
    mask: str | PathLike[str],
    *,
    roi: Roi | None = None,
    plane: int | Sequence[int] | None = None,
    fill: bool = False,
    tissue: bool = False,
    max_side: int = 2048,
    table: str | Path | Listing | None = None,
    within: str | Path | None = None,
) -> Picture:
    """Draw a mask over its image.

    Parameters
    ----------
    image : path, array or Image
        The image that was segmented, or a copy of it. If a file seems to be another image, a warning is logged
        (logger ``tilenet``).
    mask : path or Mask
        Its mask, at any level or pixel size, of the whole image or a part.
    roi : str, or sequence of slice or (start, stop), optional
        The part to draw, in pixels of the grid that was segmented; by default the whole mask.
    plane : int or sequence of int, optional
        The plane of a stack or time series to draw: one number for each axis before y and x, counted in the
        image. By default the middle plane of the part.
    fill : bool
        Tint objects rather than outline them.
    tissue : bool
        Draw the outline of the tissue map too, and darken the blocks that were skipped.
    max_side : int
        Longest side of the picture in pixels; smaller parts are not enlarged.
    table : path, optional
        A table that `tilenet.write_table` wrote of the mask; lines or columns may have been removed since, or a
        spreadsheet may have saved it. Only the objects that it lists are drawn. If it has the column ``positive``,
        positive ones are red, negative ones blue, or cyan if most of the picture is dark, and others grey.
    within : path, optional
        A GeoJSON file of regions of the image, as for `tilenet.write_table`: draw their outlines and names.

    Returns
    -------
    numpy.ndarray
        uint8 (h, w, 3). Classes have the colours of the model card; numbered objects have one colour each.
        A scale bar is drawn if the pixel size is known and there is room for it.

    Raises
    ------
    SettingsError, OutputMismatch
        If the part is not entirely inside the mask; if there is no such plane or no tissue map; if the mask is not
        of this image, or the table not of this mask; if all regions lie outside of the mask.

    Examples
    --------
    >>> import tempfile, numpy as np, tilenet
    >>> pixels = np.zeros((70, 90), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mask = tilenet.segment(pixels, folder + "/mask.zarr")
    ...     tilenet.overlay(pixels, folder + "/mask.zarr").shape
    (70, 90, 3)
    """
    if max_side < 1:
        raise SettingsError(f"max_side is at least 1, not {max_side}")
    drawn = () if within is None else read_regions(within)
    with open_mask(mask) as found, _as_segmented(image, found) as (source, grid):
        if isinstance(image, str | Path | Image) and (said := remark(source, found)):
            LOG.warning("%s", said)
        part = _plane(_part(source, found, roi), found, plane)
        longest = max(part.shape[-2:])
        h, w = (max(1, n * min(longest, max_side) // longest) for n in part.shape[-2:])
        listing = table if isinstance(table, Listing | None) else Listing(Path(table))
        listed = None if listing is None else read_listed(found, listing, grid)
        lines = _lines(drawn, found, grid, part, (h, w)) if drawn else []
        picture = photo(source, part, (h, w), scaling=_scaling(source, found))
        if tissue:
            paint_tissue(picture, found, part)
        paint(picture, *_objects(found, listed, values_of(found, part, (h, w)), picture), fill=fill)
        draw_regions(picture, lines)
        size = source.pixel_size[-1]
        if size and not draw_bar(picture, um := size * part.shape[-1] / w):
            LOG.info("%s: the picture is too small for a scale bar; a pixel of it is %.3g um", found.path, um)
    return picture


@contextmanager
def _as_segmented(image: Any, mask: AnyMask) -> Iterator[tuple[Image, MaskPlacement]]:
    """Open the image on the pixel grid of its mask, with the channels that were segmented; yield it and the grid."""
    channels = mask.info["record"].get("channels")
    with closing(open_as_segmented(image, mask), image) as stored:
        seen = at_resolution(stored, resolution_of(mask))
        _refuse_misfit(seen, mask)
        if channels and max(channels) >= seen.n_channels:
            raise OutputMismatch(
                f"{mask.path}: was made from the channels {', '.join(map(str, channels))}, and {seen.name} has "
                f"{seen.n_channels}, from 0. Give the image that was segmented"
            )
        yield seen.with_channels(channels) if channels else seen, grid_in(stored, mask)


def _scaling(image: Image, mask: AnyMask) -> Scaling | None:
    """Return the scaling by which the planes of a stack are shown, the same for all; None if there is none."""
    by_percentiles = (mask.info["record"].get("scaling") or {}).get("method") == "percentile"
    return Scaling.from_json(mask.info["scaling"]) if by_percentiles and prod(image.box_shape[:-2]) > 1 else None


def _objects(
    mask: AnyMask, listed: Listed | None, values: NDArray[Any], picture: Picture
) -> tuple[NDArray[Any], Colours]:
    """Return which of the values of a mask are drawn, the others as 0, and in which colours."""
    colours: Colours = partial(colours_of, mask=mask)
    if listed is None:
        return values, colours
    if listed.positive is not None:
        colours = partial(stain_colours, positive=listed.positive, picture=picture)
    return np.where(listed.there[values], values, 0), colours


def _lines(
    drawn: Sequence[Drawn], mask: AnyMask, grid: MaskPlacement, part: Box, shape: tuple[int, int]
) -> list[RegionLines]:
    """Return the regions that a picture of a part shows; of classes, which share borders, the largest first."""

    def frame(start: Sequence[int], stop: Sequence[int]) -> tuple[float, float, float, float]:
        return (*grid.place_point(*start), *grid.place_point(*stop))

    covered(drawn, frame((0, 0), mask.shape[-2:]))
    inner = part.relative_to(mask.origin)
    first, scale = inner.start[-2:], np.divide(shape, part.shape[-2:])
    named = sorted(zip(drawn, _names(drawn), strict=True), key=lambda of: -of[0].area.area if of[0].color else 0)
    lines = outlines([region for region, _ in named], frame(first, inner.stop[-2:]))
    found: list[RegionLines] = [
        (name, [(grid.locate(line) - first) * scale for line in outline], region.color or REGION)
        for (region, name), outline in zip(named, lines, strict=True)
        if outline
    ]
    if not found:
        LOG.warning(
            "%s: no outline of its %s lies in the part that is drawn", drawn[0].path, counted(len(drawn), "region")
        )
    return found


def _names(drawn: Sequence[Drawn]) -> list[str]:
    """Return the names of regions in letters that pictures can have; their place in the file if none is left."""
    names, others = [], []
    for number, region in enumerate(drawn, 1):
        name = in_ascii(region.name)
        if name.count("?") > region.name.count("?"):
            name = name if any(map(str.isalnum, name)) else str(number)
            others.append(f"{name} for {region.name}")
        names.append(name)
    if others:
        LOG.warning(
            "%s: pictures lack some letters of its names, and have a ? for each, or, for a name of such letters alone, "
            "its place in the file: %s",
            *(drawn[0].path, first_three(others)),
        )
    return names


def _refuse_misfit(image: Image, mask: AnyMask) -> None:
    ends = mask.box.stop
    whole = mask.info["record"].get("roi") is None
    fits = ends == image.box_shape if whole else all(b <= n for b, n in zip(ends, image.box_shape, strict=False))
    if image.box_axes != mask.axes or not fits:
        raise OutputMismatch(
            f"{mask.path}: is {mask.axes} {mask.shape}, {image.name} is {image.box_axes} {image.box_shape}. "
            f"Give the image that was segmented"
        )
    for axis, there, here in zip(mask.axes, mask.pixel_size, image.pixel_size, strict=True):
        # A copy may have lost or rounded its pixel size.
        if there and here and abs(log(there / here)) > MAX_LOG_RATIO:
            raise OutputMismatch(
                f"{mask.path}: has pixels of {there:g} um along {axis}, and {image.name} of {here:g} um. Give the "
                f"image that was segmented"
            )


def _part(image: Image, mask: AnyMask, roi: Roi | None) -> Box:
    if roi is None:
        return mask.box
    asked = find_roi(roi, image.box_shape, name=image.name)
    if asked not in mask.box:
        raise SettingsError(f"{mask.path}: does not contain all of {asked}. Choose a part inside {mask.box}")
    return asked


def _plane(part: Box, mask: AnyMask, plane: int | Sequence[int] | None) -> Box:
    """Return one plane of a part: the one asked for, or the middle one."""
    ends = list(zip(part.start[:-2], part.stop[:-2], strict=True))
    chosen = tuple((a + b) // 2 for a, b in ends)
    if plane is not None:
        try:
            chosen = tuple(index(n) for n in np.ravel(plane))
        except (TypeError, ValueError) as error:
            raise SettingsError(f"plane {plane!r}: give a whole number, or one for each axis before y and x") from error
    if len(chosen) != len(ends) or any(not a <= n < b for n, (a, b) in zip(chosen, ends, strict=True)):
        there = ", ".join(f"{axis} {a} to {b - 1}" for axis, (a, b) in zip(mask.axes, ends, strict=False))
        raise SettingsError(
            f"{mask.path}: has no plane {','.join(map(str, chosen))}. "
            + (f"Give one number for each of {there}" if there else "It has one plane: leave the plane out")
        )
    return Box((*chosen, *part.start[-2:]), (*(n + 1 for n in chosen), *part.stop[-2:]))
