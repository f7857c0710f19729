"""What a model answers to small fixed inputs: how many outputs it has, and whether it is what it is said to be.

A run record cannot hold a user's code. For models that are not fully described by weights, it holds a few numbers of
their answer instead, so that it is noticed if a run is resumed, or its mask verified, with another function. Nor can a
footprint given by the user be trusted: a tile and a part of it are computed, and compared. They agree if the footprint
is large enough and no layer depends on the whole tile.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilenet.card import ModelCard
from tilenet.errors import ModelError, first_line
from tilenet.footprint import Footprint
from tilenet.geometry import Box, ceil_div, round_up
from tilenet.plan import tile_of
from tilenet.unet import is_as_built

# How much longer than the shortest legal input the fixed input is, in pixels.
LONGER = 16
# How many numbers of an answer are kept.
KEPT = 64
# By which fraction of their range answers of one model may differ: in single precision; in half precision or on a GPU.
ROUNDING, COARSE = 1e-5, 5e-2
# By number of axes, the fewest pixels around the part of a tile that is computed again, and the side of that part (else
# 32 and 16, see `_off`); and the most pixels of the tile.
AROUND, SIDE, TILE_PIXELS = {3: 8}, {3: 4}, 2**19


@dataclass(frozen=True)
class Answer:
    """What a model answers to a fixed input.

    Attributes
    ----------
    outputs : int
        Number of outputs, K.
    values : tuple of float
        Some numbers of the answer. Empty for an unchanged `UNet`, which weights and card describe fully, and for a
        model whose answer is not finite or does not repeat.
    within : float
        By which fraction of their range `values` may differ from those of the same model.
    repeats : bool
        Whether the same input gives the same answer again.
    like_probabilities : bool
        Whether the outputs lie between 0 and 1 and, if there are several, sum to 1.
    off : float
        Largest difference between a tile and a part of it, beyond rounding, as a fraction of the logits' range.
    """

    outputs: int
    values: tuple[float, ...] = ()
    within: float = ROUNDING
    repeats: bool = True
    like_probabilities: bool = False
    off: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the part of the answer that a run record holds."""
        return {"values": list(self.values), "within": self.within}


def ask(model: Any, footprint: Footprint, channels: int) -> Answer:
    """Return the answer of a model; `ModelError` if it fails, returns no array, or does not match its footprint."""
    if is_as_built(model):
        return Answer(model.n_classes)
    x = small_input((channels, *(a.legal_at_least(a.smallest + LONGER) for a in footprint.axes)))
    made, again = _asked(model, x), _asked(model, x)
    want = footprint.output_shape(x.shape[2:])
    if made.shape[2:] != want:
        raise ModelError(f"the footprint says {x.shape[2:]} -> {want}, the network gives {made.shape[2:]}")
    some = made.ravel()[np.linspace(0, made.size - 1, min(KEPT, made.size)).astype(int)]
    outputs, within = made.shape[1], _within(model)
    repeats = alike(made.ravel().tolist(), again.ravel().tolist(), within)
    sums = np.allclose(made.sum(axis=1), 1, atol=1e-3) if outputs > 1 else made.min() < made.max()
    return Answer(
        outputs,
        tuple(float(f"{value:.7g}") for value in some) if repeats and np.isfinite(some).all() else (),
        within,
        repeats,
        like_probabilities=bool(made.min() >= 0 and made.max() <= 1 and sums),
        off=_off(model, footprint, channels, within) if repeats else 0.0,
    )


