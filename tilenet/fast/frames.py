"""Layers on frames: the parts of the fast path on a GPU.

A frame holds the pixels of a batch of tiles as the rows of a matrix, one after the other, channels last. A 3x3
convolution is then the sum of nine matrix products, each with the same rows shifted further down. No border is a
special case, and every pixel's sum consists of the same products in the same order, wherever in a tile the pixel lies.
Values that are computed across the right and lower borders are never read.

No result is read and written again by a separate pass: a convolution applies bias, ReLU, scale and shift before it
writes, and it writes a skip beside the space for the upsampled pixels that will be joined with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tilenet.errors import SettingsError
from tilenet.fast import kernels
from tilenet.geometry import ceil_div, round_up

TRITON: str = triton.__version__
# The fewest channels that a matrix product can take.
LEAST_CHANNELS = 16


@dataclass(frozen=True)
class Frame:
    """Tiles as the rows of a matrix."""

    # (N * pitch[0] * pitch[1], C).
    rows: Tensor
    # Height and width of the space that each tile takes.
    pitch: tuple[int, int]
    # Height and width of the valid part of each tile.
    shape: tuple[int, int]
    # Index of the matrix row of the first valid pixel.
    first: int = 0

    @property
    def used(self) -> int:
        """Number of matrix rows from the first valid pixel to the last one."""
        (height, width), (h, w) = self.pitch, self.shape
        return len(self.rows) - (height - h) * width - (width - w)

    def middle(self, shape: tuple[int, int]) -> Frame:
        """Return the centre of each tile, without a copy."""
        top, left = ((have - want) // 2 for have, want in zip(self.shape, shape, strict=True))
        return replace(self, shape=shape, first=self.first + top * self.pitch[1] + left)


@dataclass(frozen=True)
class Blocking:
    """How a matrix product is divided among programs."""

    # Size of a block.
    rows: int
    outputs: int
    inputs: int
    # Warps of a program, and how many blocks of inputs it loads ahead.
    warps: int
    stages: int
    # Programs on each multiprocessor, which compute one block after the other; 0 for one program per block.
    programs: int = 0


def blocking_of(outputs: int, inputs: int, dtype: torch.dtype) -> Blocking:
    """Return how a convolution is divided on an H200: by channels and dtype, so that no sum depends on the tile.

    >>> blocking_of(512, 256, torch.bfloat16)
    Blocking(rows=128, outputs=256, inputs=64, warps=8, stages=3, programs=1)
    """
    if dtype == torch.float32:
        return Blocking(128, min(outputs, 64), _at_once(inputs, dtype), 4, 3)
    if outputs >= 256:
        return Blocking(128, 256, _at_once(inputs, dtype), 8, 3, programs=1)
    return Blocking(256, min(outputs, 128), _at_once(inputs, dtype), 8, 3, programs=1)


class Convolution:
    """A valid 3x3 convolution, its ReLU, and perhaps a scale and a shift after that, K values each.

    The weight is (K, C, 3, 3), where K and C are powers of two and at least 16. `blocking` is how the product is
    divided; default as `blocking_of` returns it.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, affine: Sequence[Tensor] | None = None, *, blocking: Blocking | None = None
    ) -> None:
        outputs, inputs = weight.shape[:2]
        self._weights = weight.permute(0, 2, 3, 1).reshape(outputs, -1).contiguous()
        self._bias, self._affine, self._scaled = bias.float(), _affine(bias, affine), affine is not None
        self._blocking = blocking or blocking_of(outputs, inputs, weight.dtype)

    def __call__(self, x: Frame, *, joined: bool = False) -> Frame:
        """Convolve a frame; if `joined`, write the result to the right half of a matrix of twice the channels."""
        b, outputs = self._blocking, len(self._bias)
        rows = x.rows.new_empty((len(x.rows), outputs * (2 if joined else 1)))
        out = Frame(rows[:, -outputs:], x.pitch, (x.shape[0] - 2, x.shape[1] - 2))
        columns = outputs // b.outputs
        blocks = ceil_div(out.used, b.rows) * columns
        kernels.convolve[(min(blocks, b.programs * _multiprocessors(x.rows.device)) if b.programs else blocks,)](
            _described(x.rows, b.rows, b.inputs),
            _described(self._weights, b.outputs, b.inputs),
            _described(out.rows, b.rows, b.outputs),
            self._bias, *self._affine,
            x.pitch[1], x.first, blocks, columns, x.rows.shape[1] // b.inputs,
            scaled=self._scaled, precision=_precision(x.rows.dtype), flatten=b.programs > 0,
            block_rows=b.rows, block_outputs=b.outputs, block_inputs=b.inputs,
            num_warps=b.warps, num_stages=b.stages,
        )  # fmt: skip
        return out


