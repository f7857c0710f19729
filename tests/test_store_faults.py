"""Killed, damaged, cut short, out of room: the resumed run ends with the same bytes, or says what is wrong."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from store_fixtures import assert_resumes_to
from store_helpers import (
    INFO,
    LAYOUTS,
    READ_ONLY,
    REMOUNT,
    damage_of,
    journal_lines,
    make,
    part,
    random_numbers,
    replace_step,
    run,
    tree_hash,
    truth_of,
    write_all_blocks,
)

from tilenet.errors import DiskFault, EnvironmentFault
from tilenet.store import Store, file_system

KILLED = -signal.SIGKILL


def kill_at_every_step(children, folder, layout, *, when, expected, first=1, overwrite=False):
    """Return the number of steps that a run takes."""
    for number in range(first, 1000):
        path = folder / str(number) / "m.zarr"
        if overwrite:
            make(path, LAYOUTS[layout], seed=1)
        status = children.run(path, layout, kill=[number, when], overwrite=overwrite)
        if status == 0:
            return number - 1
        assert status == KILLED
        if overwrite:
            assert_old_or_new_is_whole(path, layout, expected)
        else:
            assert_resumes_to(expected, path, layout)
        shutil.rmtree(path.parent)
    raise AssertionError("a run never ends")


def assert_old_or_new_is_whole(path, layout, expected):
    """Killed while replacing: the same command again ends well, and until then one mask is whole."""
    whole = [path, *path.parent.glob("*/.tilenet/replaced"), *path.parent.glob(".*/.tilenet/replaced")]
    documents = [json.loads((p / "zarr.json").read_bytes())["attributes"] for p in whole if p.exists()]
    assert any(document["tilenet"]["complete"] for document in documents)
    run(path, LAYOUTS[layout], overwrite=True)
    assert tree_hash(path) == expected
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_single_step_it_resumes_to_the_same_bytes(children, tmp_path, right, when):
    steps = kill_at_every_step(children, tmp_path, "tiny", when=when, expected=right("tiny"))
    assert steps > 50


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_every_step_of_a_store_with_classes_or_while_replacing_one(
    children, tmp_path, right, when, overwrite
):
    layout = "tiny with classes"
    steps = kill_at_every_step(children, tmp_path, layout, when=when, expected=right(layout), overwrite=overwrite)
    assert steps > 90


def test_killed_twice_at_steps_near_each_other(children, tmp_path, right):
    for number in range(30, 75, 9):
        path = tmp_path / str(number) / "m.zarr"
        assert children.run(path, "tiny", kill=[number, "torn"]) == KILLED
        assert children.run(path, "tiny", kill=[number // 3, "after"]) == KILLED
        assert_resumes_to(right("tiny"), path, "tiny")


@pytest.mark.parametrize(("times", "least"), [(4, 0.5), pytest.param(50, 0.8, marks=pytest.mark.slow)])
def test_killed_at_random_it_resumes_to_the_same_bytes(children, tmp_path, right, times, least, capsys):
    random, layout, cycles, kills, between = random_numbers(), "plane", 0, 0, 0
    lines = sum(LAYOUTS[layout].n_blocks(level) for level in range(len(LAYOUTS[layout].levels)))
    while cycles < times or kills < times or between < least * kills:  # on a busy machine some kills come too late
        path, cycles = tmp_path / str(cycles) / "m.zarr", cycles + 1
        for _ in range(int(random.integers(1, 4))):
            pid, reached = children.start(path, layout, delay=0.005), max(1, journal_lines(path))
            target = random.integers(min(reached, lines - 1), lines)
            while journal_lines(path) < target and not (path / ".tilenet" / "journal.jsonl").exists():
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
            kills += children.wait(pid) == KILLED
            between += 0 < journal_lines(path) < lines
            if (path / ".tilenet" / "journal.jsonl").exists():
                break
        assert_resumes_to(right(layout), path, layout)
        shutil.rmtree(path.parent)
    with capsys.disabled():
        print(f"\n{cycles} of {cycles} identical after {kills} kills; {between} fell between the first and last entry")


def test_a_resumed_run_writes_only_what_is_not_in_the_journal(tmp_path):
    layout = LAYOUTS["plane"]
    truth, store = truth_of(layout), Store.create(tmp_path / "m.zarr", layout, INFO)
    write_all_blocks(store, truth, [3, 0, 7])
    store.close()
    store = Store.resume(tmp_path / "m.zarr")
    assert list(store.pending()) == [i for i in range(layout.n_blocks(0)) if i not in (0, 3, 7)]
    (store.path / layout.files(0, 7)[0]).unlink()
    assert 7 in store.pending()
    store.close()


@pytest.fixture
def halfway(tmp_path):
    """Return a store with all of level 0 but two blocks, and its truth."""
    layout = LAYOUTS["tiny with classes"]
    truth, store = truth_of(layout), Store.create(tmp_path / "half" / "m.zarr", layout, INFO)
    write_all_blocks(store, truth, range(layout.n_blocks(0) - 1))
    store.close()
    return store.path


def test_a_journal_cut_at_any_byte_of_its_last_lines_costs_only_those_blocks(halfway, tmp_path, right):
    layout = LAYOUTS["tiny with classes"]
    (journal,) = (halfway / ".tilenet" / "journal").iterdir()
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == layout.n_blocks(0) - 1 >= 2
    for end in range(len(content) - len(lines[-1]) - 40, len(content)):
        journal.write_bytes(content[:end])
        store = Store.inspect(halfway)
        whole = len(lines) - 1 if end >= len(content) - len(lines[-1]) - 1 else len(lines) - 2
        # A line without its newline is whole: the brace closes it.
        whole += end == len(content) - 1
        assert list(store.pending()) == list(range(whole, layout.n_blocks(0)))
    journal.write_bytes(content[: len(content) - 7])
    assert_resumes_to(right("tiny with classes"), halfway, "tiny with classes")


@pytest.mark.parametrize("lost", ["deleted", "emptied", "zeros", "text"])
def test_a_lost_journal_costs_its_blocks_and_nothing_else(halfway, right, lost):
    (journal,) = (halfway / ".tilenet" / "journal").iterdir()
    content = {"emptied": b"", "zeros": bytes(len(journal.read_bytes())), "text": b'[1]\n{"block": {}}\nnull\n'}
    journal.unlink() if lost == "deleted" else journal.write_bytes(content[lost])
    assert len(list(Store.inspect(halfway).pending())) == LAYOUTS["tiny with classes"].n_blocks(0)
    assert_resumes_to(right("tiny with classes"), halfway, "tiny with classes")


def test_a_line_about_another_block_or_file_is_not_believed(halfway):
    (journal,) = (halfway / ".tilenet" / "journal").iterdir()
    first = journal.read_bytes().splitlines()[0]
    for wrong in (first.replace(b'"block":0', b'"block":1'), first.replace(b'"0/c/0/0"', b'"0/c/9/9"')):
        journal.write_bytes(wrong + b"\n")
        assert list(Store.inspect(halfway).pending()) == list(range(LAYOUTS["tiny with classes"].n_blocks(0)))


def test_temporary_files_of_a_killed_run_are_swept(tmp_path, right):
    path = tmp_path / "m.zarr"
    Store.create(path, LAYOUTS["tiny"], INFO).close()
    (path / ".tilenet" / "0123.part").write_bytes(b"half a shard")
    assert_resumes_to(right("tiny"), path, "tiny")


def test_a_full_disk_is_named_with_its_room_and_the_run_goes_on_when_there_is_more(small_disk, tmp_path, right):
    where = []
    for pages in (1, 4, 8, 12, 15, 18, 21, 24, 28, 32):
        disk = small_disk(f"size={pages * 4096}", name=f"disk{pages}")
        with pytest.raises(EnvironmentFault, match=r"m\.zarr.*no space left.*bytes free.*run (it )?again") as caught:
            run(disk / "m.zarr", LAYOUTS["plane"])
        assert str(disk) in str(caught.value)
        assert caught.value.exit_code == 4
        where.append("/c/" in str(caught.value))
        small_disk("size=64m", REMOUNT, name=disk.name)
        assert_resumes_to(right("plane"), disk / "m.zarr", "plane")
    assert any(where), "some ran out of room while writing shards"
    assert "needed" in str(caught.value)


@pytest.mark.parametrize("inodes", [12, 18])
def test_a_disk_that_takes_no_more_files_says_so_although_it_has_room(small_disk, right, inodes):
    disk = small_disk(f"size=64m,nr_inodes={inodes}")
    said = rf"but all {inodes} inodes \(files and folders\) are in use\. Remove files, then run again"
    with pytest.raises(DiskFault, match=rf"m\.zarr.*no space left on device: [\d,]+ bytes free.*, {said}"):
        run(disk / "m.zarr", LAYOUTS["plane"])
    small_disk("size=64m,nr_inodes=1000", REMOUNT)
    assert_resumes_to(right("plane"), disk / "m.zarr", "plane")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_named_where_there_is_room_for_what_is_written(tmp_path, monkeypatch, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    store = Store.create(tmp_path / "m.zarr", LAYOUTS["tiny"], INFO)
    replace_step(fail, monkeypatch.setattr)
    said = r"free, [\d,]+ needed, so inodes or a quota may be used up \(df -i, quota -s, lfs quota\)\. Make room, then"
    with pytest.raises(DiskFault, match=said):
        store.write(1, part(LAYOUTS["tiny"], truth_of(LAYOUTS["tiny"]), 1))
    monkeypatch.undo()
    store.close()


def test_a_read_only_disk_is_found_before_anything_is_made(small_disk):
    disk = small_disk("size=1m")
    make(disk / "old.zarr", LAYOUTS["tiny"])
    small_disk("", REMOUNT | READ_ONLY)
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        Store.create(disk / "deep" / "m.zarr", LAYOUTS["tiny"], INFO)
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        Store.create(disk / "old.zarr", LAYOUTS["tiny"], INFO, overwrite=True)
    assert damage_of(disk / "old.zarr") == []
    assert Store.resume(disk / "old.zarr").complete


def test_an_error_of_the_system_in_a_step_leaves_no_temporary_file(tmp_path, monkeypatch, right):
    store, layout = Store.create(tmp_path / "m.zarr", LAYOUTS["tiny"], INFO), LAYOUTS["tiny"]
    real = file_system.step

    def fail(name, do, *args, **kwargs):
        if name == "sync":
            raise OSError(5, "Input/output error")
        return real(name, do, *args, **kwargs)

    replace_step(fail, monkeypatch.setattr)
    with pytest.raises(EnvironmentFault, match=r"0/c/1/0: cannot be written \(input/output error\)"):
        store.write(1, part(layout, truth_of(layout), 1))
    monkeypatch.undo()
    assert not list(Path(store.path).rglob("*.part"))
    assert 1 in store.pending()
    store.close()


def test_where_no_store_could_be_made_there_is_none_to_resume(tmp_path, monkeypatch):
    plain, path, failing = file_system.step, tmp_path / "m.zarr", 0

    def step(name, do, *args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == failing:
            raise OSError(errno.EIO, "Input/output error")
        return plain(name, do, *args, **kwargs)

    replace_step(step, monkeypatch.setattr)
    while not path.exists():
        steps, failing = 0, failing + 1
        try:
            Store.create(path, LAYOUTS["tiny"], INFO).close()
        except EnvironmentFault as error:
            assert path.exists() or str(error).endswith(
                "cannot be written (input/output error). Fix that, then run again"
            )
    assert failing > 4


def test_a_store_that_was_moved_away_is_told_as_that(tmp_path, right):
    layout = LAYOUTS["tiny"]
    store = Store.create(tmp_path / "m.zarr", layout, INFO)
    store.write(0, part(layout, truth_of(layout), 0))
    (tmp_path / "m.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(EnvironmentFault, match=r"m\.zarr.*cannot be written \(no such file or directory\)"):
        store.write(1, part(layout, truth_of(layout), 1))
    (tmp_path / "moved.zarr").rename(store.path)
    store.close()
    assert_resumes_to(right("tiny"), store.path, "tiny")


def test_a_journal_line_that_failed_half_way_does_not_spoil_the_next(tmp_path, monkeypatch, right):
    layout, truth = LAYOUTS["tiny"], truth_of(LAYOUTS["tiny"])
    store, real = Store.create(tmp_path / "m.zarr", layout, INFO), file_system.step

    def fail(name, do, *args, **kwargs):
        if name == "journal":
            os.write(args[0], args[1][:20])
            raise OSError(28, "No space left on device")
        return real(name, do, *args, **kwargs)

    store.write(0, part(layout, truth, 0))
    replace_step(fail, monkeypatch.setattr)
    with pytest.raises(EnvironmentFault, match="no space left"):
        store.write(1, part(layout, truth, 1))
    monkeypatch.undo()
    store.write(2, part(layout, truth, 2))
    store.close()
    store = Store.resume(store.path)
    assert [i for i in range(layout.n_blocks(0)) if i not in set(store.pending())] == [0, 2]
    store.close()
    assert_resumes_to(right("tiny"), store.path, "tiny")
