"""Predictors: what turns a batch of tiles into a batch of logits.

A predictor is any callable from (N, C, *n) to (N, K, *m) with a `footprint`. This module
makes one of a PyTorch network.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilenet import steps
from tilenet.bands import Demand, band_pixels, can_band, halves
from tilenet.decide import Decision
from tilenet.engine import FastPath, accelerate, may_accelerate, triton_version
from tilenet.errors import EnvironmentFault, ModelError, SettingsError, first_line
from tilenet.footprint import Footprint
from tilenet.native import convolutions
from tilenet.scaling import Scaling, is_wide
from tilenet.sizes import DEFAULT_DEMAND
from tilenet.unet import UNet, is_as_built

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENGINES = ("auto", "plain", "fast")
# What `torch.from_numpy` takes and a device converts; other types are converted in NumPy.
TORCH_DTYPES = {"uint8", "int8", "int16", "int32", "float16", "float32", "float64"}
# Of these, those that are scaled in float64: see `is_wide`.
WIDE = {torch.int32, torch.float64}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
# Bytes of a pixel's logits for each class, and of its mask, with the copies that are made of them.
LOGITS, MASKS = 8, 2
LOG = logging.getLogger("tilenet")
# Fast paths between being found the same as their network and being used, once, with the state of its weights.
_checked: WeakKeyDictionary[nn.Module, tuple[object, FastPath]] = WeakKeyDictionary()


class TorchPredictor:
    """A PyTorch network as a predictor.

    Parameters
    ----------
    network : torch.nn.Module
        Copied: the one given is neither moved nor switched to eval mode.
    footprint : Footprint
        What it does to a length.
    device : torch.device
        Where it runs.
    precision : {"fp64", "fp32", "bf16", "fp16"}
        What it computes in.
    engine : {"plain", "fast"}
        As it is, or rewritten for the device by `tilenet.engine`.
    scaling : Scaling
        Applied to each batch first.
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
        self._layout = CHANNELS_LAST.get(footprint.ndim, torch.contiguous_format)
        self._forward: FastPath
        if engine == "fast":
            self._forward = _fast(network, device, self.dtype)
            if device.type != "cpu":
                self._layout = torch.contiguous_format
        else:
            plain = _ready(network, device, self.dtype)
            if footprint.ndim in CHANNELS_LAST:
                plain.to(memory_format=self._layout)  # type: ignore[call-overload]
            self._forward = lambda x, prepared: plain(prepared(x))

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return logits (N, K, *m) of raw pixels (N, C, *n), float32 (or a network's float64)."""
        with self.computing(batch.shape):
            return self.logits(self.tensor_of(batch).to(self.device)).cpu().numpy()

    @contextmanager
    def computing(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Compute exactly, and say what to do about what goes wrong with a batch of that shape."""
        with torch.inference_mode(), _exact(self.device):
            try:
                yield
            except RuntimeError as error:
                raise _explained(error, shape) from error

    def tensor_of(self, batch: NDArray[Any]) -> Tensor:
        """Return a batch as a tensor, unscaled and as small as it is."""
        if batch.dtype.name not in TORCH_DTYPES:
            batch = batch.astype(np.float64 if is_wide(batch.dtype) else np.float32)
        # PyTorch takes nothing that runs backward in memory, and warns of what must not be written to.
        usable = batch.flags.writeable and min(batch.strides) >= 0
        return torch.from_numpy(batch if usable else batch.copy())

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (N, K, *m) of raw pixels (N, C, *n), both on the device."""
        out = self._forward(x, self._prepared)
        return out if out.dtype == torch.float64 else out.float()

    def _prepared(self, x: Tensor) -> Tensor:
        """Return raw pixels as the network takes them."""
        return self._scale(x).to(self.dtype, memory_format=self._layout)


def _scale_on(device: torch.device, scaling: Scaling, dtype: torch.dtype, ndim: int) -> Callable[[Tensor], Tensor]:
    """Return what makes scaled floats of tensors there; numbers are sent once, as sending makes the device wait."""
    exact = torch.float32 if device.type == "mps" else torch.float64  # which that lacks
    numbers = {
        wide: [
            torch.tensor(values, dtype=wide).to(device).reshape(1, -1, *(1,) * ndim)
            for values in (scaling.subtract, scaling.divide)
        ]
        for wide in (torch.float32, exact)
    }

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


def find_precision(name: str, network: object) -> str:
    """Return the precision meant: ``auto`` is fp32 everywhere, fp64 for a float64 network.

    bf16 and fp16 are as seamless, but their logits are not those of fp32, so that they must
    be asked for.
    """
    if name != "auto" and name not in PRECISIONS:
        raise SettingsError(f"precision {name!r} is none of auto, {', '.join(PRECISIONS)}")
    first = next(iter(network.parameters()), None) if isinstance(network, nn.Module) else None
    auto = "fp64" if first is not None and first.dtype == torch.float64 else "fp32"
    return auto if name == "auto" else name


def find_engine(name: str, network: object, *, device: torch.device, precision: str) -> str:
    """Return the engine meant: ``auto`` is ``fast`` wherever that gives the same logits."""
    if name not in ENGINES:
        raise SettingsError(f"engine {name!r} is none of {', '.join(ENGINES)}")
    if name != "auto":
        return name
    dtype = PRECISIONS[precision]
    if not isinstance(network, nn.Module) or not may_accelerate(network, device, dtype):
        return "plain"
    _checked.pop(network, None)  # of an earlier job, and large
    fast = accelerate(_ready(network, device, dtype))
    if fast is None:
        return "plain"
    _checked[network] = (_state_of(network), device, dtype), fast
    if device.type == "cpu" and convolutions() == "pytorch":
        LOG.info(
            "convolutions are PyTorch's, about two thirds as fast as those that tilenet compiles when it is installed "
            "where there is a C compiler, for x86-64 on Linux"
        )
    return "fast"


def computed(engine: str, device: str) -> dict[str, str]:
    """Return what last bits may depend on, for people: the versions of what computes."""
    found = {"torch": str(torch.__version__)}
    if engine == "fast":
        found["convolutions"] = convolutions() if device == "cpu" else triton_version()
    return found


def forget(network: object) -> None:
    """Let go of the fast path of a network, which no one in this process will use."""
    if isinstance(network, nn.Module):
        _checked.pop(network, None)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _ready(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network where it is to run."""
    ready = copy.deepcopy(network).eval().to(device, dtype)
    for parameter in ready.parameters():  # one by one: a TorchScript module has no other way
        if parameter.is_leaf:
            parameter.requires_grad_(False)
    return ready


def _fast(network: nn.Module, device: torch.device, dtype: torch.dtype) -> FastPath:
    """Return the fast path of a network: the one that `find_engine` has just made, if it has."""
    state, fast = _checked.pop(network, (None, None))
    if fast is not None and state == (_state_of(network), device, dtype):
        return fast
    fast = accelerate(_ready(network, device, dtype)) if may_accelerate(network, device, dtype) else None
    if fast is None:
        raise SettingsError(
            "engine fast: not for this network, or not on this machine. Start again with --engine plain"
        )
    return fast


def _state_of(network: nn.Module) -> object:
    """Return what differs once a weight has changed: where it lies, and how often it was written.

    Of inference tensors nobody counts that, and so they equal none.
    """
    return [(t.data_ptr(), object() if t.is_inference() else t._version) for t in network.state_dict().values()]


def is_network(model: object) -> bool:
    """Tell whether a model is a PyTorch one."""
    return isinstance(model, nn.Module)


def footprint_of(model: object, footprint: Footprint | None = None) -> Footprint:
    """Return the footprint given, or the model's own; `ModelError` if none, or if a `UNet` as built has another."""
    own = getattr(model, "footprint", None)
    found = footprint if footprint is not None else own
    if not isinstance(found, Footprint):
        what = f"{type(model).__name__} has no footprint" if found is None else f"{found!r} is no Footprint"
        raise ModelError(f"{what}. Give footprint=Footprint.same(2, reach=..., step=...) or .valid(...)")
    if is_as_built(model) and found != own:
        raise ModelError("a UNet's footprint follows from its layers, and is another than was given. Leave it out")
    return found


def spared_of(network: object, decision: Decision, *, engine: str, device: str) -> int:
    """Return the bytes that a pass needs less for each pixel where masks are decided upon at once.

    No plan counts on it, as it depends on the processor.
    """
    if not isinstance(network, UNet) or (engine, device) != ("fast", "cpu"):
        return 0
    at_once = decision.is_choice and steps.decides_at_once(network)
    return LOGITS * network.n_classes - MASKS if at_once else 0


def demand_of(network: object, precision: str, channels: int, *, engine: str, device: str) -> Demand:
    """Return the bytes that a forward pass needs, and the decision upon its logits.

    A U-Net peaks in its last block, where the joined skip (twice the first block's
    channels), a convolution and its ReLU are held beside the skips (as much again): six
    times the first block's channels. Measured peaks of whole runs (depth 2 to 5, wf 1 to 6)
    are 7.5 times, for what the allocator keeps between them; of a band 5 times, and 3.5 times where
    the block is done a few rows after the other; on frames (a GPU), where a skip has room for what joins it, 3.6.
    """
    if not isinstance(network, UNet):
        return DEFAULT_DEMAND
    fast, size, row = engine == "fast", PRECISIONS[precision].itemsize, network.footprint.axes[0]
    if fast and device != "cpu":
        return Demand(12 * network.n_classes + size * (3.75 * 2**network.wf + channels) + 4 * channels)
    times = 7.5
    if fast and can_band(row):
        times = 3.5 if halves(network.pool_size) else 5
    passed = size * (times * 2**network.wf + channels) + 4 * channels
    decided = LOGITS * network.n_classes
    if not fast or not can_band(row):
        return Demand(decided + passed)
    return Demand(decided, passed, row, band_pixels(2**network.wf))


def weight_bytes(network: object) -> int:
    """Return the bytes of a network's weights, 0 where it is no PyTorch one."""
    if not isinstance(network, nn.Module):
        return 0
    return sum(weights.numel() * weights.element_size() for weights in network.parameters())


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Switch off what makes a GPU's results vary: TF32, and autotuned algorithms."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        # What is not said here is not as it was: cuDNN itself would be off.
        enabled = torch.backends.cudnn.enabled
        with torch.backends.cudnn.flags(enabled=enabled, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _explained(error: RuntimeError, shape: tuple[int, ...]) -> Exception:
    text = first_line(error)
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text:
        half = max(1, shape[0] // 2)
        advice = f"--batch {half}" if shape[0] > 1 else "a smaller --tile or --memory"
        return EnvironmentFault(f"out of memory for a batch of shape {shape}. Start again with {advice}")
    return ModelError(f"the network failed on a batch of shape {shape}: {text}")
