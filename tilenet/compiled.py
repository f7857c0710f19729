"""3x3 convolutions compiled from C (`winograd.c`), where there are any: Winograd's, without a detour through memory.

They are built when tilenet is installed, if there is a C compiler, for x86-64 processors with AVX2 or AVX-512. Without
them convolutions are PyTorch's (`tilenet/winograd.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from tilenet.geometry import round_up
from tilenet.winograd import NEEDED, transformed_weights

# The instruction sets that the library may tell of, and their names.
AVX2, AVX512 = 1, 2
NAMES = {0: "pytorch", AVX2: "avx2", AVX512: "avx512"}
# Floats of a vector.
LANES = {AVX2: 8, AVX512: 16}
# Squares that are transformed before they are multiplied: a multiple of those that registers hold sums of (ROWS), as
# many as a core's cache holds, but of deep layers more, as all weights are read for each so many. Less where that
# would leave a thread without.
SQUARES, DEEP, UNIT = 36, 256, 12


class _Piece(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), *((name, ctypes.c_long) for name in ("image", "row", "rows")))


class _Source(ctypes.Structure):
    _fields_ = (("pieces", ctypes.POINTER(_Piece)), ("count", ctypes.c_long), ("channels", ctypes.c_long))


class _Convolution(ctypes.Structure):
    _fields_ = (
        ("sources", _Source * 2),
        *((name, ctypes.c_void_p) for name in ("weights", "bias", "scale", "shift", "out", "pooled", "work")),
        *(
            (name, ctypes.c_long)
            for name in (
                *("made", "adds", "outputs", "images", "height", "width", "padding", "above"),
                *("squares", "work_size", "next"),
            )
        ),
    )


# Tensors whose channels come after each other, each in pieces that lie on top of each other; rows of zeros above and
# below them.
Sources = Sequence[Sequence[Tensor]]
Zeros = tuple[int, int]


class _Compiled:
    """What convolutions have in common: weights (K, C, n, n) transformed, and numbers for each output."""

    def __init__(self, weight: Tensor, numbers: Sequence[Tensor], padding: int, *, instructions: int) -> None:
        outputs, inputs, taps, _ = weight.shape
        panel = LANES[instructions] * (1 if outputs % (2 * LANES[instructions]) else 2)
        self._weights = torch.empty(NEEDED**2, outputs // panel, inputs, panel)
        for place, of_place in zip(self._weights, transformed_weights(weight), strict=True):
            place.copy_(of_place.view(-1, panel, inputs).transpose(1, 2))
        self._numbers = [of_outputs.float().flatten().contiguous() for of_outputs in numbers]
        self._padding, self._instructions, self._panel = padding, instructions, 2 * LANES[instructions]
        self._outputs, self._inputs, self._made = outputs, inputs, NEEDED + 1 - taps

    def _shape(self, sources: Sources, zeros: Zeros) -> tuple[int, int, int, int]:
        lost, pieces = NEEDED - self._made, sources[0]
        height = sum(piece.shape[2] for piece in pieces) + sum(zeros) - lost
        return len(pieces[0]), self._outputs, height, pieces[0].shape[3] + 2 * self._padding - lost

    def _convolve(
        self, sources: Sources, zeros: Zeros, out: Tensor, *, pooled: Tensor | None = None, adds: bool = False
    ) -> None:
        n, outputs, height, width = self._shape(sources, zeros)
        threads, total = torch.get_num_threads(), n * -(-height // self._made) * -(-width // self._made)
        squares = min(SQUARES * max(1, self._inputs // DEEP), round_up(-(-total // (2 * threads)), UNIT))
        size = NEEDED**2 * (squares * (self._inputs + self._panel) + self._inputs)
        work = torch.empty(threads * size)
        addresses = [tensor.data_ptr() for tensor in self._numbers]
        job = _Convolution(
            (_Source * 2)(*map(_source, sources)),
            self._weights.data_ptr(),
            *(*addresses, None, None, None)[:3],
            out.data_ptr(),
            None if pooled is None else pooled.data_ptr(),
            work.data_ptr(),
            *(self._made, adds, outputs, n, height, width, self._padding, zeros[0], squares, size),
        )
        library = _library()
        assert library is not None
        library.tilenet_convolve(ctypes.byref(job), self._instructions, threads)


class CompiledConvolution(_Compiled):
    """A 3x3 convolution, its ReLU, and a scale and a shift of what this gives.

    Parameters
    ----------
    weight, bias : torch.Tensor
        (K, C, 3, 3) and (K,), float32; multiples of 16 channels.
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


def find_instructions() -> int:
    """Return the best instruction set that this processor and what was compiled share, 0 if there is none."""
    library = _library()
    return 0 if library is None else int(library.tilenet_instructions())


def convolutions() -> str:
    """Return what does the convolutions of the fast path here: ``avx512``, ``avx2``, or ``pytorch``."""
    return NAMES[find_instructions()]


@cache
def _library() -> ctypes.CDLL | None:
    # PyTorch has loaded the OpenMP in which it wants its symbols; another one is as good as no library.
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_winograd{suffix}")
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                return None
    return None


def _source(pieces: Sequence[Tensor]) -> _Source:
    listed = [_Piece(piece.data_ptr(), piece.stride(0), piece.stride(2), piece.shape[2]) for piece in pieces]
    return _Source((_Piece * len(listed))(*listed), len(listed), pieces[0].shape[1])
