"""Job arrays of runs with objects: shares in processes of their own, at once, and killed."""

import signal
import time

import pytest
import tifffile
from blobs import blobs
from faults import random_numbers, tree_hash
from shared_objects import same

from tilenet.runs.object_outputs import PLACES, making_of
from tilenet.store import is_complete

# Steps of the store after which runs are killed: at first, and more by run.
FIRST, MORE = 10, 11


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "slide.tif"
    tifffile.imwrite(path, blobs((300, 300), seed=1), tile=(64, 64))
    return path


def start(commands, image, out, *options, **request):
    """Start a command of which both steps have nine blocks."""
    how = ("--model", "stub", "--tile", "64", "--objects", "--threads", "1")
    request = {"stub": {"sleep": 0}, "block": 128, "pieces": [128**2, 128]} | request
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
    random, cycles, kills = random_numbers(), 0, 0
    while cycles < times or kills < times:  # on a busy machine some kills come too late
        out, cycles = tmp_path / f"{cycles}.zarr", cycles + 1
        while not is_complete(out):
            runs = [start(commands, image, out, "--shard", f"{i}/3") for i in (1, 2, 3)]
            if kills < cycles:  # at least one in each cycle
                runs[0].signal(signal.SIGKILL)
            for run in runs:
                if random.random() < 0.5:
                    time.sleep(random.uniform(0, 0.1))
                    run.signal(signal.SIGKILL)
            for run in runs:
                code, said = run.wait()
                assert code in (0, -signal.SIGKILL) or (code == 2 and "is being written by process" in said), said
                kills += code < 0
        assert same(out, by_one)
    with capsys.disabled():
        print(f"\n{cycles} of {cycles} cycles of 3 shares with objects identical after {kills} kills")
