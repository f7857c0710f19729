"""The command killed, interrupted, started twice, out of room: it resumes to the same bytes."""

import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from faults import (
    BLOCKS,
    ENTRIES,
    IN_FLIGHT,
    STUB,
    TILES_PER_BLOCK,
    entries,
    is_complete,
    random_numbers,
    stray,
    tree_hash,
    wait_until,
)
from store_helpers import READ_ONLY, REMOUNT

from tilenet.errors import OutputIncomplete
from tilenet.store import open_mask

RESUMES = "tilenet: error: interrupted. To go on, run the same command with --resume\n"
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Of the network, in batches of two tiles.
LAST_CALL = BLOCKS * TILES_PER_BLOCK // 2 - 1


def kill_and_resume(commands, image, out, *, kills, random, most=18, options=STUB, stub=None):
    """Kill a run that has made one more entry of the journal, or some of up to `most`, and go on, so many times.

    Returns how many kills fell between the first and last entry, and how many there were.
    """
    calls = out.with_suffix(".calls")
    stub = {"calls": str(calls)} if stub is None else stub
    between = done = 0
    for _ in range(kills):
        before = entries(out)
        run = commands.start("segment", image, "-o", out, "--resume", *options, stub=stub)
        if random.random() < 0.9:  # the others die at any moment from the start
            least = before + random.integers(1, most, endpoint=True)
            wait_until(lambda least=least: entries(out) >= least or is_complete(out))
        time.sleep(random.uniform(0, 0.002 * most))
        run.signal(signal.SIGKILL)
        run.wait()
        if is_complete(out):
            break
        done += 1
        between += 0 < entries(out) < ENTRIES
        if out.exists():
            with pytest.raises(OutputIncomplete):
                open_mask(out)
    assert commands.run("segment", image, "-o", out, "--resume", *options, stub=stub) == (0, "")
    assert stray(out) == []
    if calls.exists():
        recomputed = len(calls.read_bytes()) // TILES_PER_BLOCK - BLOCKS
        assert recomputed <= IN_FLIGHT * done
    return between, done


