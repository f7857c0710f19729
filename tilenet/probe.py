"""What a model answers to small fixed inputs: how many outputs it has, and whether it is what was said of it.

A run record cannot hold somebody's code. So of models whose weights do not say all, it holds a few of the numbers that
they answer: whoever resumes a run, or checks its mask, with another function is told. And a footprint is somebody's
word: a tile and a part of it are computed, which are the same if it is large enough and no layer sees the whole tile.
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

# A model is asked with an input so much longer than the shortest.
LONGER = 16
# Numbers of an answer that are kept.
KEPT = 64
# By how much of their range the answers of one model may differ: in single precision, and in halves or on a GPU.
ROUNDING, COARSE = 1e-5, 5e-2
# Pixels around the part of a tile that is computed again, at the least, and its side, by the number of axes; and most
# pixels of the tile.
AROUND, SIDE, TILE_PIXELS = {3: 8}, {3: 4}, 2**19


@dataclass(frozen=True)
class Answer:
    """What a model answers.

    Attributes
    ----------
    outputs : int
        K.
    values : tuple of float
        Some of its numbers; none of a `UNet` as built, whose weights and card say all, or of a model that does not
        repeat them.
    within : float
        By how much of their range they may differ from those of the same model.
    repeats : bool
        Whether the same input has the same answer.
    like_probabilities : bool
        Whether they lie in 0 to 1, and those of several outputs sum to 1.
    off : float
        Largest difference between a tile and a part of it, beyond rounding, as a part of the logits' range.
    """

    outputs: int
    values: tuple[float, ...] = ()
    within: float = ROUNDING
    repeats: bool = True
    like_probabilities: bool = False
    off: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what a run record holds of it."""
        return {"values": list(self.values), "within": self.within}


def ask(model: Any, footprint: Footprint, channels: int) -> Answer:
    """Return the answer of a model; `ModelError` if it fails, gives no array, or has another footprint."""
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
    """Return (1, *shape) of values from 0 to 255, most of them small: what is there for networks of any scaling."""
    spread = np.arange(int(np.prod(shape))) * ((5**0.5 - 1) / 2) % 1
    return np.float32(255 * spread**4).reshape(1, *shape)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return by how much of their range two answers of run records differ; 0 where they are those of one model.

    >>> old = {"values": [0.0, 2.0, 1.0], "within": 1e-5}
    >>> difference(old, old | {"values": [0.0, 2.00001, 1.0]}), difference(old, old | {"values": [0.0, 1.9, 1.0]})
    (0.0, 0.05)
    """
    a, b, within = old["values"], new["values"], max(old["within"], new["within"])
    if alike(a, b, within):
        return 0.0
    return round(_apart(a, b), 6) if len(a) == len(b) else 1.0


def alike(old: Sequence[float], new: Sequence[float], within: float) -> bool:
    """Tell whether two answers are those of one model; what is no number is at the same places."""
    return len(old) == len(new) and (len(old) == 0 or _apart(old, new) <= within)


def _apart(old: Sequence[float], new: Sequence[float]) -> float:
    a, b = np.asarray(old, float), np.asarray(new, float)
    with np.errstate(invalid="ignore"):
        off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    finite = a[np.isfinite(a)]
    return float(np.nan_to_num(off, nan=np.inf).max() / max(np.ptp(finite) if finite.size else 0, 1e-6))


def remarks(card: ModelCard, answer: Answer) -> Iterator[str]:
    """Yield what people ought to hear of a model of their own."""
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
    """Return by how much the logits of a tile and of a part of it differ; 0 if that is rounding, or cannot be seen."""
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
    """Return the next number without a factor of 2, 3 or 5, so that a grid of a larger pitch shows."""
    while gcd(steps, 30) > 1:
        steps += 1
    return steps


def _within(model: Any) -> float:
    """Return by how much of their range the answers of one model may differ."""
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return COARSE if first is not None and (first.dtype.itemsize < 4 or first.device.type != "cpu") else ROUNDING


def _asked(model: Any, x: NDArray[np.float32]) -> NDArray[Any]:
    try:
        made = _passed(model, x) if isinstance(model, nn.Module) else model(x)
    except Exception as error:  # of whatever kind: it is somebody's code
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
