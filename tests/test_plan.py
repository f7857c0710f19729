import pickle
import re
import time
from dataclasses import FrozenInstanceError, replace
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilenet.bands import Demand
from tilenet.errors import SettingsError
from tilenet.footprint import AxisFootprint, Footprint
from tilenet.geometry import Box
from tilenet.plan import Plan, tile_of
from tilenet.sizes import plan_tiles

CLASSIC = AxisFootprint(16, 92, (0, 0), 188)

axes = st.builds(
    lambda step, lost, front, back, extra: AxisFootprint(step, lost, (front, back), 2 * lost + extra),
    st.integers(1, 8),
    st.integers(0, 20),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(1, 9),
)


@st.composite
def plans(draw):
    ndim = draw(st.integers(1, 3))
    footprint = Footprint(tuple(draw(axes) for _ in range(ndim)))
    inner = tuple(draw(st.integers(1, 40)) for _ in range(ndim))
    outer = tuple(draw(st.integers(1, 4)) for _ in range(draw(st.integers(0, 2))))
    tile = tuple(a.step * draw(st.integers(1, 4)) for a in footprint.axes)
    block = tuple(t * draw(st.integers(1, 3)) for t in tile)
    return plan_tiles(outer + inner, footprint, tile=tile, block=block)


@given(plans())
@settings(max_examples=150)
def test_every_pixel_is_written_once(plan):
    count = np.zeros(plan.shape, int)
    for block in plan:
        inside = np.zeros(plan.shape, bool)
        inside[block.box.slices] = True
        for tile in block.tiles:
            assert tile.write in block.box
            count[tile.write.slices] += 1
            inside[tile.write.slices] = False
        assert not inside.any()
    assert (count == 1).all()


@given(plans())
def test_every_tile_lies_on_one_global_grid_and_crops_only_exact_output(plan):
    for block in plan:
        for tile in block.tiles:
            for k, axis in enumerate(plan.footprint.axes):
                length = tile.read.shape[k]
                assert axis.is_legal(length)
                assert (tile.read.start[k] + axis.lost) % axis.step == 0
                assert tile.crop.start[k] >= axis.spoiled[0]
                assert tile.crop.stop[k] <= length - 2 * axis.lost - axis.spoiled[1]
                assert tile.read.start[k] + axis.lost + tile.crop.start[k] == tile.write.start[k]
            assert tile.crop.shape == tile.write.shape


@given(plans(), st.integers(1, 5))
def test_batches_hold_every_tile_once_and_one_shape_each(plan, size):
    sizes = []
    for block in plan:
        batches = list(block.batches(size))
        assert all(len({tile.read.shape for tile in batch}) == 1 for batch in batches)
        flat = [tile.write.start for batch in batches for tile in batch]
        assert sorted(flat) == [tile.write.start for tile in block.tiles]
        sizes += map(len, batches)
    assert max(sizes) == replace(plan, batch=size).largest_batch <= size


@given(plans())
def test_the_sums_of_a_plan_are_those_of_its_tiles(plan):
    tiles = [tile for block in plan for tile in block.tiles]
    assert plan.n_tiles == len(tiles)
    assert plan.pixels_read == sum(tile.read.size for tile in tiles)
    assert plan.redundancy == plan.pixels_read / sum(tile.write.size for tile in tiles)
    assert all(a <= b for tile in tiles for a, b in zip(tile.read.shape, plan.largest_read, strict=True))


def test_a_plan_of_a_billion_tiles_costs_nothing():
    start = time.process_time()
    plan = plan_tiles((2**24, 2**24), Footprint((CLASSIC,) * 2), tile=512)
    assert plan.n_tiles == 2**30
    block = plan[len(plan) - 1]
    assert block.box.stop == (2**24, 2**24)
    assert time.process_time() - start < 1
    assert len(pickle.dumps(plan)) < 2000


def test_a_plan_is_frozen_and_survives_pickling():
    plan = plan_tiles((100, 200), Footprint((CLASSIC,) * 2), tile=32, block=64)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert pickle.loads(pickle.dumps(plan[3])) == plan[3]
    with pytest.raises(FrozenInstanceError):
        plan.tile = (1, 1)


def test_blocks_are_counted_in_array_order_and_from_the_end():
    plan = plan_tiles((100, 200), Footprint((CLASSIC,) * 2), tile=32, block=64)
    assert [block.position for block in plan] == [(y, x) for y in range(2) for x in range(4)]
    assert (plan[-1], plan[-8]) == (plan[7], plan[0])
    for beyond in (8, -9):
        with pytest.raises(IndexError, match=f"no block {beyond}"):
            plan[beyond]


