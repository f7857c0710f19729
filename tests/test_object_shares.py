"""Job arrays of runs with objects: shares in any order, at once, killed, doubled, late: the bytes of one run."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace

import pytest
import tifffile
from blobs import blobs
from faults import random_numbers, stray, tree_hash
from ome_images import write_ome_zarr
from stub import Bright
from workers import recorded_as

import tilenet
from tilenet import compute, numbering, object_shares, places, shares
from tilenet.errors import BlocksFailed, OutputExists, OutputLocked, OutputMismatch
from tilenet.making import DEPTHS, PLACES, making_of
from tilenet.object_shares import fill_objects
from tilenet.options import Options
from tilenet.store import Store, is_complete, open_mask
from tilenet.wanted import Wanted

BLOCKS = 20
# Finds less than `Bright()`.
OTHER = Bright(bright=1700)
# Steps of the store after which runs are killed: at first, and more by run.
FIRST, MORE = 10, 11


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    tifffile.imwrite(path, blobs((210, 270), seed=0, coarse=3), tile=(64, 64))
    return path


@pytest.fixture
def wanted(slide, monkeypatch):
    """Return what is wanted of the slide: its objects, found in as many blocks as the network runs on."""
    monkeypatch.setattr(places, "PIECES", {2: (64**2, 64)})
    return Wanted(slide, Bright(), Options(tile=64, block=64, output="objects"))


@pytest.fixture(scope="module")
def whole(slide):
    """Return the hash of a run by one process."""
    out = slide.with_name("whole.zarr")
    numbering.store_objects(out, Wanted(slide, Bright(), Options(tile=64, block=64, output="objects")))
    assert open_mask(out).layout.n_blocks(0) == BLOCKS and open_mask(out)[...].max() > 15
    return tree_hash(out)


def same(out, whole):
    return (is_complete(out), tree_hash(out), stray(out), making_of(out, None).exists()) == (True, whole, [], False)


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
    out, seen, found_in = tmp_path / "o.zarr", [], places.PlacesTask.places
    monkeypatch.setattr(places.PlacesTask, "places", lambda task: seen.append(task.box) or found_in(task))
    reports = [fill_objects(out, wanted, (which, 3)) for which in (1, 2, 3, 1, 2)]
    assert [report.blocks for report in reports] == [6, 7, 7, 0, 0]
    assert (len(seen), len(set(seen))) == (BLOCKS, BLOCKS) and same(out, whole)


def test_shares_find_the_nuclei_of_a_real_image(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "PIECES", {2: (256**2, 64)})
    image, out = shared_data("small_fluo/mitocheck_t1_image.tif"), tmp_path / "o.zarr"
    wanted = Wanted(image, "nuclei", Options(tile=256, block=256, output="objects"))
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


class Killed(BaseException):
    """Ends a run, as a signal would."""


def kill(monkeypatch, where, name, run, *args, **options):
    """Run something up to a function of a module."""

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(where, name, killed)
        run(*args, **options)


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


def test_an_old_mask_is_not_returned_while_shares_replace_it(wanted, whole, tmp_path, monkeypatch):
    out, how = tmp_path / "o.zarr", {"model": Bright(), "objects": True}
    numbering.store_objects(out, replace(wanted, model=OTHER))
    with pytest.raises(OutputMismatch, match="begun with model answer"):
        tilenet.segment(wanted.image, out, **how, shard=(1, 2))
    kill(monkeypatch, compute, "run_job", numbering.store_objects, out, wanted, overwrite=True)
    assert [tilenet.segment(wanted.image, out, **how, shard=(which, 2)) for which in (1, 2)] == [None, None]
    assert tilenet.segment(wanted.image, out, **how, shard=(1, 2)).info["record"]["tile"] == [64, 64]
    assert same(out, whole)


def meanwhile(monkeypatch, where, name, do):
    """Have something done when a function is called the first time."""
    real = getattr(where, name)

    def first(*args, **options):
        monkeypatch.setattr(where, name, real)
        do()
        return real(*args, **options)

    monkeypatch.setattr(where, name, first)


@pytest.mark.parametrize("step", [1, 2])
def test_while_shares_are_at_work_who_would_do_the_same_is_refused_by_name(wanted, whole, tmp_path, monkeypatch, step):
    out, refused = tmp_path / "o.zarr", []
    if step == 2:
        for which in (1, 2, 3):
            fill_objects(out, wanted, (which, 3))

    def others():
        for run in (
            lambda: fill_objects(out, wanted, (1, 3)),
            lambda: fill_objects(out, wanted, (1, 4)),
            lambda: numbering.store_objects(out, wanted, resume=True),
            lambda: numbering.store_objects(out, wanted, overwrite=True),
        ):
            with pytest.raises(OutputLocked, match=r"is being written by share 1/3 \(process"):
                run()
            refused.append(run)
        fill_objects(out, wanted, (2, 3))
        assert not out.exists()

    meanwhile(monkeypatch, *((shares, "fill_pending") if step == 1 else (object_shares, "find_places")), others)
    fill_objects(out, wanted, (1, 3))
    assert len(refused) == 4
    for which in (3, 2, 1)[: 3 if step == 1 else 0]:
        fill_objects(out, wanted, (which, 3))
    fill_objects(out, wanted, (3, 3))
    assert same(out, whole)


def test_while_the_last_share_numbers_the_objects_others_leave_it_alone(wanted, whole, tmp_path, monkeypatch):
    out, refused = tmp_path / "o.zarr", []

    def others():
        for which in (1, 2):  # no error: the first array may have done what the second one is to do
            fill_objects(out, wanted, (which, 2))
        for run in (
            lambda: numbering.number_divided(out, wanted),
            lambda: numbering.store_objects(out, wanted, resume=True),
            lambda: numbering.store_objects(out, wanted, overwrite=True),
        ):
            with pytest.raises(OutputLocked, match=r"is being written by process"):
                run()
            refused.append(run)

    for which in (1, 2):
        fill_objects(out, wanted, (which, 2))
    meanwhile(monkeypatch, numbering, "_first_places", others)
    fill_objects(out, wanted, (1, 2))
    assert len(refused) == 3 and same(out, whole)


def test_while_the_last_share_ends_the_mask_others_leave_it_alone(wanted, whole, tmp_path, monkeypatch):
    out, seen, finish = tmp_path / "o.zarr", [], numbering.finish

    def finished(store):
        if store.path == out:
            seen.append(
                [tilenet.segment(wanted.image, out, model=Bright(), objects=True, shard=(1, n)) for n in (1, 2)]
            )
        finish(store)

    monkeypatch.setattr(numbering, "finish", finished)
    fill_objects(out, wanted, (1, 1))
    assert seen == [[None, None]] and same(out, whole)


def test_a_share_begun_anew_while_others_ended_the_run_leaves_nothing(wanted, whole, tmp_path, monkeypatch):
    out = tmp_path / "o.zarr"
    meanwhile(monkeypatch, object_shares, "create_share", lambda: numbering.store_objects(out, wanted))
    assert fill_objects(out, wanted, (1, 50)).blocks == 0 and same(out, whole)


@pytest.mark.parametrize("name", ["_fill_depths", "_fill_places", "number_divided"])
def test_a_share_that_comes_late_finds_the_mask(wanted, whole, tmp_path, monkeypatch, name):
    out = tmp_path / "o.zarr"
    for which in (1, 2):
        fill_objects(out, wanted, (which, 2))
    meanwhile(monkeypatch, object_shares, name, lambda: numbering.store_objects(out, wanted, resume=True))
    fill_objects(out, wanted, (1, 2))
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
    with pytest.raises(BlocksFailed, match="with --resume, and without --shard$"):
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
    half = 128 * 270  # two of the four rows of blocks
    assert {total for _, total in seen} == {half} and [done for done, _ in seen].count(half) == 2


def test_the_command_says_how_far_it_is_and_what_to_run_next(tmp_path, tilenet_command, monkeypatch):
    monkeypatch.setattr(places, "PIECES", {2: (512**2, 512)})
    image, out = tmp_path / "i.tif", tmp_path / "o.zarr"
    tifffile.imwrite(image, blobs((1100, 1100), seed=1), tile=(128, 128))
    command = ("segment", image, "-o", out, "--objects", "--model", "stub:bright", "--tile", "512", "--shard")
    code, said, _ = tilenet_command(*command, "1/3")
    assert code == 0
    again = "run all shares again, which find the objects"
    done = rf"{out}: share 1/3 done, the network has run on 3 of 9 blocks, [\d.]+ s\."
    assert re.fullmatch(rf"{done} Run the shares 2/3, 3/3, unless they are at work, then {again}\n", said), said
    with monkeypatch.context() as patch:
        patch.setattr(shares, "_finish_if_last", lambda _: None)  # killed just then
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


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "slide.tif"
    tifffile.imwrite(path, blobs((1100, 1100), seed=1), tile=(128, 128))
    return path


def start(commands, image, out, *options, **request):
    """Start a command of which both steps have nine blocks."""
    how = ("--model", "stub", "--tile", "128", "--objects", "--threads", "1")
    request = {"stub": {"sleep": 0}, "pieces": [512**2, 512]} | request
    return commands.start("segment", image, "-o", out, *how, *options, **request)


@pytest.fixture(scope="module")
def by_one(commands, image, tmp_path_factory):
    """Return the hash of the mask that one process makes of the image."""
    out = tmp_path_factory.mktemp("whole") / "o.zarr"
    assert start(commands, image, out).wait()[0] == 0
    return tree_hash(out)


def test_shares_at_once_more_than_blocks_give_the_bytes_of_one_run(commands, image, by_one, tmp_path):
    out = tmp_path / "o.zarr"
    for _ in range(2):
        runs = [start(commands, image, out, "--shard", f"{i}/12") for i in range(1, 13)]
        codes = [run.wait() for run in runs]
        assert {code for code, _ in codes} == {0}, codes
    assert same(out, by_one)


def test_a_run_of_shares_killed_at_any_step_gives_the_bytes_of_one_run(commands, image, by_one, tmp_path):
    out, steps, seen = tmp_path / "o.zarr", FIRST, set()
    making = making_of(out, None)
    while not is_complete(out):
        share = f"{1 + steps % 2}/2"
        code, said = start(commands, image, out, "--shard", share, kill=[steps, "torn"]).wait()
        assert code in (0, -signal.SIGKILL), said
        seen.add(tuple(path.exists() for path in (making / PLACES, out)))
        steps += MORE
    assert {(False, False), (True, False), (True, True)} <= seen, seen
    assert same(out, by_one)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_shares_killed_at_random_and_run_again_give_the_same_bytes(commands, image, by_one, tmp_path, times, capsys):
    random, kills = random_numbers(), 0
    for number in range(times):
        out = tmp_path / f"{number}.zarr"
        while not is_complete(out):
            runs = [start(commands, image, out, "--shard", f"{i}/3") for i in (1, 2, 3)]
            if kills <= number:  # at least one in each cycle
                runs[0].signal(signal.SIGKILL)
            for run in runs:
                if random.random() < 0.5:
                    time.sleep(random.uniform(0, 0.4))
                    run.signal(signal.SIGKILL)
            for run in runs:
                code, said = run.wait()
                assert code in (0, -signal.SIGKILL) or (code == 2 and "is being written by process" in said), said
                kills += code < 0
        assert same(out, by_one)
    assert kills >= times
    with capsys.disabled():
        print(f"\n{times} of {times} cycles of 3 shares with objects identical after {kills} kills")
