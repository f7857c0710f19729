"""The fast path on a CPU: the same U-Net as a flat list of steps, with Winograd convolutions.

Measured against the plain network, channels last, on two AVX-512 cores (`benchmarks/efficiency.py`): 2.1x for
the paper's network (depth 5, wf 6), 1.4x for wf 5, 1.2x for the packaged one (wf 4). What it does, and why it pays:

- Networks of a width factor of at least `WIDE` stay channels-first. Their 3x3 convolutions of at least
  `WINOGRAD` channels go to NNPACK's Winograd transform, which ships with PyTorch: 1.6 to 2.2x
  oneDNN's direct convolution at 64 channels and above, no gain below. Pooling and the transposed
  convolution, slow in that layout, are rewritten (8x and 1.4x).
- Narrow ones stay channels-last, where oneDNN's direct convolutions are fastest. Changing the layout
  between steps costs more than Winograd gains: 1.3x for wf 4, 1.5x for wf 5.
- In these, unpadded, a transposed convolution, the skip and the convolution after them are one step: 1.1x
  for wf 4, 1.2x for depth 3, wf 2. (The finest level strip by strip, to stay in the cache, gained nothing.)
- Batch normalisation between two unpadded convolutions is folded into the second.
- The 1x1 convolution after bilinear resizing is done before it.
- Steps are flat, so that each tensor is freed as soon as the next one exists.

A network is compared with its plain self at load, and falls back if it differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import product, zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilenet.unet import LINEAR, ConvBlock, UNet, UpBlock, center_crop

# Width factor of a network (2**wf channels in its first block), and channels of one convolution; see above.
WIDE = 5
WINOGRAD = 64
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
        self.layout = torch.contiguous_format if is_wide(network) else torch.channels_last
        self._steps = list(_steps(network, self.layout))

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to logits (N, K, h', w')."""
        skips: list[Tensor] = []
        for step in self._steps:
            x = step(x, skips)
        return x


def is_wide(network: UNet) -> bool:
    """Tell whether a network is run channels-first, with Winograd convolutions."""
    return network.wf >= WIDE


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
    if not torch._nnpack_available():  # also initialises NNPACK
        return None
    fast = FastUNet(network)
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
    quick = network.pooling == "max" and network.pool_size == (2, 2) and layout == torch.contiguous_format
    reduce = _halved if quick else F.max_pool2d if network.pooling == "max" else F.avg_pool2d

    def pool(x: Tensor, skips: list[Tensor]) -> Tensor:
        skips.append(x)
        return reduce(x, network.pool_size)

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
        first, *others = _convolutions(up.conv_block, layout)
        yield from [_fused(up)] if _can_fuse(up, layout) else [_join(up, layout), first]
        yield from others
    yield last


def _halved(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the greatest of each 2 x 2 pixels, rows first, as their neighbours lie in memory one by one."""
    height, width = (length // 2 * 2 for length in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def _convolutions(block: ConvBlock, layout: torch.memory_format) -> Iterator[Step]:
    convolutions = [layer for layer in block.block if isinstance(layer, nn.Conv2d)]
    norms = [_affine(layer) for layer in block.block if isinstance(layer, nn.BatchNorm2d)]
    before = None
    for layer, after in zip_longest(convolutions, norms):
        weight, bias = _folded(layer, before)
        # Zeros that are padded come after the normalisation, so that it folds only where there are none.
        before = after if layer is convolutions[0] and not any(layer.padding) else None
        yield _convolution(weight, bias, int(layer.padding[0]), None if before else after, layout)


def _convolution(weight: Tensor, bias: Tensor, padding: int, after: Affine | None, layout: torch.memory_format) -> Step:
    """Return convolution, ReLU and, in place, batch normalisation."""
    winograd = layout == torch.contiguous_format and min(weight.shape[:2]) >= WINOGRAD
    weight = weight.contiguous(memory_format=layout)

    def convolve(x: Tensor, skips: list[Tensor]) -> Tensor:
        if winograd:
            x = torch._nnpack_spatial_convolution(x, weight, bias, padding, 1).relu_()
        else:
            # oneDNN's own ReLU would save 3 % of the time, but makes 0 of what is not a number.
            x = F.conv2d(x, weight, bias, padding=padding).relu_()
        return x if after is None else torch.addcmul(after[1], x, after[0], out=x)

    return convolve


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


def _join(up: UpBlock, layout: torch.memory_format) -> Step:
    """Return upsampling into the first half of the channels, the skip into the other."""
    enlarge, (tall, wide) = _enlargement(up.up, layout), up.pool_size

    def join(x: Tensor, skips: list[Tensor]) -> Tensor:
        skip = skips.pop()
        channels, height, width = skip.shape[1], x.shape[2] * tall, x.shape[3] * wide
        joined = torch.empty((len(x), 2 * channels, height, width), dtype=x.dtype, memory_format=layout)
        enlarge(x, joined[:, :channels])
        joined[:, channels:] = center_crop(skip, (height, width))
        return joined

    return join


def _can_fuse(up: UpBlock, layout: torch.memory_format) -> bool:
    """Tell whether upsampling and the convolution after it are done as one.

    Not where zeros are padded between them, and not channels-first, where Winograd needs fewer products.
    """
    first = up.conv_block.block[0]
    assert isinstance(first, nn.Conv2d)
    plain = isinstance(up.up, nn.ConvTranspose2d) and up.pool_size == (2, 2)
    return plain and layout == torch.channels_last and not any(first.padding)


def _fused(up: UpBlock) -> Step:
    """Return upsampling, the skip, the first convolution and its ReLU as one step, channels-last.

    A transposed convolution of 2 x 2 taps and the 3x3 one after it are four 2x2 convolutions of the coarse
    pixels, one for each of the four fine pixels in a coarse one: 8 products instead of 11, and
    nothing is joined in memory.
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
        skip = center_crop(skips.pop(), (2 * x.shape[2], 2 * x.shape[3]))
        out = F.conv2d(skip, of_skip, bias)  # (N, C, 2 h, 2 w)
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


def _enlargement(up: nn.Module, layout: torch.memory_format) -> Callable[[Tensor, Tensor], object]:
    """Return what upsamples its first argument into its second."""
    if isinstance(up, nn.ConvTranspose2d):
        return _interleaved(up) if layout == torch.contiguous_format else lambda x, out: out.copy_(up(x))
    assert isinstance(up, nn.Sequential)
    resize, convolution = up
    assert isinstance(resize, nn.Upsample)
    # They commute, and the convolution is a quarter of the work this way round.
    return lambda x, out: out.copy_(F.interpolate(convolution(x), scale_factor=resize.scale_factor, mode=LINEAR[2]))


def _interleaved(up: nn.ConvTranspose2d) -> Callable[[Tensor, Tensor], object]:
    """Return a transposed convolution whose taps do not overlap: a 1x1 one to all taps, spread out."""
    tall, wide = up.kernel_size
    weight = up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels, 1, 1).contiguous()
    assert up.bias is not None
    bias = up.bias.repeat(tall * wide)

    def enlarge(x: Tensor, out: Tensor) -> object:
        n, _, height, width = x.shape
        taps = F.conv2d(x, weight, bias).view(n, tall, wide, -1, height, width)
        return out.view(n, -1, height, tall, width, wide).copy_(taps.permute(0, 3, 4, 1, 5, 2))

    return enlarge
