"""Runs that find objects: the same numbers whatever the blocks, and whenever the run is killed."""

import numpy as np
import pytest
import tifffile
from blobs import blobs, write_slide
from faults import is_complete, stray, tree_hash
from scipy import ndimage as ndi
from stub import Bright, Bright3D, Deep

import tilenet
from tilenet import sizes
from tilenet.geometry import Box
from tilenet.instances import components, separation
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering, object_places
from tilenet.runs.object_outputs import DEPTHS, PLACES, making_of
from tilenet.store import open_mask
from tilenet.store.layout import Layout


@pytest.mark.parametrize("most", [object_places.PIECES[2][0], 256**2, 1])
def test_a_component_of_many_blocks_is_looked_at_once(tmp_path, monkeypatch, most):
    monkeypatch.setattr(object_places, "PIECES", {2: (most, 256)})
    split = []

    def counted(components, depth, rule):
        split.append(components.size)
        return separation.separate(components, depth, rule)

    monkeypatch.setattr(components, "separate", counted)
    image = np.full((600, 700), 200, np.uint8)
    wanted = Request(image, Bright(), Options(tile=64, block=128, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    large = [size for size in split if size == image.size]
    assert len(large) == 1 and open_mask(tmp_path / "o.zarr")[...].min() >= 1


@pytest.mark.parametrize(("memory", "most"), [(None, 4), (6_000_000, 2)])
def test_large_components_are_kept_for_the_planes_of_a_block_as_far_as_memory_goes(tmp_path, monkeypatch, memory, most):
    monkeypatch.setattr(sizes, "STACKED_PIXELS", 4 * 64 * 64)
    monkeypatch.setattr(object_places, "PIECES", {2: (1, 256)})  # no blocks are joined
    kept, found_in = [], object_places.PlacesTask.places

    def counted(part):
        found = found_in(part)
        kept.append(sum(recent.window is not None for recent in part.recents.values()))
        return found

    monkeypatch.setattr(object_places.PlacesTask, "places", counted)
    image = np.full((8, 130, 190), 200, np.uint8)
    options = Options(axes="zyx", tile=64, block=64, output="objects", memory=memory)
    numbering.store_objects(tmp_path / "o.zarr", Request(image, Bright(), options))
    assert (len(kept), max(kept)) == (2 * 9, most) and open_mask(tmp_path / "o.zarr")[...].min() == 1


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path)


@pytest.mark.parametrize(("tile", "block"), [(64, 128), (100, 300), (None, None)])
def test_a_store_holds_the_objects_of_the_image_in_memory(slide, tmp_path, tile, block):
    wanted = Request(slide, Bright(), Options(tile=tile, block=block, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    truth = tilenet.segment(slide, model=Bright(), objects=True)
    mask = open_mask(tmp_path / "o.zarr")
    assert truth.max() > 20 and np.array_equal(mask[...], truth)
    assert (mask.dtype, len(mask.levels), mask.info["record"]["output"]) == (np.uint32, 3, "objects")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.zarr", "slide.tif"]


def test_objects_of_real_nuclei_do_not_depend_on_blocks(shared_data, tmp_path):
    image = shared_data("small_fluo/mitocheck_t1_image.tif")
    truth = tilenet.segment(image, objects=True, tile=256)
    wanted = Request(image, "nuclei", Options(tile=256, block=256, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    mask = open_mask(tmp_path / "o.zarr")
    assert mask.layout.n_blocks(0) == 4 and truth.max() > 5 and np.array_equal(mask[...], truth)


@pytest.fixture
def plant(shared_data):
    """Return a volume in which one component, most of the foreground, extends over all blocks."""
    image = tifffile.imread(shared_data("volumes/plant_nuclei_1135_image.tif"))
    return np.where(ndi.uniform_filter(image, 5) > 30, np.uint8(200), np.uint8(0))[:48]


def seen_by_tasks(monkeypatch):
    """Return the list to which the boxes of all tasks of the second step are appended."""
    seen, found_in = [], object_places.PlacesTask.places

    def noted(task):
        seen.append(task.box)
        return found_in(task)

    monkeypatch.setattr(object_places.PlacesTask, "places", noted)
    return seen


@pytest.mark.parametrize(("most", "tasks"), [(object_places.PIECES[3][0], 1), (48 * 64 * 64, 4)])
def test_blocks_of_a_volume_are_joined_and_hold_the_objects_of_the_volume_in_memory(
    plant, tmp_path, monkeypatch, most, tasks
):
    options = {"axes": "zyx", "tile": 16, "pixel_size": (0.28, 0.13, 0.13)}
    truth = tilenet.segment(plant, model=Bright3D(), objects=True, **options)
    assert truth.max() > 3 and np.bincount(ndi.label(plant)[0].ravel())[1:].max() > np.count_nonzero(plant) / 2
    seen = seen_by_tasks(monkeypatch)
    monkeypatch.setattr(object_places, "PIECES", {3: (most, 48)})
    wanted = Request(plant, Bright3D(), Options(block=32, output="objects", **options))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    mask = open_mask(tmp_path / "o.zarr")
    assert len(seen) == tasks and mask.layout.n_blocks(0) == 32 and np.array_equal(mask[...], truth)


def test_a_run_begun_with_smaller_blocks_goes_on_with_them(slide, tmp_path, monkeypatch):
    truth, out = tilenet.segment(slide, model=Bright(), objects=True), tmp_path / "o.zarr"
    seen = seen_by_tasks(monkeypatch)
    wanted = Request(slide, Bright(), Options(tile=64, block=128, output="objects"))

    def stops(done, total):
        if done > 0.75 * total:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(object_places, "PIECES", {2: (1, 256)})
        numbering.store_objects(out, wanted, progress=stops)
    begun = len(seen)
    numbering.store_objects(out, wanted, resume=True)
    assert 2 < begun < 20 == len(seen) == len(set(seen)) and np.array_equal(open_mask(out)[...], truth)


def test_a_run_killed_at_any_step_goes_on_to_the_same_objects(commands, tmp_path):
    image = tmp_path / "slide.tif"
    tifffile.imwrite(image, blobs((128, 192), seed=1), tile=(64, 64))
    options = ("--model", "stub", "--tile", "64", "--objects", "--threads", "1")
    out, whole = tmp_path / "o.zarr", tmp_path / "whole.zarr"
    how = {"stub": {"sleep": 0}, "block": 128}
    assert commands.run("segment", image, "-o", whole, *options, **how)[0] == 0
    making, steps, seen = making_of(out, None), 12, set()
    while commands.run("segment", image, "-o", out, *options, "--resume", **how, kill=[steps, "torn"])[0] < 0:
        steps += 1
        seen.add((is_complete(making / DEPTHS), is_complete(making / PLACES), out.exists()))
    assert {(False, False, False), (True, False, False), (True, True, True)} <= seen
    assert tree_hash(out) == tree_hash(whole)
    assert stray(out) == [] and not making_of(out, None).exists()


def test_progress_goes_once_from_nothing_to_all(slide, tmp_path):
    seen = []
    wanted = Request(slide, Bright(), Options(block=256, tile=64, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted, progress=lambda *at: seen.append(at))
    assert {total for _, total in seen} == {2 * 420 * 540}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}) and seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("axes", ["zyx", "tyx", "tzyx"])
def test_depths_of_a_stack_are_those_of_its_planes(tmp_path, axes):
    planes = [blobs((120, 150), seed=seed, coarse=3) for seed in (3, 4, 5)]
    alone = [tilenet.segment(plane, model=Deep(), objects=True) for plane in planes]
    stack = np.stack(planes).reshape(*([1] * (len(axes) - 3)), 3, 120, 150)
    before = np.cumsum([0, *(labels.max() for labels in alone)])
    truth = np.stack([np.where(labels > 0, labels + n, 0) for labels, n in zip(alone, before, strict=False)])
    assert truth.max() > 15
    assert np.array_equal(tilenet.segment(stack, axes=axes, model=Deep(), objects=True), truth.reshape(stack.shape))
    wanted = Request(stack, Deep(), Options(axes=axes, tile=64, block=64, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    assert np.array_equal(open_mask(tmp_path / "o.zarr")[...], truth.reshape(stack.shape))


def test_glass_holds_no_objects(slide, tmp_path):
    tissue = np.zeros((420, 540), np.uint8)
    tissue[:150, :200] = 1
    wanted = Request(slide, Bright(), Options(tile=64, block=128, output="objects", tissue=tissue))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    mask = open_mask(tmp_path / "o.zarr")
    inside = tilenet.segment(slide, model=Bright(), objects=True, tissue=tissue, tile=64)
    assert mask.tissue is not None and mask[:150, :200].any() and not mask[400:].any()
    assert mask[...].max() == len(np.unique(mask[...])) - 1
    assert inside.shape == mask.shape


def test_little_memory_means_smaller_parts():
    block = Box((0, 0), (1400, 1400))
    assert [part.shape for part in object_places._pieces(block, (9000, 9000), 2 * 10**9)] == [(1400, 1400)]
    small = list(object_places._pieces(block, (9000, 9000), 10**7))
    assert {part.shape for part in small} == {(256, 256), (256, 120), (120, 256), (120, 120)}
    assert sum(part.size for part in small) == block.size


@pytest.mark.parametrize(
    ("shape", "block", "memory", "joined"),
    [
        ((30, 275, 271), (64, 64, 64), 4 * 10**9, (64, 320, 320)),  # the whole volume
        ((16, 720, 720), (64, 64, 64), 4 * 10**9, (64, 768, 768)),  # a thin one: nothing is read beyond it
        ((60, 550, 542), (128, 128, 128), 4 * 10**9, (128, 384, 256)),
        ((30, 275, 271), (64, 64, 64), 10**8, (64, 64, 64)),
        ((1000, 1000, 1000), (256, 256, 256), 4 * 10**9, (256, 256, 256)),
        ((9, 5000, 3000), (1, 1024, 1024), 4 * 10**9, (1, 2048, 2048)),
        ((9, 500, 300), (4, 128, 64), 4 * 10**9, (4, 512, 320)),
        ((9, 50000, 30000), (4, 1024, 1024), 4 * 10**9, (4, 1024, 1024)),
    ],
)
def test_blocks_are_joined_as_far_as_they_are_labelled_at_once(shape, block, memory, joined):
    layout = Layout("zyx", shape, block, (None,) * 3, "cells")
    assert object_places._joined(layout, 2 if block[0] < 9 else 3, memory) == joined
