"""What a model answers to small fixed inputs: how many outputs it has, and whether it is what it is said to be.

A run record cannot hold a user's code. For models that are not fully described by weights, it holds a few numbers of
their answer instead, so that it is noticed if a run is resumed, or its mask verified, with another function.

Nor can a footprint given by the user be trusted: `tilenet.probe.seams` compares tiles with parts of them. If the run
computes several tiles at once, two tiles are also computed together, and compared with each of them alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tilenet.card import ModelCard
from tilenet.errors import ModelError
from tilenet.footprint import Footprint
from tilenet.geometry import sides_text
from tilenet.probe.answers import logits_of, outputs_of, small_input
from tilenet.probe.seams import beyond_rounding, find_seam, shortest
from tilenet.unet import is_as_built

# How much longer than the shortest legal input the fixed input is, in pixels.
LONGER = 16
# How many numbers of an answer are kept.
KEPT = 64
# By which fraction of their range answers of one model may differ: in single precision; in half precision or on a GPU.
ROUNDING, COARSE = 1e-5, 5e-2
# The most numbers of the fixed input. No machine computes a tile for which they do not suffice.
ASKED_NUMBERS = 2**28


@dataclass(frozen=True)
class Answer:
    """What a model answers to a fixed input."""

    outputs: int
    # Some numbers of the answer, None where it is not finite. Empty for an unchanged `UNet`, which weights and card
    # describe fully.
    values: tuple[float | None, ...] = ()
    # By which fraction of their range `values` may differ from those of the same model. For a model whose answer
    # does not repeat, it covers how much two answers differ.
    tolerance: float = ROUNDING
    # Whether the same input gives the same answer again.
    repeats: bool = True
    # Whether the outputs lie between 0 and 1, and are not only 0 and 1, as those of a mask. Outputs that are 1
    # everywhere count: a sigmoid that is saturated gives them.
    between_0_and_1: bool = False
    # Whether the outputs of each pixel sum to 1.
    sum_to_1: bool = False
    # Largest difference between a tile and a part of it, beyond rounding, as a fraction of the logits' range.
    seam: float = 0.0
    # Largest difference between a tile computed alone and together with another, beyond rounding, as a fraction of
    # the logits' range; 0 if the run computes one tile at a time.
    mixing: float = 0.0
    # Why tiles and parts of them were not compared; empty if they were.
    unchecked: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the part of the answer that a run record holds."""
        return {"values": list(self.values), "within": self.tolerance}


def ask(model: Any, footprint: Footprint, channels: int) -> Answer:
    """Return the answer of a model; `ModelError` if it fails, returns no array, or does not match its footprint."""
    if is_as_built(model):
        return Answer(model.n_classes)
    model, tolerance = _in_eval_mode(model), _tolerance(model)
    x = _fixed_input(footprint, channels)
    made, again = outputs_of(model, x, footprint), logits_of(model, x, footprint)
    first, outputs = made.astype(np.float64), made.shape[1]
    kept = first.ravel()[np.linspace(0, made.size - 1, min(KEPT, made.size)).astype(int)]
    apart = _apart(first.ravel(), again.ravel())
    repeats = apart <= tolerance
    seam, unchecked = find_seam(model, footprint, channels, outputs, tolerance) if repeats else (0.0, "")
    dark = logits_of(model, _dark_and_bright(footprint, channels)[0], footprint, outputs)
    return Answer(
        outputs,
        tuple(float(f"{value:.7g}") if isfinite(value) else None for value in kept),
        tolerance if repeats else min(2 * apart, 1.0),
        repeats,
        between_0_and_1=made.dtype != bool and _between_0_and_1(np.concatenate([first.ravel(), dark.ravel()])),
        sum_to_1=all(np.allclose(logits.sum(axis=1), 1, atol=1e-3) for logits in (first, dark)),
        seam=seam,
        unchecked=unchecked,
    )


def _in_eval_mode(model: Any) -> Any:
    """Return a copy of a network, in eval mode; a function as it is."""
    return copy.deepcopy(model).eval() if isinstance(model, nn.Module) else model


def _fixed_input(footprint: Footprint, channels: int) -> NDArray[np.float32]:
    """Return the input (1, C, *n) to which the answer is recorded; a later version must not change it."""
    shape = tuple(a.legal_at_least(a.smallest + LONGER) for a in footprint.axes)
    if channels * prod(shape) > ASKED_NUMBERS:
        raise ModelError(
            f"by its footprint the network takes inputs such as {sides_text(shape)}, too large to compute. "
            f"Give one of a smaller step: the product of all pooling strides"
        )
    return small_input((channels, *shape))


