"""An image and its mask at the size of a picture, read from levels that are just fine enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize_local_mean

from tilenet.geometry import Box, ceil_div
from tilenet.pictures.drawing import Picture
from tilenet.readers.image import Image
from tilenet.scaling import Scaling
from tilenet.store import AnyMask

# Number of stored values (pixels times channels) to read and reduce at once.
STRIP = 2**24
# Percentiles of intensity that are shown as black and as full brightness, in images that are not colour photographs.
DISPLAY_PERCENTILES = (1, 99.8)
# Colours of the channels of a multichannel image, in order: blue, green, red, grey, cyan, magenta, yellow.
CHANNEL_COLOURS = ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))


def photo(image: Image, part: Box, shape: tuple[int, int], *, scaling: Scaling | None) -> Picture:
    """Return a part of an image as a picture (h, w, 3), read in strips from the coarsest level that is fine enough.

    Intensities are shown from 0 to 1 of a scaling; by default, between percentiles of the picture.
    """
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
    return _coloured(np.concatenate(strips, axis=1), image, scaling)


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


def _coloured(pixels: NDArray[np.float32], image: Image, scaling: Scaling | None) -> Picture:
    """Return (h, w, 3) from (C, h, w): photographs unchanged, other channels contrast-stretched and coloured."""
    if image.is_color:
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1).round().astype(np.uint8))
    colours = CHANNEL_COLOURS if len(pixels) > 1 else ((1, 1, 1),)
    picture = np.zeros((*pixels.shape[1:], 3), np.float32)
    for k, channel in enumerate(pixels):
        low, high = _ends(k, scaling) if scaling else np.percentile(channel, DISPLAY_PERCENTILES)
        picture += ((channel - low) / max(high - low, 1e-6)).clip(0, 1)[..., None] * colours[k % len(colours)]
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def _ends(channel: int, scaling: Scaling) -> tuple[float, float]:
    """Return which intensities of a channel are scaled to 0 and to 1."""
    low, span = (numbers[channel % len(numbers)] for numbers in (scaling.subtract, scaling.divide))
    return low, low + span


def values_of(mask: AnyMask, part: Box, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the mask's values in the part, from the coarsest level as fine as the picture."""
    inner = part.relative_to(mask.origin)
    level = _coarsest([level.shape[-2:] for level in mask.levels], inner, shape)
    values = mask.read(level, _scaled(inner, mask.shape, mask.levels[level].shape).slices)
    return values.reshape(values.shape[-2:])
