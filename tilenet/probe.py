"""What a model answers to small fixed inputs: how many outputs it has, and whether it is what it is said to be.

A run record cannot hold a user's code. For models that are not fully described by weights, it holds a few numbers of
their answer instead, so that it is noticed if a run is resumed, or its mask verified, with another function. Nor can a
footprint given by the user be trusted: along each axis, a long tile and a part of it are computed, and compared. They
agree if the footprint is large enough and no layer depends on the whole tile. If the run computes several tiles at
once, two tiles are also computed together, and compared with each of them alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, isfinite, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tilenet.answering import logits_of, outputs_of, small_input
from tilenet.card import ModelCard
from tilenet.errors import ModelError
from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div, round_up
from tilenet.unet import is_as_built

# How much longer than the shortest legal input the fixed input is, in pixels.
LONGER = 16
# How many numbers of an answer are kept.
KEPT = 64
# By which fraction of their range answers of one model may differ: in single precision; in half precision or on a GPU.
ROUNDING, COARSE = 1e-5, 5e-2
# By number of axes, the fewest pixels around the part of a tile that is computed again, and the length of that part
# (else 32 and 16, see `_pairs`); along the other axes, the fewest pixels of both.
AROUND, SIDE, ACROSS = {3: 8}, {3: 4}, 16
# The most pixels of all these tiles and parts, and the most if the tiles are only a little longer than their parts.
# They are fewer than those of one tile of such a network. A ResNet-34 with a decoder takes a second on two idle cores.
COMPARED, COMPARED_NEAR = 2**18, 2**20
# The most numbers of the fixed input. No machine computes a tile for which they do not suffice.
ASKED_NUMBERS = 2**28


@dataclass(frozen=True)
class Answer:
    """What a model answers to a fixed input.

    Attributes
    ----------
    outputs : int
        Number of outputs, K.
    values : tuple of float or None
        Some numbers of the answer, None where it is not finite. Empty for an unchanged `UNet`, which weights and card
        describe fully.
    tolerance : float
        By which fraction of their range `values` may differ from those of the same model. For a model whose answer
        does not repeat, it covers how much two answers differ.
    repeats : bool
        Whether the same input gives the same answer again.
    between_0_and_1 : bool
        Whether the outputs lie between 0 and 1, and are not only 0 and 1, as those of a mask. Outputs that are 1
        everywhere count: a sigmoid that is saturated gives them.
    sum_to_1 : bool
        Whether the outputs of each pixel sum to 1.
    seam : float
        Largest difference between a tile and a part of it, beyond rounding, as a fraction of the logits' range.
    mixing : float
        Largest difference between a tile computed alone and together with another, beyond rounding, as a fraction of
        the logits' range; 0 if the run computes one tile at a time.
    unchecked : str
        Why tiles and parts of them were not compared; empty if they were.
    """

    outputs: int
    values: tuple[float | None, ...] = ()
    tolerance: float = ROUNDING
    repeats: bool = True
    between_0_and_1: bool = False
    sum_to_1: bool = False
    seam: float = 0.0
    mixing: float = 0.0
    unchecked: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the part of the answer that a run record holds."""
        return {"values": list(self.values), "within": self.tolerance}


def ask(model: Any, footprint: Footprint, channels: int) -> Answer:
    """Return the answer of a model; `ModelError` if it fails, returns no array, or does not match its footprint."""
    if is_as_built(model):
        return Answer(model.n_classes)
    model = _own(model)
    x = _fixed_input(footprint, channels)
    made, again = outputs_of(model, x, footprint), logits_of(model, x, footprint)
    first, outputs, tolerance = made.astype(np.float64), made.shape[1], _tolerance(model)
    some = first.ravel()[np.linspace(0, made.size - 1, min(KEPT, made.size)).astype(int)]
    apart = _apart(first.ravel(), again.ravel())
    repeats = apart <= tolerance
    seam, unchecked = _seams(model, footprint, channels, outputs, tolerance) if repeats else (0.0, "")
    dark = logits_of(model, _dark_and_bright(footprint, channels)[0], footprint, outputs)
    return Answer(
        outputs,
        tuple(float(f"{value:.7g}") if isfinite(value) else None for value in some),
        tolerance if repeats else min(2 * apart, 1.0),
        repeats,
        between_0_and_1=made.dtype != bool and _between_0_and_1(np.concatenate([first.ravel(), dark.ravel()])),
        sum_to_1=all(np.allclose(logits.sum(axis=1), 1, atol=1e-3) for logits in (first, dark)),
        seam=seam,
        unchecked=unchecked,
    )


def _own(model: Any) -> Any:
    """Return a copy of a network in eval mode; a function as it is."""
    return copy.deepcopy(model).eval() if isinstance(model, nn.Module) else model


def _fixed_input(footprint: Footprint, channels: int) -> NDArray[np.float32]:
    """Return the input (1, C, *n) to which the answer is recorded; a later version must not change it."""
    shape = tuple(a.legal_at_least(a.smallest + LONGER) for a in footprint.axes)
    if channels * prod(shape) > ASKED_NUMBERS:
        raise ModelError(
            f"by its footprint the network takes inputs such as {' x '.join(map(str, shape))}, too large to compute. "
            f"Give one of a smaller step: the product of all pooling strides"
        )
    return small_input((channels, *shape))


