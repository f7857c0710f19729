"""The fast path on a CPU: the same U-Net as a flat list of steps, channels last.

What it does, and why it pays, measured on two AVX-512 cores (`benchmarks/efficiency.py`):

- 3x3 convolutions of at least `WINOGRAD` channels are Winograd's (`tilenet/winograd.py`: 1.2 to 3.3x);
  narrower ones oneDNN's direct ones, which are as fast as the processor in this layout.
- Unpadded, a transposed convolution, the skip and a narrow convolution after them are one step: 1.1x
  for wf 4, 1.2x for depth 3, wf 2.
- Unpadded blocks of narrow convolutions are done band after band of rows: as fast, in 0.6 times the
  memory (wf 4 and 5).
- Batch normalisation between two unpadded convolutions is folded into the second.
- The 1x1 convolution after bilinear resizing is done before it.
- Steps are flat, so that each tensor is freed as soon as the next one exists.

A network is compared with its plain self at load, and falls back if it differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product, zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilenet.unet import LINEAR, ConvBlock, UNet, UpBlock, center_crop
from tilenet.winograd import WinogradConvolution

# Channels, in and out, from which a convolution is Winograd's: below, its sums take longer than the products it saves.
# Not a matter of the instruction set, on which memory, and with it default tiles, would then depend: with AVX2 alone
# 64 would be as good (wf 6, one tile: 1.17 s for 1.23; with AVX-512 0.84 for 0.75).
WINOGRAD = 128
# Rows and columns that a block's two 3x3 convolutions cost, and bytes of the rows taken at once.
LOST = 4
BAND = 8e6
# Largest difference from the plain network, as a part of the logits' range.
TOLERANCE = 1e-5
Step = Callable[[Tensor, list[Tensor]], Tensor]
Affine = tuple[Tensor, Tensor]

log = logging.getLogger("tilenet")


class FastUNet:
    """A U-Net as a list of steps; call it like the network.

    Parameters
    ----------
    network : UNet
        2-D, float32, in eval mode on the CPU; it is left as it is.
    """

    def __init__(self, network: UNet) -> None:
        self._steps = list(_steps(network))

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w), channels last, to logits (N, K, h', w')."""
        skips: list[Tensor] = []
        for step in self._steps:
            x = step(x, skips)
        return x


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
        difference = (fast(x.to(memory_format=torch.channels_last)) - plain).abs().max() / (plain.max() - plain.min())
    if difference <= TOLERANCE:
        return fast
    log.warning("the fast path differs from this network by %.1e of its range: the plain one is used", difference)
    return None


def _steps(network: UNet) -> Iterator[Step]:
    reduce = F.max_pool2d if network.pooling == "max" else F.avg_pool2d
    # Not the network itself, most of whose weights are not used any more.
    size, to_logits = network.pool_size, network.last

    def pool(x: Tensor, skips: list[Tensor]) -> Tensor:
        skips.append(x)
        return reduce(x, size)

    def last(x: Tensor, skips: list[Tensor]) -> Tensor:
        out: Tensor = to_logits(x)
        return out

    for i, down in enumerate(network.down_path):
        assert isinstance(down, ConvBlock)
        if i:
            yield pool
        steps, channels = list(_convolutions(down)), 2 ** (network.wf + i)
        yield from [_Bands(steps, channels)] if takes_bands(down) else steps
    for i, up in enumerate(network.up_path, start=2):
        assert isinstance(up, UpBlock)
        first, *others = _convolutions(up.conv_block)
        channels = 2 ** (network.wf + network.depth - i)
        if i == network.depth:
            others.append(last)
        yield from (
            [_Bands([_fused(up), *others], channels, scale=2)] if takes_bands(up) else [_join(up), first, *others]
        )
    if network.depth == 1:
        yield last


def takes_bands(block: ConvBlock | UpBlock) -> bool:
    """Tell whether a block is done band after band, with upsampling and the convolution after it as one.

    Not where zeros are padded, as between bands there are none, nor where Winograd needs fewer products, nor
    where upsampling is anything but a transposed convolution of 2 x 2 taps.
    """
    inner = block.conv_block if isinstance(block, UpBlock) else block
    convolutions = [layer for layer in inner.block if isinstance(layer, nn.Conv2d)]
    if any(any(layer.padding) or is_winograd(layer.weight) for layer in convolutions):
        return False
    return inner is block or (isinstance(block.up, nn.ConvTranspose2d) and block.pool_size == (2, 2))