@pytest.mark.parametrize(("side", "nearest"), [(388, "384, 400"), (5, "16"), (1000, "992, 1008")])
def test_a_tile_off_the_grid_is_refused_with_the_nearest_legal_ones(side, nearest):
    with pytest.raises(SettingsError, match=f"tile {side} is not a multiple of 16.*nearest {nearest}$"):
        plan_tiles((1000, 1000), Footprint((CLASSIC,) * 2), tile=side)


def test_a_block_off_the_grid_is_refused_with_the_nearest_legal_ones():
    with pytest.raises(SettingsError, match="block 600 is not a multiple of 16, the network's step; nearest 592, 608$"):
        plan_tiles((1000, 1000), Footprint((CLASSIC,) * 2), block=600)


def test_a_block_that_is_not_whole_tiles_is_refused():
    with pytest.raises(SettingsError, match="block 64 x 64 is not whole tiles of 48 x 48"):
        plan_tiles((1000, 1000), Footprint((CLASSIC,) * 2), tile=48, block=64)


def test_a_memory_that_holds_no_tile_is_refused_with_the_number():
    told = "the smallest tile takes [0-9.]+ MB of activations, and the memory has 7.5 MB for them: give --memory "
    asked = (1000, 1000), Footprint((CLASSIC,) * 2)
    with pytest.raises(SettingsError, match=told) as refused:
        plan_tiles(*asked, memory=10_000_000, demand=Demand(1300))
    enough = int(re.search(r"--memory (\d+)MB or more", str(refused.value))[1])
    assert len(plan_tiles(*asked, memory=f"{enough}MB", demand=Demand(1300)))
    with pytest.raises(SettingsError, match=f"give --memory {enough}MB or more"):
        plan_tiles(*asked, memory=f"{enough - 1}MB", demand=Demand(1300))
    least = 204**2 * 1300 * 4 // 3  # a tile of 16 px reads 204, and activations may fill three quarters
    assert plan_tiles(*asked, memory=least, demand=Demand(1300)).tile == (16, 16)
    with pytest.raises(SettingsError, match=told.replace("7.5", "54.1")):
        plan_tiles(*asked, memory=least - 1, demand=Demand(1300))


@pytest.mark.parametrize(("side", "block"), [(300, 512), (2048, 512), (4096, 1024), (10_000, 2048), (100_000, 4096)])
def test_the_default_block_is_the_largest_power_of_two_that_leaves_sixteen(side, block):
    plan = plan_tiles((side, side), Footprint((CLASSIC,) * 2))
    assert plan.block == (block, block)
    assert len(plan) >= 16 or block == 512


@pytest.mark.parametrize(("tile", "block"), [(192, 384), (512, 512), (528, 528), (1024, 1024)])
def test_beside_a_tile_the_default_block_is_whole_tiles_or_one(tile, block):
    assert plan_tiles((300, 300), Footprint((CLASSIC,) * 2), tile=tile).block == (block, block)


@pytest.mark.parametrize(
    ("shape", "block", "tile"),
    [
        ((2**20,), 2**18, 2**18),
        ((2**26,), 2**22, 2**22),
        ((2**30,), 2**24, 2**22),
        ((100_000,) * 2, 4096, 2048),
        ((100,) * 3, 64, 64),
        ((500,) * 3, 128, 128),
        ((2000,) * 3, 256, 256),
    ],
)
def test_with_much_memory_default_sides_of_lines_planes_and_volumes_are_the_largest(shape, block, tile):
    plan = plan_tiles(shape, Footprint((CLASSIC,) * len(shape)), memory="1TB")
    assert (plan.block, plan.tile) == ((block,) * len(shape), (tile,) * len(shape))


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([10**9, 4 * 10**9, 10**11]))
def test_default_tiles_divide_the_block_and_fit_the_memory(height, width, memory):
    plan = plan_tiles((height, width), Footprint((CLASSIC,) * 2), memory=memory, demand=Demand(1300))
    assert all(b % t == 0 and t % 16 == 0 for b, t in zip(plan.block, plan.tile, strict=True))
    assert Box.of_shape(plan.largest_read).size * plan.batch * 1300 <= memory


def test_more_memory_never_costs_more_redundancy():
    plans = [plan_tiles((30_000,) * 2, Footprint((CLASSIC,) * 2), memory=m * 10**9) for m in (1, 2, 4, 8, 64)]
    redundancy = [plan.redundancy for plan in plans]
    assert redundancy == sorted(redundancy, reverse=True)
    assert redundancy[0] > redundancy[-1]


