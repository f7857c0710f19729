"""A U-Net as steps: functions of rows (N, C, h, w), channels last, and of the state (`PassState`) of the forward pass.

Rows are passed as a list of vertically adjacent pieces, which avoids copying them into one tensor.

Steps that do not clamp can take a tile in bands of rows. Their results, one below the other, equal the result for the
whole tile: each step keeps the rows that it needs again in the `PassState`, and zeros are padded only above the first
band and below the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilenet.bands import pools_by_two
from tilenet.fast.compiled import (
    CompiledClassification,
    CompiledConvolution,
    CompiledUpsampling,
    DirectConvolution,
    Zeros,
)
from tilenet.fast.layers import Layer, layers_of
from tilenet.fast.native import find_instructions
from tilenet.fast.stream import NotFinite, PassState, between, height_of, joined, stacked
from tilenet.fast.winograd import WinogradConvolution
from tilenet.unet import UNet, blocks_of
from tilenet.unet_blocks import LINEAR, POOL, ConvBlock, UpBlock

# Compiled convolutions need a multiple of this many output channels. They use Winograd's method if the input channels
# are a multiple of it, too, and are direct otherwise.
COMPILED_MULTIPLE = 16
# Most outputs of the compiled last convolution, whose sums are on a thread's stack: 64 bytes each.
MOST_CLASSES = 4096
# Fewest input and output channels for Winograd's method in PyTorch: with fewer, its sums take longer than the products
# that it saves.
LEAST_WINOGRAD = 128
# Most channels for which upsampling and the convolution after it are merged; the weights of more do not fit a cache.
MOST_MERGED = 64
# A block takes as many rows at once as have CACHED_BYTES after its first convolution, its channels counted as at least
# NARROW and at most DEEP. Deep layers read all their weights again for each band, so they take as many pixels as layers
# of 64 channels: 3 % (wf 5) to 5 % (wf 6) less time. The narrowest take as many as layers of 16 channels: 3 % less.
CACHED_BYTES, NARROW, DEEP = 8e6, 16, 64
# The number of rows taken at once is WHOLE or a multiple of it, so that only whole Winograd squares are computed. These
# have four rows, or five coarse ones if upsampling is merged. (Two convolutions cost the first band four of its rows.)
WHOLE = 20
Step = Callable[[Sequence[Tensor], PassState], Tensor]


def steps_of(network: UNet) -> Iterator[_Stage]:
    """Yield the blocks of steps of a network in eval mode, which share or copy its weights and do not change it."""
    last, (down_blocks, up_blocks) = _last(network), blocks_of(network)
    for level, down in enumerate(down_blocks):
        first, second = layers_of(down)
        steps = [_convolution(first)]
        if level < network.depth - 1:
            steps.append(_pool(second, network, level))
        else:
            steps += [_convolution(second), *([last] if level == 0 else [])]
        yield _Stage(steps, 2 ** (network.wf + level), takes_bands(down, network.pool_size))
    for level, up in zip(reversed(range(network.depth - 1)), up_blocks, strict=True):
        first, second = layers_of(up.conv_block)
        steps = [_join(first, up, level), _convolution(second), *([last] if level == 0 else [])]
        yield _Stage(steps, 2 ** (network.wf + level), takes_bands(up, network.pool_size), skip=(level, up.pool_size))


def takes_bands(block: ConvBlock | UpBlock, pool_size: Sequence[int]) -> bool:
    """Return whether a block is computed in bands: not if it upsamples other than by a transposed convolution."""
    inner = block.conv_block if isinstance(block, UpBlock) else block
    if not pools_by_two(pool_size) or not (inner is block or isinstance(block.up, nn.ConvTranspose2d)):
        return False
    # Without compiled ones, also not if it pads zeros, or uses Winograd's method, which has strips of its own.
    return find_instructions() != 0 or not any(
        layer.padding or _kind(layer.weight) is WinogradConvolution for layer in layers_of(inner)
    )


@dataclass(eq=False)
class _Stage:
    """The steps of a U-Net block, applied to a few rows at a time so that intermediate results fit a cache."""

    # Two 3x3 convolutions, the first perhaps after upsampling and with a skip, and what follows them.
    steps: list[Step]
    # Output channels of the first convolution.
    channels: int
    # Whether the block can be computed a few rows at a time.
    in_bands: bool
    # The level of the skip connection, and the factors of the upsampling before it; by default there is neither.
    skip: tuple[int, tuple[int, ...]] | None = None

    def __call__(self, pieces: Sequence[Tensor], state: PassState) -> list[Tensor]:
        """Map rows (N, C, h, w), in pieces, to the output of the last step, in pieces."""
        n, _, _, width = pieces[0].shape
        height = rows = height_of(pieces)
        level, (tall, wide) = self.skip or (None, (1, 1))
        if level is not None:
            state.skips[level].center((tall * height, wide * width))
        if self.in_bands:
            pixels = CACHED_BYTES / (min(max(self.channels, NARROW), DEEP) * pieces[0].itemsize)
            rows = max(WHOLE, int(pixels / (n * wide * width)) // WHOLE * WHOLE) // tall
        out = []
        for start in range(0, height, rows):
            state.last = start + rows >= height
            band = between(pieces, start, start + rows)
            for step in self.steps:
                band = [step(band, state)]
            out += band
        if level is not None:
            state.skips[level].release()
        return out


def _rows(step: Step, pieces: Sequence[Tensor], state: PassState, padding: int) -> tuple[list[Tensor], Zeros]:
    """Return the input rows of a 3x3 convolution, kept and new, and the number of rows of zeros above and below."""
    rows = state.with_kept(step, pieces, 2)
    is_first = rows[0].shape[2] == 0  # nothing was kept yet
    return rows, (padding if is_first else 0, padding if state.last else 0)


def _convolution(layer: Layer) -> Step:
    convolved = _convolved(layer)

    def convolve(pieces: Sequence[Tensor], state: PassState) -> Tensor:
        rows, zeros = _rows(convolve, pieces, state, layer.padding)
        return convolved(rows, zeros=zeros)

    return convolve


def _pool(layer: Layer, network: UNet, level: int) -> Step:
    """Return a step that convolves, adds the result to the skip connection, and pools."""
    convolved, size = _convolved(layer), network.pool_size
    reduce = POOL[network.pooling, network.ndim]
    at_once = None
    if isinstance(convolved, CompiledConvolution) and network.pooling == "max" and pools_by_two(size):
        at_once = convolved.pooled

    def pool(pieces: Sequence[Tensor], state: PassState) -> Tensor:
        rows, zeros = _rows(pool, pieces, state, layer.padding)
        if at_once:
            out, reduced = at_once(rows, zeros=zeros)
        else:
            out = convolved(rows, zeros=zeros)
            reduced = reduce(out, size)
        state.skips[level].add(out)
        return reduced

    return pool


def _join(layer: Layer, up: UpBlock, level: int) -> Step:
    """Return a step that upsamples, and convolves the result and the skip connection together."""
    doubles = isinstance(up.up, nn.ConvTranspose2d) and pools_by_two(up.pool_size)
    at_once = doubles and layer.weight.shape[0] <= MOST_MERGED and layer.padding == 0
    if at_once and _kind(layer.weight) is CompiledConvolution:
        return _join_at_once(layer, up, level)
    convolved, enlarge = _convolved(layer), _enlargement(up.up)

    def join(pieces: Sequence[Tensor], state: PassState) -> Tensor:
        rows, zeros = _rows(join, [enlarge(stacked(pieces))], state, layer.padding)
        skip = state.skips[level].take(height_of(rows), again=2)
        return convolved(rows, skip, zeros=zeros)

    return join


def _join_at_once(layer: Layer, up: UpBlock, level: int) -> Step:
    """Return the same step without computing upsampled pixels, in two thirds of the products that these take."""
    assert isinstance(up.up, nn.ConvTranspose2d) and up.up.bias is not None
    of_up, of_skip = layer.weight.chunk(2, dim=1)
    bias = layer.bias + torch.einsum("omij,m->o", of_up, up.up.bias)
    upsampled = CompiledUpsampling(up.up.weight, of_up, instructions=find_instructions())
    convolved = CompiledConvolution(of_skip, bias, 0, layer.affine, instructions=find_instructions())

    def join(pieces: Sequence[Tensor], state: PassState) -> Tensor:
        out = upsampled(state.with_kept(join, pieces, 1))
        return convolved.added(out, state.skips[level].take(out.shape[2] + 2, again=2))

    return join


def _kind(weight: Tensor) -> type | None:
    """Return the class for a 3x3 convolution with these weights (K, C, 3, 3); None for oneDNN's direct convolution."""
    outputs, inputs = weight.shape[:2]
    if find_instructions() and outputs % COMPILED_MULTIPLE == 0:
        return DirectConvolution if inputs % COMPILED_MULTIPLE else CompiledConvolution
    return WinogradConvolution if min(outputs, inputs) >= LEAST_WINOGRAD else None


