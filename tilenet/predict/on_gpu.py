"""Predictors on a GPU: pixels are sent in their stored type, and only the arrays to be written come back.

Logits stay on the device. They are cropped, checked and decided there, so that one byte of mask (or
the requested probabilities) per pixel crosses the bus instead of K logits. Copies run beside the
computation, on CUDA streams of their own and through pinned memory. A bounded number of batches is
begun before the first is waited for.

The mask is, bit for bit, what `Decision` makes of the same logits in NumPy. Probabilities are as
close to NumPy's as the device's exponential function is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilenet.decide import DEPTH_UNIT, Arrays, Decision, not_finite, refuse_too_large
from tilenet.plan import Tile
from tilenet.predict.predictors import TORCH_DTYPES, TorchPredictor


class GpuPredictor(TorchPredictor):
    """A predictor that decides where it computes; see `tilenet.runner.DecidingPredictor`."""

    in_flight = 2  # one is computed while the next is sent

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._copies = _Copies(self.device) if self.device.type == "cuda" else None

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array into which a batch is read; it is pinned, so that the device can fetch it by itself."""
        if self._copies is not None and dtype.name in TORCH_DTYPES:
            with suppress(RuntimeError):  # sending the batch pins a copy, or says that there is no room
                pinned: NDArray[Any] = torch.empty(shape, dtype=getattr(torch, dtype.name), pin_memory=True).numpy()
                return pinned
        return np.empty(shape, dtype)

    def begin(self, batch: NDArray[Any], tiles: Sequence[Tile], decide: Decision) -> Callable[[], list[Arrays]]:
        """Send a batch (N, C, *n) and begin to compute; the returned function waits for the arrays of each tile."""
        shape, crops = batch.shape, [tile.crop.slices[-self.footprint.ndim :] for tile in tiles]
        with self.computing(shape):
            sending = [self.tensor_of(batch)]
            logits = self.logits(self._sent(*sending))  # (N, K, *m)
            kept = [of_tile[:, *crop] for of_tile, crop in zip(logits, crops, strict=True)]
            finite = torch.stack([torch.isfinite(of_tile).all() for of_tile in kept])
            made = [decided(decide, of_tile) for of_tile in kept]
            fetch = self._fetched([finite, *(values for arrays in made for values in arrays.values())])

        def finish() -> list[Arrays]:
            with self.computing(shape):
                finite, *found = fetch()
            sending.clear()  # not earlier: the device copies from this memory while the next batch is read
            for tile, good in zip(tiles, finite, strict=True):
                if not good:
                    raise not_finite(tile.write)
            values = iter(found)
            arrays = [{name: next(values) for name in decide.arrays} for _ in tiles]
            if decide.kind == "regression" and "probabilities" in decide.arrays:
                for of_tile in arrays:
                    refuse_too_large(of_tile["probabilities"])
            return arrays

        return finish

    def _sent(self, x: Tensor) -> Tensor:
        return self._copies.send(x) if self._copies else x.to(self.device)

    def _fetched(self, tensors: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
        if self._copies:
            return self._copies.fetch(tensors)
        found = [tensor.cpu().numpy() for tensor in tensors]
        return lambda: found


class _Copies:
    """Copies to and from a CUDA device, with one stream for each direction.

    PyTorch's caching allocators keep pinned and device memory for the next batch, and reuse it only
    when the streams recorded here are done with it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def send(self, x: Tensor) -> Tensor:
        """Copy a tensor to the device; the device's current stream waits for the copy."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            pinned = x if x.is_pinned() else x.pin_memory()
            there = pinned.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        there.record_stream(computing)
        return there

    def fetch(self, tensors: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
        """Begin to copy tensors to the host; the returned function waits for them."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        here = []
        with torch.cuda.stream(self._down):
            for tensor in tensors:
                tensor.record_stream(self._down)
                pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                here.append(pinned.copy_(tensor, non_blocking=True))
            copied = self._down.record_event()

        def wait() -> list[NDArray[Any]]:
            copied.synchronize()
            return [tensor.numpy() for tensor in here]

        return wait


def decided(decide: Decision, logits: Tensor) -> dict[str, Tensor]:
    """Return the requested arrays for logits (K, *n), on their device: the mask as (*n) uint8, the others as (K, *n).

    It is the counterpart of `Decision.__call__` that never waits for the device.

    >>> decided(Decision("softmax", (0, 1, 1)), torch.tensor([[3.0, 1.0], [2.0, 1.5], [0.0, 2.0]]))
    {'mask': tensor([0, 1], dtype=torch.uint8)}
    """
    make: dict[str, Callable[[], Tensor]] = {
        "mask": lambda: _mask(decide, logits),
        "probabilities": lambda: _probabilities(decide, logits),
        "logits": logits.contiguous,
    }
    return {name: make[name]() for name in decide.arrays}


def _mask(decide: Decision, logits: Tensor) -> Tensor:
    """Return mask values; among equal logits the first class wins, which `torch.argmax` does not guarantee."""
    if decide.kind != "softmax":
        return (logits[0] > decide.logit_threshold).to(torch.uint8).mul_(decide.mask_of_class[0])
    mask, best = torch.full_like(logits[0], decide.mask_of_class[0], dtype=torch.uint8), logits[0]
    for value, plane in zip(decide.mask_of_class[1:], logits[1:], strict=True):
        mask.masked_fill_(plane > best, value)
        best = torch.maximum(best, plane)
    return mask


def _probabilities(decide: Decision, logits: Tensor) -> Tensor:
    dtype: torch.dtype = getattr(torch, decide.probability_dtype)
    if decide.depths:
        probabilities = logits.softmax(dim=0)
        depth = sum((d * p for d, p in zip(decide.depths, probabilities, strict=True)), torch.zeros_like(logits[0]))
        return ((depth / DEPTH_UNIT).round_() * DEPTH_UNIT)[None].to(dtype)
    if decide.kind == "softmax":
        return logits.softmax(dim=0).to(dtype)
    return (logits.sigmoid() if decide.kind == "sigmoid" else logits.contiguous()).to(dtype)
