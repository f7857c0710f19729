"""Convolutions compiled from C (`convolutions.c`), where there are any (`tilenet/native.py`).

3x3 ones are Winograd's, without a detour through memory. The first of a network, of few channels in, and the last,
1x1 and of few channels out, are done tap by tap. Without them convolutions are PyTorch's (`tilenet/winograd.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from tilenet.geometry import round_up
from tilenet.native import LANES, Classification, Convolution, Source, call, source_of
from tilenet.winograd import NEEDED, transformed_weights

# Squares that are transformed before they are multiplied: a multiple of those that registers hold sums of (ROWS), as
# many as a core's cache holds, but of deep layers more, as all weights are read for each so many. Less where that
# would leave a thread without.
SQUARES, DEEP, UNIT = 36, 256, 12

# Tensors whose channels come after each other, each in pieces that lie on top of each other; rows of zeros above and
# below them.
Sources = Sequence[Sequence[Tensor]]
Zeros = tuple[int, int]


class _Compiled:
    """What convolutions have in common: weights (K, C, n, n) as the library takes them, and numbers for each output."""

    _does = "tilenet_convolve"

    def __init__(self, weight: Tensor, numbers: Sequence[Tensor], padding: int, *, instructions: int) -> None:
        self._outputs, self._inputs, taps, _ = weight.shape
        lanes = LANES[instructions]
        self._panel, self._made = lanes * (1 if self._outputs % (2 * lanes) else 2), NEEDED + 1 - taps
        self._weights = self._arranged(weight)
        self._numbers = [of_outputs.float().flatten().contiguous() for of_outputs in numbers]
        self._padding, self._instructions, self._widest = padding, instructions, 2 * lanes

    def _arranged(self, weight: Tensor) -> Tensor:
        """Return the weights (36, K / panel, C, panel) of Winograd's places."""
        return transformed_weights(self._panels(weight))

    def _panels(self, weight: Tensor) -> Tensor:
        """Return the weights (n, n, K / panel, C, panel), tap by tap."""
        return weight.reshape(-1, self._panel, *weight.shape[1:]).permute(3, 4, 0, 2, 1)

    def _work(self, total: int, threads: int) -> tuple[int, int]:
        """Return how many of `total` squares are done at once, and the floats that a thread needs for them."""
        squares = min(SQUARES * max(1, self._inputs // DEEP), round_up(-(-total // (2 * threads)), UNIT))
        return squares, NEEDED**2 * (squares * (self._inputs + self._widest) + self._inputs)

    def _shape(self, sources: Sources, zeros: Zeros) -> tuple[int, int, int, int]:
        lost, pieces = NEEDED - self._made, sources[0]
        height = sum(piece.shape[2] for piece in pieces) + sum(zeros) - lost
        return len(pieces[0]), self._outputs, height, pieces[0].shape[3] + 2 * self._padding - lost

    def _convolve(
        self, sources: Sources, zeros: Zeros, out: Tensor, *, pooled: Tensor | None = None, adds: bool = False
    ) -> None:
        n, outputs, height, width = self._shape(sources, zeros)
        threads, total = torch.get_num_threads(), n * -(-height // self._made) * -(-width // self._made)
        squares, size = self._work(total, threads)
        work = torch.empty(threads * size)
        addresses = [tensor.data_ptr() for tensor in self._numbers]
        job = Convolution(
            (Source * 2)(*map(source_of, sources)),
            self._weights.data_ptr(),
            *(*addresses, None, None, None)[:3],
            out.data_ptr(),
            None if pooled is None else pooled.data_ptr(),
            work.data_ptr(),
            *(self._made, adds, outputs, n, height, width, self._padding, zeros[0], squares, size),
        )
        call(self._does, job, self._instructions, threads)


class _Layer(_Compiled):
    """A 3x3 convolution, its ReLU, and a scale and a shift of what this gives.

    Parameters
    ----------
    weight, bias : torch.Tensor
        (K, C, 3, 3) and (K,), float32; K is a multiple of 16.
    padding : int
        Columns of zeros on either side.
    after : (torch.Tensor, torch.Tensor), optional
        Scale and shift, of K elements each; default neither.
    instructions : int
        Those of this processor, or fewer.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, padding: int, after: tuple[Tensor, Tensor] | None, *, instructions: int
    ) -> None:
        super().__init__(weight, (bias, *(after or ())), padding, instructions=instructions)

    def __call__(self, *sources: Sequence[Tensor], zeros: Zeros = (0, 0)) -> Tensor:
        """Map one or two sources to (N, K, h - 2, w - 2 + 2 padding), channels last.

        A source is pieces (N, C, b, w), channels last, that lie on top of each other, with rows of zeros above and
        below h rows in all; of two, the channels of the second come after those of the first.
        """
        out = torch.empty(self._shape(sources, zeros), memory_format=torch.channels_last)
        self._convolve(sources, zeros, out)
        return out


class DirectConvolution(_Layer):
    """Such a layer tap by tap, of one source and any number of channels: those of an image."""

    _does = "tilenet_convolve_directly"

    def _arranged(self, weight: Tensor) -> Tensor:
        """Return the weights (K / panel, 3, 3, C, panel) of the taps."""
        return self._panels(weight).permute(2, 0, 1, 3, 4).float().contiguous()

    def _work(self, total: int, threads: int) -> tuple[int, int]:
        """Return the floats of three rows of as many pixels as registers hold sums of need."""
        return 1, 3 * (UNIT + 2) * self._inputs


class CompiledConvolution(_Layer):
    """Such a layer by Winograd's convolution, of multiples of 16 channels."""

    def pooled(self, *sources: Sequence[Tensor], zeros: Zeros = (0, 0)) -> tuple[Tensor, Tensor]:
        """Return that, and the largest of each two by two of its pixels, as `max_pool2d` does."""
        n, outputs, height, width = self._shape(sources, zeros)
        out = torch.empty((n, outputs, height, width), memory_format=torch.channels_last)
        pooled = torch.empty((n, outputs, height // 2, width // 2), memory_format=torch.channels_last)
        self._convolve(sources, zeros, out, pooled=pooled)
        return out, pooled

    def added(self, out: Tensor, *sources: Sequence[Tensor]) -> Tensor:
        """Return, in place, what it makes of sources where `out` is added to it before ReLU."""
        self._convolve(sources, (0, 0), out, adds=True)
        return out


class CompiledClassification:
    """A 1x1 convolution of few channels out, class by class in memory.

    Parameters
    ----------
    weight, bias : torch.Tensor
        (K, C, 1, 1) and (K,), float32; C is a multiple of 16.
    instructions : int
        Those of this processor, or fewer.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, instructions: int) -> None:
        self._weights, self._bias, self._instructions = weight.flatten(1).contiguous(), bias, instructions

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w), channels last, to (N, K, h, w), contiguous."""
        out = torch.empty(len(x), len(self._bias), *x.shape[2:])
        self._classify(x, out=out)
        return out

    def decided(self, x: Tensor, values: Tensor) -> Tensor | None:
        """Return instead the value (N, 1, h, w) uint8 of the largest output, of equal ones the first.

        Parameters
        ----------
        x : torch.Tensor
            (N, C, h, w), channels last.
        values : torch.Tensor
            (K) uint8, of each output.

        Returns
        -------
        torch.Tensor or None
            None if an output somewhere is not finite.
        """
        if len(values) != len(self._bias):
            raise ValueError(f"{len(values)} values are not those of {len(self._bias)} outputs")
        mask = torch.empty((len(x), 1, *x.shape[2:]), dtype=torch.uint8)
        return None if self._classify(x, mask=mask, values=values).spoiled else mask

    def _classify(
        self, x: Tensor, *, out: Tensor | None = None, mask: Tensor | None = None, values: Tensor | None = None
    ) -> Classification:
        (n, channels, height, width), outputs = x.shape, len(self._bias)
        pointers = (t if t is None else t.data_ptr() for t in (x, self._weights, self._bias, out, mask, values))
        plane = height * width
        job = Classification(*pointers, x.stride(0), outputs * plane, plane, n, plane, channels, outputs)
        call("tilenet_classify", job, self._instructions, torch.get_num_threads())
        return job


class CompiledUpsampling(_Compiled):
    """A transposed convolution of 2x2 taps and an unpadded 3x3 one of what it gives, as one: neither bias nor ReLU.

    They are four 2x2 convolutions of the coarse pixels, one for each of the four finer pixels in one.

    Parameters
    ----------
    transposed : torch.Tensor
        (C, M, 2, 2), with a stride of 2.
    weight : torch.Tensor
        (K, M, 3, 3).
    instructions : int
        Those of this processor, or fewer.
    """

    def __init__(self, transposed: Tensor, weight: Tensor, *, instructions: int) -> None:
        super().__init__(composed(transposed, weight), (), 0, instructions=instructions)

    def __call__(self, pieces: Sequence[Tensor]) -> Tensor:
        """Map pieces (N, C, b, w) on top of each other, h rows in all, to (N, K, 2 h - 2, 2 w - 2), channels last."""
        n, outputs, height, width = self._shape([pieces], (0, 0))
        out = torch.empty((n, outputs // 4, 2 * height, 2 * width), memory_format=torch.channels_last)
        self._convolve([pieces], (0, 0), out)
        return out


def composed(transposed: Tensor, weight: Tensor) -> Tensor:
    """Return the 2x2 weights (4 K, C, 2, 2) of a transposed convolution (C, M, 2, 2) and a 3x3 one (K, M, 3, 3).

    Finer pixel ``2 k + p`` of the output sees finer pixels ``2 k + p + i``: of coarse pixel ``k + (p + i) // 2``
    the tap ``(p + i) % 2``, and so along both axes.
    """
    outputs, inputs = len(weight), len(transposed)
    taps = torch.zeros((2, 2, outputs, inputs, 2, 2), dtype=torch.float64)
    for p, q, i, j in product(range(2), range(2), range(3), range(3)):
        tap = transposed[:, :, (p + i) % 2, (q + j) % 2]
        of_tap = torch.einsum("om,im->oi", weight[:, :, i, j].double(), tap.double())
        taps[p, q, :, :, (p + i) // 2, (q + j) // 2] += of_tap
    return taps.reshape(4 * outputs, inputs, 2, 2)
