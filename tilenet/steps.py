"""A U-Net as steps: functions of (N, C, h, w), channels last, and of what came before in the same pass.

Steps that neither pad nor clamp may be given an image in bands of rows: what they make of them, one below the other, is
what they make of the whole, as each keeps in the `Stream` the rows that it needs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product, zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilenet.stream import Stream, rows_of, stacked
from tilenet.unet import LINEAR, ConvBlock, UNet, UpBlock
from tilenet.winograd import WinogradConvolution

# Channels, in and out, from which a convolution is Winograd's: below, its sums take longer than the products it saves.
# Not a matter of the instruction set, on which memory, and with it default tiles, would then depend: with AVX2 alone
# 64 would be as good (wf 6, one tile: 1.17 s for 1.23; with AVX-512 0.84 for 0.75).
WINOGRAD = 128
# Rows and columns that a block's two 3x3 convolutions cost; rows that it makes at once, in bytes and at the least.
LOST = 4
BAND = 8e6
LEAST = 24
Step = Callable[[Tensor, Stream], Tensor]
Affine = tuple[Tensor, Tensor]


def steps_of(network: UNet) -> Iterator[Step]:
    """Yield the steps of a network, in eval mode; its weights are shared or copied, it is left as it is."""
    # Not the network itself, most of whose weights are not used any more.
    to_logits = network.last

    def last(x: Tensor, stream: Stream) -> Tensor:
        out: Tensor = to_logits(x)
        return out

    for level, down in enumerate(network.down_path):
        assert isinstance(down, ConvBlock)
        if level:
            yield _pool(network, level - 1)
        steps, channels = list(_convolutions(down)), 2 ** (network.wf + level)
        yield from [_Bands(steps, channels)] if takes_bands(down) else steps
    for level, up in zip(reversed(range(network.depth - 1)), network.up_path, strict=True):
        assert isinstance(up, UpBlock)
        first, *others = _convolutions(up.conv_block)
        if level == 0:
            others.append(last)
        yield from (
            [_Bands([_fused(up, level), *others], 2 ** (network.wf + level), level=level)]
            if takes_bands(up)
            else [_join(up, level), first, *others]
        )
    if network.depth == 1:
        yield last


def _pool(network: UNet, level: int) -> Step:
    reduce = F.max_pool2d if network.pooling == "max" else F.avg_pool2d
    size = network.pool_size

    def pool(x: Tensor, stream: Stream) -> Tensor:
        stream.skips[level].add(x)
        return reduce(x, size)

    return pool


def takes_bands(block: ConvBlock | UpBlock) -> bool:
    """Tell whether a block is done band after band, with upsampling and the convolution after it as one.

    Not where zeros are padded, as between bands there are none, nor where Winograd needs fewer products, nor
    where upsampling is anything but a transposed convolution of 2 x 2 taps.
    """
    inner = block.conv_block if isinstance(block, UpBlock) else block
    if any(any(layer.padding) or is_winograd(layer.weight) for layer in _layers(inner)):
        return False
    return inner is block or (isinstance(block.up, nn.ConvTranspose2d) and block.pool_size == (2, 2))


@dataclass(eq=False)
class _Bands:
    """The steps of a block, a few rows after the other, so that what is between them fits a cache.

    Attributes
    ----------
    steps : list
        Two 3x3 convolutions, unpadded, the first perhaps with upsampling and a skip.
    channels : int
        What the first gives.
    level : int, optional
        That of the skip which is joined after upsampling; default neither.
    """

    steps: list[Step]
    channels: int
    level: int | None = None

    def __call__(self, x: Tensor, stream: Stream) -> Tensor:
        """Map (N, C, h, w), below the rows before, to (N, K, scale * h - 4, scale * w - 4)."""
        scale = 1 if self.level is None else 2
        before = stream.before(self, x, LOST // scale)
        height, width = scale * (before.shape[2] + x.shape[2]) - LOST, scale * x.shape[3]
        rows = max(LEAST, int(BAND / (len(x) * self.channels * width * x.itemsize)) // 2 * 2)
        if self.level is not None:
            stream.skips[self.level].center((height + LOST, width))
        out = torch.empty(0)
        for top in range(0, height, rows):
            stop = min(top + rows, height)
            made = self._made(rows_of(before, x, top // scale, (stop + LOST) // scale), stop - top, stream)
            if top == 0:
                shape = (*made.shape[:2], height, made.shape[3])
                out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            out[:, :, top:stop] = made
        if self.level is not None:
            stream.skips[self.level].release()
        return out

    def _made(self, x: Tensor, rows: int, stream: Stream) -> Tensor:
        """Return what these rows, and those of the skip, make by themselves: a few of the first step are made twice."""
        alone = Stream(again=False)
        if self.level is not None:
            alone.skips[self.level].add(stacked(stream.skips[self.level].take(rows + LOST, again=LOST)))
        for step in self.steps:
            x = step(x, alone)
        return x


def _layers(block: ConvBlock) -> list[nn.Conv2d]:
    return [layer for layer in block.block if isinstance(layer, nn.Conv2d)]


def _convolutions(block: ConvBlock) -> Iterator[Step]:
    convolutions = _layers(block)
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
        convolved: Callable[[Tensor, Tensor], Tensor] = WinogradConvolution(weight, bias, padding)
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)

        def convolved(x: Tensor, before: Tensor) -> Tensor:
            # oneDNN's own ReLU would save 3 % of the time, but makes 0 of what is not a number.
            return F.conv2d(stacked([before, x]), weight, bias, padding=padding).relu_()

    def convolve(x: Tensor, stream: Stream) -> Tensor:
        x = convolved(x, x[:, :, :0] if padding else stream.before(convolve, x, 2))
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


def _join(up: UpBlock, level: int) -> Step:
    """Return upsampling into the first half of the channels, the skip into the other."""
    enlarge, (tall, wide) = _enlargement(up.up), up.pool_size

    def join(x: Tensor, stream: Stream) -> Tensor:
        skip, (height, width) = stream.skips[level], (x.shape[2] * tall, x.shape[3] * wide)
        skip.center((height, width))
        pieces, top = skip.take(height), 0
        channels = pieces[0].shape[1]
        shape = (len(x), 2 * channels, height, width)
        joined = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        joined[:, :channels] = enlarge(x)
        for piece in pieces:
            joined[:, channels:, top : top + piece.shape[2]] = piece
            top += piece.shape[2]
        skip.release()
        return joined

    return join


def _fused(up: UpBlock, level: int) -> Step:
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

    def join(x: Tensor, stream: Stream) -> Tensor:
        (skip,) = stream.skips[level].take(2 * x.shape[2])
        out = F.conv2d(skip, of_skip, bias)  # (N, C, 2 h - 2, 2 w - 2)
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
