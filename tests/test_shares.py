"""Job arrays: shares of one mask in processes of their own, killed, doubled, late: the bytes of one run."""

import json
import re
import signal
import time

import numpy as np
import pytest
import tifffile
from faults import (
    BLOCKS,
    STUB,
    entries,
    is_complete,
    journal_lines,
    random_numbers,
    stray,
    tree_hash,
    use_stub,
    wait_until,
)
from small_shares import SIDES, SMALL, SMALL_BLOCKS, a_folder, fill, small_image  # noqa: F401
from stub import BAD, Bright

import tilenet
from tilenet.describe import describe
from tilenet.errors import BlocksFailed, EnvironmentFault, OutputIncomplete, OutputLocked, SettingsError
from tilenet.runs.shares import blocks_of_share, check_combination, finish_shares, how_to_go_on, written_of
from tilenet.store import Layout, Store, can_resume, leftovers, open_mask


@pytest.fixture(scope="module")
def small_whole(small, folder):
    """Return the hash of a plain run, in this process."""
    tilenet.segment(small, folder / "small.zarr", **SMALL)
    assert Store.inspect(folder / "small.zarr").layout.n_blocks(0) == SMALL_BLOCKS
    return tree_hash(folder / "small.zarr")


def start(commands, image, out, share, **stub):
    return commands.start("segment", image, "-o", out, "--shard", share, *STUB, stub={"sleep": 0.01} | stub)


def hang(commands, image, out, *options, call):
    """Start a command that hangs in one of its calls of the network; wait until it does."""
    hanging = out.with_name(f"hangs{commands.number}")
    stub = {"sleep": 0, "fault": "hang", "at": [call]}
    run = commands.start("segment", image, "-o", out, *options, *STUB, stub=stub, hanging=str(hanging))
    wait_until(hanging.exists)
    return run


def kill(*runs):
    for run in runs:
        run.signal(signal.SIGKILL)
        assert run.wait()[0] == -signal.SIGKILL


@pytest.mark.parametrize("blocks", [0, 1, 7, 100, 10**6])
@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_every_block_is_in_one_share_and_shares_differ_by_one_block(blocks, count):
    ranges = [blocks_of_share((i, count), blocks) for i in range(1, count + 1)]
    assert [edge for r in ranges for edge in (r.start, r.stop)][1:-1] == [r.start for r in ranges[1:] for _ in (0, 1)]
    assert (ranges[0].start, ranges[-1].stop) == (0, blocks)
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("count", [2, 4])
def test_shares_started_at_once_from_nothing_give_the_bytes_of_one_run(commands, image, tmp_path, whole, count):
    out = tmp_path / "m.zarr"
    runs = [start(commands, image, out, f"{i}/{count}") for i in range(1, count + 1)]
    assert [run.wait() for run in runs] == [(0, "")] * count
    assert is_complete(out), "the last share did not finish it"
    assert (tree_hash(out), stray(out)) == (whole, [])
    said = [(run.prints.with_name(run.prints.name + ".out")).read_text() for run in runs]
    unfinished = [line for line in said if ": share " in line]
    assert len(unfinished) < count
    for line in unfinished:
        assert re.search(rf"m\.zarr: share \d/{count} done, \d+ of {BLOCKS} blocks of the mask are there, ", line)


def test_a_killed_share_is_run_again_with_the_same_line(commands, image, tmp_path, whole):
    out = tmp_path / "m.zarr"
    runs = [start(commands, image, out, f"{i}/3") for i in (1, 2)]
    kill(hang(commands, image, out, "--shard", "3/3", call=5))
    assert [run.wait() for run in runs] == [(0, "")] * 2
    assert not is_complete(out)
    code, said = commands.run("finish", out)
    assert code == 2
    assert re.fullmatch(
        rf"tilenet: error: {out}: \d of {BLOCKS} blocks are not written, of share 3/3\. Run that one again\n", said
    )
    assert start(commands, image, out, "3/3").wait() == (0, "")
    assert (is_complete(out), tree_hash(out), stray(out)) == (True, whole, [])
    assert start(commands, image, out, "3/3").wait() == (0, ""), (
        "a complete mask is no error for a share that comes late"
    )
    assert tree_hash(out) == whole


