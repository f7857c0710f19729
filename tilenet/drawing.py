"""What is drawn over a photograph: outlines, areas, the tissue map, a scale bar."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from tilenet.card import colors_of
from tilenet.errors import SettingsError
from tilenet.geometry import Box
from tilenet.store import Mask
from tilenet.store.tissue_map import TISSUE_COLOR
from tilenet.tiff_mask import TiffMask

Picture = NDArray[np.uint8]
FILLED = 0.45
# A scale bar is at most this share of the picture's width.
BAR = 0.25


def paint_tissue(picture: Picture, mask: Mask | TiffMask, part: Box) -> None:
    """Darken what was skipped, and draw the border of the tissue."""
    if mask.tissue is None:
        raise SettingsError(f"{mask.path}: has no tissue map: it was made without --tissue. Leave it out here too")
    y, x = (
        a + (2 * np.arange(n) + 1) * side // (2 * n)
        for a, side, n in zip(part.start[-2:], part.shape[-2:], picture.shape, strict=False)
    )
    computed = mask.layout.computed_at(y - mask.origin[-2], x - mask.origin[-1])
    picture[~computed] = picture[~computed] // 2
    picture[find_boundaries(mask.tissue.at(y, x), mode="thick")] = TISSUE_COLOR  # type: ignore[no-untyped-call]


def paint(picture: Picture, values: NDArray[Any], mask: Mask | TiffMask, *, fill: bool) -> None:
    """Draw where the values are not 0; no object is lost to the reduction."""
    h, w = picture.shape[:2]
    y, x = np.nonzero(values if fill else values * find_boundaries(values, mode="inner"))  # type: ignore[no-untyped-call]
    numbers = np.zeros((h, w), values.dtype)
    numbers[y * h // values.shape[0], x * w // values.shape[1]] = values[y, x]
    there = numbers > 0
    share = FILLED if fill else 1.0
    colours = _colours(numbers[there], mask)
    picture[there] = ((1 - share) * picture[there] + share * colours).round().astype(np.uint8)


def _colours(numbers: NDArray[Any], mask: Mask | TiffMask) -> NDArray[np.float64]:
    """Return the colour of each number: (n, 3), 0 to 255."""
    if mask.info["record"]["output"] == "objects":
        # Neighbouring numbers are far apart on the colour circle.
        hue = numbers.astype(np.float64)[:, None] * 0.618034 + np.array([0, 1 / 3, 2 / 3])
        bright: NDArray[np.float64] = 155 + 100 * np.cos(2 * np.pi * hue)
        return bright
    table = np.zeros((256, 3))
    for value, color in colors_of(mask.info["card"]).items():
        table[value] = color[:3]
    found: NDArray[np.float64] = table[numbers]
    return found


def draw_bar(picture: Picture, size: float) -> None:
    """Draw a bar of round length at the lower left; `size` is micrometres per pixel of the picture."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    h, w = picture.shape[:2]
    rounds = [m * 10.0**k for k in range(-2, 5) for m in (1, 2, 5)]
    length = max((n for n in rounds if n / size <= BAR * w), default=0)
    if not length or h < 32:
        return
    canvas = Pillow.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"
    left, base, thick = w // 50 + 2, h - h // 50 - 4, max(2, h // 200)
    draw.rectangle((left - 1, base - thick - 1, left + round(length / size) + 1, base + 1), fill="black")
    draw.rectangle((left, base - thick, left + round(length / size), base), fill="white")
    draw.text(
        (left, base - thick - 4),
        text,
        fill="white",
        stroke_fill="black",
        stroke_width=1,
        anchor="lb",
        font_size=max(10, h // 40),
    )
    picture[...] = np.asarray(canvas)