def test_planes_of_a_stack_share_a_block_but_never_a_tile():
    plan = plan_tiles((1000, 256, 256), Footprint((CLASSIC,) * 2))
    assert plan.tile[0] == 1
    assert plan.block[0] > 1
    assert len(plan) >= 16
    series = plan_tiles((1000, 8, 256, 256), Footprint((CLASSIC,) * 2))
    assert series.block[0] > 1 and series.block[1] == 8, "the inner axis is filled before the outer one is begun"
    assert len(series) >= 16
    assert plan_tiles((5, 10, 256, 256), Footprint((CLASSIC,) * 2)).block[0] == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=2), st.sampled_from([100, 256, 700, 2000]))
def test_planes_share_a_block_as_long_as_sixteen_whole_blocks_are_left(outer, side):
    plan = plan_tiles((*outer, side, side), Footprint((CLASSIC,) * 2))
    pixels, in_plane = min(side, plan.block[-1]) ** 2, (-(-side // plan.block[-1])) ** 2
    fitting = [
        planes
        for planes in product(*([2**k for k in range(6) if 2**k <= n] for n in outer))
        if all(a == 1 or planes[k + 1 :] == tuple(outer[k + 1 :]) for k, a in enumerate(planes))
        and prod(planes) * pixels <= 2**22
        and prod(n // a for n, a in zip(outer, planes, strict=True)) * in_plane >= 16
    ]
    assert plan.block[:-2] == max(fitting, key=prod, default=(1,) * len(outer))


@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([16, 64, 128]), st.integers(7, 10))
def test_a_default_batch_is_as_large_as_a_block_a_million_pixels_and_the_memory_allow(height, width, tile, digits):
    demand, memory = Demand(1300), 10**digits
    plan = plan_tiles((height, width), Footprint((CLASSIC,) * 2), tile=tile, block=256, memory=memory, demand=demand)
    sizes, read = range(1, len(list(plan[0].tiles)) + 1), plan.largest_read
    fitting = [n for n in sizes if n * prod(read) <= 2**20 and demand.of(read, n) <= memory * 3 // 4]
    assert plan.batch == max(fitting, default=1)


def test_a_tile_far_outside_the_image_is_computed_like_any_other():
    tile = tile_of(Footprint((CLASSIC,)), Box((-40,), (-3,)))
    assert (tile.read.start[0] + 92) % 16 == 0
    assert tile.crop.shape == (37,)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"shape": (100,)}, "does not suit a network with 2 axes"),
        ({"shape": (100, 0)}, "does not suit a network with 2 axes"),
        ({"shape": (9,) * 4, "footprint": Footprint.same(4, reach=1)}, "a network has 1 to 3 axes, not 4"),
        ({"origin": (3,)}, r"origin \(3,\) needs 2 numbers"),
        ({"tile": 16.5}, "tile 16.5: neither a whole number nor a sequence of them"),
        ({"tile": (16, 0)}, "tile 16 x 0 needs 2 positive sides"),
        ({"tile": (2**16, 2**16 + 16)}, "tile 65536 x 65552: is larger than any memory"),
        ({"block": (16,)}, "block 16 needs 2 positive sides"),
        ({"batch": 0}, "batch 0: give a whole number, 1 at least"),
        ({"batch": 1.5}, "batch 1.5: give a whole number, 1 at least"),
    ],
    ids=str,
)
def test_what_makes_no_plan_is_refused(asked, said):
    usual = {"shape": (100, 100), "footprint": Footprint((CLASSIC,) * 2)}
    assert plan_tiles(**usual, batch=2.0).batch == 2
    with pytest.raises(SettingsError, match=said):
        plan_tiles(**usual | asked)


def test_a_plan_reads_like_a_sequence():
    plan = plan_tiles((100, 100), Footprint((CLASSIC,) * 2), tile=32, block=32)
    assert isinstance(plan, Plan)
    assert [b.index for b in plan[2:5]] == [2, 3, 4]
    assert len(list(plan)) == len(plan) == 16


def test_a_plan_takes_memory_as_text_and_says_what_else_it_needs():
    footprint = Footprint.same(2, reach=20, step=4)
    plan = plan_tiles((9000, 9000), footprint, memory="500MB")
    assert plan == plan_tiles((9000, 9000), footprint, memory=500_000_000) != plan_tiles((9000, 9000), footprint)
    usual = {"memory": "4GB", "demand": Demand(2048)}
    assert plan_tiles((9000, 9000), footprint, **usual) == plan_tiles((9000, 9000), footprint)
    with pytest.raises(SettingsError, match=r"a plan needs a footprint, not a list\. Give network\.footprint"):
        plan_tiles((9000, 9000), [footprint])
