"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3), channels last, in PyTorch.

A square of 4 x 4 output pixels needs 6 x 6 input pixels. After a linear transform of pixels and weights, the
convolution becomes one multiplication at each of the 36 positions of a square: a matrix product over many squares and
all channels, which oneDNN does at full speed. The transform itself is a few sums of rows, then of columns.

`WinogradConvolution` is used only if nothing was compiled (`compiled.py`, which takes transformed weights from here,
too); in it, each sum is a pass through memory. Speed relative to oneDNN's direct convolution with ReLU, on
two cores with AVX-512 (AMD EPYC, 500 GFLOP/s): 1.2x from 128 to 128 channels, 1.7x from 256 to 256, 2.2x from 512 to
512, 3.3x from 1024 to 512, but only 0.7x at 64 channels.

A NaN, or a value so large that sums lose all others, spreads over its whole square: up to two pixels further than in a
direct convolution.

References
----------
A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks. CVPR 2016, https://arxiv.org/abs/1509.09308
B. Barabasz et al.: Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks. ACM
TOMS 2020, https://arxiv.org/abs/1803.10986: points other than small whole numbers are more accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Output pixels of a square along an axis, and the input pixels that they need.
MADE, NEEDED = 4, 6
# Tiles are processed in strips, so that the transform, 2.25 times as large as the tile, is never in memory as a
# whole. Bytes of a strip's transform, before and after the products together.
STRIP_BYTES = 32e6
# How many weights of each tap to transform at once, in float64: few enough for the cache, 2 to 3 times as fast as all.
WEIGHTS_AT_ONCE = 2**14
# The Toom-Cook transform of three weights along an axis, for the points 0, LESS, -LESS, MORE, -MORE and infinity. With
# the points 1 and 2 of the paper, errors are four times as large.
LESS, MORE = 0.5**0.5, 2**0.5
OF_WEIGHTS = [
    [1, 0, 0],
    [-2 / 3, -2 / 3 * LESS, -1 / 3],
    [-2 / 3, 2 / 3 * LESS, -1 / 3],
    [1 / 6, 1 / 6 * MORE, 1 / 3],
    [1 / 6, -1 / 6 * MORE, 1 / 3],
    [0, 0, 1],
]


class WinogradConvolution:
    """A 3x3 convolution and its ReLU; weight (K, C, 3, 3) and bias (K,) are float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._products = [_multiplication(of_place) for of_place in transformed_weights(weight.permute(2, 3, 0, 1))]
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w), channels last, to (N, K, h - 2, w - 2)."""
        n, _, height, width = x.shape
        out = x.new_empty((n, height - 2, width - 2, len(self._bias)))
        for image, made in zip(x.permute(0, 2, 3, 1), out, strict=True):
            self._convolve(image, made)
        return out.permute(0, 3, 1, 2)

    def _convolve(self, image: Tensor, made: Tensor) -> None:
        """Fill (h - 2, w - 2, K) from (h, w, C)."""
        (height, width, channels), outputs = made.shape[:2] + image.shape[2:], made.shape[2]
        high, wide = -(-height // MADE), -(-width // MADE)
        rows = min(high, max(1, int(STRIP_BYTES / (NEEDED**2 * wide * (channels + outputs) * image.itemsize))))
        # The part of the last squares beyond the image stays zero, and its results are discarded.
        tall = image.new_zeros((NEEDED, rows, MADE * wide + 2, channels))
        for top in range(0, height, MADE * rows):
            strip = image[top : min(top + MADE * rows, height) + 2]
            count = -(-(len(strip) - 2) // MADE)
            strip = F.pad(strip, (0, 0, 0, 0, 0, MADE * count + 2 - len(strip)))
            _transform(_windows(strip, 0), list(tall[:, :count, : width + 2]))
            places = image.new_empty((NEEDED, NEEDED, count, wide, channels))
            _transform(_windows(tall[:, :count], 2), places.unbind(1))
            fine = self._made(places)
            kept = made[top : top + MADE * rows]
            torch.add(fine[: len(kept), :width], self._bias, out=kept).relu_()

    def _made(self, places: Tensor) -> Tensor:
        """Return the output pixels (4 h, 4 w, K) for a transform (6, 6, h, w, C)."""
        _, _, height, width, channels = places.shape
        along = zip(self._products, places.view(NEEDED**2, -1, channels), strict=True)
        products = [multiply(place) for multiply, place in along]
        half = places.new_empty((MADE, NEEDED, height, width, len(self._bias)))
        for column in range(NEEDED):
            _transform_back(products[column::NEEDED], list(half[:, column].flatten(1, 2)))
        fine = places.new_empty((height, MADE, width, MADE, len(self._bias)))
        _transform_back(half.unbind(1), fine.permute(3, 1, 0, 2, 4).unbind())
        return fine.view(MADE * height, MADE * width, -1)


def _multiplication(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies (T, C) by weights (K, C) to (T, K)."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return lambda x: x @ weight.t()
    # These operations, which `torch.compile` uses, lay out the weights only once. A 1x1 convolution does so at each
    # call and takes 1.1 to 1.7 times as long; a plain product (MKL) takes twice as long on processors not made by
    # Intel.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def transformed_weights(taps: Tensor) -> Tensor:
    """Transform weights (3, 3, ...), or (2, 2, ...), to weights (36, ...), one for each position of a square."""
    count, *rest = taps.shape[1:]
    matrix = torch.tensor(OF_WEIGHTS, dtype=torch.float64)[:, :count]
    matrix[-1] = torch.eye(count)[-1]  # the point at infinity picks the last tap
    transform, flat = torch.kron(matrix, matrix), taps.reshape(count**2, -1)
    out = torch.empty(len(transform), flat.shape[1])
    parts = (torch.split(weights, WEIGHTS_AT_ONCE, dim=1) for weights in (flat, out))
    for some, made in zip(*parts, strict=True):
        made.copy_(transform @ some.double())
    return out.view(-1, *rest)


def _windows(x: Tensor, axis: int) -> Sequence[Tensor]:
    """Return six views along an axis: the first pixel of every square, the second, and so on."""
    return x.unfold(axis, NEEDED, MADE).unbind(-1)


def _transform(x: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Transform six input pixels along an axis."""
    a, b = torch.sub(x[4], x[2], alpha=2), torch.sub(x[3], x[1], alpha=2)
    torch.add(a, b, alpha=LESS, out=out[1])
    torch.sub(a, b, alpha=LESS, out=out[2])
    torch.sub(x[4], x[2], alpha=0.5, out=a)
    torch.sub(x[3], x[1], alpha=0.5, out=b)
    torch.add(a, b, alpha=MORE, out=out[3])
    torch.sub(a, b, alpha=MORE, out=out[4])
    torch.add(torch.sub(x[4], x[2], alpha=2.5, out=a), x[0], out=out[0])
    torch.add(torch.sub(x[5], x[3], alpha=2.5, out=b), x[1], out=out[5])


def _transform_back(x: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Transform six products back to four output pixels along an axis."""
    a, b = x[1] + x[2], x[3] + x[4]
    torch.add(a.mul(0.5), b, alpha=2, out=out[2])
    torch.add(a.add_(b), x[0], out=out[0])
    torch.sub(x[1], x[2], out=a).mul_(LESS)
    torch.sub(x[3], x[4], out=b).mul_(MORE)
    torch.add(a, b, out=out[1])
    torch.add(a.mul_(0.5).add_(b, alpha=2), x[5], out=out[3])
