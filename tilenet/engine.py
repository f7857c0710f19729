"""The fast path on a CPU: the same U-Net as a flat list of steps (`tilenet/steps.py`), channels last.

What it does, and why it pays, measured on two AVX-512 cores (`benchmarks/efficiency.py`):

- 3x3 convolutions of at least 128 channels are Winograd's (`tilenet/winograd.py`: 1.2 to 3.3x);
  narrower ones oneDNN's direct ones, which are as fast as the processor in this layout.
- Unpadded, a transposed convolution, the skip and a narrow convolution after them are one step: 1.1x
  for wf 4, 1.2x for depth 3, wf 2.
- Networks that neither pad nor clamp are done in bands of rows (`tilenet/bands.py`), and their blocks of
  narrow convolutions in bands that fit a cache.
- Batch normalisation between two unpadded convolutions is folded into the second.
- The 1x1 convolution after bilinear resizing is done before it.
- Steps are flat, so that each tensor is freed as soon as the next one exists.

A network is compared with its plain self at load, and falls back if it differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from tilenet.bands import BAND_PIXELS, can_band, split_rows
from tilenet.steps import WINOGRAD, in_bands, steps_of
from tilenet.stream import Stream
from tilenet.unet import UNet
from tilenet.winograd import GROWN, STRIP

# Largest difference from the plain network, as a part of the logits' range.
TOLERANCE = 1e-5
log = logging.getLogger("tilenet")


class FastUNet:
    """A U-Net as a list of steps; call it like the network.

    Parameters
    ----------
    network : UNet
        2-D, float32, in eval mode on the CPU; it is left as it is.
    """

    def __init__(self, network: UNet) -> None:
        self._steps, self._axis = list(steps_of(network)), network.footprint.axes[0]

    def __call__(self, x: Tensor, prepared: Callable[[Tensor], Tensor]) -> Tensor:
        """Map (N, C, h, w) to logits (N, K, h', w'); each band is prepared: made float32, channels last."""
        n, _, height, width = x.shape
        bands = split_rows(self._axis, height, n * width) if can_band(self._axis) else [(0, height)]
        return in_bands([lambda band, stream: prepared(band), *self._steps], x, bands, Stream(), scale=1)


def accelerate(network: nn.Module) -> FastUNet | None:
    """Return the fast path of a network, or None (and say so) where it is not the same.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode. Anything but a 2-D float32 `UNet` on a CPU has no fast path.
    """
    if (
        not isinstance(network, UNet)
        or network.ndim != 2
        or network.training
        or network.last.weight.dtype != torch.float32
    ):
        return None
    fast = FastUNet(network)
    length = network.footprint.axes[0].legal_at_least(network.footprint.axes[0].smallest + 32)
    x = torch.rand(1, network.in_channels, length, length, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = network(x)
        difference = (fast(x, channels_last) - plain).abs().max() / (plain.max() - plain.min())
    if difference <= TOLERANCE:
        return fast
    log.warning("the fast path differs from this network by %.1e of its range: the plain one is used", difference)
    return None


def channels_last(x: Tensor) -> Tensor:
    """Return (N, C, h, w) in the layout that convolutions take here."""
    return x.to(memory_format=torch.channels_last)


def winograd_bytes(network: UNet) -> float:
    """Return the bytes of the widest of Winograd's transforms: before and after the products, and between two sums.

    That is at the finest level that has any: of a strip, or of all rows of a band where that is less.
    """
    levels = [i for i in range(network.depth) if 2 ** (network.wf + i) >= WINOGRAD]
    if not levels:
        return 0.0
    # Of a block's convolutions the first of the expanding path has most channels: twice those that it makes.
    channels, pixels = 3 * 2 ** (network.wf + levels[0]), BAND_PIXELS / prod(network.pool_size) ** levels[0]
    return float(2.5 * min(STRIP, GROWN * channels * pixels * network.last.weight.itemsize))
