"""Layers that run convolutions compiled from C (`convolutions.c`), if they were compiled (`tilenet/fast/native.py`).

3x3 convolutions use Winograd's method, with all intermediate results in cache. The first convolution of a network, with
few input channels, and the last, 1x1 with few output channels, are computed directly, tap by tap. Without the compiled
library, convolutions are done by PyTorch (`tilenet/fast/winograd.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from tilenet.fast.native import LANES, Classification, Convolution, Source, call, source_of
from tilenet.fast.winograd import NEEDED, transformed_weights
from tilenet.geometry import round_up

# How many squares to transform before multiplying them: a multiple of UNIT, which is a multiple of the squares whose
# sums fit the registers (ROWS), and few enough for a core's cache. Layers of more than DEEP channels take more at once,
# because each group of squares reads all weights again. Small inputs take fewer, so that every thread gets some.
SQUARES, DEEP, UNIT = 36, 256, 12

# Sources: tensors to concatenate along the channels, each as a list of vertically adjacent pieces. Zeros: how many rows
# of zeros to pad above and below.
Sources = Sequence[Sequence[Tensor]]
Zeros = tuple[int, int]


class _Compiled:
    """Base class: prepares weights (K, C, n, n) and per-output numbers (such as the bias) for the C library.

    `numbers` has them by name, as `Convolution` has fields for them.
    """

    _function = "tilenet_convolve"

    def __init__(self, weight: Tensor, numbers: Mapping[str, Tensor], padding: int, *, instructions: int) -> None:
        self._outputs, self._inputs, taps, _ = weight.shape
        lanes = LANES[instructions]
        # The outputs whose sums the registers hold at once: two vectors of them, or one if pairs of vectors do not hold
        # all outputs exactly.
        self._panel, self._made = lanes * (1 if self._outputs % (2 * lanes) else 2), NEEDED + 1 - taps
        self._weights = self._arranged(weight)
        self._numbers = {name: values.float().flatten().contiguous() for name, values in numbers.items()}
        self._padding, self._instructions, self._widest = padding, instructions, 2 * lanes

    def _arranged(self, weight: Tensor) -> Tensor:
        """Return Winograd-transformed weights, (36, K / panel, C, panel)."""
        return transformed_weights(self._panels(weight))

    def _panels(self, weight: Tensor) -> Tensor:
        """Return the weights tap by tap, (n, n, K / panel, C, panel)."""
        return weight.reshape(-1, self._panel, *weight.shape[1:]).permute(3, 4, 0, 2, 1)

    def _work(self, total: int, threads: int) -> tuple[int, int]:
        """Return how many of `total` squares to process at once, and how many floats of work space a thread needs.

        `convolve` in winograd_kernel.h says what this space holds.
        """
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
        arguments = Convolution(
            sources=(Source * 2)(*map(source_of, sources)),
            weights=self._weights.data_ptr(),
            out=out.data_ptr(),
            pooled=None if pooled is None else pooled.data_ptr(),
            work=work.data_ptr(),
            made=self._made,
            adds=adds,
            outputs=outputs,
            images=n,
            height=height,
            width=width,
            padding=self._padding,
            above=zeros[0],
            squares=squares,
            work_size=size,
            **{name: values.data_ptr() for name, values in self._numbers.items()},
        )
        call(self._function, arguments, self._instructions, threads)


class _Layer(_Compiled):
    """A 3x3 convolution followed by ReLU and, optionally, a scale and a shift.

    Weight (K, C, 3, 3) and bias (K,) are float32; K is a multiple of 16. `padding` is columns of zeros on either side.
    `affine` is scale and shift, K elements each. This processor must have the `instructions`.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, padding: int, affine: tuple[Tensor, Tensor] | None, *, instructions: int
    ) -> None:
        numbers = dict(zip(("bias", "scale", "shift"), (bias, *(affine or ())), strict=False))
        super().__init__(weight, numbers, padding, instructions=instructions)

    def __call__(self, *sources: Sequence[Tensor], zeros: Zeros = (0, 0)) -> Tensor:
        """Map one or two sources to (N, K, h - 2, w - 2 + 2 padding), channels last.

        A source is a list of vertically adjacent pieces (N, C, b, w), channels last; h counts their rows and the zeros
        above and below. The channels of a second source follow those of the first.
        """
        out = torch.empty(self._shape(sources, zeros), memory_format=torch.channels_last)
        self._convolve(sources, zeros, out)
        return out


class DirectConvolution(_Layer):
    """The same layer computed tap by tap, for one source with any number of channels, such as an image."""

    _function = "tilenet_convolve_directly"

    def _arranged(self, weight: Tensor) -> Tensor:
        """Return the weights tap by tap, (K / panel, 3, 3, C, panel)."""
        return self._panels(weight).permute(2, 0, 1, 3, 4).float().contiguous()

    def _work(self, total: int, threads: int) -> tuple[int, int]:
        """Return one row at a time, and work space for the three input rows of UNIT output pixels."""
        return 1, 3 * (UNIT + 2) * self._inputs


