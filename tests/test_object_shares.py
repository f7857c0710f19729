"""Job arrays of runs with objects: shares in any order, twice, late: the bytes of one run."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import tifffile
from blobs import blobs
from faults import random_numbers, tree_hash
from killing import kill
from ome_images import write_ome_zarr
from shared_objects import BLOCKS, OTHER, SIDES, a_hash, a_slide, a_wish, same  # noqa: F401
from stub import Bright
from workers import recorded_as

import tilenet
from tilenet.errors import BlocksFailed, OutputExists, OutputMismatch
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering, object_places, object_shares, shares
from tilenet.runs.object_outputs import DEPTHS, PLACES, making_of
from tilenet.runs.object_shares import fill_objects
from tilenet.store import Store, open_mask


def written(out, name):
    store = Store.inspect(making_of(out, None) / name)
    return store.layout.n_blocks(0) - len(list(store.pending()))


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2], [2, 2, 3, 3, 1]])
def test_shares_in_any_order_run_twice_give_the_bytes_of_one_run(wanted, whole, tmp_path, order):
    out = tmp_path / "o.zarr"
    for which in order:
        assert not making_of(out, None).joinpath(PLACES).exists(), "objects were looked for too early"
        fill_objects(out, wanted, (which, 3))
    assert written(out, DEPTHS) == BLOCKS and 0 < written(out, PLACES) < BLOCKS, "the last one goes on with its part"
    for which in order[:-1]:
        fill_objects(out, wanted, (which, 3))
    assert same(out, whole)
    fill_objects(out, wanted, (1, 3))  # one that comes late
    assert same(out, whole)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_one_share_and_more_shares_than_blocks_give_the_bytes_of_one_run(wanted, whole, tmp_path, count):
    out, random = tmp_path / "o.zarr", random_numbers()
    for _ in range(1 if count == 1 else 2):
        for which in random.permutation(count):
            fill_objects(out, wanted, (which + 1, count))
    assert same(out, whole)


def test_the_second_array_may_have_another_number_of_shares(wanted, whole, tmp_path):
    out = tmp_path / "o.zarr"
    for share in ((1, 2), (2, 2), *((which, 5) for which in (1, 2, 3, 4, 5))):
        fill_objects(out, wanted, share)
    assert same(out, whole)


def test_no_block_is_done_twice(wanted, whole, tmp_path, monkeypatch):
    out, seen, found_in = tmp_path / "o.zarr", [], object_places.PlacesTask.places
    monkeypatch.setattr(object_places.PlacesTask, "places", lambda task: seen.append(task.box) or found_in(task))
    reports = [fill_objects(out, wanted, (which, 3)) for which in (1, 2, 3, 1, 2)]
    assert [report.blocks for report in reports] == [4, 4, 4, 0, 0]
    assert (len(seen), len(set(seen))) == (BLOCKS, BLOCKS) and same(out, whole)


def test_shares_find_the_nuclei_of_a_real_image(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(object_places, "PIECES", {2: (256**2, 64)})
    image, out = shared_data("small_fluo/mitocheck_t1_image.tif"), tmp_path / "o.zarr"
    wanted = Request(image, "nuclei", Options(tile=256, block=256, output="objects"))
    numbering.store_objects(tmp_path / "whole.zarr", wanted)
    for which in (3, 2, 1, 3, 2):
        fill_objects(out, wanted, (which, 3))
    assert open_mask(out).info["objects"] > 5 and same(out, tree_hash(tmp_path / "whole.zarr"))


@pytest.mark.parametrize("done", [2, 3, 4])
def test_a_plain_run_ends_what_shares_began(wanted, whole, tmp_path, done):
    out = tmp_path / "o.zarr"
    for which in (1, 2, 3, 1)[:done]:
        fill_objects(out, wanted, (which, 3))
    with pytest.raises(OutputExists, match="was begun, and is not complete"):
        numbering.store_objects(out, wanted)
    numbering.store_objects(out, wanted, resume=True)
    assert same(out, whole)


@pytest.mark.parametrize(
    ("name", "old"),
    [("find_places", False), ("_first_places", True), ("_write_numbers", True), ("remove_making", True)],
)
def test_shares_end_what_a_plain_run_began(wanted, whole, tmp_path, monkeypatch, name, old):
    out = tmp_path / "o.zarr"
    if old:
        numbering.store_objects(out, replace(wanted, model=OTHER))
    kill(monkeypatch, numbering, name, numbering.store_objects, out, wanted, overwrite=old)
    reports = [fill_objects(out, wanted, (which, 2)) for which in (2, 1)]
    assert same(out, whole) and [report.blocks for report in reports] == [0, 0]


@pytest.mark.parametrize("name", ["_first_places", "_write_numbers", "remove_making", "finish"])
def test_any_share_goes_on_when_the_last_was_killed(wanted, whole, tmp_path, monkeypatch, name):
    out = tmp_path / "o.zarr"
    for which in (1, 2, 3, 1):
        fill_objects(out, wanted, (which, 3))
    kill(monkeypatch, numbering, name, fill_objects, out, wanted, (2, 3))
    fill_objects(out, wanted, (3, 3))
    assert same(out, whole)


def test_places_in_other_depths_are_not_used_by_shares(wanted, whole, tmp_path, monkeypatch):
    out, kept = tmp_path / "o.zarr", tmp_path / "kept.zarr"
    other = replace(wanted, model=OTHER)
    kill(monkeypatch, numbering, "_first_places", numbering.store_objects, out, other)
    shutil.copytree(making_of(out, None) / PLACES, kept)
    shutil.rmtree(making_of(out, None))
    fill_objects(out, wanted, (1, 2))
    shutil.copytree(kept, making_of(out, None) / PLACES)
    for which in (2, 1):
        fill_objects(out, wanted, (which, 2))
    assert same(out, whole)


@pytest.mark.parametrize("name", ["_write_numbers", "_first_places"])
@pytest.mark.parametrize("inside", [False, True])
def test_when_the_network_has_run_its_device_is_not_needed(tmp_path, monkeypatch, inside, name):
    image = tmp_path / "image.zarr"
    write_ome_zarr(image, [(blobs((210, 270), seed=2), [0.5, 0.5])], chunks=(64, 64))
    how = {"into": image, "name": "nuclei"} if inside else {"out": tmp_path / "o.zarr"}
    how |= {"model": Bright(), "objects": True, "shard": (1, 1)}
    with recorded_as(device="cuda:77"):
        kill(monkeypatch, numbering, name, lambda: tilenet.segment(image, **how))
    assert tilenet.segment(image, **how).info["objects"] > 5


def test_of_damaged_depths_a_share_says_that_a_run_without_shares_repairs_them(wanted, whole, tmp_path):
    out = tmp_path / "o.zarr"
    for which in (1, 2):
        fill_objects(out, wanted, (which, 2))
    (making_of(out, None) / DEPTHS / "0/c/0/0").unlink()
    with pytest.raises(BlocksFailed, match="with --resume and without --shard"):
        fill_objects(out, wanted, (1, 2))
    numbering.store_objects(out, wanted, resume=True)
    assert same(out, whole)


def test_another_setting_for_another_share_is_refused(wanted, tmp_path):
    out = tmp_path / "o.zarr"
    for which in (1, 2):
        for other in ({"model": OTHER}, {"options": Options(tile=32, output="objects")}):
            if making_of(out, None).exists():
                with pytest.raises(OutputMismatch):
                    fill_objects(out, replace(wanted, **other), (which, 2))
        fill_objects(out, wanted, (which, 2))
    assert not list(making_of(out, None).rglob("share-*"))


def test_a_share_counts_its_own_pixels_in_each_step(wanted, tmp_path):
    out, seen = tmp_path / "o.zarr", []
    for which in (2, 1):
        fill_objects(out, wanted, (which, 2), progress=lambda *at: seen.append(at) if which == 1 else None)  # noqa: B023
    half = 128 * SIDES[1]  # two of the four rows of blocks
    assert {total for _, total in seen} == {half} and [done for done, _ in seen].count(half) == 2


def test_the_command_says_how_far_it_is_and_what_to_run_next(tmp_path, tilenet_command, monkeypatch):
    monkeypatch.setattr("tilenet.sizes.BLOCK_SIDES", {2: (64, 64)})
    monkeypatch.setattr(object_places, "PIECES", {2: (64**2, 64)})
    image, out = tmp_path / "i.tif", tmp_path / "o.zarr"
    tifffile.imwrite(image, blobs((150, 150), seed=1, coarse=3), tile=(64, 64))
    command = ("segment", image, "-o", out, "--objects", "--model", "stub:bright", "--tile", "64", "--shard")
    code, said, _ = tilenet_command(*command, "1/3")
    assert code == 0
    again = "run all shares again, which find the objects"
    done = rf"{out}: share 1/3 done, the network has run on 3 of 9 blocks, [\d.]+ s\."
    assert re.fullmatch(rf"{done} Run the shares 2/3, 3/3, unless they are at work, then {again}\n", said), said
    with monkeypatch.context() as patch:
        patch.setattr(shares, "finish_shares", lambda _: None)  # killed just then
        tilenet_command(*command, "2/3")
        _, said, _ = tilenet_command(*command, "3/3")
    assert said.endswith(f"s. When no share is at work any more, {again}\n")
    _, said, _ = tilenet_command(*command, "3/3", "--json")
    found = json.loads(said)
    assert (found["step"], found["written"], found["blocks"], found["complete"]) == ("objects", 3, 9, False)
    assert found["to_do"] == "Run the shares 1/3, 2/3, unless they are at work: the last one numbers the objects"
    _, said, _ = tilenet_command(*command, "2/3")
    assert ": share 2/3 done, objects are found in 6 of 9 blocks, " in said
    with monkeypatch.context() as patch:
        patch.setattr(object_shares, "number_divided", lambda *_: None)  # killed just then
        _, said, _ = tilenet_command(*command, "1/3")
    assert said.endswith("When no share is at work any more, run one again, which numbers the objects\n")
    assert re.search(r"\d+ objects, ", tilenet_command(*command, "1/3")[1])
