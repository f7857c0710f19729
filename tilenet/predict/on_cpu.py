"""Predictors on a CPU: if only masks are requested, the last step of a network decides, and no logits are in memory.

The mask is, bit for bit, what `Decision` makes of the same logits. The last step decides while the logits are in
registers, which saves writing and reading them: 4 floats per pixel for the packaged network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilenet.decide import Arrays, Decision, decide_each
from tilenet.plan import Tile
from tilenet.predict.engine import SteppedUNet
from tilenet.predict.predictors import TorchPredictor


class CpuPredictor(TorchPredictor):
    """A predictor that also decides; see `tilenet.runner.DecidingPredictor`."""

    in_flight = 1  # `begin` returns only when the batch is finished

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array into which a batch is read."""
        return np.empty(shape, dtype)

    def begin(self, batch: NDArray[Any], tiles: Sequence[Tile], decide: Decision) -> Callable[[], list[Arrays]]:
        """Compute a batch (N, C, *n); the returned function gives the arrays of each tile."""
        ndim, masks = self.footprint.ndim, self._masks(batch, decide)
        if masks is not None:
            made = [{"mask": mask[tile.crop.slices[-ndim:]]} for tile, mask in zip(tiles, masks, strict=True)]
        else:
            made = decide_each(decide, tiles, self(batch), ndim)
        return lambda: made

    def _masks(self, batch: NDArray[Any], decide: Decision) -> NDArray[np.uint8] | None:
        """Return masks (N, *m), or None if logits are needed, be it to find out where they are not finite."""
        fast = self._forward
        if not isinstance(fast, SteppedUNet) or not decide.is_choice:
            return None
        values = torch.tensor(decide.mask_of_class, dtype=torch.uint8)
        with self.computing(batch.shape):
            masks = fast.decided(self.tensor_of(batch), self._prepared, values)
        return None if masks is None else masks.numpy()