@pytest.mark.parametrize("times", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_and_resumed_every_byte_is_the_same(commands, image, tmp_path, whole, times, capsys):
    random, cycles, between, kills = random_numbers(), 0, 0, 0
    while cycles < times or kills < times or between < 0.5 * kills:  # on a busy machine some kills come too late
        out, cycles = tmp_path / f"killed{cycles}.zarr", cycles + 1
        found = kill_and_resume(commands, image, out, kills=int(random.integers(1, 4)), random=random)
        between, kills = between + found[0], kills + found[1]
        assert tree_hash(out) == whole, f"cycle {cycles}"
    with capsys.disabled():
        print(f"\n{cycles} of {cycles} identical after {kills} kills; {between} fell between the first and last entry")


def test_a_hash_of_another_mask_is_another(commands, image, tmp_path, whole):
    out = tmp_path / "m.zarr"
    assert commands.run("segment", image, "-o", out, *STUB, stub={"bright": 901}) == (0, "")
    assert tree_hash(out) != whole


def write_discs(path):
    """Write what the packaged network takes for nuclei."""
    y, x = np.mgrid[:1100, :700]
    discs = ((y % 40 - 20) ** 2 + (x % 40 - 20) ** 2 < 90) * 170
    pixels = (discs + np.random.default_rng(0).integers(20, 50, discs.shape)).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib")
    return path


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_the_packaged_network_killed_and_resumed_gives_the_same_bytes(commands, tmp_path, times):
    image = write_discs(tmp_path / "small.tif")
    options = ("--tile", "256", "--threads", "1")
    assert commands.run("segment", image, "-o", tmp_path / "whole.zarr", *options) == (0, "")
    expected, random = tree_hash(tmp_path / "whole.zarr"), random_numbers()
    assert np.asarray(open_mask(tmp_path / "whole.zarr")).any()
    cycles = kills = 0
    while cycles < times or kills < times:  # on a busy machine some kills come too late
        out, cycles = tmp_path / f"{cycles}.zarr", cycles + 1
        # At once after a block is entered: a later moment may lie beyond the end of so short a run.
        kills += kill_and_resume(commands, image, out, kills=2, most=1, random=random, options=options, stub={})[1]
        assert tree_hash(out) == expected


@pytest.mark.slow
def test_a_fresh_interpreter_killed_and_resumed_gives_the_same_bytes(tmp_path):
    image = write_discs(tmp_path / "small.tif")
    line = [sys.executable, "-m", "tilenet", "segment", image, "--tile", "256", "--threads", "1", "--resume", "-o"]
    subprocess.run([*line, tmp_path / "whole.zarr"], check=True)
    out = tmp_path / "m.zarr"
    run = subprocess.Popen([*line, out])
    wait_until(lambda: entries(out) > 0)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not is_complete(out)
    subprocess.run([*line, out], check=True)
    assert tree_hash(out) == tree_hash(tmp_path / "whole.zarr")


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_an_interrupted_run_says_in_one_line_how_to_go_on(commands, image, tmp_path, whole, number, times, capsys):
    random, slowest = random_numbers(), 0.0
    for cycle in range(times):
        out = tmp_path / f"{cycle}.zarr"
        run = commands.start("segment", image, "-o", out, *STUB, stub={"fault": "wait", "at": [LAST_CALL]})
        if cycle % 2 == 0:
            least = random.integers(1, BLOCKS // 2)
            wait_until(lambda out=out, least=least: entries(out) >= least)
        else:  # before the first block
            wait_until(out.exists)
        start = time.monotonic()
        assert run.signal(number)
        run.signal(number)  # the impatient press twice
        assert run.wait() == (SIGNALS[number], RESUMES)
        slowest = max(slowest, time.monotonic() - start)
        assert not is_complete(out)
        assert commands.run("segment", image, "-o", out, "--resume", *STUB, stub={}) == (0, "")
        assert (tree_hash(out), stray(out)) == (whole, [])
    with capsys.disabled():
        print(f"\n{times} of {times} ended by {number.name} within {slowest:.2f} s, all resumed to the same bytes")


@pytest.mark.parametrize(
    ("number", "hang"),
    [
        (signal.SIGTERM, {"stub": {"fault": "hang", "at": [8]}}),
        (signal.SIGINT, {"stub": {}, "hang_reads": True}),
    ],
)
def test_a_forward_pass_or_a_read_that_does_not_end_cannot_hold_up_an_interrupt(
    commands, image, tmp_path, whole, number, hang
):
    out = tmp_path / "m.zarr"
    hanging = tmp_path / "hanging"
    run = commands.start("segment", image, "-o", out, *STUB, **hang, hanging=str(hanging))
    wait_until(hanging.exists)
    time.sleep(0.2)  # until all threads of the pool hang
    start = time.monotonic()
    run.signal(number)
    assert run.wait() == (SIGNALS[number], RESUMES)
    assert time.monotonic() - start > 2, "it did not hang"
    assert commands.run("segment", image, "-o", out, "--resume", *STUB, stub={}) == (0, "")
    assert (tree_hash(out), stray(out)) == (whole, [])


@pytest.mark.parametrize(
    ("times", "resume"),
    [(3, False), (2, True), *(pytest.param(20, how, marks=pytest.mark.slow) for how in (False, True))],
)
def test_of_runs_started_at_once_on_one_output_exactly_one_runs(commands, image, tmp_path, whole, resume, times):
    for cycle in range(times):
        out = tmp_path / f"{cycle}.zarr"
        options = ("segment", image, "-o", out, *STUB, *["--resume"] * resume)
        refused = tmp_path / f"{cycle}.refused"
        stub = {"fault": "wait", "at": [0], "until": str(refused)}
        runs = [commands.start(*options, stub=stub) for _ in range(2)]
        wait_until(lambda runs=runs: any(run.said for run in runs))
        refused.touch()
        ends = [run.wait() for run in runs]
        (winner,) = [run for run, (code, _) in zip(runs, ends, strict=True) if code == 0]
        (said,) = [said for code, said in ends if code == 2]
        assert said.startswith(f"tilenet: error: {out}: ")
        assert said.count("\n") == 1
        if f"is being written by process {winner.pid} on " not in said:
            assert "was made by another run just now" in said or "exists already" in said
        assert (tree_hash(out), stray(out)) == (whole, [])


def test_a_run_that_lives_is_named_to_the_second(commands, image, tmp_path):
    out = tmp_path / "m.zarr"
    first = commands.start("segment", image, "-o", out, *STUB, stub={"fault": "wait", "at": [LAST_CALL]})
    wait_until(lambda: entries(out) > 0)
    for how in ("--resume", "--overwrite"):
        code, said = commands.run("segment", image, "-o", out, *STUB, how, stub={})
        assert code == 2
        assert re.search(rf"is being written by process {first.pid} on \S+\. Wait for that run", said)
    first.signal(signal.SIGKILL)
    first.wait()
    assert commands.run("segment", image, "-o", out, *STUB, "--resume", stub={}) == (0, "")


@pytest.mark.parametrize("room", ["40k", "200k", pytest.param("330k", marks=pytest.mark.slow)])
def test_a_full_disk_is_exit_4_with_its_bytes_and_resumes_to_the_same(commands, image, small_disk, whole, room):
    out = small_disk(f"size={room}") / "m.zarr"
    code, said = commands.run("segment", image, "-o", out, *STUB, stub={})
    assert code == 4
    assert re.fullmatch(
        rf"tilenet: error: {out}\S*: no space left on device: [\d,]+ bytes free(, [\d,]+ needed)?\. "
        "Make room, then run again with --resume\n",
        said,
    )
    small_disk("size=64m", REMOUNT)
    assert commands.run("segment", image, "-o", out, "--resume", *STUB, stub={}) == (0, "")
    assert (tree_hash(out), stray(out)) == (whole, [])


def test_a_file_larger_than_allowed_is_exit_4_too(commands, image, tmp_path, whole):
    out = tmp_path / "m.zarr"
    code, said = commands.run("segment", image, "-o", out, *STUB, stub={}, file_size_limit=20_000)
    assert code == 4
    assert re.search(r"m\.zarr/0/c/\d/\d: cannot be written \(file too large\).*--resume\n$", said)
    assert commands.run("segment", image, "-o", out, "--resume", *STUB, stub={}) == (0, "")
    assert tree_hash(out) == whole


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(commands, image, small_disk, tmp_path):
    disk = small_disk("size=1m")
    (disk / "empty.zarr").mkdir()
    commands.run("segment", image, "-o", disk / "half.zarr", *STUB, stub={"fault": "die", "at": [9]})
    small_disk("", REMOUNT | READ_ONLY)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    model = ("--model", tmp_path / "none.safetensors")  # would be refused if it were loaded
    places = {disk / "m.zarr": 4, tmp_path / "file" / "m.zarr": 4, tmp_path / "file": 2, disk / "empty.zarr": 2}
    for out, expected in {**places, disk / "half.zarr": 4}.items():
        code, said = commands.run("segment", image, "-o", out, *model, *["--resume"] * (out.name == "half.zarr"))
        assert (code, said.count("\n"), "safetensors" in said) == (expected, 1, False), said
        assert str(out) in said
    assert (tmp_path / "file").read_text() == "in the way"
    assert "not a safetensors file" in commands.run("segment", image, "-o", tmp_path / "m.zarr", *model)[1]