class ImageConvolution:
    """The same convolution of images with any number of channels, which gives a frame; parameters as `Convolution`."""

    def __init__(self, weight: Tensor, bias: Tensor, affine: Sequence[Tensor] | None = None) -> None:
        outputs, self._channels = weight.shape[:2]
        self._wide = min(32, triton.next_power_of_2(max(LEAST_CHANNELS, 9 * self._channels)))
        self._weights = weight.new_zeros((outputs, round_up(9 * self._channels, self._wide)))
        self._weights[:, : 9 * self._channels] = weight.permute(0, 2, 3, 1).flatten(1)
        self._bias, self._affine, self._scaled = bias.float(), _affine(bias, affine), affine is not None

    def __call__(self, x: Tensor, *, step: int) -> Frame:
        """Convolve (N, C, h, w), and return a frame whose pitch is a multiple of `step`.

        So 2x2 poolings halve the pitch at every level, and rows of pixels stay aligned. `SettingsError` if an image has
        too many values for 32-bit offsets.
        """
        n, _, h, w = x.shape
        if x[0].numel() >= 2**31:  # the kernel computes offsets in 32 bits
            raise SettingsError(
                f"a tile of {h} x {w} px has {x[0].numel():.1e} values. Start again with a smaller --tile"
            )
        height, width = pitch = (round_up(h, step), round_up(w, step))
        outputs = len(self._bias)
        out = Frame(x.new_empty((n * height * width, outputs)), pitch, (h - 2, w - 2))
        rows, wide = 128, min(outputs, 64)
        kernels.convolve_image[(ceil_div(out.used, rows), outputs // wide)](
            x,
            _described(self._weights, wide, self._wide),
            _described(out.rows, rows, wide),
            self._bias, *self._affine,
            *x.stride(), height, width, h - 2, w - 2, out.used, self._channels, self._weights.shape[1] // self._wide,
            scaled=self._scaled, precision=_precision(x.dtype),
            block_rows=rows, block_outputs=wide, block_inputs=self._wide,
            num_warps=4,
        )  # fmt: skip
        return out


class Upsampling:
    """A 2x2 transposed convolution of stride 2, with weights (C, K, 2, 2)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weights = weight.permute(2, 3, 1, 0).reshape(-1, len(weight)).contiguous()
        self._bias = bias.float()
        inputs = _at_once(len(weight), weight.dtype)
        self._blocking = Blocking(128, min(4 * len(bias), 128), inputs, 8, 3)

    def __call__(self, x: Frame, skip: Frame) -> Frame:
        """Upsample a frame, and join it with the centre of a skip that was computed with `joined`."""
        b, outputs = self._blocking, len(self._bias)
        rows = skip.rows.as_strided((len(skip.rows), 2 * outputs), (2 * outputs, 1), 0)
        out = replace(skip, rows=rows).middle((2 * x.shape[0], 2 * x.shape[1]))
        columns = 4 * outputs // b.outputs
        kernels.upsample[(ceil_div(x.used, b.rows) * columns,)](
            _described(x.rows, b.rows, b.inputs),
            _described(self._weights, b.outputs, b.inputs),
            out.rows, self._bias, x.pitch[1], x.used, out.first, 2 * outputs, columns, x.rows.shape[1] // b.inputs,
            outputs=outputs, precision=_precision(x.rows.dtype),
            block_rows=b.rows, block_outputs=b.outputs, block_inputs=b.inputs,
            num_warps=b.warps, num_stages=b.stages,
        )  # fmt: skip
        return out


def pooled(x: Frame, *, mean: bool) -> Frame:
    """Return the maximum (or the mean) of each 2x2 pixels of a frame, whose pitch must be even."""
    channels, pitch = x.rows.shape[1], (x.pitch[0] // 2, x.pitch[1] // 2)
    out = Frame(x.rows.new_empty((len(x.rows) // 4, channels)), pitch, (x.shape[0] // 2, x.shape[1] // 2))
    block_rows = max(1, 4096 // channels)
    kernels.pool[(ceil_div(out.used, block_rows),)](
        x.rows, out.rows, pitch[1], out.used, x.rows.stride(0),
        mean=mean, channels=channels, block_rows=block_rows, num_warps=8,
    )  # fmt: skip
    return out


class Classification:
    """A 1x1 convolution that gives float32 logits, with weights (K, C, 1, 1)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._classes = len(weight)
        filled = max(LEAST_CHANNELS, triton.next_power_of_2(self._classes))
        self._weights = weight.new_zeros((filled, weight.shape[1]))
        self._weights[: self._classes] = weight.flatten(1)
        self._bias = torch.zeros(filled, device=bias.device)
        self._bias[: self._classes] = bias

    def __call__(self, x: Frame) -> Tensor:
        """Return logits (N, K, h, w)."""
        inputs, (height, width) = x.rows.shape[1], x.pitch
        images, (h, w) = len(x.rows) // (height * width), x.shape
        wide = _at_once(inputs, x.rows.dtype)
        out = torch.empty((images, self._classes, h, w), device=x.rows.device)
        kernels.classify[(ceil_div(x.used, 128),)](
            _described(x.rows, 128, wide),
            _described(self._weights, len(self._bias), wide),
            out, self._bias, images, height, width, h, w, self._classes, inputs // wide,
            precision=_precision(x.rows.dtype),
            block_rows=128, block_outputs=len(self._bias), block_inputs=wide,
            num_warps=4, num_stages=2,
        )  # fmt: skip
        return out


def _described(rows: Tensor, *block: int) -> Any:
    return TensorDescriptor(rows, list(rows.shape), list(rows.stride()), list(block))


def _at_once(inputs: int, dtype: torch.dtype) -> int:
    """Return how many input channels are multiplied at once: at most 128 bytes of them."""
    return min(128 // dtype.itemsize, inputs)


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "ieee"


def _affine(bias: Tensor, affine: Sequence[Tensor] | None) -> list[Tensor]:
    """Return scale and shift (K,) in float32; if there are none, placeholders that the kernels do not read."""
    return [values.float().flatten() for values in affine or (bias, bias)]


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
