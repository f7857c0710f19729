"""Predictors on a GPU: pixels go there as they are stored, and only what is written comes back.

Logits stay on the device. They are cropped, checked and decided upon there, so that one byte of
mask (or the probabilities asked for) crosses the bus for each pixel, not K logits. Copies
run beside the computation, on streams of their own and through pinned memory; a bounded number of
batches is begun before the first is waited for.

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

from tilenet.decide import Arrays, Decision, not_finite
from tilenet.plan import Tile
from tilenet.predict import TORCH_DTYPES, TorchPredictor


class DevicePredictor(TorchPredictor):
    """A predictor that decides where it computes; see `tilenet.runner.DecidingPredictor`.

    Attributes
    ----------
    in_flight : int
        Batches begun and not finished: one is computed while the next is sent.
    """

    in_flight = 2

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._copies = _Copies(self.device) if self.device.type == "cuda" else None

    def room(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array that a batch is read into: pinned, so that the device fetches it by itself."""
        if self._copies is not None and dtype.name in TORCH_DTYPES:
            with suppress(RuntimeError):  # it is sent from elsewhere then, or whoever sends it says what is wrong
                pinned: NDArray[Any] = torch.empty(shape, dtype=getattr(torch, dtype.name), pin_memory=True).numpy()
                return pinned
        return np.empty(shape, dtype)

    def begin(self, batch: NDArray[Any], tiles: Sequence[Tile], decide: Decision) -> Callable[[], list[Arrays]]:
        """Send a batch (N, C, *n) and begin to compute; what is returned waits for the arrays of each tile."""
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
            sending.clear()  # not before: the device fetches it while others read the next batch
            for tile, good in zip(tiles, finite, strict=True):
                if not good:
                    raise not_finite(tile.write)
            values = iter(found)
            return [{name: next(values) for name in decide.arrays} for _ in tiles]

        return finish

    def _sent(self, x: Tensor) -> Tensor:
        return self._copies.send(x) if self._copies else x.to(self.device)

    def _fetched(self, tensors: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
        if self._copies:
            return self._copies.fetch(tensors)
        found = [tensor.cpu().numpy() for tensor in tensors]
        return lambda: found


class _Copies:
    """Copies to and from a CUDA device, each way on a stream of its own.

    PyTorch's caching allocators keep pinned and device memory for the next batch, and give it
    out again only when the streams noted here have done with it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def send(self, x: Tensor) -> Tensor:
        """Return a tensor on the device; it is there when the current stream needs it."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            pinned = x if x.is_pinned() else x.pin_memory()
            there = pinned.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        there.record_stream(computing)
        return there

    def fetch(self, tensors: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
        """Begin to copy tensors here; what is returned waits for them."""
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
    """Return the arrays wanted, from logits (K, *n), on their device: mask (*n) uint8, others (K, *n).

    The twin of `Decision.__call__`, without a word from the device to the host.

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
    """Return mask values; of equal logits the first class wins, which `torch.argmax` does not promise."""
    if decide.kind != "softmax":
        return (logits[0] > decide.cut).to(torch.uint8).mul_(decide.mask_of_class[0])
    mask, best = torch.full_like(logits[0], decide.mask_of_class[0], dtype=torch.uint8), logits[0]
    for value, plane in zip(decide.mask_of_class[1:], logits[1:], strict=True):
        mask.masked_fill_(plane > best, value)
        best = torch.maximum(best, plane)
    return mask


def _probabilities(decide: Decision, logits: Tensor) -> Tensor:
    dtype: torch.dtype = getattr(torch, decide.probability_dtype)
    if decide.kind == "softmax":
        return logits.softmax(dim=0).to(dtype)
    return (logits.sigmoid() if decide.kind == "sigmoid" else logits.contiguous()).to(dtype)
