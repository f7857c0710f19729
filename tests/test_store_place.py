"""Where a store may go, what it may replace, and who may write it."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from store_fixtures import children_of_this_process, folder_in_memory  # noqa: F401
from store_helpers import INFO, LAYOUTS, make, run, tree, tree_hash, truth_of, write_all_blocks

from tilenet.errors import EnvironmentFault, OutputExists, OutputLocked, OutputNotFound
from tilenet.store import Store, can_resume, check_free, held, holder, open_mask, place
from tilenet.store import lease as leases
from tilenet.store.holder import this_machine
from tilenet.store.lease import Holder, Lease

TINY = LAYOUTS["tiny"]


@pytest.fixture
def old(tmp_path):
    """Return a complete store, with another mask in it than a new one would have."""
    make(tmp_path / "m.zarr", TINY, seed=1)
    return tmp_path / "m.zarr"


def test_parent_folders_are_made(tmp_path):
    Store.create(tmp_path / "a" / "b" / "m.zarr", TINY, INFO).close()
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["m.zarr"]


def test_looking_whether_a_place_is_free_makes_nothing(tmp_path):
    check_free(tmp_path / "a" / "b" / "m.zarr")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_store_is_refused_and_left_as_it_is(old):
    before = tree_hash(old)
    with pytest.raises(OutputExists, match=r"m\.zarr: exists already.*--resume.*--overwrite"):
        Store.create(old, TINY, INFO)
    assert tree_hash(old) == before


def test_overwriting_keeps_the_old_mask_until_the_new_one_is_complete(old):
    before = tree(old)
    store = Store.create(old, TINY, INFO, overwrite=True)
    kept = old / ".tilenet" / "replaced"
    assert before.items() <= tree(kept).items()
    truth = truth_of(TINY)
    write_all_blocks(store, truth)
    store.build_pyramid()
    assert kept.exists()
    store.finish()
    assert not kept.exists()
    assert np.array_equal(np.asarray(open_mask(old)), truth["mask"])
    assert [file.name for file in old.parent.iterdir()] == ["m.zarr"]


def test_a_store_that_cannot_be_moved_in_leaves_the_old_one_in_its_place(old, monkeypatch):
    before, rename = tree_hash(old), os.rename

    def fail(source, target):
        if Path(target) == old and Path(source).name.endswith(place.NEW):
            monkeypatch.undo()
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(EnvironmentFault, match="input/output error"):
        Store.create(old, TINY, INFO, overwrite=True)
    assert tree_hash(old) == before
    assert [file.name for file in old.parent.iterdir()] == ["m.zarr"]
    assert Store.resume(old).complete


def foreign(path, kind):
    if kind == "file":
        path.write_text("mine")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "zarr":
        zarr.create_array(path / "0", shape=(3,), dtype="u1")
        zarr.create_group(path, attributes={"tilenet": {"format": 1, "layout": TINY.to_json(), "complete": True}})
    elif kind == "link":
        make(path.parent / "elsewhere.zarr", TINY)
        path.symlink_to(path.parent / "elsewhere.zarr")
    elif kind == "dangling link":
        path.symlink_to(path.parent / "nothing")
    elif kind == "store with something else in it":
        make(path, TINY)
        (path / "labels").mkdir()
        (path / "labels" / "mine").write_text("mine")
    elif kind == "store with its own folder elsewhere":
        make(path, TINY)
        (path / ".tilenet").rename(path.parent / "own")
        (path / ".tilenet").symlink_to(path.parent / "own")


FOREIGN = [
    "file",
    "empty folder",
    "zarr",
    "link",
    "dangling link",
    "store with something else in it",
    "store with its own folder elsewhere",
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_tilenet_did_not_write_is_never_replaced(tmp_path, kind, overwrite):
    path = tmp_path / "m.zarr"
    foreign(path, kind)
    before, entries = tree(tmp_path), sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputExists, match=r"m\.zarr"):
        Store.create(path, TINY, INFO, overwrite=overwrite)
    assert (tree(tmp_path), sorted(tmp_path.rglob("*"))) == (before, entries)
    assert path.is_symlink() == ("link" in kind)


def test_a_store_that_appears_after_the_look_is_not_replaced_unasked(tmp_path, monkeypatch):
    path, look = tmp_path / "m.zarr", held.check_free

    def late(*args, **options):
        look(*args, **options)
        monkeypatch.undo()
        make(path, TINY, seed=1)

    monkeypatch.setattr(held, "check_free", late)
    with pytest.raises(OutputExists, match="made by another run just now"):
        Store.create(path, TINY, INFO)
    assert np.array_equal(np.asarray(open_mask(path)), truth_of(TINY, 1)["mask"])
    assert [file.name for file in tmp_path.iterdir()] == ["m.zarr"]


def test_home_is_not_replaced_even_if_it_looks_like_a_store(old, monkeypatch):
    monkeypatch.setenv("HOME", str(old))
    before = tree_hash(old)
    with pytest.raises(OutputExists, match="Nothing is overwritten there"):
        Store.create(old, TINY, INFO, overwrite=True)
    assert tree_hash(old) == before
    monkeypatch.undo()
    Store.create(old, TINY, INFO, overwrite=True).close()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_root_folder_and_the_current_one_are_not_replaced(tmp_path, monkeypatch, overwrite):
    monkeypatch.chdir(tmp_path)
    for path in ("/", ".", "..", "/tmp"):
        with pytest.raises(OutputExists):
            Store.create(path, TINY, INFO, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_store_can_be_gone_on_with(tmp_path):
    Store.create(tmp_path / "real.zarr", TINY, INFO).close()
    (tmp_path / "m.zarr").symlink_to(tmp_path / "real.zarr")
    run(tmp_path / "m.zarr", TINY)
    assert open_mask(tmp_path / "real.zarr").shape == TINY.shape
    assert (tmp_path / "m.zarr").is_symlink()


def test_a_file_where_a_folder_should_be_is_a_fault_of_the_place(tmp_path):
    (tmp_path / "file").write_text("mine")
    for check in (check_free, lambda path: Store.create(path, TINY, INFO)):
        with pytest.raises(EnvironmentFault, match=r"file: is a file, and .*m\.zarr would be inside it"):
            check(tmp_path / "file" / "deep" / "m.zarr")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_in_the_way_of_a_shard_names_the_shard(tmp_path):
    store = Store.create(tmp_path / "m.zarr", TINY, INFO)
    (store.path / "0" / "c").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"0/c/\d/0: cannot be written \(not a directory"):
        write_all_blocks(store, truth_of(TINY))
    store.close()


def test_there_is_nothing_to_resume_where_nothing_is(tmp_path):
    assert not can_resume(tmp_path / "m.zarr")
    with pytest.raises(OutputNotFound):
        Store.resume(tmp_path / "m.zarr")
    assert list(tmp_path.iterdir()) == []


def abandoned(path, *, pid=2**22 + 1):
    """Return where a killed process would have left a half-made store."""
    return path.with_name(f".{path.name}.{place._machine()}-{pid}-123-abcdef01{place.NEW}")


def test_what_killed_runs_left_beside_the_place_is_swept_and_nothing_else(tmp_path):
    path = tmp_path / "m[1].zarr"
    (abandoned(path) / ".tilenet").mkdir(parents=True)
    alive = place.temporary_place(path)
    alive.mkdir()
    kept = [abandoned(tmp_path / "other.zarr"), tmp_path / f".m[1].zarr.mine{place.NEW}", alive]
    for folder in kept[:2]:
        folder.mkdir()
    Store.create(path, TINY, INFO).close()
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])


def test_several_may_sweep_at_once(tmp_path):
    for _ in range(10):
        left = abandoned(tmp_path / "m.zarr")
        for number in range(20):
            (left / str(number)).mkdir(parents=True)
            (left / str(number) / "zarr.json").write_text("x")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(place.sweep, [tmp_path / "m.zarr"] * 4))
        assert list(tmp_path.iterdir()) == []


def test_what_goes_away_while_it_is_looked_at_was_not_abandoned(tmp_path, monkeypatch):
    left = tmp_path / f".m.zarr.{'0' * 12}-1-123-abcdef01{place.NEW}"  # of another machine
    left.mkdir()
    os.utime(left, (0, 0))
    assert list(place.abandoned(tmp_path / "m.zarr")) == [left]
    clock = place._clock_of

    def put_in_place(folder):
        left.rename(tmp_path / "m.zarr")
        return clock(folder)

    monkeypatch.setattr(place, "_clock_of", put_in_place)
    assert list(place.abandoned(tmp_path / "m.zarr")) == []


def test_what_sweeping_leaves_is_the_only_copy_of_a_mask(old):
    Store.create(old, TINY, INFO, overwrite=True).close()
    left = old.rename(abandoned(old))  # as it was between the two renames
    place.sweep(old)
    assert left.is_dir()


def test_what_was_left_beside_a_place_of_a_longer_name_stays(old):
    Store.create(old, TINY, INFO, overwrite=True).close()
    left = old.rename(abandoned(old))  # as it was between the two renames
    place.check_free(old.with_name("m"))
    Store.create(old.with_name("m"), TINY, INFO).close()
    assert left.is_dir()
    assert can_resume(old)


def test_a_run_killed_while_it_replaced_a_store_is_rolled_forward(old):
    store = Store.create(old, TINY, INFO, overwrite=True)
    store.close()
    old.rename(abandoned(old))  # as it was between the two renames
    assert can_resume(old)
    assert (old / ".tilenet" / "replaced").exists()
    run(old, TINY)
    assert [file.name for file in old.parent.iterdir()] == ["m.zarr"]


# --- the lease


def test_a_store_that_is_being_written_is_refused_naming_the_holder(tmp_path):
    path = tmp_path / "m.zarr"
    first = Store.create(path, TINY, INFO)
    holder = rf"is being written by process {os.getpid()} on {socket.gethostname()}"
    for attempt in (lambda: Store.resume(path), lambda: Store.create(path, TINY, INFO, overwrite=True)):
        with pytest.raises(OutputLocked, match=holder):
            attempt()
    assert [file.name for file in tmp_path.iterdir()] == ["m.zarr"]
    first.close()
    first.close()
    Store.resume(path).close()
    assert not list((path / ".tilenet").glob("lock*"))


@pytest.mark.parametrize("begun", [False, True])
def test_of_two_simultaneous_starts_exactly_one_wins(children, tmp_path, begun):
    for number in range(5):
        path, said = tmp_path / str(number) / "m.zarr", tmp_path / f"said{number}"
        if begun:
            Store.create(path, TINY, INFO).close()
        pids = [children.start(path, "tiny", delay=0.1, said=str(said)) for _ in range(2)]
        assert sorted(children.wait(pid) for pid in pids) == [0, 2]
        assert f"by process {pids[0]} on" in said.read_text() or f"by process {pids[1]} on" in said.read_text()
        assert open_mask(path).shape == TINY.shape
        assert [file.name for file in path.parent.iterdir()] == ["m.zarr"]


def test_of_eight_simultaneous_runs_that_replace_one_store_exactly_one_wins(children, old):
    pids = [children.start(old, "tiny", overwrite=True, delay=0.3) for _ in range(8)]
    assert sorted(children.wait(pid) for pid in pids) == [0] + [2] * 7
    assert np.array_equal(np.asarray(open_mask(old)), truth_of(TINY)["mask"])
    assert [file.name for file in old.parent.iterdir()] == ["m.zarr"]


def leave_lock(folder, **changes):
    """Leave the lock of a process that has ended."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    told = {"host": "far", "pid": int(ended.stdout), "run": "r", "machine": this_machine(), "started": "1"} | changes
    lock = folder / "lock.1"
    lock.write_text(json.dumps(told))
    return lock


