"""Whole images through the network, tile by tile, and their scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tilenet import metrics
from tilenet.geometry import round_down
from tilenet.instances.in_memory import objects
from tilenet.readers.array import ArrayImage
from tilenet.sizes import plan_tiles
from tilenet.training.data import Pair
from tilenet.training.recipe import Recipe
from tilenet.unet import UNet

# Side of the tiles that images are predicted in, by number of axes.
PREDICTED = {2: 512, 3: 48}
Floats = NDArray[np.float32]


def predict_whole(network: UNet, image: Floats) -> Floats:
    """Return the probabilities (K, *n) of a scaled image (C, *n), mirrored at its edges."""
    out = np.empty((network.n_classes, *image.shape[1:]), np.float32)
    device, footprint = next(network.parameters()).device, network.footprint
    source = ArrayImage(image, axes="czyx" if footprint.ndim == 3 else "cyx")
    sides = [max(step, round_down(PREDICTED[footprint.ndim], step)) for step in footprint.step]
    for block in plan_tiles(image.shape[1:], footprint, tile=sides):
        for tile in block.tiles:
            x = torch.from_numpy(np.ascontiguousarray(source.read(tile.read)))[None].to(device)
            with torch.inference_mode():
                p = network(x)[0].float().softmax(dim=0).cpu().numpy()
            out[(slice(None), *tile.write.slices)] = p[(slice(None), *tile.crop.slices)]
    return out


def validate(network: UNet, pairs: Sequence[Pair], recipe: Recipe, values: tuple[int, ...]) -> dict[str, float]:
    """Return the scores of a network on whole images.

    ``dice`` is the Dice coefficient of the foreground, counted over all images (for
    ``targets="classes"``, the mean over all classes but the first). ``f1`` is that of the objects,
    for ``targets="depth"`` only. ``score`` chooses the best epoch.
    """
    pixels: dict[int, metrics.PixelCounts] = defaultdict(metrics.PixelCounts)
    found = metrics.ObjectCounts()
    for pair in pairs:
        probabilities = predict_whole(network, pair.image)
        predicted = probabilities.argmax(axis=0)
        if recipe.targets == "classes":
            truth = np.searchsorted(values, pair.label)
        else:
            predicted, truth = np.minimum(predicted, 1), np.minimum(pair.label, 1)
        for c, n in metrics.count_pixels(predicted, truth).items():
            pixels[c] += n
        if recipe.targets == "depth":
            found += metrics.count_objects(objects(probabilities), pair.label, thresholds=(0.5,))[0.5]
    dice = float(np.mean([n.dice for c, n in pixels.items() if c] or [1.0]))
    if recipe.targets != "depth":
        return {"dice": dice, "score": dice}
    return {"dice": dice, "f1": found.f1, "score": (dice + found.f1) / 2}
