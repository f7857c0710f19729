"""The curves of a training: a CSV for programs, a picture for people."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from imagecodecs import png_encode
from PIL import Image as Pillow
from PIL import ImageDraw

from tilenet.training.examples import WIDTH, Examples, Picture

HEIGHT = 200
# Left, top, right and bottom of the area of the curves; their scales are around it.
FRAME = (40, 10, WIDTH - 40, HEIGHT - 24)
GREY, BLACK = (160, 160, 160), (0, 0, 0)
COLOURS = {"loss": (200, 60, 40), "score": (30, 110, 200)}


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
