"""Objects of images of any size: the same numbers however the image is parted, and whenever the run is killed."""

import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import zarr
from faults import is_complete, stray, tree_hash
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi
from stub import Bright

import tilenet
from tilenet import instances, numbering, separation
from tilenet.card import DEPTH_CLASSES, ModelCard
from tilenet.decide import DEPTH_UNIT, Decision, Rule
from tilenet.errors import OutputExists, OutputLocked, OutputMismatch, OutputNotFound, SettingsError
from tilenet.geometry import Box
from tilenet.instances import View, find_objects, number_objects
from tilenet.options import Options
from tilenet.separation import REACH
from tilenet.settling import Wanted
from tilenet.store import open_mask


def blobs(shape, *, seed, coarse=4.0, share=0.4):
    """Return an image of bright, touching blobs of all sizes; `share` of it is bright."""
    noise = ndi.gaussian_filter(np.random.default_rng(seed).normal(size=shape), coarse, mode="wrap")
    return np.where(noise > np.quantile(noise, 1 - share), np.uint8(200), np.uint8(0))


def view_of(shape, seed, *, depths):
    """Return a random foreground, and perhaps depths as a network might give them."""
    foreground = blobs(shape, seed=seed, coarse=2.5) > 0
    noise = ndi.gaussian_filter(np.random.default_rng(seed + 1).uniform(size=shape), 1.5)
    depth = np.clip(foreground * 0.6 + 2.5 * (noise - 0.5), 0, 1)
    return View(foreground, (np.rint(depth / DEPTH_UNIT) * DEPTH_UNIT).astype(np.float32) if depths else None)


def part_of(whole, box):
    return View(whole.foreground[box.slices], None if whole.depth is None else whole.depth[box.slices])


