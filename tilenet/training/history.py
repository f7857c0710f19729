"""What a training shows: its curves, as CSV and as a picture, and what its network predicts of a few images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import png_encode
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from tilenet.card import PALETTE
from tilenet.training.data import Pair
from tilenet.training.recipe import Recipe
from tilenet.training.targets import classes_of
from tilenet.training.validation import predict_whole
from tilenet.unet import UNet

Picture = NDArray[np.uint8]
# How many images are shown; the side of each of the three columns, the gap between them, the height of a line of text.
SHOWN, SIDE, GAP, LINE = 3, 208, 8, 16
WIDTH = 3 * SIDE + 2 * GAP
HEIGHT = 200
# Left, top, right and bottom of the area of the curves; their scales are around it.
FRAME = (40, 10, WIDTH - 40, HEIGHT - 24)
GREY, BLACK = (160, 160, 160), (0, 0, 0)
COLOURS = {"loss": (200, 60, 40), "score": (30, 110, 200)}
# Most letters of a caption.
LETTERS = 30
# Percentiles of a picture that become black and white.
DARKEST, BRIGHTEST = 1, 99.8


class Examples:
    """Validation images spread over all of them, with their true classes, and those that one network predicts.

    For ``targets="classes"``, `values` are the label values. `epoch` is that of the network that predicted last; 0
    before.
    """

    def __init__(self, pairs: Sequence[Pair], recipe: Recipe, values: tuple[int, ...], names: Sequence[str]) -> None:
        count = min(SHOWN, len(pairs))
        self.pairs = [pairs[k * len(pairs) // count] for k in range(count)]
        self.names, self.epoch = names, 0
        self._truths = [classes_of(p.label, recipe.targets, values) for p in self.pairs]
        self._predicted: list[NDArray[Any]] = []

    def predict(self, network: UNet, epoch: int) -> None:
        """Replace the predicted classes by those of a network."""
        self._predicted = [predict_whole(network, p.image).argmax(axis=0) for p in self.pairs]
        self.epoch = epoch

    def strips(self) -> list[Picture]:
        """Return a strip with the colours of the classes, and one for each image, all `WIDTH` wide."""
        strips = [_legend(self.names)]
        for pair, truth, predicted in zip(self.pairs, self._truths, self._predicted, strict=True):
            ndim = pair.label.ndim
            views = [_grey(middle_of(np.moveaxis(pair.image, 0, -1), ndim))]
            views += [class_colours(middle_of(classes, ndim)) for classes in (truth, predicted)]
            strips.append(_strip(views, [caption_of(pair), "truth", f"prediction of epoch {self.epoch}"]))
        return strips


def caption_of(pair: Pair) -> str:
    """Return the name of an image, with the frame of a series and the middle plane of a volume; `LETTERS` at most.

    >>> image = np.zeros((1, 5, 9, 9), np.float32)
    >>> caption_of(Pair("a" * 40, image, image[0].astype(np.int32), frame=3))
    'aaaaaaaaaaaaaaaaaaaa, t 3, z 2'
    """
    where = "" if pair.frame is None else f", t {pair.frame}"
    where += f", z {len(pair.label) // 2}" if pair.label.ndim == 3 else ""
    return pair.name[: LETTERS - len(where)] + where


def middle_of(array: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Return at most `SIDE` pixels a side from the middle of an array (*n, ...): of a volume, from its middle plane.

    >>> middle_of(np.zeros((9, 500, 100, 3)), 3).shape
    (208, 100, 3)
    """
    plane = array[len(array) // 2] if ndim == 3 else array
    starts = [max(0, n - SIDE) // 2 for n in plane.shape[:2]]
    found: NDArray[Any] = plane[tuple(slice(start, start + SIDE) for start in starts)]
    return found


def class_colours(classes: NDArray[Any]) -> Picture:
    """Return the colour of each class; the first, background, is black."""
    table = np.array([(0, 0, 0), *(colour[:3] for colour in PALETTE)], np.uint8)
    return table[np.where(classes, (classes - 1) % len(PALETTE) + 1, 0)]


def _grey(pixels: NDArray[np.float32]) -> Picture:
    """Return three channels of a picture (y, x, C), or its first one, from black to white."""
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
    low, high = np.percentile(shown, (DARKEST, BRIGHTEST))
    grey: Picture = (255 * ((shown - low) / ((high - low) or 1)).clip(0, 1)).astype(np.uint8)
    return grey


def _strip(views: Sequence[Picture], captions: Sequence[str]) -> Picture:
    """Return pictures of one size in columns, each under its caption; small ones are enlarged by a whole number."""
    times = max(1, SIDE // max(views[0].shape[:2]))
    canvas = Pillow.new("RGB", (WIDTH, LINE + times * len(views[0]) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (view, caption) in enumerate(zip(views, captions, strict=True)):
        left = k * (SIDE + GAP)
        draw.text((left, LINE - 3), caption[:LETTERS], fill="black", anchor="ls")
        canvas.paste(Pillow.fromarray(view.repeat(times, axis=0).repeat(times, axis=1)), (left, LINE))
    return np.asarray(canvas)


def _legend(names: Sequence[str]) -> Picture:
    """Return the names of the classes, each behind its colour, as far as there is room."""
    canvas = Pillow.new("RGB", (WIDTH, LINE + GAP), "white")
    draw, left = ImageDraw.Draw(canvas), 0
    for colour, name in zip(class_colours(np.arange(len(names))).tolist(), names, strict=True):
        if left > WIDTH - 2 * SIDE // 3:
            draw.text((left, LINE - 3), "...", fill="black", anchor="ls")
            break
        draw.rectangle((left, 4, left + 9, 13), fill=tuple(colour), outline="black")
        draw.text((left + 14, LINE - 3), name[:LETTERS], fill="black", anchor="ls")
        left += 26 + round(draw.textlength(name[:LETTERS]))
    return np.asarray(canvas)


def write_csv(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Write one row per epoch."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_picture(rows: Sequence[dict[str, float]], examples: Examples, path: Path) -> None:
    """Write a PNG: loss (red) and score (blue) over epochs, a line at the best one; below, what `examples` shows."""
    path.write_bytes(png_encode(np.concatenate([_curves(rows), *examples.strips()])))


def _curves(rows: Sequence[dict[str, float]]) -> Picture:
    """Return loss and score over epochs, each with its own scale, and a line at the best score."""
    canvas = Pillow.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = FRAME
    last, best = len(rows) - 1, int(np.argmax([row["score"] for row in rows]))
    xs = np.linspace(left, right, len(rows))
    draw.rectangle(FRAME, outline=GREY)
    draw.line([(xs[best], top), (xs[best], bottom)], fill=GREY)
    for name, at, anchor, share in (("loss", left - 4, "rm", 0.25), ("score", right + 4, "lm", 0.75)):
        values = np.array([row[name] for row in rows])
        highest = max(1.0, float(values.max()))
        points = list(zip(xs, bottom - (bottom - top) * values.clip(0) / highest, strict=True))
        draw.line(points, fill=COLOURS[name], width=2)
        draw.circle(points[best], 3, fill=COLOURS[name])
        draw.text((at, top), f"{highest:.2g}", fill=COLOURS[name], anchor=anchor)
        draw.text((at, bottom), "0", fill=COLOURS[name], anchor=anchor)
        place = left + share * (right - left), bottom + 4
        draw.text(place, f"{name} {values[best]:.3f}", fill=COLOURS[name], anchor="mt")
    draw.text(((left + right) / 2, bottom + 4), f"best: epoch {best + 1} of {last + 1}", fill=BLACK, anchor="mt")
    draw.text((left, bottom + 4), "epoch 1", fill=BLACK, anchor="lt")
    draw.text((right, bottom + 4), f"epoch {last + 1}", fill=BLACK, anchor="rt")
    return np.asarray(canvas)