@pytest.fixture
def own(tmp_path):
    Store.create(tmp_path / "m.zarr", TINY, INFO).close()
    return tmp_path / "m.zarr" / ".tilenet"


def test_the_lock_of_a_dead_process_is_taken_over(own):
    leave_lock(own)
    store = Store.resume(own.parent)
    assert [file.name for file in own.glob("lock*")] == ["lock.2"]
    store.close()
    assert not list(own.glob("lock*"))


def test_the_lock_of_a_process_whose_number_another_has_now_is_taken_over(own):
    leave_lock(own, pid=os.getpid())
    Store.resume(own.parent).close()


@pytest.mark.parametrize("content", [None, b"", b"not json", b"[]", b'{"host": "h"}'])
def test_the_lock_of_another_machine_holds_while_its_heart_beats(own, content):
    lock = leave_lock(own, machine="another")
    if content is not None:
        lock.write_bytes(content)
    with pytest.raises(OutputLocked, match="far" if content is None else "another run"):
        Store.resume(own.parent)
    assert lock.exists()
    os.utime(lock, (time.time() - leases.STALE - 5,) * 2)
    Store.resume(own.parent).close()


def test_the_lock_of_this_machine_holds_while_its_process_lives_however_long_it_sleeps(own):
    first = Lease.take(own, own.parent)
    os.utime(first.path, (0, 0))
    with pytest.raises(OutputLocked):
        Store.resume(own.parent)
    first.release()


