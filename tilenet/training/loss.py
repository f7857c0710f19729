"""The loss, the optimizer and the learning rate of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilenet.training.recipe import Recipe

# Steps in which the learning rate rises; a tenth of all steps if that is fewer.
WARM_UP = 100


def rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: a short warm-up, a plateau if the recipe has one, then a cosine to zero."""
    warm = min(1.0, (step + 1) / min(WARM_UP, max(1, steps // 10)))
    done = max(0.0, step / steps - recipe.hold) / (1 - recipe.hold) if recipe.hold < 1 else 0.0
    return recipe.peak_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(logits: Tensor, target: Tensor, *, dice: float, class_weights: Tensor) -> Tensor:
    """Return the weighted cross entropy plus `dice` times the soft Dice loss of the foreground.

    The logits are (N, K, *n) float32, the target is (N, 2, *n), class and weight. The class weights (K,) are multiplied
    with the weight of each pixel.
    """
    classes, weights = target[:, 0].long(), target[:, 1]
    weights = weights * class_weights[classes]
    entropy = functional.cross_entropy(logits, classes, reduction="none")
    # Of a batch whose pixels all have weight 0, the loss is 0 and not NaN, which would spoil all weights.
    loss = (entropy * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    if not dice:
        return loss
    found, truth = 1 - logits.softmax(dim=1)[:, 0].flatten(1), (classes > 0).float().flatten(1)
    # A constant number of pixels in both, so that crops without objects do not swing the loss.
    overlap = (2 * (found * truth).sum(1) + 50) / (found.sum(1) + truth.sum(1) + 50)
    return loss + dice * (1 - overlap).mean()


def class_weights(targets: Sequence[Tensor], recipe: Recipe, classes: int) -> Tensor:
    """Return 1 for each class or, if the recipe asks for balance, inverse frequencies with mean 1.

    Weights that the recipe gives are in the targets already.
    """
    if recipe.class_weights != ("balanced",):
        return torch.ones(classes)
    counts = sum(torch.bincount(t[0].long().flatten(), minlength=classes) for t in targets)
    inverse = 1 / torch.as_tensor(counts).clamp_min(1).float()
    return inverse / inverse.mean()


def optimizer_of(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for a network's weights."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=recipe.peak_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(network.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay)