def _dark_and_bright(footprint: Footprint, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two tiles (1, C, *n), as short as the network allows: of values from 0 to 1, and of bright ones up to 255.

    One half of the dark tile is black. A sigmoid that the fixed input saturates is not saturated there.
    """
    values = small_input((channels, *_shortest(footprint)))
    dark = values / np.float32(255)
    dark[..., : dark.shape[-1] // 2] = 0
    return dark, 255 - values


def _shortest(footprint: Footprint) -> tuple[int, ...]:
    return tuple(a.legal_at_least(ACROSS) for a in footprint.axes)


def _between_0_and_1(values: NDArray[np.float64]) -> bool:
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 1):
        return False
    return bool(least == 1 or (least < most and ((values > 0) & (values < 1)).any()))


def ask_in_batches(model: Any, footprint: Footprint, channels: int) -> float:
    """Return by how much two tiles computed together differ from each alone, beyond rounding; see `Answer.mixing`.

    Raises `ModelError` if the model takes no batch of two tiles.
    """
    if is_as_built(model):
        return 0.0
    model, tolerance = _own(model), _tolerance(model)
    tiles = _dark_and_bright(footprint, channels)
    alone = np.concatenate([logits_of(model, tile, footprint) for tile in tiles])
    try:
        together = logits_of(model, np.concatenate(tiles), footprint, alone.shape[1])
    except ModelError as error:
        raise ModelError(f"{error}. If it takes only one tile at a time, run with batch=1 (--batch 1)") from error
    mixing = _apart(alone, together)
    return mixing if mixing > 10 * tolerance else 0.0


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
            f"footprint's reach or step is too small, or a layer depends on the whole tile, as instance and group "
            f"normalisation do"
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


class _Pair(NamedTuple):
    """A tile that is long along one axis, and a part of it.

    Attributes
    ----------
    shape : tuple of int
        Input shape of the tile.
    along : int
        The axis, counted in arrays (N, C, *n).
    read : slice
        What the part reads of the tile's input.
    of_tile, of_part : slice
        The same pixels in the tile's output, and in the part's.
    """

    shape: tuple[int, ...]
    along: int
    read: slice
    of_tile: slice
    of_part: slice


def _pairs(footprint: Footprint, *, near: bool) -> list[_Pair]:
    """Return a tile and a part for each axis; with `near`, a tile reads only one step more than its part at each end.

    Along the other axes, both are as short as the network allows. As both end at the same pixels there, these ends
    make no difference, and a tile that is long along one axis has far fewer pixels than one that is long along all.
    """
    ndim, pairs = footprint.ndim, []
    shortest = _shortest(footprint)
    for axis, a in enumerate(footprint.axes):
        around = a.step * _coprime_to_30(ceil_div(max(4 * a.step, a.margin, AROUND.get(ndim, 32)), a.step))
        if near:
            around = a.step
        # Long enough that the part's input is no longer than these pixels need, and so lies within the tile's.
        side = round_up(max(SIDE.get(ndim, 16), a.smallest - 2 * a.lost - sum(a.spoiled)), a.step)
        (first, last), (origin, _) = a.span(0, 2 * around + side)
        (start, stop), of_part = a.span(around, around + side)
        shape = (*shortest[:axis], last - first, *shortest[axis + 1 :])
        of_tile = slice(origin + around, origin + around + side)
        pairs.append(_Pair(shape, axis + 2, slice(start - first, stop - first), of_tile, slice(*of_part)))
    return pairs


def _pixels(pairs: Sequence[_Pair]) -> int:
    """Return the number of input pixels of tiles and parts."""
    lengths = ((pair.shape[pair.along - 2], pair.read.stop - pair.read.start) for pair in pairs)
    return sum(prod(pair.shape) // tile * (tile + part) for pair, (tile, part) in zip(pairs, lengths, strict=True))


def _seams(model: Any, footprint: Footprint, channels: int, outputs: int, tolerance: float) -> tuple[float, str]:
    """Return by how much a tile and a part of it differ, 0 if by rounding only; and why that is unknown, if it is."""
    pairs = _pairs(footprint, near=False)
    if _pixels(pairs) > COMPARED:
        pairs = _pairs(footprint, near=True)
    if (pixels := _pixels(pairs)) > COMPARED_NEAR:
        return 0.0, f"that would take {pixels / 1e6:.3g} million pixels"
    seam = float(np.max([_seam(model, footprint, pair, channels, outputs) for pair in pairs]))
    if not isfinite(seam):
        return 0.0, "its logits of a test image are not finite"
    return seam if seam > 10 * tolerance else 0.0, ""


def _seam(model: Any, footprint: Footprint, pair: _Pair, channels: int, outputs: int) -> float:
    """Return by how much the logits of a tile and of a part of it differ; NaN or infinite if they are not finite."""
    cut = (slice(None),) * pair.along
    x = small_input((channels, *pair.shape))
    part = x[(*cut, pair.read)].copy()
    # Bright around the part, so that a mean over the tile is not that over the part, nor the surroundings like zeros.
    x = 255 - x
    x[(*cut, pair.read)] = part
    whole = logits_of(model, x, footprint, outputs)
    found = logits_of(model, part, footprint, outputs)
    with np.errstate(invalid="ignore"):
        largest = np.abs(whole[(*cut, pair.of_tile)] - found[(*cut, pair.of_part)]).max()
        return float(largest / max(np.ptp(whole), 1e-6))


def _coprime_to_30(steps: int) -> int:
    """Return the next number without a factor of 2, 3 or 5, so that a step larger than the footprint's is noticed."""
    while gcd(steps, 30) > 1:
        steps += 1
    return steps


def _tolerance(model: Any) -> float:
    """Return by which fraction of their range the answers of one model may differ."""
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return COARSE if first is not None and (first.dtype.itemsize < 4 or first.device.type != "cpu") else ROUNDING
