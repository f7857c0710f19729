"""Whether tiles of a network make seams with the footprint that a user gave.

Along each axis, a long tile and a part of it are computed. Where they should agree, they do if the footprint is large
enough and no layer depends on the whole tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, isfinite, prod
from typing import Any, NamedTuple

import numpy as np

from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div, round_up
from tilenet.probe.answers import logits_of, small_input

# By number of axes: the fewest pixels around the part of a tile that is computed again, and the fewest of that part.
AROUND, SIDE = {2: 32, 3: 8}, {2: 16, 3: 4}
# The fewest pixels of tile and part along the other axes.
ACROSS = 16
# The most pixels of all these tiles and parts, and the most if the tiles are only a little longer than their parts.
# They are fewer than those of one tile of such a network. A ResNet-34 with a decoder takes a second on two idle cores.
COMPARED, COMPARED_NEAR = 2**18, 2**20
# A difference is more than rounding if it is larger than a model's tolerance by this factor.
BEYOND = 10


def find_seam(model: Any, footprint: Footprint, channels: int, outputs: int, tolerance: float) -> tuple[float, str]:
    """Return by how much a tile and a part of it differ, as a fraction of the logits' range, or why that is unknown.

    The difference is 0 if it may be rounding, of which `tolerance` is the fraction.
    """
    pairs = _pairs(footprint, near=False)
    if _pixels(pairs) > COMPARED:
        pairs = _pairs(footprint, near=True)
    if (pixels := _pixels(pairs)) > COMPARED_NEAR:
        return 0.0, f"that would take {pixels / 1e6:.3g} million pixels"
    seam = float(np.max([_seam(model, footprint, pair, channels, outputs) for pair in pairs]))
    if not isfinite(seam):
        return 0.0, "its logits of a test image are not finite"
    return beyond_rounding(seam, tolerance), ""


def beyond_rounding(difference: float, tolerance: float) -> float:
    """Return a difference, or 0 if it may be rounding."""
    return difference if difference > BEYOND * tolerance else 0.0


class _Pair(NamedTuple):
    """A tile that is long along one axis, and a part of it."""

    # Input shape of the tile.
    shape: tuple[int, ...]
    # The axis, counted in arrays (N, C, *n).
    along: int
    # What the part reads of the tile's input.
    read: slice
    # The same pixels in the tile's output, and in the part's.
    of_tile: slice
    of_part: slice


def _pairs(footprint: Footprint, *, near: bool) -> list[_Pair]:
    """Return a tile and a part for each axis; with `near`, a tile reads only one step more than its part at each end.

    Along the other axes, both are as short as the network allows. As both end at the same pixels there, these ends
    make no difference, and a tile that is long along one axis has far fewer pixels than one that is long along all.
    """
    ndim, pairs, across = footprint.ndim, [], shortest(footprint)
    for axis, a in enumerate(footprint.axes):
        # The part is `side` pixels of the output, with `around` pixels of the tile's output at each end.
        around = a.step * _coprime_to_30(ceil_div(max(4 * a.step, a.margin, AROUND[ndim]), a.step))
        if near:
            around = a.step
        # Long enough that the part's input is no longer than these pixels need, and so lies within the tile's.
        side = round_up(max(SIDE[ndim], a.smallest - 2 * a.lost - sum(a.spoiled)), a.step)
        (first, last), (origin, _) = a.span(0, 2 * around + side)
        (start, stop), of_part = a.span(around, around + side)
        shape = (*across[:axis], last - first, *across[axis + 1 :])
        of_tile = slice(origin + around, origin + around + side)
        pairs.append(_Pair(shape, axis + 2, slice(start - first, stop - first), of_tile, slice(*of_part)))
    return pairs


def _coprime_to_30(steps: int) -> int:
    """Return the next number without a factor of 2, 3 or 5, so that a step larger than the footprint's is noticed."""
    while gcd(steps, 30) > 1:
        steps += 1
    return steps


def _pixels(pairs: Sequence[_Pair]) -> int:
    """Return the number of input pixels of tiles and parts."""
    lengths = ((pair.shape[pair.along - 2], pair.read.stop - pair.read.start) for pair in pairs)
    return sum(prod(pair.shape) // tile * (tile + part) for pair, (tile, part) in zip(pairs, lengths, strict=True))


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


def shortest(footprint: Footprint) -> tuple[int, ...]:
    """Return the input shape of a tile that is as short as the network allows, but not shorter than `ACROSS`."""
    return tuple(a.legal_at_least(ACROSS) for a in footprint.axes)