def test_an_interrupted_share_says_so_and_goes_on(commands, image, tmp_path, whole):
    out = tmp_path / "m.zarr"
    run = start(commands, image, out, "1/2", fault="wait", at=[10])  # of twenty calls
    wait_until(lambda: can_resume(out) and journal_lines(out) > 0)
    run.signal(signal.SIGTERM)
    assert run.wait() == (143, "tilenet: error: interrupted. To go on, run the same command\n")
    assert [start(commands, image, out, f"{i}/2").wait() for i in (1, 2)] == [(0, "")] * 2
    assert (is_complete(out), tree_hash(out), stray(out)) == (True, whole, [])


def test_while_shares_are_at_work_who_would_write_the_same_is_refused_by_name(
    commands, image, tmp_path, whole, monkeypatch, tilenet_command
):
    out = tmp_path / "m.zarr"
    runs = [hang(commands, image, out, "--shard", f"{i}/2", call=5) for i in (1, 2)]
    monkeypatch.setattr(tilenet.runs.shares, "PATIENCE", 0.3)
    use_stub({}, monkeypatch.setattr)
    same = rf"is being written by share 1/2 \(process {runs[0].pid} on \S+\)\. Wait for that run"
    every = r"is being written by share \d/2 \(process \d+ on \S+\), share \d/2 \(process \d+ on \S+\)\. Wait for them"
    for options, expected in (
        (("segment", image, "-o", out, *STUB, "--shard", "1/2"), same),
        (("segment", image, "-o", out, *STUB, "--shard", "1/3"), every),
        (("segment", image, "-o", out, *STUB, "--resume"), every),
        (("segment", image, "-o", out, *STUB, "--overwrite"), every),
        (("finish", out), every),
    ):
        code, _, said = tilenet_command(*options)
        assert (code, said.count("\n")) == (2, 1)
        assert re.search(expected, said), said
    kill(*runs)
    assert [start(commands, image, out, f"{i}/2").wait() for i in (1, 2)] == [(0, "")] * 2
    assert (is_complete(out), tree_hash(out), stray(out)) == (True, whole, [])


def test_while_an_ordinary_run_is_at_work_a_share_is_refused(commands, image, tmp_path, monkeypatch):
    out = tmp_path / "m.zarr"
    run = hang(commands, image, out, call=5)
    monkeypatch.setattr(tilenet.runs.shares, "PATIENCE", 0.3)
    with pytest.raises(OutputLocked, match=rf"is being written by process {run.pid} on"):
        tilenet.segment(image, out, shard=(1, 2), **SMALL | {"tile": 256, "batch": 2})
    kill(run)


def test_a_share_waits_for_one_that_finishes_also_after_it_waited_long_for_a_dead_one(monkeypatch):
    monkeypatch.setattr(tilenet.runs.shares, "PATIENCE", 0.3)
    calls = []

    def take():
        calls.append(time.sleep(0.5))  # as for one that turned out to be dead
        if len(calls) == 1:
            locked = OutputLocked("is being written by another")
            locked.whole = True
            raise locked
        return "taken"

    assert tilenet.runs.shares.patiently(take) == "taken"


def kill_shares(commands, image, out, random, count=3):
    """Kill shares at work, all at first, then some, until each has come to its end; return the number of kills."""
    kills, left = 0, set(range(1, count + 1))
    while left:
        before, doomed = entries(out), {i for i in left if not kills or random.random() < 0.6}
        runs = {i: start(commands, image, out, f"{i}/{count}") for i in left}
        if doomed:
            wait_until(lambda before=before: entries(out) > before or is_complete(out))
        for i, run in runs.items():
            if i in doomed:
                time.sleep(random.uniform(0, 0.05))
                run.signal(signal.SIGKILL)
            code, said = run.wait()
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), said
            if code == 0:
                left.discard(i)
    return kills


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_shares_killed_at_random_and_run_again_give_the_same_bytes(commands, image, tmp_path, whole, times, capsys):
    random, cycles, kills = random_numbers(), 0, 0
    while cycles < times or kills < times:  # on a busy machine some kills come too late
        out, cycles = tmp_path / f"{cycles}.zarr", cycles + 1
        kills += kill_shares(commands, image, out, random)
        if not is_complete(out):  # the last share was killed while it finished
            assert commands.run("finish", out) == (0, "")
        assert (tree_hash(out), stray(out)) == (whole, [])
    with capsys.disabled():
        print(f"\n{cycles} of {cycles} cycles of 3 shares identical after {kills} kills")