def small_input(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return (1, *shape) of values from 0 to 255, most of them small, so that it suits networks of any scaling."""
    spread = np.arange(int(np.prod(shape))) * ((5**0.5 - 1) / 2) % 1
    return np.float32(255 * spread**4).reshape(1, *shape)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return by which fraction of their range two recorded answers differ; 0 if they may be those of one model.

    >>> old = {"values": [0.0, 2.0, 1.0], "within": 1e-5}
    >>> difference(old, old | {"values": [0.0, 2.00001, 1.0]}), difference(old, old | {"values": [0.0, 1.9, 1.0]})
    (0.0, 0.05)
    """
    a, b, within = old["values"], new["values"], max(old["within"], new["within"])
    if alike(a, b, within):
        return 0.0
    return round(_apart(a, b), 6) if len(a) == len(b) else 1.0


def alike(old: Sequence[float], new: Sequence[float], within: float) -> bool:
    """Return whether two answers may be those of one model; NaN and infinities must be at the same places."""
    return len(old) == len(new) and (len(old) == 0 or _apart(old, new) <= within)


def _apart(old: Sequence[float], new: Sequence[float]) -> float:
    a, b = np.asarray(old, float), np.asarray(new, float)
    with np.errstate(invalid="ignore"):
        off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    finite = a[np.isfinite(a)]
    return float(np.nan_to_num(off, nan=np.inf).max() / max(np.ptp(finite) if finite.size else 0, 1e-6))


def remarks(card: ModelCard, answer: Answer) -> Iterator[str]:
    """Yield warnings about a model of the user's own."""
    if answer.like_probabilities and card.output != "regression":
        yield (
            "its outputs look like probabilities, and tilenet takes them for logits. Give it without its last sigmoid "
            "or softmax, or with a card of output regression"
        )
    if not answer.repeats:
        yield "gives other logits for the same pixels, so that no run can be repeated, nor resumed to the same mask"
    if answer.off:
        yield (
            f"a tile and a part of it differ by {answer.off:.2g} of the logits' range, so that there are seams. The "
            f"footprint's reach or step is too small, or a layer depends on the whole tile, as instance and group "
            f"normalisation do"
        )


def _off(model: Any, footprint: Footprint, channels: int, within: float) -> float:
    """Return by how much the logits of a tile and of a part of it differ; 0 if by rounding only, or if unknown."""
    ndim = footprint.ndim
    around = [a.step * _odd(ceil_div(max(4 * a.step, a.margin, AROUND.get(ndim, 32)), a.step)) for a in footprint.axes]
    sides = [round_up(SIDE.get(ndim, 16), a.step) for a in footprint.axes]
    large = tile_of(footprint, Box((0,) * ndim, tuple(2 * n + side for n, side in zip(around, sides, strict=True))))
    part = Box(tuple(around), tuple(n + side for n, side in zip(around, sides, strict=True)))
    small = tile_of(footprint, part)
    if large.read.size > TILE_PIXELS or small.read not in large.read:
        return 0.0
    x = small_input((channels, *large.read.shape))
    whole = _asked(model, x)
    inside = np.ascontiguousarray(x[:, :, *small.read.relative_to(large.read.start).slices])
    a = whole[:, :, *large.crop.slices][:, :, *part.slices]
    b = _asked(model, inside)[:, :, *small.crop.slices]
    if not np.isfinite(whole).all():
        return 0.0
    off = float(np.abs(a - b).max() / max(np.ptp(whole), 1e-6))
    return off if off > 10 * within else 0.0


def _odd(steps: int) -> int:
    """Return the next number without a factor of 2, 3 or 5, so that a step larger than the footprint's is noticed."""
    while gcd(steps, 30) > 1:
        steps += 1
    return steps


def _within(model: Any) -> float:
    """Return by which fraction of their range the answers of one model may differ."""
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return COARSE if first is not None and (first.dtype.itemsize < 4 or first.device.type != "cpu") else ROUNDING


def _asked(model: Any, x: NDArray[np.float32]) -> NDArray[Any]:
    try:
        made = _passed(model, x) if isinstance(model, nn.Module) else model(x)
    except Exception as error:  # of any kind, because it is the user's code
        takes = "" if isinstance(model, nn.Module) else " (a function gets NumPy float32, and gives an array)"
        raise ModelError(
            f"the network does not take an input of shape {x.shape}{takes}: {first_line(error)}"
        ) from error
    if not hasattr(made, "shape"):
        kind = type(made).__name__
        raise ModelError(f"the network gives a {kind}, not an array of logits. Wrap it in what returns them alone")
    try:
        return np.asarray(made).astype(np.float64)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the network gives no NumPy array ({error}). Give a function that returns one") from error


def _passed(network: nn.Module, x: NDArray[np.float32]) -> Any:
    probe = copy.deepcopy(network).eval()
    parameter = next(iter(probe.parameters()), torch.zeros(()))
    with torch.inference_mode():
        made = probe(torch.from_numpy(x).to(parameter.device, parameter.dtype))
    return made.cpu().double().numpy() if isinstance(made, torch.Tensor) else made
