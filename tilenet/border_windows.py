"""Windows over the borders of tiles, where seams would show: those that `verify` recomputes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tilenet.geometry import Box, cell_box
from tilenet.plan import Plan
from tilenet.store import AnyMask

# Side of a window in pixels; of 3-D networks a quarter of it. The window is always long enough to cross a tile border.
WINDOW = 160


def windows_of(mask: AnyMask, plan: Plan, count: int, rng: np.random.Generator) -> Iterator[Box]:
    """Yield windows over crossings of tile borders that touch a block that was computed, not skipped."""
    if mask.tissue is None:
        return border_windows(plan, count, rng)
    with_tissue = rng.permutation(np.argwhere(mask.tissue.blocks_with_tissue(mask.layout)))[:count]
    (y, x), stop = mask.layout.block[-2:], mask.shape[-2:]
    blocks = [cell_box((row * y, column * x), (y, x), stop) for row, column in with_tissue.tolist()]
    return border_windows(plan, count if blocks else 0, rng, blocks)


def border_windows(plan: Plan, count: int, rng: np.random.Generator, parts: Sequence[Box] = ()) -> Iterator[Box]:
    """Yield windows over crossings of tile borders, each of which touches one of `parts`, in turn."""
    parts = parts or [Box.of_shape(plan.shape[-2:])]
    inner = plan.footprint.ndim - sum(a.step == 1 and a.margin == 0 for a in plan.footprint.axes)
    side = WINDOW if inner < 3 else WINDOW // 4
    # Every border is visited before any is again; along an axis of single planes or time points, every index.
    orders = [rng.permutation(np.arange(t if t > 1 else 0, n, t)) for n, t in zip(plan.shape, plan.tile, strict=True)]
    leading = len(plan.shape) - 2
    for i in range(count):
        part = parts[i % len(parts)]
        lows, highs = (0,) * leading + part.start, plan.shape[:leading] + part.stop
        turns = (i,) * leading + (i // len(parts),) * 2
        start, stop = [], []
        for n, t, order, turn, low, high in zip(plan.shape, plan.tile, orders, turns, lows, highs, strict=True):
            length = 1 if t == 1 else side
            # A window over the border at `high`, too, lies on both sides of it.
            borders = order[(low <= order) & (order < high + (t > 1))]
            middle = int(borders[turn % len(borders)]) if len(borders) else int(rng.integers(low, high))
            first = middle - int(rng.integers(length // 4, 3 * length // 4 + 1)) if t > 1 else middle
            start.append(max(0, min(first, n - length)))
            stop.append(min(n, start[-1] + length))
        yield Box(tuple(start), tuple(stop))
