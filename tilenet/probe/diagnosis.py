"""Why a network of the user's own does not fit its image or its footprint, found by trying other inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import counted
from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div

Call = Callable[[NDArray[np.float32]], Any]
# Numbers of channels that are tried; factors of the footprint's step; the most numbers of an input that is tried.
CHANNELS, FACTORS, MOST = (1, 2, 3, 4), (2, 4, 8, 16, 32), 2**20
# By number of axes, sides of inputs that are tried: multiples of most steps, and more than what most networks lose.
SIDES = {2: (64, 256), 3: (32, 96)}


def remedy(call: Call, footprint: Footprint, shape: Sequence[int]) -> str:
    """Return in a sentence what to give to a network that takes no input of a shape (N, C, *n); empty if unknown.

    `call` passes a float32 array through the network; the footprint is what the user says of it.
    """
    return (
        _other_axes(call, shape)
        or _other_channels(call, shape)
        or other_smallest(call, footprint, shape)
        or _other_lengths(call, footprint, shape)
    )


def remedy_of_measuring(call: Call, ndim: int, channels: int) -> str:
    """Return what to give to `measure_footprint` for a network that takes none of its inputs; empty if unknown."""
    tried = ((n, c, side) for n in (ndim, 5 - ndim) for c in (channels, *CHANNELS) for side in SIDES[n])
    for n, c, side in tried:
        if (made := _output(call, (1, c, *(side,) * n))) is not None:
            other = [f"ndim={n}"] * (n != ndim) + [f"channels={c}"] * (c != channels)
            if made[2:] == (side,) * n:
                return f"Give {' and '.join(other)}" if other else ""
            return "It is not padded: its footprint is not measured. Give Footprint.valid(...)"
    return ""


def _other_axes(call: Call, shape: Sequence[int]) -> str:
    number, channels, *lengths = shape
    wanted = 5 - len(lengths)
    if _output(call, (number, channels, *(SIDES[wanted][0],) * wanted)) is None:
        return ""
    return (
        f"The footprint has {len(lengths)} axes, the network takes {wanted}: give a footprint of {wanted}, such as "
        f"Footprint.same({wanted}, ...)"
    )


def _other_channels(call: Call, shape: Sequence[int]) -> str:
    number, channels, *lengths = shape
    for wanted in CHANNELS:
        if wanted != channels and _output(call, (number, wanted, *lengths)) is not None:
            chosen = range(wanted) if wanted < channels else [0] * wanted
            has, numbers = counted(channels, "channel"), ",".join(map(str, chosen))
            return f"The image gives {has}, the network takes {wanted}. Choose with channels (--channels {numbers})"
    return ""


def _other_lengths(call: Call, footprint: Footprint, shape: Sequence[int]) -> str:
    for factor in FACTORS:
        steps = [factor * a.step for a in footprint.axes]
        # Odd multiples, so that a network which needs a larger power of two does not take them by chance.
        lengths = tuple((ceil_div(n, step) // 2 * 2 + 1) * step for n, step in zip(shape[2:], steps, strict=True))
        if (made := _output(call, (*shape[:2], *lengths))) is not None:
            if made[2:] == lengths and any(a.lost for a in footprint.axes):
                return "Its output is as large as its input: give Footprint.same, not Footprint.valid"
            several = ", ".join(map(str, dict.fromkeys(steps)))
            return f"It takes lengths that are multiples of {several}: is step the product of all its strides?"
    return ""


def other_smallest(call: Call, footprint: Footprint, shape: Sequence[int]) -> str:
    """Return which `smallest` to give for an unpadded network whose other numbers are right; empty if there is none."""
    if not all(footprint.lost):
        return ""

    def gives(outputs: Sequence[int]) -> bool:
        lengths = (n + 2 * lost for n, lost in zip(outputs, footprint.lost, strict=True))
        made = _output(call, (*shape[:2], *lengths))
        return made is not None and made[2:] == tuple(outputs)

    for least in range(1, max(footprint.step) + 1):
        if gives([least] * footprint.ndim) and gives([least + step for step in footprint.step]):
            smallest = [least + 2 * lost for lost in footprint.lost]
            said = smallest[0] if len(set(smallest)) == 1 else tuple(smallest)
            return f"The network's shortest input is {said}: give Footprint.valid(..., smallest={said})"
    return ""


def _output(call: Call, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of what the network gives for an input of zeros; None if it fails, or if that is not tried."""
    if prod(shape[1:]) > MOST:
        return None
    try:
        return tuple(call(np.zeros(shape, np.float32)).shape)
    except Exception:  # of any kind, because it is the user's code
        return None


def misfit(asked: tuple[int, ...], made: tuple[int, ...], want: tuple[int, ...]) -> str:
    """Return in what a shape `made` for one `asked` differs from the footprint's lengths `want`; empty if in nothing.

    >>> misfit((1, 1, 20, 20), (1, 20, 20), (20, 20))
    'the network gives an array of 3 axes, (1, 20, 20), for one of 4, (1, 1, 20, 20). Return logits (N, K, y, x)'
    >>> misfit((1, 1, 20, 20), (1, 2, 20, 20), (16, 16))[-76:]
    'Correct the footprint: Footprint.same is for outputs as large as their input'
    """
    if len(made) != len(asked):
        axes = ", ".join("zyx"[2 - len(asked) :])
        return (
            f"the network gives an array of {len(made)} axes, {made}, for one of {len(asked)}, {asked}. Return logits "
            f"(N, K, {axes})"
        )
    if made[2:] == want:
        return ""
    same = ": Footprint.same is for outputs as large as their input" if made[2:] == asked[2:] else ""
    return f"the footprint says {asked[2:]} -> {want}, the network gives {made[2:]}. Correct the footprint{same}"
