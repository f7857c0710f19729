"""The sizes of tiles, blocks and batches: pure functions of image, footprint and memory.

Nothing here asks how much memory is free at the moment. The same arguments give the same plan
on every machine, so that all workers and all resumed runs agree on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from operator import index
from typing import Any

from tilenet.arguments import known_options
from tilenet.bands import Demand
from tilenet.byte_counts import gigabytes, memory_option, parse_bytes
from tilenet.errors import SettingsError
from tilenet.footprint import Footprint
from tilenet.geometry import Box, ceil_div, round_down, round_up, sides_text
from tilenet.plan import Plan

DEFAULT_MEMORY = 4_000_000_000
# The fraction (numerator, denominator) of the memory that activations may fill. The rest holds the interpreter, the
# tiles read ahead and the blocks being written.
ACTIVATIONS = (3, 4)
# Bytes per input pixel assumed for a predictor of unknown demand. The network of the U-Net paper needs 1300.
DEFAULT_DEMAND = Demand(2048)
# Smallest and largest default block side, by the number of axes: blocks of 2**18 to 2**24 pixels.
BLOCK_SIDES = {1: (2**18, 2**24), 2: (512, 4096), 3: (64, 256)}
# Most pixels of a tile: no memory would hold a larger one.
LARGEST_TILE = 2**32
# Largest default side of a tile. With 4096 px, a network of depth 5 would compute 3 % less, in four times the memory.
TILE_SIDES = {1: 2**22, 2: 2048, 3: 256}
ENOUGH_BLOCKS = 16
# Most pixels of a block of several planes. Planes share a block because a file per plane could mean millions of files.
STACKED_PIXELS = 2**22
# Most input pixels of a default batch; larger batches are no faster.
BATCH_PIXELS = 2**20


@known_options()
def plan_tiles(
    shape: Sequence[int],
    footprint: Footprint,
    *,
    tile: int | Sequence[int] | None = None,
    block: int | Sequence[int] | None = None,
    batch: int | None = None,
    memory: int | str | None = None,
    demand: Demand = DEFAULT_DEMAND,
    origin: Sequence[int] = (),
) -> Plan:
    """Divide an image into blocks and tiles: a pure function of its arguments.

    Parameters
    ----------
    shape : sequence of int
        Shape of the image without its ``c`` axis. Axes in front of those of the footprint are outer
        axes (time, or planes for a 2-D network): the network is looped over them.
    footprint : Footprint
        What the network does to a length.
    tile : int or sequence of int, optional
        Side of what a tile writes, a multiple of the step. The default is the side for which the
        fewest pixels are read, among those that divide the block, fit the memory and are 2048 px at
        most (in volumes 256).
    block : int or sequence of int, optional
        Side of a block, a multiple of the tile. The default is the largest power of two from 512 to
        4096 (in volumes from 64 to 256) that gives at least 16 blocks a plane (or volume), rounded up
        to a multiple of the step; with `tile`, whole tiles up to that side, or one tile.
    batch : int, optional
        Most tiles per forward pass; default as many as make about a million input pixels and fit the
        memory.
    memory : int or str, optional
        Bytes for the whole run, or a text such as ``"8GB"``; default 4 GB.
    demand : Demand, optional
        How much memory the predictor needs.
    origin : sequence of int, optional
        Pixel of the image at which `shape` begins, if it is a part of the image: tiles stay on the
        image's grid. Default the first pixel.

    Returns
    -------
    Plan
        A sequence of blocks.

    Raises
    ------
    SettingsError
        If a size is off the grid (the message names the nearest legal ones), or if no tile fits the memory.

    Examples
    --------
    >>> plan = plan_tiles((5000, 7000), Footprint.valid(2, lost=92, step=16, smallest=188), tile=512)
    >>> len(plan), plan.block, plan[0].box.shape
    (35, (1024, 1024), (1024, 1024))
    """
    shape, origin = tuple(map(int, shape)), tuple(map(int, origin))
    _check_shape(shape, footprint, origin)
    outer, origin = len(shape) - footprint.ndim, origin if any(origin) else ()
    inner = shape[outer:]
    memory = parse_bytes(memory) if isinstance(memory, str) else memory
    room = (DEFAULT_MEMORY if memory is None else memory) * ACTIVATIONS[0] // ACTIVATIONS[1]
    tiles, blocks = _sides(tile, footprint, "tile"), _sides(block, footprint, "block")
    if tiles is not None:
        _check_tile(tiles, footprint)
    if blocks is None:
        blocks = _default_block(inner, footprint, tiles)
    if tiles is None:
        part = Box.of_shape(inner).shifted(origin[outer:] or (0,) * len(inner))
        tiles = _default_tile(part, footprint, blocks, demand=demand, room=room)
    if any(b % t for b, t in zip(blocks, tiles, strict=True)):
        raise SettingsError(
            f"block {sides_text(blocks)} is not whole tiles of {sides_text(tiles)}; give a multiple, or leave it out"
        )
    planes = _default_planes(shape[:outer], inner, blocks)
    plan = Plan(shape, footprint.with_outer(outer), (1,) * outer + tiles, planes + blocks, origin=origin)
    return replace(plan, batch=_default_batch(plan, demand, room) if batch is None else whole_number(batch, "batch", 1))


def _check_shape(shape: tuple[int, ...], footprint: Footprint, origin: tuple[int, ...]) -> None:
    if not isinstance(footprint, Footprint):
        raise SettingsError(f"a plan needs a footprint, not a {type(footprint).__name__}. Give network.footprint")
    if footprint.ndim not in BLOCK_SIDES:
        raise SettingsError(f"a network has 1 to {max(BLOCK_SIDES)} axes, not {footprint.ndim}")
    if len(shape) < footprint.ndim or min(shape) < 1:
        raise SettingsError(f"an image of shape {shape} does not suit a network with {footprint.ndim} axes")
    if len(origin) not in (0, len(shape)):
        raise SettingsError(f"origin {origin} needs {len(shape)} numbers, one per axis of the image")


def _default_block(shape: tuple[int, ...], footprint: Footprint, tile: tuple[int, ...] | None) -> tuple[int, ...]:
    smallest, largest = BLOCK_SIDES[len(shape)]
    side = largest
    while side > smallest and prod(ceil_div(n, side) for n in shape) < ENOUGH_BLOCKS:
        side //= 2
    if tile is None:
        return tuple(round_up(side, step) for step in footprint.step)
    return tuple(t * max(1, side // t) for t in tile)


def _default_tile(
    part: Box, footprint: Footprint, block: tuple[int, ...], *, demand: Demand, room: int
) -> tuple[int, ...]:
    choices, largest = [], TILE_SIDES[len(block)]
    for b, step in zip(block, footprint.step, strict=True):
        if b % step:
            raise SettingsError(
                f"block {b} is not a multiple of {step}, the network's step; nearest {_nearest(b, step)}"
            )
        choices.append([step * d for d in range(1, max(step, min(b, largest)) // step + 1) if b // step % d == 0])
    plans = [Plan(part.shape, footprint, tile, block, origin=part.start) for tile in product(*choices)]
    fitting = [plan for plan in plans if demand.of(plan.largest_read) <= room]
    if not fitting:
        least = demand.of(plans[0].largest_read)
        enough = ceil_div(least * ACTIVATIONS[1], ACTIVATIONS[0])
        raise SettingsError(
            f"the smallest tile takes {gigabytes(least)} of activations, and the memory has {gigabytes(room)} for "
            f"them: give --memory {memory_option(enough)} or more"
        )
    return min(fitting, key=lambda plan: (plan.pixels_read, -prod(plan.tile))).tile


def _default_planes(outer: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many planes a block holds along each outer axis: a power of two, along the innermost axis first.

    It holds several along an axis only if it holds all along the axes farther in, and grows up to `STACKED_PIXELS`
    while `ENOUGH_BLOCKS` are left.

    >>> _default_planes((1000, 8), (256, 256), (512, 512))
    (8, 8)
    """
    room = STACKED_PIXELS // prod(map(min, block, shape))
    # Blocks, with one plane each along the outer axes; in the loop, without the axis at hand and those that are done.
    beside = prod(outer) * prod(map(ceil_div, shape, block))
    planes: tuple[int, ...] = ()
    for n in reversed(outer):
        side, beside = 1, beside // n
        while side * 2 <= min(room, n) and n // (side * 2) * beside >= ENOUGH_BLOCKS:
            side *= 2
        planes, room = (side, *planes), room // side if side == n else 0
    return planes


