"""The U-Net of Ronneberger et al. 2015, in 2-D and 3-D, and its footprint.

Parameter names follow a well-known PyTorch version (jvanvugt/pytorch-unet), so that its checkpoints load unchanged.
What `forward` does to a length, `walk` computes.

References
----------
O. Ronneberger, P. Fischer, T. Brox: U-Net: Convolutional Networks for Biomedical Image
Segmentation. MICCAI 2015, https://doi.org/10.1007/978-3-319-24574-4_28
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from numbers import Integral
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from tilenet.arguments import known_options
from tilenet.card import ModelCard
from tilenet.errors import ModelError, SettingsError, first_line
from tilenet.extent import Extent
from tilenet.footprint import AxisFootprint, Footprint
from tilenet.unet_blocks import CONV, POOL, ConvBlock, UpBlock, walk_through

UpMode = Literal["upconv", "upsample"]
UP_MODES = get_args(UpMode)
# What a subclass must not override to be a `UNet` as built.
OWN = ("forward", "walk", "footprint", "options", "__call__")
# Names of the layers that `walk_through` looks at.
WALKED = r".+\.block\..+|last(\..+)?"
# Attributes of every module: tensors, layers and hooks, which are compared by themselves, and some that no output
# depends on.
OF_ANY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}


class UNet(nn.Module):
    """The U-Net of Ronneberger et al. 2015.

    Parameters
    ----------
    in_channels : int
        Channels of the input.
    n_classes : int
        Channels of the output (logits; there is no softmax inside).
    depth : int
        Number of resolutions; ``depth - 1`` poolings.
    wf : int
        The first block has ``2 ** wf`` channels; each deeper block has twice as many as the one above.
    padding : bool
        Pad each 3x3 convolution with zeros. The default, False, is the paper's.
    batch_norm : bool
        Normalise after each ReLU.
    up_mode : {"upconv", "upsample"}
        Transposed convolution, or (bi/tri)linear resizing and a 1x1 convolution.
    ndim : {2, 3}
        Spatial axes.
    pooling : {"max", "avg"}
        Reference checkpoints from before March 2019 use average pooling.
    pool_size : sequence of int, optional
        Per axis; default 2 along each. ``(1, 2, 2)`` suits thin stacks: it does not pool along z.

    Attributes
    ----------
    footprint : Footprint
        What the network does to a length, derived from its layers. Set it if you changed the network so that it no
        longer follows from them.
    card : ModelCard or None
        What the network is for; set by `load_model`.

    Examples
    --------
    >>> net = UNet(depth=5, wf=2)
    >>> net.footprint.output_shape((572, 572))
    (388, 388)
    >>> net.footprint.step, net.footprint.margin
    ((16, 16), (92, 92))
    """

    @known_options()
    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        depth: int = 5,
        wf: int = 6,
        padding: bool = False,
        batch_norm: bool = False,
        up_mode: UpMode = "upconv",
        *,
        ndim: int = 2,
        pooling: Literal["max", "avg"] = "max",
        pool_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_options(ndim, up_mode, pooling, in_channels=in_channels, n_classes=n_classes, depth=depth, wf=wf)
        self.pool_size = _pool_sizes(pool_size, ndim)
        self.in_channels, self.n_classes, self.depth, self.wf = in_channels, n_classes, depth, wf
        self.padding, self.batch_norm, self.up_mode = padding, batch_norm, up_mode
        self.ndim, self.pooling = ndim, pooling
        sizes = [2 ** (wf + i) for i in range(depth)]
        how: dict[str, Any] = {"ndim": ndim, "padding": padding, "batch_norm": batch_norm}
        down = (ConvBlock(a, b, **how) for a, b in zip([in_channels, *sizes], sizes, strict=False))
        self.down_path = nn.ModuleList(down)
        how |= {"up_mode": up_mode, "pool_size": self.pool_size}
        self.up_path = nn.ModuleList(UpBlock(2 * n, n, **how) for n in reversed(sizes[:-1]))
        self.last = CONV[ndim](sizes[0], n_classes, kernel_size=1)
        self.card: ModelCard | None = None

    @property
    def options(self) -> dict[str, object]:
        """The arguments that build this network again, ready for JSON."""
        names = ("in_channels", "n_classes", "depth", "wf", "padding", "batch_norm", "up_mode", "ndim", "pooling")
        return {name: getattr(self, name) for name in names} | {"pool_size": list(self.pool_size)}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, *n), n legal, to logits (N, n_classes, *(n - 2 lost))."""
        pool = POOL[self.pooling, self.ndim]
        skips: list[Tensor] = []
        for i, down in enumerate(self.down_path):
            x = down(pool(x, self.pool_size) if i else x)
            skips.append(x)
        for up, skip in zip(self.up_path, skips[-2::-1], strict=True):
            x = up(x, skip)
        out: Tensor = self.last(x)
        return out

    def walk(self, length: int, axis: int) -> Extent:
        """Follow an input length through all layers along one axis."""
        x = Extent.whole(length)
        skips: list[Extent] = []
        down_blocks, up_blocks = blocks_of(self)
        for i, down in enumerate(down_blocks):
            x = walk_through(down.block, x.pool(self.pool_size[axis]) if i else x, axis)
            skips.append(x)
        for up, skip in zip(up_blocks, skips[-2::-1], strict=True):
            x = up.walk(x, skip, axis)
        return walk_through(self.last, x, axis)

    @property
    def footprint(self) -> Footprint:
        """What the network does to a length, per axis. Set it if the network was changed; otherwise `ModelError`."""
        stated: Footprint | None = vars(self).get("_stated")
        return stated or self.walked_footprint()

    @footprint.setter
    def footprint(self, footprint: Footprint) -> None:
        vars(self)["_stated"] = footprint

    def walked_footprint(self) -> Footprint:
        """Return the footprint that follows from the layers; `ModelError` if none does."""
        try:
            if is_as_built(self):
                return _footprint_as_built(*self.pool_size, **_other_options(self))
            # A subclass with a footprint of its own may begin with that of its layers.
            if type(self).footprint is UNet.footprint and not is_as_built(self, but=WALKED):
                raise TypeError("a hook, a method, or a layer outside of blocks")
            return _walked(self)
        except Exception as error:  # of any kind: a layer may have been replaced with anything
            raise ModelError(
                f"this {type(self).__name__} was changed, and its footprint no longer follows from its layers "
                f"({first_line(error)}). Give footprint=Footprint.same({self.ndim}, reach=..., step=...) or "
                f".valid(...), or set network.footprint: tilenet.measure_footprint(network), or "
                f"tilenet.UNet(**network.options).footprint if no layer sees further than before"
            ) from error


