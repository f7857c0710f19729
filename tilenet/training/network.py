"""The network that a recipe describes, before training, and its model card."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from tilenet.card import ModelCard
from tilenet.training.recipe import Recipe
from tilenet.training.targets import CLASSES
from tilenet.unet import UNet


def build(recipe: Recipe, channels: int, classes: int, ndim: int) -> UNet:
    """Return the recipe's network with He initialisation, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    network = UNet(
        channels,
        classes,
        recipe.depth,
        recipe.wf,
        recipe.padding,
        recipe.batch_norm,
        recipe.up_mode,
        ndim=ndim,
        pool_size=recipe.pool_size,
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def add_dropout(network: UNet, recipe: Recipe) -> None:
    """Let a network drop features while it is trained, as the recipe says; then it is a changed one, and not saved."""
    network.footprint = network.footprint  # the hook sees no further
    network.down_path[-1].register_forward_hook(
        lambda block, _, x: functional.dropout(x, recipe.dropout, block.training)
    )


def completed(card: ModelCard, recipe: Recipe, values: tuple[int, ...]) -> ModelCard:
    """Return the card with what the recipe decides: classes, mask values, scaling."""
    if recipe.targets == "classes":
        names = card.classes or tuple(f"class {v}" for v in values)
        return replace(card, classes=names, mask_of_class=tuple(range(len(values))), scaling=recipe.scaling)
    names = CLASSES[recipe.targets]
    mask = (0,) + (1,) * (len(names) - 1)
    return replace(
        card, classes=names, mask_of_class=mask, scaling=recipe.scaling, labels=card.labels or {"1": "object"}
    )
