"""The fast paths: on a GPU the same U-Net on frames (`tilenet/fast/frame_network.py`), on a CPU a flat list of steps.

What the steps (`tilenet/fast/steps.py`, channels last) do, and why it pays, measured on two AVX-512 cores
(`benchmarks/efficiency.py`):

- 3x3 convolutions use Winograd's method in compiled code (`tilenet/fast/convolutions.c`: 1.5 to 3x as fast as oneDNN's
  direct ones), which also applies scale, shift and pooling, if tilenet was installed with a C compiler and channels are
  multiples of 16. The first convolution, of the image's channels, and the last, 1x1, are compiled as direct ones.
  Without a compiler, convolutions of at least 128 channels use Winograd's method with PyTorch's operations
  (`tilenet/fast/winograd.py`), and others are oneDNN's.
- Networks that neither pad nor clamp are computed in bands of rows (`tilenet/bands.py`): a tile of 2048 px takes about
  the memory of one of 1024 px without bands, and 4 % less time. Their blocks are computed in bands that fit a cache.
- Upsampled pixels and the skip enter one convolution without being joined in memory. For up to 64 channels, unpadded
  and compiled, upsampling and that convolution are merged: 5 to 9 % less time for the whole network.
- Batch normalisation between two unpadded convolutions is folded into the second.
- Mask values are decided in the last convolution (`tilenet/predict/on_cpu.py`): for 16 channels and 4 classes, two
  cores take 6 to 7 ns per pixel for both, instead of 13 to 15 with logits that are written, read again and searched for
  NaN.
- The 1x1 convolution after bilinear resizing is done before it.
- The list of steps is flat, so that each tensor is freed as soon as the next one exists.

Before its first use, a fast path is compared with the plain network, and dropped if it differs by more than rounding.
Masks decided in the last convolution are compared with the logits.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from importlib.util import find_spec
from math import inf

import torch
from torch import Tensor, nn

from tilenet.bands import band_pixels, can_band, split_rows
from tilenet.errors import EnvironmentFault, first_line
from tilenet.fast.steps import decides_at_once, steps_of
from tilenet.fast.stream import NotFinite, PassState
from tilenet.unet import UNet, is_as_built

# Largest difference from the plain network, as a fraction of the logits' range.
TOLERANCE = 1e-5
LOG = logging.getLogger("tilenet")
# Major compute capability of the GPUs for which the block sizes of the kernels were chosen.
HOPPER = 9
# Maps pixels (N, C, h, w), and a function that prepares them, to logits.
FastPath = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


class SteppedUNet:
    """A U-Net (2-D, float32, in eval mode, on the CPU, not changed) as a list of steps; call it like the network."""

    def __init__(self, network: UNet) -> None:
        self._steps, self._axis = list(steps_of(network)), network.footprint.axes[0]
        self._pixels = band_pixels(2**network.wf)
        self._decides = decides_at_once(network)

    def __call__(self, x: Tensor, prepared: Callable[[Tensor], Tensor], *, pixels: int | None = None) -> Tensor:
        """Map (N, C, h, w) to logits (N, K, h', w'); `prepared` makes bands (of about `pixels`) channels last."""
        return self._in_bands(x, prepared, PassState(), pixels or self._pixels)

    def decided(
        self, x: Tensor, prepared: Callable[[Tensor], Tensor], values: Tensor, *, pixels: int | None = None
    ) -> Tensor | None:
        """Map (N, C, h, w) to a mask (N, h', w'): of `values`, (K,) uint8, that of the first of the largest logits.

        None if any logit is not finite, or if the last convolution is not compiled.
        """
        if not self._decides:
            return None
        try:
            return self._in_bands(x, prepared, PassState(values), pixels or self._pixels)[:, 0]
        except NotFinite:
            return None

    def _in_bands(self, x: Tensor, prepared: Callable[[Tensor], Tensor], state: PassState, pixels: int) -> Tensor:
        n, _, height, width = x.shape
        bands = [(0, height)]
        if can_band(self._axis):
            bands = split_rows(self._axis, height, n * width, pixels)
        out, top = torch.empty(0), 0
        for start, stop in bands:
            for made in self._passed(prepared(x[:, :, start:stop]), state):
                if top == 0:
                    # One plane per class, as the `Decision` on the logits needs it.
                    shape = (*made.shape[:2], self._axis.output_length(height), made.shape[3])
                    out = torch.empty(shape, dtype=made.dtype)
                out[:, :, top : top + made.shape[2]] = made
                top += made.shape[2]
        return out

    def _passed(self, x: Tensor, state: PassState) -> list[Tensor]:
        pieces = [x]
        for step in self._steps:
            pieces = step(pieces, state)
        return pieces


def accelerate(network: nn.Module) -> FastPath | None:
    """Return the fast path of a network, or None if there is none, or (with a warning) if its logits differ.

    The network is a copy of the caller's, in eval mode, on the device where it will run. There is a fast path for a 2-D
    float32 `UNet` on a CPU, and on a Hopper GPU with Triton for a 2-D `UNet` of 16 channels or more that neither pads
    nor interpolates.
    """
    if not isinstance(network, UNet) or network.training:
        return None
    weight = next(network.parameters())
    if not may_accelerate(network, weight.device, weight.dtype):
        return None
    if not is_as_built(network):
        LOG.warning("the fast path cannot be had where layers of a U-Net were changed: the plain one is used")
        return None
    lengths = (axis.legal_at_least(axis.smallest + 32) for axis in network.footprint.axes)
    x = torch.rand(1, network.in_channels, *lengths, generator=torch.Generator().manual_seed(0))
    return _tried(_in_steps if weight.device.type == "cpu" else _on_frames, network, x.to(weight.device))


def _tried(make: Callable[[UNet, Tensor], FastPath | None], network: UNet, x: Tensor) -> FastPath | None:
    """Return the fast path that `make` returns, or None, with a warning, if it cannot be had here."""
    try:
        with torch.inference_mode():
            return make(network, x)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(x.device) from error
    except Exception as error:  # of private operations of PyTorch, of Triton (perhaps an old one), of a compiler or GPU
        LOG.warning("the fast path cannot be had on this device (%s): the plain one is used", first_line(error))
        return None


def may_accelerate(network: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device may have a fast path for a network, so that it is worth sending it there to find out."""
    if not isinstance(network, UNet) or network.ndim != 2:
        return False
    if device.type != "cuda":
        return (device.type, dtype) == ("cpu", torch.float32)
    nvidia = torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device)[0] == HOPPER and find_spec("triton") is not None


