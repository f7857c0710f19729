"""The fast path on a CPU: the same U-Net as a flat list of steps, with Winograd convolutions.

Measured against the plain network on one AVX-512 core shared with other work (depth 5, tile
572): 2.1x for wf 6, 1.2x for wf 4. What it does, and why it pays:

- 3x3 convolutions of at least `WINOGRAD` channels go to NNPACK's Winograd transform, which
  ships with PyTorch: 1.6 to 2.2x oneDNN's direct convolution at 64 channels and above, no
  gain below.
- Narrow networks stay channels-last, wide ones channels-first: what each convolution likes.
- The 2x2 transposed convolution is a 1x1 convolution to four times the channels, shuffled
  straight into the joined tensor; the 1x1 after bilinear resizing is done before it.
- Steps are flat, so that each tensor is freed as soon as the next one exists.

A network is compared with its plain self at load, and falls back if it differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilenet.unet import LINEAR, ConvBlock, UNet, UpBlock, center_crop

WINOGRAD = 64
# Largest difference from the plain network, as a part of the logits' range.
TOLERANCE = 1e-5
Step = Callable[[Tensor, list[Tensor]], Tensor]

log = logging.getLogger("tilenet")


class WinogradUNet:
    """A U-Net as a list of steps; call it like the network.

    Parameters
    ----------
    network : UNet
        2-D, float32, in eval mode on the CPU; it is left as it is.
    """

    def __init__(self, network: UNet) -> None:
        # Below 64 channels oneDNN's channels-last convolutions win, and most of the time is there.
        wide = 2**network.wf >= WINOGRAD
        self.layout = torch.contiguous_format if wide else torch.channels_last
        self._steps = list(_steps(network, self.layout))

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to logits (N, K, h', w')."""
        skips: list[Tensor] = []
        for step in self._steps:
            x = step(x, skips)
        return x


def accelerate(network: nn.Module) -> WinogradUNet | None:
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
    if not torch._nnpack_available():  # also initialises NNPACK
        return None
    fast = WinogradUNet(network)
    length = network.footprint.axes[0].legal_at_least(network.footprint.axes[0].smallest + 32)
    x = torch.rand(1, network.in_channels, length, length, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = network(x)
        difference = (fast(x.to(memory_format=fast.layout)) - plain).abs().max() / (plain.max() - plain.min())
    if difference <= TOLERANCE:
        return fast
    log.warning("the fast path differs from this network by %.1e of its range: the plain one is used", difference)
    return None


def _steps(network: UNet, layout: torch.memory_format) -> Iterator[Step]:
    def pool(x: Tensor, skips: list[Tensor]) -> Tensor:
        skips.append(x)
        function = F.max_pool2d if network.pooling == "max" else F.avg_pool2d
        return function(x, network.pool_size)

    def last(x: Tensor, skips: list[Tensor]) -> Tensor:
        out: Tensor = network.last(x)
        return out

    for i, down in enumerate(network.down_path):
        assert isinstance(down, ConvBlock)
        if i:
            yield pool
        yield from _convolutions(down, layout)
    for up in network.up_path:
        assert isinstance(up, UpBlock)
        yield _join(up, layout)
        yield from _convolutions(up.conv_block, layout)
    yield last


def _convolutions(block: ConvBlock, layout: torch.memory_format) -> Iterator[Step]:
    layers = list(block.block)
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            norm = layers[i + 2] if i + 2 < len(layers) else None
            yield _convolution(layer, norm if isinstance(norm, nn.BatchNorm2d) else None, layout)


def _convolution(layer: nn.Conv2d, norm: nn.BatchNorm2d | None, layout: torch.memory_format) -> Step:
    """Return convolution, ReLU and, as a scale and a shift in place, batch normalisation."""
    winograd = min(layer.in_channels, layer.out_channels) >= WINOGRAD
    padding = int(layer.padding[0])
    weight = layer.weight if winograd else layer.weight.to(memory_format=layout)
    affine = _affine(norm) if norm is not None else None

    def convolve(x: Tensor, skips: list[Tensor]) -> Tensor:
        if winograd:
            x = torch._nnpack_spatial_convolution(x.contiguous(), weight, layer.bias, padding, 1)
            x = x.relu_().contiguous(memory_format=layout)
        else:
            x = F.conv2d(x, weight, layer.bias, padding=padding).relu_()
        return x if affine is None else torch.addcmul(affine[1], x, affine[0], out=x)

    return convolve


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return scale.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)


def _join(up: UpBlock, layout: torch.memory_format) -> Step:
    """Return upsampling into the first half of the channels, the skip into the other."""
    enlarge = _transposed(up.up, up.pool_size) if isinstance(up.up, nn.ConvTranspose2d) else _linear(up.up)

    def join(x: Tensor, skips: list[Tensor]) -> Tensor:
        y = enlarge(x)
        n, channels, height, width = y.shape
        joined = torch.empty((n, 2 * channels, height, width), dtype=y.dtype, memory_format=layout)
        joined[:, :channels] = y
        del y
        joined[:, channels:] = center_crop(skips.pop(), (height, width))
        return joined

    return join


def _transposed(up: nn.ConvTranspose2d, size: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    if size[0] != size[1]:
        return up
    area = size[0] * size[1]
    weight = up.weight.permute(1, 2, 3, 0).reshape(up.out_channels * area, up.in_channels, 1, 1).contiguous()
    assert up.bias is not None
    bias = up.bias.repeat_interleave(area)
    return lambda x: F.pixel_shuffle(F.conv2d(x, weight, bias), size[0])


def _linear(up: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the 1x1 convolution before the resizing: they commute, and it is a quarter of the work."""
    assert isinstance(up, nn.Sequential)
    resize, convolution = up
    assert isinstance(resize, nn.Upsample)
    return lambda x: F.interpolate(convolution(x), scale_factor=resize.scale_factor, mode=LINEAR[2])