def blocks_of(network: UNet) -> tuple[list[ConvBlock], list[UpBlock]]:
    """Return the blocks of the contracting path, the finest first, and of the expanding path, the coarsest first."""
    return cast("list[ConvBlock]", list(network.down_path)), cast("list[UpBlock]", list(network.up_path))


def is_as_built(model: object, but: str | None = None) -> bool:
    """Return whether a model is a `UNet` without a changed or hooked layer; those that match `but` may be changed."""
    if not isinstance(model, UNet) or any(getattr(type(model), name) is not getattr(UNet, name) for name in OWN):
        return False
    try:
        built = _layers_as_built(but, *model.pool_size, **_other_options(model))
    except Exception:  # an option was overwritten with a value of which no network can be built
        return False
    return _layers(model, but) == built


# To build a network and to walk it takes as long as a small tile, and a run asks several times about one. By type, as
# 2.0 is no 2.
@lru_cache(maxsize=16, typed=True)
def _layers_as_built(but: str | None, *pool_size: int, **options: Any) -> list[tuple[object, ...]]:
    return _layers(_without_weights(pool_size, options), but)


@lru_cache(maxsize=16, typed=True)
def _footprint_as_built(*pool_size: int, **options: Any) -> Footprint:
    return _walked(_without_weights(pool_size, options))


def _without_weights(pool_size: tuple[int, ...], options: dict[str, Any]) -> UNet:
    with torch.device("meta"):
        return UNet(**options, pool_size=pool_size)


def _other_options(network: UNet) -> dict[str, Any]:
    """Return the options of a network other than its `pool_size`."""
    return {name: value for name, value in network.options.items() if name != "pool_size"}


def _walked(network: UNet) -> Footprint:
    return Footprint(tuple(AxisFootprint.of_walk(partial(network.walk, axis=axis)) for axis in range(network.ndim)))


def _layers(network: UNet, but: str | None) -> list[tuple[object, ...]]:
    """Return what an output depends on, layer by layer, except the values of weights."""
    # The network itself (whose name is empty) may be of a subclass and have more attributes, such as notes.
    return [
        (name, name and type(layer), _attributes(layer, None if name else UNet), _tensors(layer), _is_hooked(layer))
        for name, layer in network.named_modules()
        if not (but and re.fullmatch(but, name)) or _is_hooked(layer) or _attributes(layer, type(layer))
    ]


def _attributes(layer: nn.Module, only: type | None) -> dict[str, str]:
    """Return the attributes of a layer as text; with `only`, those that hide an attribute of that class."""
    # The text that a layer prints would not do: that of `nn.Upsample` lacks ``align_corners``.
    own = {name: repr(value) for name, value in vars(layer).items() if name not in OF_ANY_MODULE}
    return {name: text for name, text in own.items() if only is None or hasattr(only, name)}


def _tensors(layer: nn.Module) -> dict[str, torch.Size | None]:
    return {name: getattr(tensor, "shape", None) for name, tensor in {**layer._parameters, **layer._buffers}.items()}


def _is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _check_options(ndim: int, up_mode: str, pooling: str, **counts: int) -> None:
    if ndim not in CONV:
        raise SettingsError(f"ndim is 2 or 3, not {ndim}")
    for name, n in counts.items():
        least = 0 if name == "wf" else 1
        if not isinstance(n, Integral) or n < least:
            raise SettingsError(f"{name} is a whole number, {least} at least, not {n!r}")
    if up_mode not in UP_MODES:
        raise SettingsError(f"up_mode is one of {', '.join(UP_MODES)}, not {up_mode!r}")
    if (pooling, ndim) not in POOL:
        raise SettingsError(f"pooling is 'max' or 'avg', not {pooling!r}")


def _pool_sizes(pool_size: Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    sizes = (2,) * ndim if pool_size is None else tuple(pool_size) if isinstance(pool_size, Iterable) else ()
    if len(sizes) != ndim or not all(isinstance(n, Integral) and n > 0 for n in sizes):
        raise SettingsError(f"pool_size needs {ndim} positive numbers, one per axis, not {pool_size!r}")
    return tuple(map(int, sizes))