@pytest.mark.parametrize("hidden", [False, True])
def test_the_lock_of_another_user_s_process_on_this_machine_holds(own, monkeypatch, hidden):
    ticks = holder.started(os.getpid())
    lock = leave_lock(own, pid=os.getpid(), started=ticks)

    read_text = Path.read_text

    def refused(pid, number):
        raise PermissionError

    def hiding(path):  # as a /proc mounted with hidepid
        if path.name == "stat":
            raise FileNotFoundError
        return read_text(path)

    monkeypatch.setattr(os, "kill", refused)
    if hidden:
        monkeypatch.setattr(Path, "read_text", hiding)
    else:
        os.utime(lock, (0, 0))
    assert holder.is_running(os.getpid(), ticks) is (None if hidden else True)
    assert [lock for lock, _ in leases.live(leases.locks(own), time.time())] == leases.locks(own)
    if hidden:  # then its heart is asked
        os.utime(lock, (0, 0))
        assert leases.live(leases.locks(own), time.time()) == []


def test_the_heart_beats(own, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.01)
    store = Store.resume(own.parent)
    os.utime(own / "lock.1", (0, 0))
    deadline = time.time() + 10
    while (own / "lock.1").stat().st_mtime == 0 and time.time() < deadline:
        time.sleep(0.01)
    assert (own / "lock.1").stat().st_mtime > 0
    store.close()


