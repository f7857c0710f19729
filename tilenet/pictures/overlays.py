"""`overlay`: a picture of an image with the outlines of its mask, small enough to look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize_local_mean

from tilenet.arguments import known_options
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.geometry import Box, ceil_div
from tilenet.pictures.drawing import Picture, draw_bar, paint, paint_tissue
from tilenet.provenance import open_as_segmented, remark, resolution_of
from tilenet.readers.image import Image, closing
from tilenet.readers.resampled import at_resolution
from tilenet.region import Roi, find_roi
from tilenet.store import AnyMask
from tilenet.tiff_mask import open_mask

# Warnings about what the picture shows; the command line prints them.
LOG = logging.getLogger("tilenet")
# Number of stored values (pixels times channels) to read and reduce at once.
STRIP = 2**24
# Two pixel sizes count as equal up to this logarithm of their ratio.
MAX_LOG_RATIO = 0.1
# Percentiles of intensity that are shown as black and as full brightness, in images that are not colour photographs.
DISPLAY_PERCENTILES = (1, 99.8)
# Colours of the channels of a multichannel image, in order: blue, green, red, grey, cyan, magenta, yellow.
CHANNEL_COLOURS = ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))


@known_options()
def overlay(
    image: Any,
    mask: str | Path,
    *,
    roi: Roi | None = None,
    plane: int | Sequence[int] | None = None,
    fill: bool = False,
    tissue: bool = False,
    max_side: int = 2048,
) -> Picture:
    """Draw a mask over its image.

    Parameters
    ----------
    image : path, array or Image
        The image that was segmented, or a copy of it. If a file seems to be another image, a warning is logged
        (logger ``tilenet``).
    mask : path
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

    Returns
    -------
    numpy.ndarray
        uint8 (h, w, 3). Classes have the colours of the model card; numbered objects have one colour each.
        A scale bar is drawn if the pixel size is known.

    Raises
    ------
    SettingsError, OutputMismatch
        If the part is not entirely inside the mask; if there is no such plane or no tissue map; if the mask is not
        of this image.

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
    with open_mask(mask) as found, _as_segmented(image, found) as source:
        if isinstance(image, str | Path | Image) and (said := remark(source, found)):
            LOG.warning("%s", said)
        part = _plane(_part(source, found, roi), found, plane)
        longest = max(part.shape[-2:])
        h, w = (max(1, n * min(longest, max_side) // longest) for n in part.shape[-2:])
        picture = _photo(source, part, (h, w))
        if tissue:
            paint_tissue(picture, found, part)
        paint(picture, _values(found, part, (h, w)), found, fill=fill)
        size = source.pixel_size[-1]
        if size:
            draw_bar(picture, size * part.shape[-1] / w)
    return picture


@contextmanager
def _as_segmented(image: Any, mask: AnyMask) -> Iterator[Image]:
    """Open the image on the pixel grid of its mask, with the channels that were segmented."""
    channels = mask.info["record"].get("channels")
    with closing(open_as_segmented(image, mask), image) as stored:
        seen = at_resolution(stored, resolution_of(mask))
        _refuse_misfit(seen, mask)
        if channels and max(channels) >= seen.n_channels:
            raise OutputMismatch(
                f"{mask.path}: was made from the channels {', '.join(map(str, channels))}, and {seen.name} has "
                f"{seen.n_channels}, from 0. Give the image that was segmented"
            )
        yield seen.with_channels(channels) if channels else seen


def _refuse_misfit(image: Image, mask: AnyMask) -> None:
    """Raise `OutputMismatch` if the axes, the shape or the pixel size of an image are not those of its mask."""
    ends = tuple(a + n for a, n in zip(mask.origin, mask.shape, strict=True))
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
    drawn = Box(mask.origin, tuple(a + n for a, n in zip(mask.origin, mask.shape, strict=True)))
    if roi is None:
        return drawn
    asked = find_roi(roi, image.box_shape, name=image.name)
    if asked & drawn != asked:
        raise SettingsError(f"{mask.path}: does not contain all of {asked}. Choose a part inside {drawn}")
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


def _photo(image: Image, part: Box, shape: tuple[int, int]) -> Picture:
    """Return a part of an image as a picture (h, w, 3), read in strips from the coarsest level that is fine enough."""
    level = _coarsest([image.plane_shape(k) for k in range(len(image.levels))], part, shape)
    coarse = image.at_level(level)
    box = _scaled(part, image.box_shape, coarse.box_shape)
    rows = max(1, STRIP * shape[0] // max(1, box.size * image.n_channels))
    strips = []
    for top in range(0, shape[0], rows):
        bottom = min(top + rows, shape[0])
        y0, y1 = (box.start[-2] + edge * box.shape[-2] // shape[0] for edge in (top, bottom))
        strip = Box((*box.start[:-2], y0, box.start[-1]), (*box.stop[:-2], max(y1, y0 + 1), box.stop[-1]))
        pixels = coarse.read_inside(strip).reshape(image.n_channels, *strip.shape[-2:])
        strips.append(resize_local_mean(pixels.astype(np.float32), (bottom - top, shape[1]), channel_axis=0))  # type: ignore[no-untyped-call]
    return _coloured(np.concatenate(strips, axis=1), image)


def _coarsest(levels: Sequence[Sequence[int]], part: Box, shape: tuple[int, int]) -> int:
    """Return the coarsest level in which the part has at least as many rows and columns as the picture."""
    full = levels[0]
    fine = [
        k
        for k, sides in enumerate(levels)
        if all(p * n >= m * f for p, n, m, f in zip(part.shape[-2:], sides, shape, full, strict=True))
    ]
    return max(fine, default=0)


def _scaled(part: Box, full: Sequence[int], level: Sequence[int]) -> Box:
    axes = list(zip(part.start, part.stop, full, level, strict=True))
    start = tuple(min(a * n // f, n - 1) for a, _, f, n in axes)
    return Box(
        start, tuple(max(s + 1, min(n, ceil_div(b * n, f))) for s, (_, b, f, n) in zip(start, axes, strict=True))
    )


def _coloured(pixels: NDArray[np.float32], image: Image) -> Picture:
    """Return (h, w, 3) from (C, h, w): photographs unchanged, other channels contrast-stretched and coloured."""
    if image.is_color:
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1).round().astype(np.uint8))
    colours = CHANNEL_COLOURS if len(pixels) > 1 else ((1, 1, 1),)
    picture = np.zeros((*pixels.shape[1:], 3), np.float32)
    for k, channel in enumerate(pixels):
        low, high = np.percentile(channel, DISPLAY_PERCENTILES)
        picture += ((channel - low) / max(high - low, 1e-6)).clip(0, 1)[..., None] * colours[k % len(colours)]
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def _values(mask: AnyMask, part: Box, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the mask's values in the part, from the coarsest level as fine as the picture."""
    inner = part.relative_to(mask.origin)
    level = _coarsest([level.shape[-2:] for level in mask.levels], inner, shape)
    values = mask.read(level, _scaled(inner, mask.shape, mask.levels[level].shape).slices)
    return values.reshape(values.shape[-2:])
