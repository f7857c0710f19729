"""Draw over a picture of an image: outlines, filled areas, drawn regions, the tissue map, a scale bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from unicodedata import combining, normalize

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from tilenet.card import colors_of
from tilenet.errors import SettingsError
from tilenet.export.features import NEGATIVE, POSITIVE, QUPATH
from tilenet.geometry import Box
from tilenet.store import AnyMask
from tilenet.store.tissue_map import TISSUE_COLOR

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw as Canvas

Picture = NDArray[np.uint8]
# From numbers of a mask (n) to colours (n, 3), 0 to 255.
Colours = Callable[[NDArray[Any]], NDArray[np.float64]]
# The name of a region, its outlines as y and x (n, 2) of corners of pixels of the picture, and their colour.
RegionLines = tuple[str, Sequence[NDArray[np.float64]], tuple[int, ...]]
# Opacity of filled objects; outlines are opaque.
FILL_OPACITY = 0.45
# Largest length of a scale bar, as a share of the picture's width.
BAR = 0.25
# Largest share of a picture that the bar, its text and their plate may cover.
COVERED = 0.08
# Margin in pixels of the white plate behind the bar and its text, which keeps them legible on tissue, glass and black.
PLATE = 4
# Text height in pixels that is legible without zooming in, where the picture has room for it.
LEGIBLE = 18
# Colour of objects that are neither positive nor negative, and of negative ones on dark pictures, where QuPath's blue
# is hard to see.
NEITHER, ON_DARK = (160, 160, 160), (0, 255, 255)
# A picture is dark if the brightest channel of half of its pixels is below this.
DARK = 128
# What is written for letters and signs that have no accent to lose, as the font of pictures has little but ASCII.
WRITTEN = {
    **{"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th", "ð": "d", "Ð": "D"},
    **{"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ħ": "h", "Ħ": "H", "ı": "i", "μ": "u"},  # noqa: RUF001
    **dict.fromkeys("‐‑‒–—−", "-") | dict.fromkeys("‘’‚′", "'") | dict.fromkeys("“”„«»″", '"'),  # noqa: RUF001
    **{"×": "x", "±": "+-", "°": "deg", "·": ".", "⁄": "/", "≤": "<=", "≥": ">="},  # noqa: RUF001
}
# Colours of the outlines of regions, and of their rim, which keeps them visible on any background.
REGION, RIM = (255, 214, 0), (0, 0, 0)


def paint_tissue(picture: Picture, mask: AnyMask, part: Box) -> None:
    """Darken the blocks that were skipped, and draw the border of the tissue."""
    if mask.tissue is None:
        raise SettingsError(f"{mask.path}: has no tissue map: it was made without --tissue. Leave it out here too")
    y, x = (
        a + (2 * np.arange(n) + 1) * side // (2 * n)
        for a, side, n in zip(part.start[-2:], part.shape[-2:], picture.shape, strict=False)
    )
    with_tissue = mask.layout.block_has_tissue_at(y - mask.origin[-2], x - mask.origin[-1])
    picture[~with_tissue] = picture[~with_tissue] // 2
    picture[find_boundaries(mask.tissue.at(y, x), mode="thick")] = TISSUE_COLOR  # type: ignore[no-untyped-call]


def paint(picture: Picture, values: NDArray[Any], colours: Colours, *, fill: bool) -> None:
    """Draw the nonzero values of a mask; even objects smaller than a pixel of the picture are drawn."""
    h, w = picture.shape[:2]
    # If the mask is finer than the picture, rims two mask pixels wide would fill small objects.
    y, x = np.nonzero(values if fill else _rims(values, 2 if (h, w) == values.shape else 1))
    numbers = np.zeros((h, w), values.dtype)
    numbers[y * h // values.shape[0], x * w // values.shape[1]] = values[y, x]
    there = numbers > 0
    opacity = FILL_OPACITY if fill else 1.0
    drawn = (1 - opacity) * picture[there] + opacity * colours(numbers[there])
    picture[there] = drawn.round().astype(np.uint8)


def _rims(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Return the values of objects within `width` pixels of their border, and 0 further inside."""
    inside = values
    for _ in range(width):
        inside = inside * ~find_boundaries(inside, mode="inner")  # type: ignore[no-untyped-call]
    return np.where(inside == 0, values, 0)


def colours_of(numbers: NDArray[Any], *, mask: AnyMask) -> NDArray[np.float64]:
    """Return the colours of the classes of a mask, or a colour for each of its objects."""
    if mask.has_objects:
        # Steps by the golden ratio put consecutive numbers far apart on the colour circle.
        hue = numbers.astype(np.float64)[:, None] * 0.618034 + np.array([0, 1 / 3, 2 / 3])
        bright: NDArray[np.float64] = 155 + 100 * np.cos(2 * np.pi * hue)
        return bright
    table = np.zeros((256, 3))
    for value, color in colors_of(mask.info["card"]).items():
        table[value] = color[:3]
    found: NDArray[np.float64] = table[numbers]
    return found