@dataclass
class _Bands:
    """The steps of a block, one band of rows after the other: what is between them is in memory in part only.

    Attributes
    ----------
    steps : list
        Two 3x3 convolutions, unpadded, the first perhaps with upsampling and a skip.
    channels : int
        What the first gives.
    scale : int
        Rows that they make of one, but for those that are lost: 2 with upsampling, 1 without.
    """

    steps: list[Step]
    channels: int
    scale: int = 1

    def __call__(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Map (N, C, h, w) to (N, K, scale * h - 4, scale * w - 4)."""
        height, width = self.scale * x.shape[2] - LOST, self.scale * x.shape[3]
        skip = center_crop(skips.pop(), (height + LOST, width)) if self.scale > 1 else x
        rows = max(2, int(BAND / (len(x) * self.channels * width * x.itemsize)) // 2 * 2)
        out = torch.empty(0)
        for top in range(0, height, rows):
            stop = min(top + rows, height)
            made, beside = x[:, :, top // self.scale : (stop + LOST) // self.scale], [skip[:, :, top : stop + LOST]]
            for step in self.steps:
                made = step(made, beside)
            if top == 0:
                shape = (len(x), made.shape[1], height, made.shape[3])
                out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            out[:, :, top:stop] = made
        return out


def _convolutions(block: ConvBlock) -> Iterator[Step]:
    convolutions = [layer for layer in block.block if isinstance(layer, nn.Conv2d)]
    norms = [_affine(layer) for layer in block.block if isinstance(layer, nn.BatchNorm2d)]
    before = None
    for layer, after in zip_longest(convolutions, norms):
        weight, bias = _folded(layer, before)
        # Zeros that are padded come after the normalisation, so that it folds only where there are none.
        before = after if layer is convolutions[0] and not any(layer.padding) else None
        yield _convolution(weight, bias, int(layer.padding[0]), None if before else after)


def _convolution(weight: Tensor, bias: Tensor, padding: int, after: Affine | None) -> Step:
    """Return convolution, ReLU and, in place, batch normalisation."""
    if is_winograd(weight):
        convolved: Callable[[Tensor], Tensor] = WinogradConvolution(weight, bias, padding)
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)

        def convolved(x: Tensor) -> Tensor:
            # oneDNN's own ReLU would save 3 % of the time, but makes 0 of what is not a number.
            return F.conv2d(x, weight, bias, padding=padding).relu_()

    def convolve(x: Tensor, skips: list[Tensor]) -> Tensor:
        x = convolved(x)
        return x if after is None else torch.addcmul(after[1], x, after[0], out=x)

    return convolve


def is_winograd(weight: Tensor) -> bool:
    """Tell whether a convolution with these weights (K, C, 3, 3) is done by Winograd's transform."""
    return min(weight.shape[:2]) >= WINOGRAD


def _affine(norm: nn.BatchNorm2d) -> Affine:
    """Return batch normalisation as a scale and a shift, (1, C, 1, 1)."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return scale.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)


def _folded(layer: nn.Conv2d, before: Affine | None) -> tuple[Tensor, Tensor]:
    """Return weights and biases of a convolution that takes in the scale and shift before it."""
    assert layer.bias is not None
    if before is None:
        return layer.weight, layer.bias
    return layer.weight * before[0], layer.bias + (layer.weight * before[1]).sum((1, 2, 3))


def _join(up: UpBlock) -> Step:
    """Return upsampling into the first half of the channels, the skip into the other."""
    enlarge, (tall, wide) = _enlargement(up.up), up.pool_size

    def join(x: Tensor, skips: list[Tensor]) -> Tensor:
        skip = skips.pop()
        channels, height, width = skip.shape[1], x.shape[2] * tall, x.shape[3] * wide
        shape = (len(x), 2 * channels, height, width)
        joined = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        joined[:, :channels] = enlarge(x)
        joined[:, channels:] = center_crop(skip, (height, width))
        return joined

    return join


def _fused(up: UpBlock) -> Step:
    """Return upsampling, the skip, the first convolution and its ReLU as one step, channels-last.

    A transposed convolution of 2 x 2 taps and the 3x3 one after it are four 2x2 convolutions of the coarse
    pixels, one for each of the four fine pixels in a coarse one: 8 products instead of 11, and
    nothing is joined in memory. The skip is as large as the upsampled pixels, (N, C, 2 h, 2 w).
    """
    first, coarse = up.conv_block.block[0], up.up
    assert isinstance(first, nn.Conv2d) and isinstance(coarse, nn.ConvTranspose2d)
    assert first.bias is not None and coarse.bias is not None
    channels = first.out_channels
    of_up, of_skip = first.weight.chunk(2, dim=1)
    taps = _composed(coarse.weight, of_up).contiguous(memory_format=torch.channels_last)
    of_skip = of_skip.contiguous(memory_format=torch.channels_last)
    bias = first.bias + torch.einsum("omij,m->o", of_up, coarse.bias)

    def join(x: Tensor, skips: list[Tensor]) -> Tensor:
        out = F.conv2d(skips.pop(), of_skip, bias)  # (N, C, 2 h - 2, 2 w - 2)
        fine = F.conv2d(x, taps)  # (N, (2, 2, C), h, w)
        n, _, height, width = fine.shape
        rows = out.permute(0, 2, 3, 1).view(n, height, 2, width, 2, channels)
        rows += fine.permute(0, 2, 3, 1).view(n, height, width, 2, 2, channels).transpose(2, 3)
        return out.relu_()

    return join


def _composed(transposed: Tensor, convolution: Tensor) -> Tensor:
    """Return the 2x2 weights (4 O, I, 2, 2) of a transposed convolution (I, M, 2, 2) and a 3x3 one (O, M, 3, 3).

    Fine pixel ``2 k + p`` of the output sees fine pixels ``2 k + p + i``: of coarse pixel ``k + (p + i) // 2``
    the tap ``(p + i) % 2``, and so along both axes.
    """
    outputs, inputs = len(convolution), len(transposed)
    taps = torch.zeros((2, 2, outputs, inputs, 2, 2), dtype=torch.float64)
    for p, q, i, j in product(range(2), range(2), range(3), range(3)):
        tap = transposed[:, :, (p + i) % 2, (q + j) % 2]
        weight = torch.einsum("om,im->oi", convolution[:, :, i, j].double(), tap.double())
        taps[p, q, :, :, (p + i) // 2, (q + j) // 2] += weight
    return taps.reshape(4 * outputs, inputs, 2, 2).to(convolution.dtype)


def _enlargement(up: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what upsamples."""
    if isinstance(up, nn.ConvTranspose2d):
        return up
    assert isinstance(up, nn.Sequential)
    resize, convolution = up
    assert isinstance(resize, nn.Upsample)
    # They commute, and the convolution is a quarter of the work this way round.
    return lambda x: F.interpolate(convolution(x), scale_factor=resize.scale_factor, mode=LINEAR[2])