def _convolved(layer: Layer) -> Callable[..., Tensor]:
    """Return the layer as a function of one or two sources, each in pieces (see `CompiledConvolution`)."""
    weight, bias, padding, affine = layer
    kind = _kind(weight)
    if kind is CompiledConvolution or kind is DirectConvolution:
        return kind(weight, bias, padding, affine, instructions=find_instructions())
    if kind is WinogradConvolution:
        convolved: Callable[[Tensor], Tensor] = WinogradConvolution(weight, bias)
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)
        # oneDNN's own ReLU would save 3 % of the time, but turns NaN into 0.
        convolved = lambda x: F.conv2d(x, weight, bias).relu_()  # noqa: E731

    def normalised(*sources: Sequence[Tensor], zeros: Zeros) -> Tensor:
        x = joined(sources)
        x = convolved(F.pad(x, (padding, padding, *zeros)) if padding else x)
        return x if affine is None else torch.addcmul(affine[1], x, affine[0], out=x)

    return normalised


def _enlargement(up: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that upsamples."""
    if isinstance(up, nn.ConvTranspose2d):
        return up
    assert isinstance(up, nn.Sequential)
    resize, convolution = up
    assert isinstance(resize, nn.Upsample)
    pointwise, scale = _pointwise(convolution), resize.scale_factor
    # Resizing and the 1x1 convolution commute, and the convolution is a quarter of the work if it comes first.
    return lambda x: F.interpolate(pointwise(x), scale_factor=scale, mode=LINEAR[2])


def decides_at_once(network: UNet) -> bool:
    """Return whether the last step can write mask values instead of logits, given the values in its `PassState`."""
    return find_instructions() != 0 and 2**network.wf % COMPILED_MULTIPLE == 0 and network.n_classes <= MOST_CLASSES


def _last(network: UNet) -> Step:
    """Return the step that makes logits or, where it `decides_at_once`, perhaps mask values."""
    if not decides_at_once(network):
        to_logits = _pointwise(network.last)
        return lambda pieces, state: to_logits(stacked(pieces))
    assert network.last.bias is not None
    compiled = CompiledClassification(network.last.weight, network.last.bias, instructions=find_instructions())

    def last(pieces: Sequence[Tensor], state: PassState) -> Tensor:
        if state.values is None:
            return compiled(stacked(pieces))
        mask = compiled.decided(stacked(pieces), state.values)
        if mask is None:
            raise NotFinite
        return mask

    return last


def _pointwise(convolution: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a 1x1 convolution, by oneDNN if possible: PyTorch's own choice for one thread rounds differently."""
    assert isinstance(convolution, nn.Conv2d)
    weight, bias = convolution.weight, convolution.bias
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return convolution
    return lambda x: torch.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)
