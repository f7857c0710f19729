"""The lease of a store: who may write it, and when another may take it over."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from store_helpers import INFO, LAYOUTS, beating, replace_step, tree, truth_of, wait_until, write_all_blocks

from tilenet.errors import EnvironmentFault, OutputError, OutputLocked
from tilenet.store import Store, lease_holder, open_mask
from tilenet.store import lease as leases
from tilenet.store.file_system import NO_LINKS, put_under_new_name
from tilenet.store.lease import Holder, Lease
from tilenet.store.lease_holder import this_machine

TINY = LAYOUTS["tiny"]


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
        path, said, refused = (
            tmp_path / str(number) / "m.zarr",
            tmp_path / f"said{number}",
            tmp_path / f"refused{number}",
        )
        if begun:
            Store.create(path, TINY, INFO).close()
        pids = [children.start(path, "tiny", until=str(refused), said=str(said)) for _ in range(2)]
        wait_until(said.exists)
        refused.touch()
        assert sorted(children.wait(pid) for pid in pids) == [0, 2]
        assert f"by process {pids[0]} on" in said.read_text() or f"by process {pids[1]} on" in said.read_text()
        assert open_mask(path).shape == TINY.shape
        assert [file.name for file in path.parent.iterdir()] == ["m.zarr"]


def test_of_eight_simultaneous_runs_that_replace_one_store_exactly_one_wins(children, old, tmp_path_factory):
    beside = tmp_path_factory.mktemp("beside")
    how = {"overwrite": True, "until": str(beside / "refused")}
    pids = [children.start(old, "tiny", said=str(beside / f"said{number}"), **how) for number in range(8)]
    wait_until(lambda: len(list(beside.glob("said*"))) == 7)
    (beside / "refused").touch()
    assert sorted(children.wait(pid) for pid in pids) == [0] + [2] * 7
    assert np.array_equal(np.asarray(open_mask(old)), truth_of(TINY)["mask"])
    assert [file.name for file in old.parent.iterdir()] == ["m.zarr"]


@pytest.mark.parametrize(
    ("begin", "fails"),
    [
        ("create", "log"),
        ("create a share", "log"),
        ("resume", "log"),
        ("take a share", "log"),
        ("take a share", "link"),
    ],
)
def test_a_store_that_cannot_be_begun_leaves_no_lease(tmp_path, monkeypatch, begin, fails):
    path = tmp_path / "m.zarr"
    if begin in ("resume", "take a share"):
        Store.create(path, TINY, INFO).close()

    def full(name, do, *args, **kwargs):
        if name == fails:  # of links, only that of the run of shares, which is made while the lease is held
            raise OSError(errno.ENOSPC, "No space left on device")
        return do(*args, **kwargs)

    begins = {
        "create": lambda: Store.create(path, TINY, INFO),
        "create a share": lambda: Store.create(path, TINY, INFO, share=(1, 2)),
        "resume": lambda: Store.resume(path),
        "take a share": lambda: Store.take_share(path, (1, 2)),
    }
    with monkeypatch.context() as patch:
        replace_step(full, patch.setattr)
        with pytest.raises(EnvironmentFault, match="no space left"):
            begins[begin]()
    assert not list(path.glob(".tilenet/*.[0-9]"))
    assert path.exists() == (begin in ("resume", "take a share"))
    Store.create(path, TINY, INFO, overwrite=path.exists()).close()


@pytest.fixture(params=sorted(set(NO_LINKS)), ids=errno.errorcode.get)
def no_links(request, monkeypatch):
    """Make this a file system without hard links."""

    def refuse(source, target):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


def test_without_hard_links_leases_exclude_each_other_too(tmp_path, no_links):
    path = tmp_path / "m.zarr"
    first = Store.create(path, TINY, INFO)
    with pytest.raises(OutputLocked, match=f"is being written by process {os.getpid()} on"):
        Store.resume(path)
    first.close()
    shares = [Store.take_share(path, (number, 2)) for number in (1, 2)]
    assert shares[0].run == shares[1].run
    with pytest.raises(OutputLocked, match=r"is being written by share 1/2"):
        Store.take_share(path, (1, 2))
    for share in shares:
        share.close()
    write_all_blocks(store := Store.resume(path), truth_of(TINY))
    store.close()
    assert not list(path.glob(".tilenet/*.[0-9]")) and not list(path.glob(".tilenet/*.part"))


def test_nor_does_more_than_one_of_many_take_a_lease_there(own, no_links):
    def take(_):
        try:
            return Lease.take(own, own.parent)
        except OutputLocked:
            return None

    with ThreadPoolExecutor(8) as threads:
        (taken,) = filter(None, threads.map(take, range(8)))
    taken.check(own.parent)
    taken.release()


def test_a_name_that_cannot_be_filled_there_is_given_up(tmp_path, monkeypatch, no_links):
    def full(name, do, *args, **kwargs):
        if name == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        return do(*args, **kwargs)

    (tmp_path / "note").write_text("me")
    replace_step(full, monkeypatch.setattr)
    with pytest.raises(OSError, match="No space"):
        put_under_new_name("lock", tmp_path / "note", tmp_path / "lock.1")
    assert not (tmp_path / "lock.1").exists()


def test_an_empty_id_of_a_run_of_shares_is_refused(tmp_path):
    Store.create(tmp_path / "m.zarr", TINY, INFO).close()
    (tmp_path / "m.zarr" / ".tilenet" / "run-of-2").touch()
    for _ in range(2):  # the first time, no lease stays behind
        with pytest.raises(OutputError, match=r"run-of-2: is empty\. Remove it, and start the shares again"):
            Store.take_share(tmp_path / "m.zarr", (1, 2))
    Store.resume(tmp_path / "m.zarr").close()  # removes it
    Store.take_share(tmp_path / "m.zarr", (1, 2)).close()


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
    said = "far" if content is None else r"another run \(lock\.1 cannot.* 60 s old\)"
    with beating(lock), pytest.raises(OutputLocked, match=said):
        Store.resume(own.parent)
    assert lock.exists()
    os.utime(lock, (time.time() - leases.STALE - 5,) * 2)
    Store.resume(own.parent).close()


def test_a_run_outlasts_the_dead_one_that_held_the_store_on_another_machine(own, monkeypatch, caplog):
    monkeypatch.setattr(leases, "STALE", 30.0)
    leave_lock(own).rename(own / "share-1-of-2.1")  # that of one which has ended on this machine is not waited for
    lock, heard = leave_lock(own, machine="another"), time.time() - 25
    os.utime(lock, (heard, heard))
    started = time.monotonic()
    Store.resume(own.parent).close()
    assert time.time() - heard > 30 and time.monotonic() - started < 20
    (said,) = caplog.messages
    times = re.search(r"m\.zarr: last heard of process \d+ on far (\d+) s ago\. Waiting for (\d+) s, unless", said)
    assert 25 <= int(times[1]) < 40 and 31 <= int(times[1]) + int(times[2]) <= 33


def test_a_run_waits_no_longer_than_until_the_lease_is_released(own):
    lock, released = leave_lock(own, machine="another"), []

    def release():
        released.append(time.monotonic())
        lock.unlink()

    threading.Timer(0.5, release).start()
    Store.resume(own.parent).close()
    assert released and time.monotonic() - released[0] < leases.STALE / 2


def test_a_run_outlasts_a_dead_share_also_beside_one_that_releases_its_lease_meanwhile(own, monkeypatch):
    monkeypatch.setattr(leases, "STALE", 30.0)
    heard = time.time() - 25
    dead = leave_lock(own, machine="another").rename(own / "share-1-of-2.1")
    os.utime(dead, (heard, heard))
    finishing = leave_lock(own, machine="another")  # it was heard of just now
    threading.Timer(0.5, finishing.unlink).start()
    started = time.monotonic()
    Store.take_share(own.parent, (1, 2)).close()
    assert time.time() - heard > 30 and time.monotonic() - started < 20


def test_the_lock_of_this_machine_holds_while_its_process_lives_however_long_it_sleeps(own):
    first = Lease.take(own, own.parent)
    os.utime(first.path, (0, 0))
    with pytest.raises(OutputLocked):
        Store.resume(own.parent)
    first.release()


@pytest.mark.parametrize("hidden", [False, True])
def test_the_lock_of_another_user_s_process_on_this_machine_holds(own, monkeypatch, hidden):
    ticks = lease_holder.started(os.getpid())
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
    assert lease_holder.is_running(os.getpid(), ticks) is (None if hidden else True)
    assert [lock for lock, _ in leases.live(leases.locks(own), time.time())] == leases.locks(own)
    if hidden:  # then its heart is asked
        os.utime(lock, (0, 0))
        assert leases.live(leases.locks(own), time.time()) == []


def test_the_heart_beats(own, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.01)
    store = Store.resume(own.parent)
    os.utime(own / "lock.1", (0, 0))
    wait_until(lambda: (own / "lock.1").stat().st_mtime > 0)
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


def test_a_lease_that_another_took_after_the_look_is_left_to_it(own, monkeypatch):
    """A second lease file, however briefly there, would make the other give up if it looked at that moment."""
    look, link, taken, made = leases.locks, os.link, [], []

    def look_too_early(folder):
        found = look(folder)
        monkeypatch.setattr(leases, "locks", look)
        taken.append(Lease.take(own, own.parent))
        return found

    monkeypatch.setattr(leases, "locks", look_too_early)
    monkeypatch.setattr(os, "link", lambda source, target: made.append(Path(target).name) or link(source, target))
    with pytest.raises(OutputLocked, match=f"is being written by process {os.getpid()} on"):
        Lease.take(own, own.parent)
    assert set(made) == {"lock.1"} and [lock.name for lock in own.glob("lock*")] == ["lock.1"]
    taken[0].check(own.parent)
    taken[0].release()


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
