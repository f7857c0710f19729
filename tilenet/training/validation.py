"""Whole images through the network, tile by tile, and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilenet import metrics
from tilenet.errors import ModelError
from tilenet.instances import objects
from tilenet.readers.image import fold
from tilenet.training.data import Pair, find_pairs, read_pair
from tilenet.training.recipe import Recipe
from tilenet.unet import UNet

TILE = {2: 512, 3: 48}
Floats = NDArray[np.float32]


def predict_whole(network: UNet, image: Floats) -> Floats:
    """Return the probabilities (K, *n) of a scaled image (C, *n), mirrored at its edges."""
    out = np.empty((network.n_classes, *image.shape[1:]), np.float32)
    parameter = next(network.parameters())
    for spans in _spans(network, image.shape[1:]):
        tile = image
        for axis, (_, read, _) in enumerate(spans, start=1):
            f = fold(read[0], read[1], image.shape[axis])
            tile = f.unfolded(tile[(slice(None),) * axis + (slice(f.start, f.stop),)], axis)
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(tile))[None].to(parameter.device)
            p = network(x)[0].float().softmax(dim=0).cpu().numpy()
        out[(slice(None), *(slice(*w) for w, _, _ in spans))] = p[(slice(None), *(slice(*c) for _, _, c in spans))]
    return out


def _spans(network: UNet, shape: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Yield, for each tile and axis, what is written, read and cropped."""
    axes = network.footprint.axes
    side = TILE[len(axes)] // max(a.step for a in axes) * max(a.step for a in axes)
    starts = [range(0, n, side) for n in shape]
    for corner in product(*starts):
        writes = [(s, min(n, s + side)) for s, n in zip(corner, shape, strict=True)]
        yield tuple((w, *a.span(*w)) for w, a in zip(writes, axes, strict=True))


def validate(network: UNet, pairs: Sequence[Pair], recipe: Recipe, values: tuple[int, ...]) -> dict[str, float]:
    """Return the scores of a network on whole images.

    ``dice`` is that of the foreground (the mean over classes but the first, for
    ``targets="classes"``), counted over all images; ``f1`` that of the objects, where the
    classes tell their depth. ``score`` is the one that chooses the best epoch.
    """
    pixels: dict[int, metrics.PixelCounts] = {}
    found = metrics.ObjectCounts()
    for pair in pairs:
        probabilities = predict_whole(network, pair.image)
        predicted = probabilities.argmax(axis=0)
        if recipe.targets == "classes":
            truth = np.searchsorted(values, pair.label)
        else:
            predicted, truth = np.minimum(predicted, 1), np.minimum(pair.label, 1)
        for c, n in metrics.count_pixels(predicted, truth).items():
            pixels[int(c)] = pixels.get(int(c), metrics.PixelCounts()) + n
        if recipe.targets == "depth":
            found += metrics.count_objects(objects(probabilities), pair.label, thresholds=(0.5,))[0.5]
    dice = float(np.mean([n.dice for c, n in pixels.items() if c] or [1.0]))
    if recipe.targets != "depth":
        return {"dice": dice, "score": dice}
    return {"dice": dice, "f1": found.f1, "score": (dice + found.f1) / 2}


def score_pairs(network: UNet, folder: str | Path, stems: Sequence[str]) -> dict[str, float]:
    """Score a model on some of the pairs of a folder, its objects against instance labels.

    Counts are pooled over the images; ``mean_ap`` is the mean of the images' values.
    """
    if network.card is None:
        raise ModelError("the network has no card, so nothing says how its images are scaled. Load it from a file")
    pixels, found, precisions = metrics.PixelCounts(), metrics.ObjectCounts(), []
    paths = find_pairs(folder)
    for stem in stems:
        pair = read_pair(stem, *paths[stem], scaling=network.card.scaling)
        image = np.broadcast_to(pair.image, (network.in_channels, *pair.label.shape))
        probabilities = predict_whole(network, image)
        labels = objects(probabilities)
        foreground = np.take(network.card.mask_of_class, probabilities.argmax(axis=0)) > 0
        pixels += metrics.count_pixels(foreground, pair.label > 0).get(1, metrics.PixelCounts())
        found += metrics.count_objects(labels, pair.label, thresholds=(0.5,))[0.5]
        precisions.append(metrics.mean_average_precision(labels, pair.label))
    return {
        "images": len(stems),
        "dice": pixels.dice,
        "f1": found.f1,
        "precision": found.precision,
        "recall": found.recall,
        "panoptic_quality": found.panoptic_quality,
        "mean_ap": float(np.mean(precisions)) if precisions else 1.0,
    }
