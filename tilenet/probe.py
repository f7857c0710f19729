"""What a model answers to small fixed inputs: how many outputs it has, and whether it is what was said of it.

A run record cannot hold somebody's code. So of models whose weights do not say all, it holds a few of the numbers that
they answer: whoever resumes a run, or checks its mask, with another function is told. And a footprint is somebody's
word: a tile and a part of it are computed, which are the same if it is large enough and no layer sees the whole tile.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilenet.card import ModelCard
from tilenet.errors import ModelError
from tilenet.footprint import Footprint
from tilenet.geometry import Box
from tilenet.plan import tile_of
from tilenet.unet import UNet

# A model is asked with an input so much longer than the shortest.
LONGER = 16
# Numbers of an answer that are kept, and how far they may be off, as a part of their range: devices round differently.
KEPT, CLOSE = 64, 1e-2
# Most pixels of a tile that is computed for that, and by how much of their range logits may then differ: by rounding in
# single precision, by that of halves.
TILE_PIXELS = 2**18
ROUNDING, OF_HALVES = 1e-4, 5e-2


@dataclass(frozen=True)
class Answer:
    """What a model answers.

    Attributes
    ----------
    outputs : int
        K.
    values : tuple of float
        Some of its numbers; none of a `UNet`, whose weights and card say all.
    like_probabilities : bool
        Whether they lie in 0 to 1, and those of several outputs sum to 1.
    off : float
        Largest difference between a tile and a part of it, beyond rounding, as a part of the logits' range.
    """

    outputs: int
    values: tuple[float, ...] = ()
    like_probabilities: bool = False
    off: float = 0.0


def ask(model: Any, footprint: Footprint, channels: int) -> Answer:
    """Return the answer of a model; `ModelError` if it fails, gives no array, or has another footprint."""
    if type(model) is UNet:
        return Answer(model.n_classes)
    x = small_input((channels, *(a.legal_at_least(a.smallest + LONGER) for a in footprint.axes)))
    made = _asked(model, x)
    want = footprint.output_shape(x.shape[2:])
    if made.shape[2:] != want:
        raise ModelError(f"the footprint says {x.shape[2:]} -> {want}, the network gives {made.shape[2:]}")
    some = made.ravel()[np.linspace(0, made.size - 1, min(KEPT, made.size)).astype(int)]
    outputs = made.shape[1]
    sums = np.allclose(made.sum(axis=1), 1, atol=1e-3) if outputs > 1 else made.min() < made.max()
    values = tuple(float(f"{value:.6g}") for value in some) if np.isfinite(some).all() else ()
    like_probabilities = bool(made.min() >= 0 and made.max() <= 1 and sums)
    return Answer(outputs, values, like_probabilities, _off(model, footprint, channels))


def small_input(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return (1, *shape) of values from 0 to 255, most of them small: what is there for networks of any scaling."""
    spread = np.arange(int(np.prod(shape))) * ((5**0.5 - 1) / 2) % 1
    return np.float32(255 * spread**4).reshape(1, *shape)


def alike(old: Sequence[float], new: Sequence[float]) -> bool:
    """Tell whether two answers are those of one model.

    >>> alike([0.0, 2.0, 1.0], [0.0, 2.001, 1.0]), alike([0.0, 2.0, 1.0], [0.0, 1.9, 1.0])
    (True, False)
    """
    a, b = np.asarray(old, float), np.asarray(new, float)
    return a.shape == b.shape and (a.size == 0 or bool(np.abs(a - b).max() <= CLOSE * max(np.ptp(a), 1e-6)))


def remarks(model: Any, card: ModelCard, answer: Answer) -> Iterator[str]:
    """Yield what people ought to hear of a model of their own."""
    if answer.like_probabilities and card.output != "regression":
        yield (
            "its outputs look like probabilities, and tilenet takes them for logits. Give it without its last sigmoid "
            "or softmax, or with a card of output regression"
        )
    if answer.off:
        yield (
            f"a tile and a part of it differ by {answer.off:.2g} of the logits' range, so that there are seams. The "
            f"footprint's reach or step is too small, or a layer depends on the whole tile, as instance and group "
            f"normalisation do"
        )


def _off(model: Any, footprint: Footprint, channels: int) -> float:
    large = tile_of(footprint, Box((0,) * footprint.ndim, tuple(4 * step for step in footprint.step)))
    small = tile_of(footprint, Box(footprint.step, tuple(2 * step for step in footprint.step)))
    if large.read.size > TILE_PIXELS:
        return 0.0
    x = small_input((channels, *large.read.shape))
    a = _asked(model, x)[:, :, *large.crop.slices][:, :, *(slice(s, 2 * s) for s in footprint.step)]
    part = np.ascontiguousarray(x[:, :, *small.read.relative_to(large.read.start).slices])
    b = _asked(model, part)[:, :, *small.crop.slices]
    with np.errstate(invalid="ignore"):
        off = np.abs(a - b).max() / max(np.ptp(a), 1e-6)
    first = next(iter(model.parameters()), torch.zeros(())) if isinstance(model, nn.Module) else torch.zeros(())
    allowed = OF_HALVES if first.dtype.itemsize < 4 else ROUNDING
    return float(off) if off > allowed else 0.0


def _asked(model: Any, x: NDArray[np.float32]) -> NDArray[Any]:
    try:
        made = _passed(model, x) if isinstance(model, nn.Module) else model(x)
    except Exception as error:  # of whatever kind: it is somebody's code
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        takes = "" if isinstance(model, nn.Module) else " (a function gets NumPy float32, and gives an array)"
        raise ModelError(f"the network does not take an input of shape {x.shape}{takes}: {said}") from error
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
    return made.double().cpu().numpy() if isinstance(made, torch.Tensor) else made
