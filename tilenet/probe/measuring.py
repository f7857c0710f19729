"""The footprint of a padded network, measured: which outputs lie in reach of which pixels, and on which grid.

Pixels that are NaN make NaN of every output that they may reach, whatever the weights and the other pixels: no ReLU
and no small weight hides one. So a tile of which one half is NaN shows how far the halves reach into each other.

The step is the smallest shift of the pixels that shifts the outputs alike, NaN included.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import ModelError, SettingsError
from tilenet.footprint import AxisFootprint, Footprint
from tilenet.predict.predictors import CHANNELS_LAST, is_network
from tilenet.probe.answers import answered, is_of_volumes, passed, refuse_as_volume, small_input
from tilenet.probe.diagnosis import misfit, remedy_of_measuring

# Lengths of which a network's step is to be a divisor. A tile is as long along all axes but the measured one.
GRIDS = (8, 12, 20, 16, 24, 32, 40, 48, 64, 96, 128)
# The most pixels of a tile, and the longest tile, about four times as long as the largest reach that is found.
LARGEST, LONGEST = 2**20, 2**12
# By which fraction of their range outputs may differ and still be called the same: in double and single precision.
DOUBLE, SINGLE = 1e-9, 1e-4
WHOLE = (
    "a layer depends on the whole tile, as instance and group normalisation do, or on where a tile begins "
    "(align_corners=True)"
)
HIDDEN = (
    "the network hides pixels that are NaN, as a threshold does, so that its reach cannot be measured. Give a footprint"
)


def measure_footprint(model: Any, ndim: int | None = None, channels: int = 1) -> Footprint:
    """Measure the footprint of a padded network: the smallest reach and step for which tiles make no seams.

    The network computes some hundred long narrow tiles, which takes seconds to minutes. In one half of each, all pixels
    are NaN; what becomes NaN is in their reach. A PyTorch network is measured as a copy in double precision and eval
    mode.

    Parameters
    ----------
    model : torch.nn.Module or callable
        From (N, C, *n) to logits (N, K, *n) of the same length, as `segment` takes it. If it is to be compiled,
        measure it before.
    ndim : int, optional
        Number of the network's axes, 2 or 3; by default 3 if it has layers of volumes, such as `Conv3d`, else 2.
    channels : int
        Number of the network's input channels.

    Returns
    -------
    Footprint
        As `Footprint.same` gives it, with one reach and step per axis.

    Raises
    ------
    ModelError
        If it is not such a network, depends on the whole tile, or cannot be measured: an unpadded network
        (use `Footprint.valid`), outputs that hide NaN (a threshold, a largest class), a step that divides none of 40,
        96 and 128 (in 3-D: 20, 24 and 32), a reach of more than about 900 pixels (in 3-D: 200).

    Notes
    -----
    A layer may hide some NaN: ``torch.where(x > 0, x, 0)`` does, ReLU does not. To notice this, outputs that change
    with the pixels are compared with those that become NaN, though only on one example. A function is measured in
    single precision, where a step that changes outputs by less than 1e-4 of their range is not noticed. The reach is
    that of the layers; a trained network may use less of it.

    Examples
    --------
    >>> import torch, tilenet
    >>> tilenet.measure_footprint(torch.nn.Conv2d(1, 2, 5, padding=2)) == tilenet.Footprint.same(2, reach=2)
    True
    """
    if not callable(model):
        raise ModelError(f"{model!r}: is no network. Give a torch.nn.Module, or a function from (N, C, *n) to logits")
    if ndim is None:
        ndim = 3 if is_of_volumes(model) else 2
    if ndim not in CHANNELS_LAST:
        raise SettingsError(f"ndim {ndim}: a network has 2 or 3 axes. Give one of them")
    trial, told = _Trial(model, ndim, channels), None
    for grid in GRIDS:
        try:
            found = [trial.along(axis, grid) for axis in range(ndim)]
        except _OffGrid as error:
            told = told or error
        else:
            return trial.footprint(found, grid)
    raise ModelError(f"{told}{trial.remedy(told)}") from told


class _OffGrid(Exception):
    """The network does not take tiles of a grid, or its step does not divide the grid."""


class _Trial:
    """A network, and the tiles that it computes."""

    def __init__(self, model: Any, ndim: int, channels: int) -> None:
        self.model, self.ndim, self.channels, self.tolerance = model, ndim, channels, SINGLE
        if is_network(model):
            self.model = copy.deepcopy(model).eval().double()
            self.tolerance = DOUBLE if next(self.model.parameters(), None) is not None else SINGLE

    def along(self, axis: int, grid: int) -> tuple[int, int]:
        """Return reach and step along an axis."""
        length, limit = 8 * grid, min(LONGEST, LARGEST // grid ** (self.ndim - 1))
        if length > limit:
            raise _OffGrid(f"tiles of a step of {grid} px would have too many pixels to measure. Give a footprint")
        while length <= limit:
            reach = self._reach(axis, grid, length)
            if 2 * reach + 2 * grid <= length // 2:
                return reach, self._step(axis, grid, length, reach)
            length *= 2
        raise ModelError(
            f"the network reaches over {limit // 4 - grid} px: {WHOLE}. Give another network, or a footprint"
        )

    def footprint(self, found: Sequence[tuple[int, int]], grid: int) -> Footprint:
        """Return the footprint of reach and step per axis; tiles may be as short as the network allows."""
        steps = [step for _, step in found]
        for times in range(1, grid + 1):
            try:
                self._outputs(small_input((self.channels, *(times * step for step in steps))))
            except _OffGrid:
                continue
            return Footprint(tuple(AxisFootprint(s, 0, (r, r), smallest=times * s) for r, s in found))
        raise AssertionError("the network took tiles as long as the grid")

    def remedy(self, told: _OffGrid | None) -> str:
        """Return what to do about a network that failed on every input, as a further sentence; empty if unknown."""
        if told is None or told.__cause__ is None:  # it failed on none
            return ""
        own = None
        with suppress(ModelError):  # a changed U-Net has none
            own = getattr(self.model, "footprint", None)
        if isinstance(own, Footprint) and any(a.lost for a in own.axes):
            return ". It is not padded, and has a footprint of its own: network.footprint"
        found = remedy_of_measuring(partial(passed, self.model), self.ndim, self.channels)
        return found and f". {found}"

    def _reach(self, axis: int, grid: int, length: int) -> int:
        """Return how far NaN spreads from either half of a tile into the other."""
        half, clean = length // 2, self._pixels(axis, grid, length)
        first, last = _at(axis, slice(half)), _at(axis, slice(half, None))
        front = self._spread(clean, first)[_at(axis, slice(half, None))]
        back = np.flip(self._spread(clean, last)[_at(axis, slice(half))], axis + 2)
        others = tuple(k for k in range(clean.ndim) if k != axis + 2)
        return max(int((np.flatnonzero(side.any(axis=others)) + 1).max(initial=0)) for side in (front, back))

    def _spread(self, clean: NDArray[np.float32], part: tuple[slice, ...]) -> NDArray[np.bool_]:
        """Return which outputs are NaN if the pixels of a part are; `ModelError` if some only change with them."""
        found = np.isnan(self._outputs(_with(clean, part, np.nan)))
        outputs, changed = self._outputs(clean), self._outputs(_with(clean, part, 255 - clean[part]))
        differ = np.abs(changed - outputs) > self.tolerance * np.ptp(outputs)
        if not found.any() or (differ & ~found).any():
            raise ModelError(HIDDEN)
        return found

    def _step(self, axis: int, grid: int, length: int, reach: int) -> int:
        """Return the smallest shift of the pixels that shifts the outputs alike."""
        pixels, half = self._pixels(axis, grid, length + grid), length // 2
        # With NaN in either half, which shows the reach of layers whose weights or ReLU make it invisible in numbers.
        halves = [
            (_with(pixels, _at(axis, slice(half)), np.nan), 0, length - reach),
            (_with(pixels, _at(axis, slice(half, None)), np.nan), reach, length),
        ]
        for step in (n for n in range(1, grid + 1) if grid % n == 0):
            if all(self._shifts(half, axis, step, length, slice(step + a, b)) for half, a, b in halves):
                return step
        raise _OffGrid(f"the network has no step that divides {grid}: {WHOLE}. Give another network, or a footprint")

    def _shifts(self, pixels: NDArray[np.float32], axis: int, step: int, length: int, inside: slice) -> bool:
        """Return whether pixels that are shifted by `step` give the same outputs, shifted, at the places `inside`."""
        first = self._outputs(pixels[_at(axis, slice(length))])[_at(axis, inside)]
        second = self._outputs(pixels[_at(axis, slice(step, step + length))])
        second = second[_at(axis, slice(inside.start - step, inside.stop - step))]
        finite = first[np.isfinite(first)]
        within = self.tolerance * (np.ptp(finite) if finite.size else 0)
        return bool(np.allclose(first, second, rtol=0, atol=within, equal_nan=True))

    def _pixels(self, axis: int, grid: int, length: int) -> NDArray[np.float32]:
        shape = [grid] * self.ndim
        shape[axis] = length
        return small_input((self.channels, *shape))

    def _outputs(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        try:
            made = answered(self.model, x)
        except ModelError as error:
            raise _OffGrid(str(error)) from error
        refuse_as_volume(self.model, x, made, "Give ndim=3, or leave ndim out")
        _refuse_other_form(x.shape, made.shape)
        if made.shape[:1] + made.shape[2:] != x.shape[:1] + x.shape[2:]:
            raise _OffGrid(
                f"the network gives an array of shape {made.shape} for one of {x.shape}, and only the footprints of "
                f"padded networks are measured. Give one, such as Footprint.valid(2, lost=..., step=...)"
            )
        return made.astype(np.float64)


def _refuse_other_form(asked: tuple[int, ...], made: tuple[int, ...]) -> None:
    """Raise `ModelError` for outputs that no footprint describes: of another number of axes, or of a coarser grid."""
    if len(made) != len(asked):
        raise ModelError(misfit(asked, made, asked[2:]))
    # The tile is not as long along all axes, so that an unpadded network does not divide them alike.
    by = {n / m for n, m in zip(asked[2:], made[2:], strict=True) if m}
    if len(set(asked[2:])) > 1 and len(by) == 1 and (times := by.pop()) > 1:
        raise ModelError(
            f"the network gives an output for every {times:g} pixels along each axis, {made} for {asked}. Enlarge them "
            f"in the network, so that each pixel has one"
        )


def _at(axis: int, part: slice) -> tuple[slice, ...]:
    """Return the index of a part of an array (N, C, *n) along an axis."""
    return (slice(None),) * (axis + 2) + (part,)


def _with(pixels: NDArray[np.float32], part: tuple[slice, ...], values: Any) -> NDArray[np.float32]:
    """Return a copy of the pixels with other values in a part."""
    pixels = pixels.copy()
    pixels[part] = values
    return pixels
