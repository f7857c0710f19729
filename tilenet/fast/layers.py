"""The convolutions of a U-Net block, each with its ReLU and batch normalisation, as both fast paths compute them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tilenet.unet_blocks import ConvBlock

Affine = tuple[Tensor, Tensor]


class Layer(NamedTuple):
    """A 3x3 convolution, its ReLU, and the batch normalisation after it, if any."""

    weight: Tensor
    bias: Tensor
    padding: int
    affine: Affine | None


def layers_of(block: ConvBlock) -> Iterator[Layer]:
    """Yield the two layers of a block in eval mode, the first's normalisation folded into the second if possible."""
    convolutions = [layer for layer in block.block if isinstance(layer, nn.Conv2d)]
    norms = [_affine(layer) for layer in block.block if isinstance(layer, nn.BatchNorm2d)]
    before = None
    for layer, after in zip_longest(convolutions, norms):
        weight, bias = _folded(layer, before)
        # Zeros are padded after the normalisation, so that it can be folded only if there is no padding.
        before = after if layer is convolutions[0] and not any(layer.padding) else None
        yield Layer(weight, bias, int(layer.padding[0]), None if before else after)


def _affine(norm: nn.BatchNorm2d) -> Affine:
    """Return batch normalisation as a scale and a shift, (1, C, 1, 1)."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return scale.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)


def _folded(layer: nn.Conv2d, before: Affine | None) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of a convolution with the scale and shift before it folded in."""
    assert layer.bias is not None
    if before is None:
        return layer.weight, layer.bias
    return layer.weight * before[0], layer.bias + (layer.weight * before[1]).sum((1, 2, 3))