def test_in_one_process_share_after_share_the_last_returns_the_mask(small, small_whole, tmp_path):
    out = tmp_path / "m.zarr"
    first, second, last = fill(small, out, [(3, 3), (1, 3), (2, 3)])
    assert first is None
    assert second is None
    assert last.shape == SIDES
    assert (tree_hash(out), stray(out)) == (small_whole, [])


def test_a_share_counts_its_own_pixels(small, tmp_path):
    out, seen = tmp_path / "m.zarr", []
    fill(small, out, [(1, 4)], progress=lambda *at: seen.append(at))
    share = 2 * SIDES[0] * SIDES[1] // SMALL_BLOCKS
    assert seen[0][0] <= share // 2 and seen[-1] == (share, share) and {total for _, total in seen} == {share}


def test_a_share_may_be_counted_in_numbers_of_any_kind(small, small_whole, tmp_path):
    out = tmp_path / "m.zarr"
    fill(small, out, [(i, 2) for i in np.arange(1, 3)])
    assert tree_hash(out) == small_whole


def test_shares_can_go_on_with_a_plain_run_and_a_plain_run_with_shares(small, small_whole, tmp_path):
    out = tmp_path / "m.zarr"
    fill(small, out, [(2, 4)])
    assert written_of(out) == (2, SMALL_BLOCKS)
    fill(small, out, [(1, 2)])  # none is at work, so their number may change
    assert written_of(out) == (4, SMALL_BLOCKS)
    with pytest.raises(OutputIncomplete, match=r"4 of 8 blocks are not written, of share 2/2\."):
        finish_shares(out)
    found = describe(str(out))
    assert (found["blocks"], found["segment"]) == ("4 of 8 are written", "Run share 2/2, unless it is at work")
    tilenet.segment(small, out, resume=True, **SMALL)
    assert tree_hash(out) == small_whole


def test_a_block_that_fails_is_an_error_of_its_share_alone(tmp_path):
    pixels, out = np.zeros(SIDES, np.uint8), tmp_path / "m.zarr"
    pixels[-1, -1] = BAD
    how = {"model": Bright(), "tile": 512}
    with pytest.raises(BlocksFailed, match="1 of 8 blocks failed.*the lamp went out"):
        tilenet.segment(pixels, out, shard=(2, 2), **how)
    assert tilenet.segment(pixels, out, shard=(1, 2), **how) is None
    with pytest.raises(OutputIncomplete, match=r"1 of 8 blocks are not written, of share 2/2\."):
        finish_shares(out)


def test_finish_of_a_store_without_shares_says_resume(small, small_whole, tmp_path):
    out = tmp_path / "m.zarr"
    fill(small, out, [(1, 1)])
    finish_shares(out)
    assert tree_hash(out) == small_whole
    layout = open_mask(out).layout
    Store.create(tmp_path / "plain.zarr", layout, {}).close()
    with pytest.raises(OutputIncomplete, match=r"8 of 8 blocks are not written. Run the same command again"):
        finish_shares(tmp_path / "plain.zarr")
    assert how_to_go_on(tmp_path / "plain.zarr") == "Run the same command with --resume"


def test_one_block_is_not_spoken_of_as_several(tmp_path):
    Store.create(tmp_path / "m.zarr", Layout("yx", (10, 10), (10, 10), (None, None), ""), {}).close()
    with pytest.raises(OutputIncomplete, match="1 of 1 block is not written"):
        finish_shares(tmp_path / "m.zarr")


@pytest.mark.parametrize(("count", "more"), [(20, ""), (25, ", and 5 more")])
def test_of_many_shares_that_lack_blocks_twenty_are_named(tmp_path, count, more):
    out = tmp_path / "m.zarr"
    Store.create(out, Layout("yx", (100, 100), (10, 10), (None, None), ""), {}, share=(1, count)).close()
    named = "the shares " + ", ".join(f"{i}/{count}" for i in range(1, 21)) + more
    assert how_to_go_on(out) == f"Run {named}, unless they are at work"
    with pytest.raises(OutputIncomplete, match=f"100 of 100 blocks are not written, of {named}. Run those again$"):
        finish_shares(out)