def stain_colours(numbers: NDArray[Any], *, positive: NDArray[np.int64], picture: Picture) -> NDArray[np.float64]:
    """Return the colours of objects: QuPath's of what is negative (0) and positive (1), and grey for neither (2)."""
    negative = ON_DARK if np.median(picture.max(axis=-1)) < DARK else QUPATH[NEGATIVE]
    colours = np.array([negative, QUPATH[POSITIVE], NEITHER], np.float64)
    found: NDArray[np.float64] = colours[positive[numbers]]
    return found


def draw_regions(picture: Picture, regions: Sequence[RegionLines]) -> None:
    """Draw the outlines of regions, those of the last colour on top, and their names."""
    from PIL import Image as Pillow
    from PIL import ImageChops, ImageDraw
    from PIL.ImageFilter import MaxFilter

    canvas = Pillow.fromarray(picture)
    drawn = {color: Pillow.new("L", canvas.size) for _, _, color in regions}
    width = max(3, max(picture.shape) // 500)
    # The centre of the first pixel is 0 for Pillow.
    paths = [[[(x - 0.5, y - 0.5) for y, x in line.tolist()] for line in lines] for _, lines, _ in regions]
    for (_, _, color), lines in zip(regions, paths, strict=True):
        for line in lines:
            ImageDraw.Draw(drawn[color]).line(line, 255, width, joint="curve")
    every = reduce(ImageChops.lighter, drawn.values(), Pillow.new("L", canvas.size))
    # A wider line would have no rim where Pillow draws both as wide, as on diagonals.
    canvas.paste(RIM, mask=every.filter(MaxFilter(3)))
    for color, lines_of_color in drawn.items():
        canvas.paste(color, mask=lines_of_color)
    draw = ImageDraw.Draw(canvas)
    for (name, _, color), lines in zip(regions, paths, strict=True):
        top = min((point for line in lines for point in line), key=itemgetter(1))
        _write(draw, name, top, picture.shape, frame=None if color == REGION else color)
    picture[...] = np.asarray(canvas)


def in_ascii(text: str) -> str:
    """Return a text as pictures can have it: without accents, and with ``?`` for what has no letters in ASCII.

    >>> in_ascii("Größe – 2 µm²"), in_ascii("α-SMA")
    ('Grosse - 2 um2', '?-SMA')
    """
    plain = (WRITTEN.get(letter, letter) for letter in normalize("NFKD", text) if not combining(letter))
    return "".join(letters if letters.isascii() else "?" for letters in plain)


def _write(
    draw: Canvas, text: str, place: tuple[float, float], shape: Sequence[int], *, frame: tuple[int, ...] | None
) -> None:
    """Write a text above a point, in black on white, perhaps framed, moved into the picture if it would leave it."""
    font = _font("lt", shape)
    _, _, wide, high = draw.textbbox((PLATE, PLATE), text, **font)
    x = max(0, min(place[0] - wide / 2, shape[1] - wide - PLATE))
    y = max(0, place[1] - high - 2 * PLATE)
    draw.rectangle((x, y, x + wide + PLATE, y + high + PLATE), fill="white", outline=frame, width=PLATE // 2)
    draw.text((x + PLATE, y + PLATE), text, fill="black", **font)


def _font(anchor: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"anchor": anchor, "font_size": max(shape[0] // 40, min(LEGIBLE, shape[1] // 12), 10)}


def draw_bar(picture: Picture, size: float) -> bool:
    """Draw a scale bar of round length at the lower left, and return whether the picture has room for it.

    `size` is micrometres per pixel of the picture.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    h, w = picture.shape[:2]
    rounds = [m * 10.0**k for k in range(-2, 5) for m in (1, 2, 5)]
    length = max((n for n in rounds if n / size <= BAR * w), default=0)
    if not length:
        return False
    canvas = Pillow.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"
    left, base, thick = w // 50 + PLATE, h - h // 50 - PLATE - 1, max(3, h // 200)
    right, top = left + round(length / size), base - thick
    place, font = (left, top - PLATE), _font("lb", picture.shape)
    _, text_top, text_right, _ = draw.textbbox(place, text, **font)
    plate = (left - PLATE, text_top - PLATE, max(right, text_right) + PLATE, base + PLATE)
    if (plate[2] - plate[0]) * (plate[3] - plate[1]) > COVERED * h * w:
        return False
    draw.rectangle(plate, fill="white")
    draw.rectangle((left, top, right, base), fill="black")
    draw.text(place, text, fill="black", **font)
    picture[...] = np.asarray(canvas)
    return True