def _in_steps(network: UNet, x: Tensor) -> FastPath | None:
    plain, fast = network(x), SteppedUNet(network)
    logits = fast(x, channels_last, pixels=1)
    if not _same(_difference(logits, plain), TOLERANCE):
        return None
    values = torch.arange(network.n_classes).to(torch.uint8)
    mask = fast.decided(x, channels_last, values, pixels=1)
    # NumPy's `argmax` returns the first of equal ones.
    if mask is not None and not torch.equal(mask, values[torch.from_numpy(logits.numpy().argmax(1))]):
        LOG.warning("the fast path gives masks that its logits do not: the plain one is used")
        return None
    return fast


def _on_frames(network: UNet, x: Tensor) -> FastPath | None:
    """Return the fast path on a GPU, if its logits are as close to float64 ones as its precision allows."""
    from tilenet.fast.frame_network import FramedUNet, can_frame

    if not can_frame(network):
        return None
    dtype = network.last.weight.dtype
    logits = copy.deepcopy(network).double()(x.double())
    fast = FramedUNet(network)
    difference = _difference(fast(x, lambda x: x.to(dtype)), logits)
    allowed = TOLERANCE if dtype == torch.float32 else 2 * _difference(network(x.to(dtype)), logits)
    return fast if _same(difference, allowed) else None


def out_of_memory(device: torch.device) -> EnvironmentFault:
    """Return the error to raise if the memory of a device does not suffice for the network alone."""
    return EnvironmentFault(f"{device}: out of memory before the run began. Free it, or take another --device")


def triton_version() -> str:
    """Return the name and version of what compiles a GPU's fast path; without the version if Triton is not here."""
    if find_spec("triton") is None:
        return "triton"
    from tilenet.fast.frames import TRITON

    return f"triton {TRITON}"


def _difference(found: Tensor, logits: Tensor) -> float:
    """Return the largest difference from logits, as a fraction of their range."""
    largest, span = float((found.to(logits.dtype) - logits).abs().max()), float(logits.max() - logits.min())
    if largest == 0:
        return 0.0
    return largest / span if span else inf


def _same(difference: float, allowed: float) -> bool:
    if not difference <= allowed:
        LOG.warning("the fast path differs from this network by %.1e of its range: the plain one is used", difference)
    return difference <= allowed


def channels_last(x: Tensor) -> Tensor:
    """Return (N, C, h, w) in the memory layout that the steps' convolutions take."""
    return x.to(memory_format=torch.channels_last)
