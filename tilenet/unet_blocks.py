"""The blocks of a U-Net: how each maps a tile, and, with `walk`, a length (see `tilenet.extent`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from tilenet.extent import Extent

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
UP_CONV: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL: dict[tuple[str, int], Callable[..., Tensor]] = {
    (pooling, ndim): getattr(nn.functional, f"{pooling}_pool{ndim}d") for pooling in ("max", "avg") for ndim in CONV
}
# Layers that map each element by itself, so that no length changes.
POINTWISE = {nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, *NORM.values()}
POINTWISE |= {nn.Dropout, nn.Dropout2d, nn.Dropout3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with ReLU and, if asked, batch normalisation after it."""

    def __init__(self, in_size: int, out_size: int, *, ndim: int, padding: bool, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in (in_size, out_size):
            layers += [CONV[ndim](size, out_size, kernel_size=3, padding=int(padding)), nn.ReLU()]
            if batch_norm:
                layers.append(NORM[ndim](out_size))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_size, *n) to (N, out_size, *m)."""
        out: Tensor = self.block(x)
        return out


class UpBlock(nn.Module):
    """Upsampling, the skip connection, and a `ConvBlock`, which the other arguments are for."""

    def __init__(
        self, in_size: int, out_size: int, *, up_mode: str, pool_size: tuple[int, ...], ndim: int, **convolutions: bool
    ) -> None:
        super().__init__()
        self.pool_size = pool_size
        self.up: nn.Module
        if up_mode == "upconv":
            self.up = UP_CONV[ndim](in_size, out_size, kernel_size=pool_size, stride=pool_size)
        else:
            resize = nn.Upsample(mode=LINEAR[ndim], scale_factor=tuple(map(float, pool_size)))
            self.up = nn.Sequential(resize, CONV[ndim](in_size, out_size, kernel_size=1))
        self.conv_block = ConvBlock(in_size, out_size, ndim=ndim, **convolutions)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (N, in_size, *n) and the skip (N, out_size, *m) to (N, out_size, *k)."""
        up = self.up(x)
        out: Tensor = self.conv_block(torch.cat([up, center_crop(skip, up.shape[2:])], dim=1))
        return out

    def walk(self, x: Extent, skip: Extent, axis: int) -> Extent:
        """Follow a length through upsampling, skip and convolutions."""
        size = self.pool_size[axis]
        up = x.up_linear(size) if isinstance(self.up, nn.Sequential) else x.up_transposed(size)
        return walk_through(self.conv_block.block, up.joined(skip), axis)


def walk_through(layer: nn.Module, x: Extent, axis: int) -> Extent:
    """Follow a length through a layer within a block, or the last one; `TypeError` if it is none that is understood."""
    if type(layer) is nn.Sequential:
        return reduce(lambda x, inner: walk_through(inner, x, axis), layer, x)
    if isinstance(layer, nn.Conv2d | nn.Conv3d) and type(layer) in CONV.values() and layer.stride[axis] == 1:
        spread = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        if spread % 2:
            return x.conv(spread, int(layer.padding[axis]))
    if type(layer) in POINTWISE and layer._buffers.get("running_mean", x) is not None:
        return x
    raise TypeError(f"no length is followed through {str(layer).splitlines()[0].rstrip('(')}")


def center_crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the centre of (N, C, *n) of the given spatial shape, as a view."""
    for axis, (have, want) in enumerate(zip(x.shape[2:], shape, strict=True), start=2):
        x = x.narrow(axis, (have - want) // 2, want)
    return x
