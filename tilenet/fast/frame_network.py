"""The fast path on a GPU: the same U-Net, computed on frames (`tilenet/fast/frames.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tilenet.bands import pools_by_two
from tilenet.fast import frames
from tilenet.fast.layers import Affine, Layer, layers_of
from tilenet.unet import UNet, blocks_of
from tilenet.unet_blocks import UpBlock

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FramedUNet:
    """A U-Net computed on frames; call it like the network.

    The network is one that `can_frame` accepts, in eval mode, on the device where it will run; it is not changed.
    """

    def __init__(self, network: UNet) -> None:
        self._step, self._mean = 2 ** (network.depth - 1), network.pooling == "avg"
        down_blocks, up_blocks = blocks_of(network)
        top, *down = map(layers_of, down_blocks)
        first, second = top
        self._first, self._second = frames.ImageConvolution(*_of(first)), frames.Convolution(*_of(second))
        self._down = [_convolutions(layers) for layers in down]
        self._up = [(_upsampling(up), *_convolutions(layers_of(up.conv_block))) for up in up_blocks]
        assert network.last.bias is not None
        self._last = frames.Classification(network.last.weight, network.last.bias)

    def __call__(self, x: Tensor, prepared: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `prepared` to (N, C, h, w), and map the result to float32 logits (N, K, h', w')."""
        with torch.cuda.device(x.device if x.is_cuda else -1):  # Triton launches kernels on the current device
            skips: list[frames.Frame] = []
            frame = self._first(prepared(x), step=self._step)
            frame = self._second(frame, joined=len(self._up) > 0)
            for left, (first, second) in zip(reversed(range(len(self._down))), self._down, strict=True):
                skips.append(frame)
                frame = frames.pooled(frame, mean=self._mean)
                frame = first(frame)
                frame = second(frame, joined=left > 0)
            for enlarge, first, second in self._up:
                frame = enlarge(frame, skips.pop())
                frame = first(frame)
                frame = second(frame)
            return self._last(frame)


def can_frame(network: UNet) -> bool:
    """Return whether all layers of a network can be computed on frames: 2-D, unpadded, with at least 16 channels."""
    return (
        network.ndim == 2
        and not network.padding
        and network.up_mode == "upconv"
        and pools_by_two(network.pool_size)
        and 2**network.wf >= frames.LEAST_CHANNELS
        and network.last.weight.dtype in DTYPES
    )


def _of(layer: Layer) -> tuple[Tensor, Tensor, Affine | None]:
    return layer.weight, layer.bias, layer.affine


def _convolutions(layers: Iterable[Layer]) -> tuple[frames.Convolution, frames.Convolution]:
    first, second = (frames.Convolution(*_of(layer)) for layer in layers)
    return first, second


def _upsampling(up: UpBlock) -> frames.Upsampling:
    assert isinstance(up.up, nn.ConvTranspose2d) and up.up.bias is not None
    return frames.Upsampling(up.up.weight, up.up.bias)
