"""Many writers, one store: blocks written for a run that another process leads."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from contents import open_files
from store_helpers import (
    INFO,
    LAYOUTS,
    damage_of,
    finish,
    make,
    part,
    replace_step,
    tree,
    tree_hash,
    truth_of,
    write_all_blocks,
)

from tilenet.errors import OutputError, OutputIncomplete, OutputLocked, OutputNotFound
from tilenet.store import Store, file_system, open_mask
from tilenet.store import lease as leases
from tilenet.store import lease_holder as holders
from tilenet.store.lease_holder import Holder

KILLED = -signal.SIGKILL
NAME = "tiny with classes"
LAYOUT = LAYOUTS[NAME]
TRUTH = truth_of(LAYOUT)


@pytest.fixture
def leader(tmp_path):
    store = Store.create(tmp_path / "m.zarr", LAYOUT, INFO)
    yield store
    store.close()


def write(store, index):
    return store.write(index, part(LAYOUT, TRUTH, index))


@pytest.mark.parametrize("how", ["adopted", "read by the resumed run"])
def test_a_store_that_three_writers_filled_is_the_one_that_one_run_makes(leader, right, how):
    writers = [Store.join(leader.path, leader.run) for _ in range(3)]
    lines = [write(writers[number % 3], index) for number, index in enumerate(reversed(list(leader.pending())))]
    for writer in writers:
        writer.close()
        writer.close()
    assert len(list((leader.path / ".tilenet" / "journal").iterdir())) == 3
    if how == "adopted":
        for line in lines:
            leader.adopt(line)
    else:
        leader.close()
        leader = Store.resume(leader.path)
    assert list(leader.pending()) == []
    finish(leader)
    assert tree_hash(leader.path) == right(NAME)


def test_a_writer_that_stays_after_the_end_keeps_no_file_of_the_store_open(leader):
    writer = Store.join(leader.path, leader.run)
    for index in leader.pending():
        leader.adopt(write(writer, index))
    finish(leader)
    held = open_files()
    assert held and not [name for name in held if str(leader.path) in name]  # NFS would not remove its folder
    writer.close()


def test_what_writers_wrote_is_pending_until_it_is_adopted(leader):
    writer = Store.join(leader.path, leader.run)
    line = write(writer, 1)
    assert list(leader.pending()) == list(range(LAYOUT.n_blocks(0)))
    leader.adopt(line)
    assert 1 not in leader.pending()
    with pytest.raises(OutputIncomplete):
        finish(leader)
    writer.close()


def test_writers_in_other_processes_give_the_same_bytes(leader, children, right):
    blocks = list(leader.pending())
    said = [leader.path.with_name(f"lines{i}") for i in range(2)]
    pids = [
        children.start(leader.path, NAME, join=leader.run, blocks=blocks[i::2], lines=str(said[i])) for i in range(2)
    ]
    assert [children.wait(pid) for pid in pids] == [0, 0]
    for line in [line for file in said for line in file.read_bytes().splitlines(keepends=True)]:
        leader.adopt(line)
    finish(leader)
    assert tree_hash(leader.path) == right(NAME)


def test_a_writer_killed_at_any_step_leaves_its_block_pending_or_written(children, tmp_path, right):
    found = 0
    for number in range(1, 100):
        leader = Store.create(tmp_path / str(number) / "m.zarr", LAYOUT, INFO)
        end = children.run(leader.path, NAME, join=leader.run, blocks=[1], kill=[number, "torn"])
        left = len(list((leader.path / ".tilenet").glob("*.part")))
        for index in leader.pending():  # the leader was told nothing, so block 1 is written again
            write(leader, index)
        finish(leader)
        if end == 0:
            break
        found += left
        assert not list((leader.path / ".tilenet").glob("*.part"))
        assert tree_hash(leader.path) == right(NAME)
    assert 8 < number < 40
    assert found > 2


def test_a_writer_declared_lost_may_write_late_and_changes_nothing(leader, right):
    late = Store.join(leader.path, leader.run)
    write_all_blocks(leader, TRUTH)
    leader.adopt(write(late, 2))
    finish(leader)
    before = tree(leader.path)
    with pytest.raises(OutputLocked, match=r"no longer being written by the run \w+\. Let its blocks"):
        write(late, 1)
    late.close()
    assert tree(leader.path) == before
    assert tree_hash(leader.path) == right(NAME)


def asleep_before(name):
    """Return a stand-in for a step that lets something else happen before one of that name."""

    def stand_in(happens):
        def step(this, do, *args, **kwargs):
            nonlocal happens
            if this == name and happens:
                now, happens = happens, None
                now()
            return files_step(this, do, *args, **kwargs)

        return step

    files_step = file_system.step
    return stand_in


@pytest.mark.parametrize("name", ["create", "write", "sync", "rename", "sync folder", "journal"])
def test_a_writer_asleep_in_the_middle_of_a_block_wakes_after_the_end_and_changes_nothing(
    leader, right, monkeypatch, name
):
    writer = Store.join(leader.path, leader.run)

    def end():
        write_all_blocks(leader, TRUTH)
        finish(leader)

    replace_step(asleep_before(name)(end), monkeypatch.setattr)
    try:
        write(writer, 1)
    except OutputLocked:
        assert name != "journal"
    monkeypatch.undo()
    writer.close()
    assert open_mask(leader.path)
    assert tree_hash(leader.path) == right(NAME)


@pytest.mark.parametrize("name", ["create", "write", "sync", "rename"])
def test_a_writer_asleep_while_its_store_is_replaced_by_another_does_not_write_into_that(leader, monkeypatch, name):
    writer = Store.join(leader.path, leader.run)

    def replaced():
        leader.close()
        make(leader.path, LAYOUT, seed=1, overwrite=True)

    replace_step(asleep_before(name)(replaced), monkeypatch.setattr)
    with pytest.raises(OutputLocked):
        write(writer, 1)
    monkeypatch.undo()
    writer.close()
    assert damage_of(leader.path) == []
    assert np.array_equal(open_mask(leader.path)[...], truth_of(LAYOUT, 1)["mask"])
    assert not np.array_equal(open_mask(leader.path)[...], TRUTH["mask"])


def test_after_a_takeover_the_writers_of_the_dead_run_are_refused_and_those_of_the_new_one_are_not(leader, monkeypatch):
    writer = Store.join(leader.path, leader.run)
    write(writer, 0)
    monkeypatch.setattr(Holder, "alive", property(lambda holder: False))
    taker = Store.resume(leader.path)
    monkeypatch.undo()
    assert 0 not in taker.pending()
    with pytest.raises(OutputLocked, match=rf"is being written by process {os.getpid()} on \S+, not by the run"):
        write(writer, 1)
    with pytest.raises(OutputLocked):
        Store.join(leader.path, leader.run)
    new = Store.join(leader.path, taker.run)
    taker.adopt(write(new, 1))
    for store in (writer, new, taker):
        store.close()


def test_a_lock_of_the_same_number_but_another_run_is_another_lock(leader):
    writer, run = Store.join(leader.path, leader.run), leader.run
    leader.close()
    second = Store.resume(leader.path)
    assert [lock.path.name for lock in leases.locks(leader.path / ".tilenet")] == ["lock.1"]
    assert second.run != run
    with pytest.raises(OutputLocked):
        write(writer, 0)
    writer.close()
    second.close()


def test_a_writer_on_another_machine_asks_for_no_process(leader, monkeypatch):
    monkeypatch.setattr(holders, "this_machine", lambda: "far")
    monkeypatch.setattr(holders, "started", lambda pid: 1 / 0)
    writer = Store.join(leader.path, leader.run)
    write(writer, 0)
    os.utime(leader.path / ".tilenet" / "lock.1", (0, time.time() - 10 * leases.STALE))
    write(writer, 1)
    writer.close()


def test_there_is_nothing_to_join_where_no_run_is_or_the_mask_is_complete(leader, tmp_path):
    with pytest.raises(OutputNotFound):
        Store.join(tmp_path / "none.zarr", "r")
    with pytest.raises(OutputLocked, match="not by the run r"):
        Store.join(leader.path, "r")
    make(tmp_path / "done.zarr", LAYOUT)
    with pytest.raises(OutputError, match="is complete"):
        Store.join(tmp_path / "done.zarr", "r")


def test_only_the_leader_finishes(leader):
    writer = Store.join(leader.path, leader.run)
    line = write(writer, 0)
    for act in (writer.build_pyramid, writer.finish, lambda: writer.adopt(line)):
        with pytest.raises(OutputError, match="only a run that holds the whole"):
            act()
    writer.close()
    leader.adopt(line)


def lines_that_are_wrong(line):
    entry = json.loads(line)
    name, (size, digest) = next((n, of) for n, of in entry["files"].items() if of)

    def changed(of):
        return json.dumps(entry | {"files": entry["files"] | {name: of}}).encode()

    yield from (b"", b"{}", b"[]", b"null", line[:-9], b'{"documents":{}}', b'{"documents":{"a":[1,"b"]}}')
    yield from (json.dumps(entry | {"block": n}).encode() for n in (-1, 0, 10**9, "1", None, 1.5))
    yield json.dumps(entry | {"level": 9}).encode()
    yield from map(changed, ([0, digest], [-1, digest], [size, digest[2:]], [size, "z" * 64], [size], 7, "x", []))


def test_a_line_that_no_writer_of_this_store_wrote_is_not_adopted(leader):
    writer = Store.join(leader.path, leader.run)
    line = write(writer, 1)
    writer.close()
    for wrong in lines_that_are_wrong(line):
        with pytest.raises(OutputError, match="Write that block again"):
            leader.adopt(wrong)
    assert list(leader.pending()) == list(range(LAYOUT.n_blocks(0)))
    leader.adopt(line)
    assert Path(leader.path / LAYOUT.files(0, 1)[1]).exists()
    assert 1 not in leader.pending()


def test_of_two_writers_of_a_flight_the_second_learns_what_the_first_wrote(leader):
    first, second = (Store.join(leader.path, leader.run) for _ in range(2))
    assert first.begin("f", [0, 1]) is None
    assert second.begin("g", [2]) is None, "another flight"
    line = write(first, 1)
    write(first, 2)
    assert second.begin("f", [0, 1]) == first.begin("f", [0, 1]) == {1: line}
    leader.forget("f")
    assert second.begin("f", [0, 1]) is None
    for writer in (first, second):
        writer.close()


@pytest.mark.parametrize("when", ["finished", "replaced"])
def test_a_flight_is_not_begun_in_a_store_that_is_another_s_by_now(leader, monkeypatch, when):
    writer = Store.join(leader.path, leader.run)

    def end():
        if when == "finished":
            write_all_blocks(leader, TRUTH)
            finish(leader)
        else:
            leader.close()
            make(leader.path, LAYOUT, seed=1, overwrite=True)

    replace_step(asleep_before("begin")(end), monkeypatch.setattr)
    with pytest.raises(OutputLocked):
        writer.begin("f", [0])
    monkeypatch.undo()
    with pytest.raises(OutputLocked):
        writer.begin("f", [0])
    writer.close()
    assert not list(leader.path.rglob("begun-*"))
    assert damage_of(leader.path) == []