def _default_batch(plan: Plan, demand: Demand, room: int) -> int:
    read = plan.largest_read
    in_block = prod(map(ceil_div, map(min, plan.block, plan.shape), plan.tile))
    most = min(in_block, BATCH_PIXELS // prod(read))
    return next((n for n in range(most, 1, -1) if demand.of(read, n) <= room), 1)


def whole_number(value: Any, name: str, least: int) -> int:
    """Return an int of at least `least`; a float with an integer value is accepted."""
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else int(index(value))
    except TypeError:
        number = least - 1
    if number < least:
        raise SettingsError(f"{name} {value!r}: give a whole number, {least} at least")
    return number


def _sides(value: int | Sequence[int] | None, footprint: Footprint, what: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        sides = tuple(map(index, value)) if isinstance(value, Iterable) else (index(value),) * footprint.ndim
    except TypeError as error:
        raise SettingsError(f"{what} {value!r}: neither a whole number nor a sequence of them") from error
    if len(sides) != footprint.ndim or min(sides) < 1:
        raise SettingsError(
            f"{what} {sides_text(sides)} needs {footprint.ndim} positive sides, one per axis of the network"
        )
    return sides


def _check_tile(tile: tuple[int, ...], footprint: Footprint) -> None:
    for side, step in zip(tile, footprint.step, strict=True):
        if side % step:
            raise SettingsError(
                f"tile {side} is not a multiple of {step}, the network's step: seams would show; "
                f"nearest {_nearest(side, step)}"
            )
    if prod(tile) > LARGEST_TILE:
        raise SettingsError(f"tile {sides_text(tile)}: is larger than any memory. Give smaller sides, or leave it out")


def _nearest(side: int, step: int) -> str:
    return ", ".join(str(n) for n in (round_down(side, step), round_up(side, step)) if n)