def test_a_run_that_slept_and_lost_its_lease_writes_nothing_more(own, monkeypatch):
    sleeper = Store.resume(own.parent)
    monkeypatch.setattr(Holder, "alive", property(lambda holder: False))
    taker = Store.resume(own.parent)
    monkeypatch.undo()
    before = tree(own.parent)
    with pytest.raises(OutputLocked, match=rf"taken over by process {os.getpid()}"):
        write_all_blocks(sleeper, truth_of(TINY))
    sleeper.close()
    assert before.keys() - tree(own.parent).keys() <= {".tilenet/lock.1"}
    write_all_blocks(taker, truth_of(TINY))
    taker.build_pyramid()
    taker.finish()


def test_a_lease_of_the_same_number_that_a_third_run_holds_is_not_the_sleepers(own, monkeypatch):
    sleeper = Store.resume(own.parent)
    monkeypatch.setattr(Holder, "alive", property(lambda holder: False))
    Store.resume(own.parent).close()  # takes over, and leaves no lock
    third = Store.resume(own.parent)
    monkeypatch.undo()
    assert [lock.name for lock in own.glob("lock*")] == ["lock.1"]
    with pytest.raises(OutputLocked, match="taken over"):
        sleeper.write(0, {"mask": truth_of(TINY)["mask"][: TINY.block[0], : TINY.block[1]]})
    sleeper.close()
    assert [lock.name for lock in own.glob("lock*")] == ["lock.1"], "the sleeper does not release it either"
    third.close()


def test_a_lease_cannot_be_taken_past_one_that_appeared_meanwhile(own, monkeypatch):
    real = os.link

    def link(source, target):
        real(source, target)
        if Path(target).name == "lock.1":
            monkeypatch.undo()
            leave_lock(own, machine="another").rename(own / "lock.7")
            real(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OutputLocked, match="on far"):
        Lease.take(own, own.parent)
    assert [file.name for file in own.glob("lock*")] == ["lock.7"]
    assert not list(own.glob("*.part"))