def _dark_and_bright(footprint: Footprint, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two tiles (1, C, *n), as short as the network allows: one of values from 0 to 1, and one up to 255."""
    values = small_input((channels, *shortest(footprint)))
    dark = values / np.float32(255)
    dark[..., : dark.shape[-1] // 2] = 0  # where a sigmoid that the fixed input saturates is not saturated
    return dark, 255 - values


def _between_0_and_1(values: NDArray[np.float64]) -> bool:
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 1):
        return False
    return bool(least == 1 or (least < most and ((values > 0) & (values < 1)).any()))


def ask_in_batches(model: Any, footprint: Footprint, channels: int) -> float:
    """Return by how much two tiles computed together differ from each alone, beyond rounding; see `Answer.mixing`."""
    if is_as_built(model):
        return 0.0
    model, tolerance = _in_eval_mode(model), _tolerance(model)
    tiles = _dark_and_bright(footprint, channels)
    alone = np.concatenate([logits_of(model, tile, footprint) for tile in tiles])
    try:
        together = logits_of(model, np.concatenate(tiles), footprint, alone.shape[1])
    except ModelError as error:
        raise ModelError(f"{error}. If it takes only one tile at a time, run with batch=1 (--batch 1)") from error
    mixing = _apart(alone, together)
    return beyond_rounding(mixing, tolerance)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Return by which fraction of their range two recorded answers differ; 0 if they may be those of one model.

    >>> old = {"values": [0.0, 2.0, 1.0], "within": 1e-5}
    >>> difference(old, old | {"values": [0.0, 2.00001, 1.0]}), difference(old, old | {"values": [0.0, 1.9, 1.0]})
    (0.0, 0.05)
    """
    a, b = old["values"], new["values"]
    if len(a) != len(b):
        return 1.0
    apart = _apart(a, b) if a else 0.0
    return 0.0 if apart <= max(old["within"], new["within"]) else round(apart, 6)


def _apart(old: Any, new: Any) -> float:
    """Return by which fraction of their range values differ; infinite unless NaN and infinities are the same."""
    a, b = np.asarray(old, float), np.asarray(new, float)
    with np.errstate(invalid="ignore"):
        off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    finite = a[np.isfinite(a)]
    return float(np.nan_to_num(off, nan=np.inf, posinf=np.inf).max() / max(np.ptp(finite) if finite.size else 0, 1e-6))


def remarks(card: ModelCard, answer: Answer) -> Iterator[str]:
    """Yield warnings about a model of the user's own."""
    meant = {"softmax": answer.sum_to_1, "sigmoid": True}.get(card.output, False)
    if answer.between_0_and_1 and meant:
        yield (
            "its outputs look like probabilities, and tilenet takes them for logits. Give it without its last sigmoid "
            "or softmax, or with a card of output regression"
        )
    yield from doubts(answer)


def doubts(answer: Answer) -> Iterator[str]:
    """Yield those of the warnings that say that masks may have seams, or cannot be repeated."""
    if not answer.repeats:
        yield "gives other logits for the same pixels, so that no run can be repeated, nor resumed to the same mask"
    if answer.seam:
        yield (
            f"a tile and a part of it differ by {answer.seam:.2g} of the logits' range, so that there are seams. The "
            f"footprint's reach (of Footprint.valid: spoiled) or step is too small, or a layer depends on the whole "
            f"tile, as instance and group normalisation do. tilenet.measure_footprint(network) finds out which, if the "
            f"network pads"
        )
    if answer.mixing:
        yield (
            f"the logits of a tile change by {answer.mixing:.2g} of their range with the other tiles of its batch, so "
            f"that there are seams. Let it treat each tile by itself, such as np.stack([f(tile) for tile in batch]), "
            f"or run it with batch=1 (--batch 1)"
        )
    if answer.unchecked:
        yield (
            f"was not checked for seams, as {answer.unchecked}. Write a mask to disk, and recompute windows of it: "
            f"tilenet.verify(mask, model=..., footprint=...)"
        )


def _tolerance(model: Any) -> float:
    """Return by which fraction of their range the answers of one model may differ."""
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return COARSE if first is not None and (first.dtype.itemsize < 4 or first.device.type != "cpu") else ROUNDING
