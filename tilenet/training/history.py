"""The curves of a training: a CSV for programs, a picture for people."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import png_encode
from numpy.typing import NDArray
from skimage.draw import line

from tilenet.training.data import Pair

Picture = NDArray[np.uint8]
HEIGHT, WIDTH, SIDE = 160, 640, 208
COLOURS = {"loss": (200, 60, 40), "score": (30, 110, 200)}


def write_csv(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Write one row per epoch."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_picture(rows: Sequence[dict[str, float]], examples: Sequence[tuple[Pair, NDArray[Any]]], path: Path) -> None:
    """Write a PNG: loss (red) and score (blue) over epochs; below, images, truths and predictions.

    Parameters
    ----------
    rows : sequence of dict
        One per epoch, with ``loss`` and ``score``.
    examples : sequence of (Pair, array)
        Validation images and their predicted classes (*n); three at most are shown.
    path : Path
        File to be replaced.
    """
    strips = [_curves(rows)]
    for pair, predicted in examples[:3]:
        views = [_plane(np.moveaxis(pair.image, 0, -1)), _plane(_coloured(pair.label)), _plane(_coloured(predicted))]
        strip = np.concatenate(views, axis=1)
        strips.append(np.pad(strip, [(8, 0), (0, WIDTH - strip.shape[1]), (0, 0)], constant_values=255))
    path.write_bytes(png_encode(np.concatenate(strips)))


def _curves(rows: Sequence[dict[str, float]]) -> Picture:
    canvas = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    canvas[[0, -1]] = canvas[:, [0, -1]] = 160
    for name, colour in COLOURS.items():
        values = np.array([row[name] for row in rows])
        top = max(1e-9, float(values.max())) if name == "loss" else 1.0
        ys = np.round((HEIGHT - 5) * (1 - np.clip(values / top, 0, 1))).astype(int) + 2
        xs = np.linspace(2, WIDTH - 3, len(values)).astype(int)
        for k in range(max(1, len(values) - 1)):
            canvas[line(ys[k], xs[k], ys[min(k + 1, len(ys) - 1)], xs[min(k + 1, len(xs) - 1)])] = colour  # type: ignore[no-untyped-call]
    return canvas


def _coloured(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Return a colour for each label, the same every time; 0 is black."""
    table = np.random.default_rng(1).uniform(0.3, 1, (256, 3)).astype(np.float32)
    table[0] = 0
    return np.asarray(table[np.where(labels, labels % 255 + 1, 0)], np.float32)


def _plane(picture: NDArray[np.float32]) -> Picture:
    """Return the corner of a picture (*n, C), the middle plane of a volume: (SIDE, SIDE, 3)."""
    if picture.ndim == 4:
        picture = picture[len(picture) // 2]
    corner = picture[:SIDE, :SIDE, :3] if picture.shape[-1] >= 3 else picture[:SIDE, :SIDE, :1].repeat(3, axis=-1)
    view = np.full((SIDE, SIDE, 3), 255, np.uint8)
    view[: corner.shape[0], : corner.shape[1]] = (np.clip(corner, 0, 1) * 255).astype(np.uint8)
    return view