def numbered_by_parts(whole, side, rule):
    """Return the numbers of objects that parts of an image find, each by itself."""
    shape = whole.foreground.shape
    places = np.zeros(shape, np.int64)
    for corner in np.ndindex(*(-(-n // side) for n in shape)):
        start = tuple(side * c for c in corner)
        part = Box(start, tuple(a + side for a in start)) & Box.of_shape(shape)
        labels, firsts = find_objects(part, shape, lambda box: part_of(whole, box), rule)
        places[part.slices] = (firsts + 1)[labels]
    firsts = np.flatnonzero(places.ravel() == np.arange(places.size) + 1) + 1
    return np.where(places > 0, np.searchsorted(firsts, places) + 1, 0)


@contextmanager
def few_pixels_at_first(reach=REACH):
    """Have parts look no further beyond themselves than they must, so that it shows where that is too little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "MARGIN", {2: 4, 3: 4})
        patch.setattr(instances, "REACH", reach)
        yield


@pytest.mark.parametrize("depths", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_parts_find_the_objects_of_the_whole(ndim, depths, data):
    with few_pixels_at_first():
        _compare_parts_with_the_whole(ndim, depths, data)


def _compare_parts_with_the_whole(ndim, depths, data):
    sides = st.integers(1, 150 if ndim == 2 else 36)
    whole = view_of(tuple(data.draw(sides) for _ in range(ndim)), data.draw(st.integers(0, 2**16)), depths=depths)
    rule = Rule(min_size=data.draw(st.integers(0, 30)), least_depth=data.draw(st.sampled_from([0.0, 0.75])))
    found = numbered_by_parts(whole, data.draw(st.integers(7, 60)), rule)
    assert np.array_equal(found, number_objects(whole, rule))


@pytest.mark.parametrize("depths", [False, True])
def test_objects_of_a_connected_component_are_those_of_it_alone(depths):
    whole = view_of((150, 170), 3, depths=depths)
    found, alone = number_objects(whole), np.zeros((150, 170), np.int64)
    components, n = ndi.label(whole.foreground)
    for label in range(1, n + 1):
        own = number_objects(View(components == label, whole.depth))
        alone[own > 0] = own[own > 0] + alone.max()
    # The same partition: each number of the one goes with one of the other.
    pairs = np.unique(np.stack([found, alone]).reshape(2, -1), axis=1)
    assert found.max() > 20 and pairs.shape[1] == found.max() + 1 == alone.max() + 1


def test_objects_are_numbered_in_the_order_of_their_first_pixels():
    found = number_objects(view_of((120, 140), 5, depths=True))
    _, firsts = np.unique(found, return_index=True)
    assert found.max() > 20 and (np.diff(firsts[1:]) > 0).all()


def test_parts_that_look_less_far_find_other_objects():
    wrong = 0
    for seed in range(20):
        whole = view_of((120, 130), seed, depths=True)
        with few_pixels_at_first(reach=0):
            wrong += not np.array_equal(numbered_by_parts(whole, 30, Rule()), number_objects(whole))
        with few_pixels_at_first():
            assert np.array_equal(numbered_by_parts(whole, 30, Rule()), number_objects(whole))
    assert wrong > 5


def test_smoothing_reaches_as_far_as_is_said_and_no_further():
    own, depth = np.zeros((21, 21), np.int32), np.zeros((21, 21), np.float32)
    own[10, 10] = 1
    here = separation._smoothed(own, depth)[10, 10]
    for far, seen in ((REACH, True), (REACH + 1, False)):
        other = depth.copy()
        other[10, 10 + far] = 1
        assert (separation._smoothed(own, other)[10, 10] != here) == seen


def test_a_component_is_looked_at_once_however_often_it_enters_a_part():
    comb = np.zeros((400, 400), bool)
    comb[:, ::8] = comb[:, 1::8] = comb[380:] = True
    reads = []

    def read(box):
        reads.append(box.size)
        return View(comb[box.slices], None)

    labels, firsts = find_objects(Box((0, 0), (100, 200)), comb.shape, read)
    assert len(firsts) >= 2 and np.array_equal(labels > 0, comb[:100, :200])
    assert sum(reads) < 5 * comb.size


def test_a_component_of_many_blocks_is_looked_at_once(tmp_path, monkeypatch):
    split = []

    def counted(components, depth, rule):
        split.append(components.size)
        return separation.separate(components, depth, rule)

    monkeypatch.setattr(instances, "separate", counted)
    image = np.full((600, 700), 200, np.uint8)
    wanted = Wanted(image, Bright(), Options(tile=64, block=128, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    large = [size for size in split if size == image.size]
    assert len(large) == 1 and open_mask(tmp_path / "o.zarr")[...].min() >= 1


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5)])
def test_objects_are_of_planes_and_volumes(shape):
    with pytest.raises(SettingsError, match="a plane or a volume, not of an array of shape"):
        tilenet.objects(np.ones(shape, np.uint8))
    assert tilenet.objects(np.ones((0, 7), np.uint8)).shape == (0, 7)


def test_objects_of_a_worm_through_many_parts_are_those_of_the_whole():
    y, x = np.indices((300, 420))
    worm = (np.abs(y - 150 - 100 * np.sin(x / 40)) < 6) & (x > 3) & (x < 415)
    whole = View(worm, np.where(worm, np.float32(1), np.float32(0)))
    found = numbered_by_parts(whole, 40, Rule())
    assert np.array_equal(found, number_objects(whole)) and np.array_equal(found > 0, worm)
    assert found.max() == 1


def test_a_component_that_takes_more_than_the_memory_is_refused_with_its_size():
    whole = View(np.ones((400, 500), bool), None)
    part = Box((0, 0), (30, 30))
    with pytest.raises(SettingsError, match=r"connected foreground extends over \d+ x \d+ px .* --memory"):
        find_objects(part, (400, 500), lambda box: part_of(whole, box), memory=10**6)
    labels, _ = find_objects(part, (400, 500), lambda box: part_of(whole, box))
    assert labels.all()


@pytest.fixture
def slide(tmp_path):
    tifffile.imwrite(tmp_path / "slide.tif", blobs((420, 540), seed=0), tile=(128, 128))
    return tmp_path / "slide.tif"


@pytest.mark.parametrize(("tile", "block"), [(64, 128), (100, 300), (None, None)])
def test_a_store_holds_the_objects_of_the_image_in_memory(slide, tmp_path, tile, block):
    wanted = Wanted(slide, Bright(), Options(tile=tile, block=block, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    truth = tilenet.segment(slide, model=Bright(), objects=True)
    mask = open_mask(tmp_path / "o.zarr")
    assert truth.max() > 20 and np.array_equal(mask[...], truth)
    assert (mask.dtype, len(mask.levels), mask.info["record"]["output"]) == (np.uint32, 3, "objects")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.zarr", "slide.tif"]


def test_objects_of_real_nuclei_do_not_depend_on_blocks(shared_data, tmp_path):
    image = shared_data("small_fluo/mitocheck_t1_image.tif")
    truth = tilenet.segment(image, objects=True, tile=256)
    wanted = Wanted(image, "nuclei", Options(tile=256, block=256, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    mask = open_mask(tmp_path / "o.zarr")
    assert mask.layout.n_blocks(0) == 4 and truth.max() > 5 and np.array_equal(mask[...], truth)


def test_a_run_killed_at_any_step_goes_on_to_the_same_objects(commands, tmp_path):
    image = tmp_path / "slide.tif"
    tifffile.imwrite(image, blobs((512, 768), seed=1), tile=(128, 128))
    options = ("--model", "stub", "--tile", "128", "--objects", "--threads", "1")
    out, whole = tmp_path / "o.zarr", tmp_path / "whole.zarr"
    stub = {"sleep": 0}
    assert commands.run("segment", image, "-o", whole, *options, stub=stub)[0] == 0
    making, steps, seen = numbering.making_of(out, None), 12, set()
    while commands.run("segment", image, "-o", out, *options, "--resume", stub=stub, kill=[steps, "torn"])[0] < 0:
        steps += 1
        seen.add((is_complete(making / numbering.DEPTHS), is_complete(making / numbering.PLACES), out.exists()))
    assert {(False, False, False), (True, False, False), (True, True, True)} <= seen
    assert tree_hash(out) == tree_hash(whole)
    assert stray(out) == [] and not numbering.making_of(out, None).exists()


@pytest.fixture
def begun(slide, tmp_path, monkeypatch):
    """Return the place of a mask of which the second step was interrupted."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(numbering.Part, "places", interrupted)
        tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True)
    return tmp_path / "o.zarr"


def test_what_was_begun_with_objects_goes_on_with_them(slide, begun, monkeypatch):
    with pytest.raises(OutputExists, match=r"o\.zarr\.making.*--resume"):
        tilenet.segment(slide, begun, model=Bright(), objects=True)
    with pytest.raises(OutputMismatch, match="begun with model answer"):
        tilenet.segment(slide, begun, model=Bright(bright=500), resume=True)
    with pytest.raises(OutputNotFound, match=r"does not exist yet: o\.zarr\.making belongs to a run.*--resume"):
        open_mask(begun)
    truth = tilenet.segment(slide, model=Bright(), objects=True)

    def computed(*_):
        raise AssertionError("the network has nothing left to do")

    monkeypatch.setattr("tilenet.runner.run", computed)
    assert np.array_equal(tilenet.segment(slide, begun, model=Bright(), resume=True)[...], truth)
    again = tilenet.segment(slide, begun, model=Bright(), objects=True, resume=True)
    assert np.array_equal(again[...], truth)


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_not_said_again_is_as_it_was_begun(tmp_path, monkeypatch, inside):
    image = tmp_path / "image.zarr"
    pixels = blobs((300, 400), seed=2)
    levels = [pixels, pixels[::2, ::2]]
    group = zarr.create_group(image, zarr_format=3)
    for k, level in enumerate(levels):
        group.create_array(str(k), data=level, chunks=(64, 64), dimension_names=["y", "x"])
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    scales = [[{"type": "scale", "scale": [0.5 * 2**k] * 2}] for k in range(2)]
    datasets = [{"path": str(k), "coordinateTransformations": scale} for k, scale in enumerate(scales)]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    where = {"into": image, "name": "nuclei"} if inside else {"out": tmp_path / "o.zarr"}

    def interrupted(*_):
        raise KeyboardInterrupt

    options = {"model": Bright(), "objects": True, "level": 1, "roi": "10:140,20:190"}
    truth = tilenet.segment(image, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(numbering, "_firsts", interrupted)
        tilenet.segment(image, **where, **options)
    mask = tilenet.segment(image, **where, model=Bright(), resume=True)
    assert truth.shape == (130, 170) and truth.max() > 5 and np.array_equal(mask[...], truth)
    assert not list(tmp_path.glob("*.making"))


def interrupt(monkeypatch, where, *args, **options):
    """Run `segment` up to a function of `numbering`."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(numbering, where, interrupted)
        tilenet.segment(*args, **options)


@pytest.mark.parametrize("where", ["_places", "_number"])
@pytest.mark.parametrize("objects", [False, True])
def test_a_run_killed_while_it_replaces_a_mask_goes_on(slide, tmp_path, monkeypatch, objects, where):
    out, model = tmp_path / "o.zarr", Bright(bright=500)
    tilenet.segment(slide, out, model=Bright(), objects=objects, roi="0:100,0:100")
    interrupt(monkeypatch, where, slide, out, model=model, objects=True, overwrite=True)
    if where == "_places":
        assert tilenet.open_mask(out).shape == (100, 100)  # until there is another
    mask = tilenet.segment(slide, out, model=model, resume=True)
    assert np.array_equal(mask[...], tilenet.segment(slide, model=model, objects=True))
    assert not numbering.making_of(out, None).exists()


class Cut:
    """Tells what is brighter than something, however that answers what is asked before a run."""

    footprint = tilenet.Footprint.same(2, reach=0)

    def __init__(self, cut):
        self.cut = cut

    def __call__(self, batch):
        cut = self.cut if batch.max() == 200 else 100
        return np.concatenate([np.full_like(batch, cut), batch], axis=1)


def test_what_another_run_has_found_is_not_taken_for_its_own(slide, tmp_path, monkeypatch):
    out = tmp_path / "o.zarr"
    interrupt(monkeypatch, "_firsts", slide, out, model=Cut(100), objects=True)
    places = numbering.making_of(out, None) / numbering.PLACES
    kept = shutil.copytree(places, tmp_path / "kept.zarr")
    interrupt(monkeypatch, "_places", slide, out, model=Cut(250), objects=True, overwrite=True)
    shutil.copytree(kept, places)
    assert tilenet.segment(slide, out, model=Cut(250), resume=True)[...].max() == 0


def test_a_mask_is_not_repaired_with_the_numbers_of_other_objects(slide, tmp_path):
    out = tmp_path / "o.zarr"
    wanted = Wanted(slide, Cut(100), Options(block=256, tile=64, output="objects"))
    numbering.store_objects(out, wanted)
    files = sorted(p for p in (out / "0").rglob("*") if p.is_file() and p.name != "zarr.json")
    files[-1].unlink()
    with pytest.raises(OutputMismatch, match=r"found now are not those of this mask.*--overwrite"):
        numbering.store_objects(out, replace(wanted, model=Cut(250)), resume=True)


def test_other_runs_are_refused_where_objects_were_begun(slide, begun):
    for how in ({}, {"shard": (1, 2)}, {"shard": (1, 2), "resume": True}):
        with pytest.raises(OutputExists, match=r"o\.zarr\.making: belongs to a run with --objects"):
            tilenet.segment(slide, begun, model=Bright(), **how)
    (result,) = tilenet.batch(slide, begun.parent / "masks", model=Bright(), threads=1)
    assert result.status == "done"
    tilenet.segment(slide, begun, model=Bright(), overwrite=True)
    assert not numbering.making_of(begun, None).exists()


def test_a_link_is_not_written_through(slide, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "o.zarr.making").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputExists, match="is a symbolic link"):
        tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_progress_goes_once_from_nothing_to_all(slide, tmp_path):
    seen = []
    wanted = Wanted(slide, Bright(), Options(block=256, tile=64, output="objects"))
    numbering.store_objects(tmp_path / "o.zarr", wanted, progress=lambda *at: seen.append(at))
    assert {total for _, total in seen} == {2 * 420 * 540}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}) and seen[-1][0] == seen[-1][1]


def test_another_run_over_a_begun_one_leaves_nothing_of_it(slide, begun):
    mask = tilenet.segment(slide, begun, model=Bright(bright=500), objects=True, overwrite=True)
    assert np.array_equal(mask[...], tilenet.segment(slide, model=Bright(bright=500), objects=True))
    assert not numbering.making_of(begun, None).exists()


def test_what_others_keep_in_the_folder_of_a_run_stays(slide, tmp_path):
    making = tmp_path / "o.zarr.making"
    making.mkdir()
    (making / "notes.txt").write_text("mine")
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True)
    assert [path.name for path in making.iterdir()] == ["notes.txt"]


def test_a_run_that_another_one_would_remove_or_join_is_protected(slide, tmp_path, monkeypatch):
    out, firsts, refused = tmp_path / "o.zarr", numbering._firsts, []

    def meanwhile(*stores):
        for how in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(OutputLocked):
                tilenet.segment(slide, out, model=Bright(), objects=True, **how)
            refused.append(how)
        return firsts(*stores)

    with monkeypatch.context() as patch:
        patch.setattr(numbering, "_firsts", meanwhile)
        mask = tilenet.segment(slide, out, model=Bright(), objects=True)
    assert len(refused) == 2 and np.array_equal(mask[...], tilenet.segment(slide, model=Bright(), objects=True))


@pytest.mark.parametrize("name", [numbering.DEPTHS, numbering.PLACES])
def test_a_damaged_store_on_the_way_is_said_to_be_removed(slide, begun, name):
    (numbering.making_of(begun, None) / name / "zarr.json").write_text("{")
    with pytest.raises(OutputExists, match=r"is not a store, or is damaged.*Remove .*o\.zarr\.making"):
        tilenet.segment(slide, begun, model=Bright(), objects=True, overwrite=True)


def test_a_damaged_mask_of_objects_is_repaired(slide, tmp_path):
    out = tmp_path / "o.zarr"
    before = tilenet.segment(slide, out, model=Bright(), objects=True)[...]
    files = [p for p in (out / "0").rglob("*") if p.is_file() and p.name != "zarr.json"]
    files[0].write_bytes(files[0].read_bytes()[:-3])
    assert np.array_equal(tilenet.segment(slide, out, model=Bright(), objects=True, resume=True)[...], before)
    assert tilenet.verify(out).ok


def test_a_mask_of_classes_is_not_gone_on_with_as_objects(slide, tmp_path):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Bright())
    with pytest.raises(OutputMismatch, match="begun with output = mask, and now it is objects"):
        tilenet.segment(slide, tmp_path / "m.zarr", model=Bright(), objects=True, resume=True)


def test_glass_holds_no_objects(slide, tmp_path):
    tissue = np.zeros((420, 540), np.uint8)
    tissue[:150, :200] = 1
    wanted = Wanted(slide, Bright(), Options(tile=64, block=128, output="objects", tissue=tissue))
    numbering.store_objects(tmp_path / "o.zarr", wanted)
    mask = open_mask(tmp_path / "o.zarr")
    inside = tilenet.segment(slide, model=Bright(), objects=True, tissue=tissue, tile=64)
    assert mask.tissue is not None and mask[:150, :200].any() and not mask[400:].any()
    assert mask[...].max() == len(np.unique(mask[...])) - 1
    assert inside.shape == mask.shape


def decision_of(classes, mask_of_class):
    card = ModelCard(name="m", classes=classes, mask_of_class=mask_of_class)
    return Decision.of_card(card, "objects", threshold=None, probability_dtype="float32")


def test_rim_body_and_centre_say_how_deep_a_pixel_lies():
    decision = decision_of(DEPTH_CLASSES, (0, 1, 1, 1))
    assert decision.depths == pytest.approx((0, 1 / 3, 2 / 3, 1))
    (depth,) = decision(np.log(np.array([[0.5], [0.1], [0.1], [0.3]])))["probabilities"]
    assert depth.dtype == np.float16 and depth == np.round(0.4 * 256) / 256


@pytest.mark.parametrize("mask_of_class", [(0, 1, 1), (0, 0, 1), (1, 0, 0), (0, 1, 2)])
def test_of_other_classes_the_mask_alone_says_what_is_in_an_object(mask_of_class):
    decision = decision_of(("out", "in", "rim"), mask_of_class)
    assert (decision.depths, decision.arrays) == ((), ("mask",))
    y, x = np.indices((60, 60))
    radius = np.hypot(y - 30, x - 30)
    of_pixel = np.select([radius < 11, radius < 15], [1, 2], 0)

    class Discs:
        footprint = tilenet.Footprint.same(2, reach=0)
        card = ModelCard(name="discs", classes=("out", "in", "rim"), mask_of_class=mask_of_class)

        def __call__(self, batch):
            return 9 * np.eye(3, dtype=np.float32)[batch[:, 0].astype(int).clip(0, 2)].transpose(0, 3, 1, 2)

    found = tilenet.segment(of_pixel.astype(np.uint8), model=Discs(), objects=True)
    assert np.array_equal(found > 0, np.take(mask_of_class, of_pixel) > 0) and found.max() >= 1


def test_objects_heed_the_threshold(tmp_path):
    y, x = np.indices((60, 90))
    image = np.select([np.hypot(y - 30, x - 20) < 9, np.hypot(y - 30, x - 60) < 9], [250, 180], 0).astype(np.uint8)

    class One:
        footprint = tilenet.Footprint.same(2, reach=0)
        card = ModelCard(name="one", output="sigmoid", classes=("bright",), threshold=0.9)

        def __call__(self, batch):
            share = np.clip(batch.astype(np.float32) / 255, 1e-3, 1 - 1e-3)
            return np.log(share / (1 - share))

    assert tilenet.segment(image, model=One(), objects=True).max() == 1
    assert tilenet.segment(image, tmp_path / "o.zarr", model=One(), threshold=0.5, objects=True)[...].max() == 2


def test_little_memory_means_smaller_parts():
    block = Box((0, 0), (1400, 1400))
    assert [part.shape for part in numbering._parts(block, 2 * 10**9)] == [(1400, 1400)]
    small = list(numbering._parts(block, 10**7))
    assert {part.shape for part in small} == {(256, 256), (256, 120), (120, 256), (120, 120)}
    assert sum(part.size for part in small) == block.size


def test_objects_that_are_dropped_as_uncertain_can_be_kept(caplog):
    y, x = np.indices((60, 120))
    image = np.where(np.hypot(y - 30, (x % 40) - 20) < 14, np.uint8(200), np.uint8(0))

    class Unsure:
        footprint = tilenet.Footprint.same(2, reach=0)
        card = ModelCard(name="unsure", classes=DEPTH_CLASSES, mask_of_class=(0, 1, 1, 1))

        def __call__(self, batch):
            inside = batch[:, 0] > 100
            shares = np.where(inside[:, None], [[[[0.1]], [[0.2]], [[0.6]], [[0.1]]]], [[[[0.97]], *[[[0.01]]] * 3]])
            return np.log(shares).astype(np.float32)

    with caplog.at_level("INFO", "tilenet"):
        assert tilenet.segment(image, model=Unsure(), objects=True).max() == 0
    assert "A --least-depth below 0.75 keeps more of it" in caplog.text
    assert tilenet.segment(image, model=Unsure(), objects=True, least_depth=0.5).max() == 3
    with pytest.raises(SettingsError, match="not between 0 and 1"):
        tilenet.segment(image, model=Unsure(), objects=True, least_depth=2)
    with pytest.raises(SettingsError, match="is for objects of a model whose classes are background, rim"):
        tilenet.segment(image, model=Bright(), objects=True, least_depth=0.5)
