"""The progress that a log gets, where stderr is no terminal."""

import re
from itertools import count

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet
from tilenet.cli import output


@pytest.fixture
def clock(monkeypatch):
    """Return the seconds, in a list, that the lines are given for the time."""
    seconds = [1000.0]
    monkeypatch.setattr(output, "monotonic", lambda: seconds[0])
    return seconds


def test_a_log_gets_a_line_after_a_minute_and_then_every_ten_minutes(clock, capsys):
    with output.progress_bar("px", "m.zarr", shown=True) as progress:
        for minute in range(60):
            clock[0] += 60
            # Half was done by an earlier run; this one does 60 Mpx a minute, and after half an hour twice as many.
            progress(3_600_000_000 + 60_000_000 * (minute + max(0, minute - 30)), 9_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "tilenet: m.zarr: 41% done, 1.00 Mpx/s, about 89 min left",
        "tilenet: m.zarr: 47% done, 1.00 Mpx/s, about 79 min left",
        "tilenet: m.zarr: 54% done, 1.00 Mpx/s, about 69 min left",
        "tilenet: m.zarr: 61% done, 1.10 Mpx/s, about 53 min left",
        "tilenet: m.zarr: 75% done, 2.00 Mpx/s, about 19 min left",
        "tilenet: m.zarr: 88% done, 2.00 Mpx/s, about 9 min left",
    ]


def test_a_line_tells_hours_and_what_is_counted(clock, capsys):
    with output.progress_bar("rows", "m.csv", shown=True) as progress:
        for _ in range(2):
            clock[0] += 120
            progress(int(clock[0]), 100_000)
    assert capsys.readouterr().err == "tilenet: m.csv: 1% done, 1240/100000 rows, about 27.4 h left\n"


def test_a_count_that_starts_anew_has_a_speed_of_its_own(clock, capsys):
    with output.progress_bar("blocks", "m.zarr", shown=True) as progress:
        for seconds in (1, 1000):  # a block
            for done in range(101):
                clock[0] += seconds
                progress(done, 100)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert "about 1 min left" in first and "1% done" in second and "about 27.5 h left" in second


def test_nothing_is_told_of_what_stands_still_or_is_at_its_end(clock, capsys):
    with output.progress_bar("px", "m.zarr", shown=True) as progress:
        for done in (5, 5, 9):
            clock[0] += 3600
            progress(done, 9)
    assert capsys.readouterr().err == ""


@pytest.fixture
def command(tmp_path, tilenet_command, monkeypatch):
    """Return a command that segments a slide in 42 tiles, each in a hundredth of a second."""
    monkeypatch.setattr(output, "monotonic", count(0, 0.01).__next__)
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((90, 110), np.uint8))
    tilenet.save_model(random_network(depth=2, wf=1), tmp_path / "m.safetensors")
    words = ("segment", tmp_path / "s.tif", "-m", tmp_path / "m.safetensors", "--tile", 16, "--batch", 1)
    return lambda *more: tilenet_command(*words, "--overwrite", "--out", tmp_path / "m.zarr", *more)


def test_a_short_run_tells_no_progress(command):
    assert "% done" not in command()[2]


@pytest.mark.parametrize("more", [(), ("--objects",), ("--json",)])
def test_a_long_run_tells_its_progress_on_stderr_unless_it_is_to_be_quiet(command, monkeypatch, tmp_path, more):
    monkeypatch.setattr(output, "FIRST_LINE", 0)
    monkeypatch.setattr(output, "NEXT_LINE", 0)
    code, out, err = command(*more)
    lines = [line for line in err.splitlines() if "% done" in line]
    shape = rf"tilenet: {tmp_path}/m\.zarr: \d+% done, \d+\.\d\d Mpx/s, about 1 min left"
    assert (code, len(lines) > 2, all(re.fullmatch(shape, line) for line in lines)) == (0, True, True)
    assert "% done" not in out
    assert command(*more, "--quiet")[1:] == ("", "")