class CompiledConvolution(_Layer):
    """The same layer by Winograd's method, for multiples of 16 channels."""

    def pooled(self, *sources: Sequence[Tensor], zeros: Zeros = (0, 0)) -> tuple[Tensor, Tensor]:
        """Return the output and its 2x2 maxima, as `max_pool2d` computes them."""
        n, outputs, height, width = self._shape(sources, zeros)
        out = torch.empty((n, outputs, height, width), memory_format=torch.channels_last)
        pooled = torch.empty((n, outputs, height // 2, width // 2), memory_format=torch.channels_last)
        self._convolve(sources, zeros, out, pooled=pooled)
        return out, pooled

    def added(self, out: Tensor, *sources: Sequence[Tensor]) -> Tensor:
        """Convolve the sources, add `out` before the ReLU, and return the result in `out`."""
        self._convolve(sources, (0, 0), out, adds=True)
        return out


class CompiledClassification:
    """A 1x1 convolution with few output channels, which lie class by class in memory.

    Weight (K, C, 1, 1) and bias (K,) are float32; C is a multiple of 16. This processor must have the `instructions`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, instructions: int) -> None:
        self._weights, self._bias, self._instructions = weight.flatten(1).contiguous(), bias, instructions

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w), channels last, to (N, K, h, w), contiguous."""
        out = torch.empty(len(x), len(self._bias), *x.shape[2:])
        self._classify(x, out=out)
        return out

    def decided(self, x: Tensor, values: Tensor) -> Tensor | None:
        """Return, instead of the outputs, the mask value of the largest one; the first wins a tie.

        `x` is (N, C, h, w), channels last, and `values` has the mask value of each output, (K,) uint8. The result is
        (N, 1, h, w) uint8; None if any output is not finite.
        """
        if len(values) != len(self._bias):
            raise ValueError(f"{len(values)} values are not those of {len(self._bias)} outputs")
        mask = torch.empty((len(x), 1, *x.shape[2:]), dtype=torch.uint8)
        return None if self._classify(x, mask=mask, values=values).not_finite else mask

    def _classify(
        self, x: Tensor, *, out: Tensor | None = None, mask: Tensor | None = None, values: Tensor | None = None
    ) -> Classification:
        (n, channels, height, width), outputs = x.shape, len(self._bias)
        written = {"out": out, "mask": mask, "values": values}
        plane = height * width
        arguments = Classification(
            x=x.data_ptr(),
            weights=self._weights.data_ptr(),
            bias=self._bias.data_ptr(),
            x_image=x.stride(0),
            out_image=outputs * plane,
            plane=plane,
            images=n,
            pixels=plane,
            channels=channels,
            outputs=outputs,
            **{name: tensor.data_ptr() for name, tensor in written.items() if tensor is not None},
        )
        call("tilenet_classify", arguments, self._instructions, torch.get_num_threads())
        return arguments


class CompiledUpsampling(_Compiled):
    """A 2x2 transposed convolution merged with the unpadded 3x3 convolution after it, without bias or ReLU.

    Together they are four 2x2 convolutions of the coarse pixels, one for each of the four finer pixels within one.
    Their weights are (C, M, 2, 2), with a stride of 2, and (K, M, 3, 3). This processor must have the `instructions`.
    """

    def __init__(self, transposed: Tensor, weight: Tensor, *, instructions: int) -> None:
        super().__init__(composed(transposed, weight), {}, 0, instructions=instructions)

    def __call__(self, pieces: Sequence[Tensor]) -> Tensor:
        """Map vertically adjacent pieces (N, C, b, w) of h rows in all to (N, K, 2 h - 2, 2 w - 2), channels last."""
        n, outputs, height, width = self._shape([pieces], (0, 0))
        out = torch.empty((n, outputs // 4, 2 * height, 2 * width), memory_format=torch.channels_last)
        self._convolve([pieces], (0, 0), out)
        return out


def composed(transposed: Tensor, weight: Tensor) -> Tensor:
    """Merge a transposed convolution (C, M, 2, 2) and a 3x3 one (K, M, 3, 3) into 2x2 weights (4 K, C, 2, 2)."""
    outputs, inputs = len(weight), len(transposed)
    taps = torch.zeros((2, 2, outputs, inputs, 2, 2), dtype=torch.float64)
    # Along each axis, output pixel 2 k + p sees the finer pixels 2 k + p + i, each of which is tap (p + i) % 2 of the
    # coarse pixel k + (p + i) // 2.
    for p, q, i, j in product(range(2), range(2), range(3), range(3)):
        tap = transposed[:, :, (p + i) % 2, (q + j) % 2]
        of_tap = torch.einsum("om,im->oi", weight[:, :, i, j].double(), tap.double())
        taps[p, q, :, :, (p + i) // 2, (q + j) // 2] += of_tap
    return taps.reshape(4 * outputs, inputs, 2, 2)
