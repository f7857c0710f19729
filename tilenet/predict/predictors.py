"""Predictors, which turn a batch of tiles into a batch of logits.

A predictor is any callable from (N, C, *n) to (N, K, *m) with a `footprint`. This module wraps a
PyTorch network as one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilenet import machine
from tilenet.errors import DeviceLost, EnvironmentFault, ModelError, SettingsError, first_line
from tilenet.fast.native import convolutions
from tilenet.footprint import Footprint
from tilenet.models.saved import fingerprint
from tilenet.predict.engine import FastPath, accelerate, may_accelerate, out_of_memory
from tilenet.scaling import Scaling, needs_float64
from tilenet.unet import UNet, is_as_built

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENGINES = ("auto", "plain", "fast")
# Types of which PyTorch makes tensors that a device can scale, and of these, those that mps does not have in every
# version. Others are converted in NumPy.
TORCH_DTYPES = {"uint8", "int8", "uint16", "int16", "int32", "float16", "float32", "float64"}
NOT_ON_MPS = {"uint16", "float64"}
# Those of these types that are scaled in float64; see `needs_float64`.
WIDE = {torch.int32, torch.float64}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
NOT_COMPILED = (
    "convolutions are PyTorch's, about two thirds as fast as those that tilenet compiles when it is installed "
    "where there is a C compiler, for x86-64 on Linux"
)
# What errors of a lack of memory say, beside `torch.OutOfMemoryError`: of the CPU, pinned memory, mps, cuBLAS, cuDNN.
NO_ROOM = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
# How other errors of a GPU begin, in PyTorch's operations and in kernels that Triton compiled.
GPU_FAILED = ("CUDA error", "HIP error", "Triton Error [CUDA]", "Triton Error [HIP]")
NOT_FAST = "engine fast: not for this network, or not on this machine. Start again with --engine plain"
LOG = logging.getLogger("tilenet")
# The fast path of each network that was checked, and what it was checked for. It is kept as long as its network: to
# make and check it takes longer than a small image, and seconds on a GPU, where kernels are compiled.
_checked: WeakKeyDictionary[nn.Module, tuple[tuple[object, torch.device, torch.dtype], FastPath]] = WeakKeyDictionary()


class TorchPredictor:
    """A PyTorch network as a predictor, which applies the `scaling` to each batch first.

    The network is copied: the original is neither moved nor switched to eval mode. `precision` is the floating-point
    type to compute in; `engine` is the network itself, or its fast path on the device (see `tilenet.predict.engine`).
    """

    def __init__(
        self,
        network: nn.Module,
        footprint: Footprint,
        *,
        device: torch.device,
        precision: str,
        engine: str,
        scaling: Scaling,
    ) -> None:
        self.footprint, self.device, self.scaling = footprint, device, scaling
        self.dtype = PRECISIONS[precision]
        self._scale = _scale_on(device, scaling, self.dtype, footprint.ndim)
        on_frames = engine == "fast" and device.type != "cpu"
        self._layout = torch.contiguous_format if on_frames else CHANNELS_LAST[footprint.ndim]
        self._forward: FastPath
        if engine == "fast":
            if (fast := _fast_path(network, device, self.dtype)) is None:
                raise SettingsError(NOT_FAST)
            self._forward = fast
        else:
            plain = _ready(network, device, self.dtype)
            _lay_out(plain, self._layout, footprint.ndim + 2)
            self._forward = lambda x, prepared: plain(prepared(x))

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return logits (N, K, *m) of raw pixels (N, C, *n), in float32 (float64 if the network computes in it)."""
        with self.computing(batch.shape):
            return self.logits(self.tensor_of(batch).to(self.device)).cpu().numpy()

    @contextmanager
    def computing(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Compute reproducibly, and turn a failure on a batch of the given shape into an error that says what to do."""
        with torch.inference_mode(), machine.exact(self.device):
            try:
                yield
            except RuntimeError as error:
                raise _explained(error, shape) from error

    def tensor_of(self, batch: NDArray[Any]) -> Tensor:
        """Return a batch as a tensor, unscaled and, if PyTorch has it, in its own type, which is small to send."""
        wide = needs_float64(batch.dtype) and self.device.type != "mps"  # mps has no float64
        if batch.dtype.name not in TORCH_DTYPES - (NOT_ON_MPS if self.device.type == "mps" else set()):
            batch = batch.astype(np.float64 if wide else np.float32)
        # PyTorch does not take negative strides, and warns about read-only arrays.
        usable = batch.flags.writeable and min(batch.strides) >= 0
        return torch.from_numpy(batch if usable else batch.copy())

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (N, K, *m) of raw pixels (N, C, *n), both on the predictor's device."""
        out = self._forward(x, self._prepared)
        return out if out.dtype == torch.float64 else out.float()

    def _prepared(self, x: Tensor) -> Tensor:
        """Return raw pixels scaled, and in the type and memory layout that the network takes."""
        return self._scale(x).to(self.dtype, memory_format=self._layout)


def _scale_on(device: torch.device, scaling: Scaling, dtype: torch.dtype, ndim: int) -> Callable[[Tensor], Tensor]:
    """Return a function that scales tensors on a device; it sends its numbers only once, as that stalls the device."""
    exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64

    def column(values: Sequence[float], wide: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=wide).to(device).reshape(1, -1, *(1,) * ndim)

    both = (scaling.subtract, scaling.divide)
    numbers = {wide: [column(values, wide) for values in both] for wide in (torch.float32, exact)}

    def scale(x: Tensor) -> Tensor:
        wide = exact if dtype == torch.float64 or x.dtype in WIDE else torch.float32
        subtract, divide = numbers[wide]
        x = x.to(wide, copy=True)
        if any(scaling.subtract):
            x -= subtract
        if any(d != 1 for d in scaling.divide):
            x /= divide
        return x.clamp_(*scaling.clip) if scaling.clip else x

    return scale


def _ready(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network, in eval mode, on the device where it will run."""
    try:
        ready = copy.deepcopy(network).eval().to(device, dtype)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(device) from error
    for parameter in ready.parameters():  # one by one, because a TorchScript module offers no other way
        if parameter.is_leaf:
            parameter.requires_grad_(False)
    return ready


def _lay_out(network: nn.Module, layout: torch.memory_format, rank: int) -> None:
    """Change the memory layout of the weights of a rank; others, as of a 3-D layer in a 2-D network, cannot have it."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == rank:
            tensor.data = tensor.data.to(memory_format=layout)


def _explained(error: RuntimeError, shape: tuple[int, ...]) -> Exception:
    """Return the error to raise for one of PyTorch's on a batch of a shape: it says what to do."""
    text = first_line(error)
    if isinstance(error, torch.OutOfMemoryError) or any(said in text for said in NO_ROOM):
        half = max(1, shape[0] // 2)
        advice = f"--batch {half}" if shape[0] > 1 else "a smaller --tile or --memory"
        return EnvironmentFault(f"out of memory for a batch of shape {shape}. Start again with {advice}")
    if text.startswith(GPU_FAILED):  # after which it takes no more work from this process
        return DeviceLost(
            f"the GPU failed on a batch of shape {shape} ({text}). If it fails again, on another "
            "--device, too, start again with --engine plain or a smaller --tile. To go on, run again "
            "with --resume"
        )
    return ModelError(f"the network failed on a batch of shape {shape}: {text}")


def find_precision(name: str, network: object) -> str:
    """Resolve the name of a precision: ``auto`` is fp32 on every device, or fp64 for a float64 network."""
    if name != "auto" and name not in PRECISIONS:
        raise SettingsError(f"precision {name!r} is none of auto, {', '.join(PRECISIONS)}")
    first = next(iter(network.parameters()), None) if isinstance(network, nn.Module) else None
    auto = "fp64" if first is not None and first.dtype == torch.float64 else "fp32"
    return auto if name == "auto" else name


def find_engine(name: str, network: object, *, device: torch.device, precision: str) -> str:
    """Resolve the name of an engine: ``auto`` is ``fast`` if that gives the same logits, else ``plain``."""
    if name not in ENGINES:
        raise SettingsError(f"engine {name!r} is none of {', '.join(ENGINES)}")
    if name != "plain" and isinstance(network, nn.Module) and _fast_path(network, device, PRECISIONS[precision]):
        if device.type == "cpu" and convolutions() == "pytorch":
            LOG.info(NOT_COMPILED)
        return "fast"
    if name == "fast":
        raise SettingsError(NOT_FAST)
    return "plain"


def free_device(network: object) -> None:
    """Free what the fast path of a network, which this process will not use, takes of a GPU."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        if isinstance(network, nn.Module):
            _checked.pop(network, None)
        torch.cuda.empty_cache()


def free_host() -> None:
    """Free what fast paths take of the memory of this machine; a network that is used again gets another."""
    for network, ((_, device, _), _) in list(_checked.items()):
        if device.type == "cpu":
            _checked.pop(network, None)


def _fast_path(network: nn.Module, device: torch.device, dtype: torch.dtype) -> FastPath | None:
    """Return the fast path of a network on a device, or None if there is none.

    It is made and checked anew only if it is another network by now: by weights, layers, device or type.
    """
    if not may_accelerate(network, device, dtype):
        return None
    wanted = (_identity_of(network), device, dtype)
    was, fast = _checked.get(network, (None, None))
    if was != wanted:
        _checked.pop(network, None)  # before another takes as much memory
        if (fast := accelerate(_ready(network, device, dtype))) is not None:
            _checked[network] = wanted, fast
    return fast


def _identity_of(network: nn.Module) -> object:
    """Return what the logits of a network depend on, if it is a `UNet` as built; a value that equals no other if not.

    Weights are compared by their values: PyTorch does not count all writes, and memory is used again.
    """
    return (network.options, fingerprint(network)) if is_as_built(network) else object()


def is_network(model: object) -> bool:
    """Return whether a model is a PyTorch network."""
    return isinstance(model, nn.Module)


def footprint_of(model: object, footprint: Footprint | None = None) -> Footprint:
    """Return the given footprint, or the model's; `ModelError` if there is none, or an unchanged `UNet` has another."""
    found = footprint if footprint is not None else getattr(model, "footprint", None)
    if not isinstance(found, Footprint):
        what = f"{type(model).__name__} has no footprint" if found is None else f"{found!r} is no Footprint"
        raise ModelError(
            f"{what}. Give footprint=Footprint.same(2, reach=..., step=...) or .valid(...), or, if it is padded, "
            f"measure it: network.footprint = tilenet.measure_footprint(network). A function that --model names does "
            f"this itself. help(tilenet.Footprint) explains reach and step"
        )
    if found.ndim not in CHANNELS_LAST:
        raise SettingsError(f"a footprint has 2 or 3 axes, those of the network, not {found.ndim}. Give one for each")
    given = footprint is not None or "_stated" in vars(model)
    if given and isinstance(model, UNet) and is_as_built(model) and found != (own := model.walked_footprint()):
        raise ModelError(f"a UNet's footprint follows from its layers: {own}. It is another than was given or set")
    return found