def test_another_setting_for_another_share_is_refused(small, tmp_path, tilenet_command):
    out = tmp_path / "m.zarr"
    fill(small, out, [(1, 2)])
    with pytest.raises(tilenet.errors.OutputMismatch, match="tile"):
        fill(small, out, [(2, 2)], tile=128)
    assert not list((out / ".tilenet").glob("share*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": (0, 3)}, "share 0/3: shares count from 1, so give 1/3 to 3/3"),
        ({"shard": (1, 0)}, "share 1/0: shares count from 1, so give a number of shares, such as 1/8"),
        ({"shard": (4, 3)}, "share 4/3"),
        ({"shard": (2, 1)}, "share 2/1: shares count from 1, so give 1/1 to 1/1"),
        ({"shard": (1, 100_001)}, "share 1/100001: give 100000 shares at most"),
        ({"shard": 3}, "shard 3: give which of how many, two whole numbers"),
        ({"shard": (1, 2.5)}, r"shard \(1, 2.5\): give which of how many, two whole numbers"),
        ({"shard": (1, 2), "overwrite": True}, "replace what the others wrote"),
        ({"shard": (1, 2), "objects": True, "overwrite": True}, "replace what the others wrote"),
        ({"shard": (1, 2), "objects": True, "out": "m.ome.tif"}, r"m\.ome\.tif: shares are written into a mask"),
        ({"shard": (3, 2), "objects": True}, "share 3/2"),
        ({"shard": (1, 2), "out": None}, "give out with shard"),
        ({"shard": (1, 2), "out": "m.ome.tif"}, r"m\.ome\.tif: shares are written into a mask of many files"),
    ],
)
def test_shares_that_cannot_be_are_refused_before_anything_is_made(small, tmp_path, options, message):
    with pytest.raises(SettingsError, match=message):
        tilenet.segment(small, **{"out": tmp_path / "m.zarr"} | SMALL | options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_of_a_share_is_told_before_the_image_is_opened(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(EnvironmentFault, match="mine: is a file, and"):
        tilenet.segment(tmp_path / "no.tif", tmp_path / "mine" / "m.zarr", shard=(1, 2), model=Bright())


def test_shares_of_workers_are_refused():
    with pytest.raises(SettingsError, match="workers share the blocks by themselves. Leave one of them out"):
        check_combination("m.zarr", None, overwrite=False, client=object())


def test_the_command_says_how_a_share_is_written(small, tmp_path, tilenet_command):
    code, _, said = tilenet_command("segment", small, "-o", tmp_path / "m.zarr", "--shard", "half")
    assert (code, said.count("\n")) == (2, 1)
    assert "'half' is not a share, such as 1/8" in said


def test_what_a_share_prints_for_scripts_has_its_remarks_and_whether_the_mask_is_complete(tmp_path, tilenet_command):
    image = tmp_path / "slide.tif"
    tifffile.imwrite(image, np.zeros((40, 300, 4), np.uint8), photometric="rgb", extrasamples=["unassalpha"])
    for share, complete in (("1/2", False), ("2/2", True)):
        command = ("segment", image, "-o", tmp_path / "m.zarr", "--tile", 128, "--shard", share, "--json")
        code, out, said = tilenet_command(*command)
        found = json.loads(out)
        assert (code, said, found["complete"]) == (0, "", complete)
        assert any("alpha channel is not read" in remark for remark in found["remarks"])


def test_the_command_finishes_what_the_last_share_could_not(small, small_whole, tmp_path, monkeypatch, tilenet_command):
    out = tmp_path / "m.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(tilenet.runs.shares, "finish_shares", lambda out: None)  # killed just then
        assert fill(small, out, [(1, 2), (2, 2)]) == [None, None]
    assert describe(str(out))["segment"] == f"Run tilenet finish {out}"
    assert tilenet_command("finish", out) == (0, f"{out}: complete, every file verified\n", "")
    assert tree_hash(out) == small_whole
    assert json.loads(tilenet_command("finish", out, "--json")[1]) == {"out": str(out), "complete": True, "remarks": []}


def test_the_store_that_a_killed_share_was_making_while_another_was_quicker_is_swept(small, small_whole, tmp_path):
    out = tmp_path / "m.zarr"
    fill(small, out, [(1, 2)])
    half_made = tmp_path / f".{out.name}.{leftovers._machine()}-{2**22 + 1}-123-abcdef01{leftovers.NEW}"
    (half_made / ".tilenet").mkdir(parents=True)
    assert stray(out) == [half_made.name]
    fill(small, out, [(2, 2)])
    assert (tree_hash(out), stray(out)) == (small_whole, [])
