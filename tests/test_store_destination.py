"""Where a store may go, and what it may replace."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import time

import numpy as np
import pytest
import zarr
from killing import Killed
from store_helpers import INFO, LAYOUTS, make, part, replace_step, run, tree, tree_hash, truth_of, write_all_blocks

from tilenet.errors import EnvironmentFault, OutputExists, OutputLocked, OutputNotFound
from tilenet.store import Store, can_resume, check_free, destination, file_system, leftovers, open_mask, opening
from tilenet.store.lease import STALE

TINY = LAYOUTS["tiny"]


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


def test_a_store_that_is_being_written_is_refused_with_who_writes_it(tmp_path):
    with closing(Store.create(tmp_path / "m.zarr", TINY, INFO)):
        with pytest.raises(OutputExists, match=rf"exists already, and is being written by process {os.getpid()} on .*"):
            check_free(tmp_path / "m.zarr")
        assert not list((tmp_path / "m.zarr").rglob("*.part"))
    with pytest.raises(OutputExists, match="Go on with it"):
        check_free(tmp_path / "m.zarr")


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
        if Path(target) == old and Path(source).name.endswith(leftovers.NEW):
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
    path, look = tmp_path / "m.zarr", opening.check_free

    def late(*args, **options):
        look(*args, **options)
        monkeypatch.undo()
        make(path, TINY, seed=1)

    monkeypatch.setattr(opening, "check_free", late)
    with pytest.raises(OutputExists, match="made by another run just now"):
        Store.create(path, TINY, INFO)
    assert np.array_equal(np.asarray(open_mask(path)), truth_of(TINY, 1)["mask"])
    assert [file.name for file in tmp_path.iterdir()] == ["m.zarr"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_while_a_run_has_moved_the_old_store_away_no_other_takes_its_place(old, monkeypatch, overwrite):
    step, refused = file_system.step, []

    def others(name, do, *args, **options):
        result = step(name, do, *args, **options)
        if name == "rename" and args[0] == old:
            with pytest.raises(OutputLocked, match=r"is being replaced by another run just now\. Wait for that run"):
                Store.create(old, TINY, INFO, overwrite=overwrite)
            refused.append(not old.exists())
        return result

    with monkeypatch.context() as patch:
        replace_step(others, patch.setattr)
        Store.create(old, TINY, INFO, overwrite=True).close()
    run(old, TINY)
    assert refused == [True] and [file.name for file in old.parent.iterdir()] == ["m.zarr"]


@pytest.mark.parametrize("look", ["is_ours", "foreign_entries"])
def test_a_store_that_is_moved_away_while_it_is_looked_at_is_looked_at_again(old, monkeypatch, look):
    real = getattr(destination, look)

    def moved_away(*args):
        monkeypatch.setattr(destination, look, real)
        old.rename(old.with_name("aside"))
        return real(*args)

    monkeypatch.setattr(destination, look, moved_away)
    assert check_free(old, overwrite=True) is False  # neither another's, nor a fault of the disk


def test_a_store_that_is_gone_after_the_look_is_not_taken_for_a_free_place(old, monkeypatch):
    look = opening.check_free

    def late(path, **options):
        found = look(path, **options)
        old.rename(old.with_name("aside"))
        return found

    monkeypatch.setattr(opening, "check_free", late)
    with pytest.raises(OutputLocked, match="too many runs at once"):
        Store.create(old, TINY, INFO, overwrite=True)
    assert [file.name for file in old.parent.iterdir()] == ["aside"]


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
    return path.with_name(f".{path.name}.{leftovers._machine()}-{pid}-123-abcdef01{leftovers.NEW}")


def test_what_killed_runs_left_beside_the_place_is_swept_and_nothing_else(tmp_path):
    path = tmp_path / "m[1].zarr"
    (abandoned(path) / ".tilenet").mkdir(parents=True)
    alive = leftovers.temporary_place(path)
    alive.mkdir()
    kept = [abandoned(tmp_path / "other.zarr"), tmp_path / f".m[1].zarr.mine{leftovers.NEW}", alive]
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
            list(pool.map(leftovers.sweep, [tmp_path / "m.zarr"] * 4))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [10, 100])
def test_a_file_that_another_machine_is_writing_is_not_swept_and_one_left_alone_is(tmp_path, seconds):
    left = tmp_path / f".m.tif.{'0' * 12}-1-123-abcdef01{leftovers.NEW}"  # of another machine
    left.mkdir()
    (left / "m.tif").write_bytes(b"half")
    for path, age in ((left / "m.tif", seconds), (left, 1000)):  # the folder's time is that of its first file
        os.utime(path, (time() - age,) * 2)
    leftovers.sweep(tmp_path / "m.tif")
    assert left.exists() == (seconds < STALE)


def test_what_goes_away_while_it_is_looked_at_was_not_abandoned(tmp_path, monkeypatch):
    left = tmp_path / f".m.zarr.{'0' * 12}-1-123-abcdef01{leftovers.NEW}"  # of another machine
    left.mkdir()
    os.utime(left, (0, 0))
    assert list(leftovers.abandoned(tmp_path / "m.zarr")) == [left]
    clock = leftovers._clock_beside

    def put_in_place(path):
        left.rename(tmp_path / "m.zarr")
        return clock(path)

    monkeypatch.setattr(leftovers, "_clock_beside", put_in_place)
    assert list(leftovers.abandoned(tmp_path / "m.zarr")) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "m.zarr"]


@pytest.mark.parametrize(
    "ask", [destination.can_resume, destination.is_complete, destination.held_whole, destination.refuse_shares]
)
def test_what_cannot_be_read_is_not_called_unwritable(old, monkeypatch, ask):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    for module, name in ((destination, "recover"), (destination, "locks"), (leftovers, "locks")):
        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(EnvironmentFault, match=r"m\.zarr: cannot be accessed \(permission denied\)\. Fix that"):
        ask(old)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("use", [open_mask, Store.resume, lambda path: check_free(path, overwrite=True)])
def test_a_mask_that_cannot_be_read_is_not_called_another_s(old, monkeypatch, use, number):
    real = Path.read_bytes

    def fail(path):
        if path.name == "zarr.json":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(EnvironmentFault, match=rf"m\.zarr: cannot be accessed \({os.strerror(number).lower()}\)\. Fix"):
        use(old)


def test_trouble_while_the_files_of_blocks_are_listed_is_one_of_the_machine(old, tmp_path, monkeypatch):
    def stale(handle):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with closing(Store.create(tmp_path / "new.zarr", TINY, INFO)) as begun:
        begun.write(1, part(TINY, truth_of(TINY), 1))
        monkeypatch.setattr(os, "listdir", stale)
        for use, again in ((lambda: open_mask(old), "run again$"), (lambda: list(begun.pending()), "--resume")):
            with pytest.raises(EnvironmentFault, match=rf"cannot be accessed \(stale file handle\)\..* {again}"):
                use()


@pytest.mark.parametrize("check", [lambda mask: mask.refuse_damage(), lambda mask: Store.inspect(mask.path).check()])
def test_trouble_while_the_files_of_blocks_are_compared_is_one_of_the_machine(old, monkeypatch, check):
    mask, real = open_mask(old), Path.stat

    def stale(path, **options):
        if "/c/" in str(path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, **options)

    monkeypatch.setattr("tilenet.store.damage.read_verified", lambda path, written: None)
    monkeypatch.setattr(Path, "stat", stale)
    with pytest.raises(EnvironmentFault, match=r"m\.zarr: cannot be accessed \(stale file handle\)"):
        check(mask)


def test_without_shares_nothing_is_written_to_see_whether_any_is_at_work(old, monkeypatch):
    monkeypatch.setattr(destination, "_clock_of", None)
    destination.refuse_shares(old)


def test_a_process_killed_while_it_asks_for_the_time_leaves_nothing_that_stays(old, monkeypatch):
    left = old.with_name(f".m.zarr.{'0' * 12}-1-123-abcdef01{leftovers.NEW}")  # of another machine
    left.mkdir()
    (old / ".tilenet" / "share-1-of-2.1").write_text("{}")

    def killed(name, do, *args, **options):
        do(*args, **options)
        if name == "note":
            raise Killed

    for ask in (leftovers.sweep, destination.refuse_shares):
        with monkeypatch.context() as dying, pytest.raises(Killed):
            replace_step(killed, dying.setattr)
            ask(old)
    (note,) = [path for path in old.parent.iterdir() if path not in (old, left)]
    note.rename(abandoned(old))
    leftovers.sweep(old)
    assert sorted(old.parent.iterdir()) == sorted([old, left])
    assert len(list((old / ".tilenet").glob("*.part"))) == 1
    (old / ".tilenet" / "share-1-of-2.1").unlink()
    run(old, TINY)
    assert not list((old / ".tilenet").glob("*.part"))


def test_what_sweeping_leaves_is_the_only_copy_of_a_mask(old):
    Store.create(old, TINY, INFO, overwrite=True).close()
    left = old.rename(abandoned(old))  # as it was between the two renames
    leftovers.sweep(old)
    assert left.is_dir()


def test_what_was_left_beside_a_place_of_a_longer_name_stays(old):
    Store.create(old, TINY, INFO, overwrite=True).close()
    left = old.rename(abandoned(old))  # as it was between the two renames
    destination.check_free(old.with_name("m"))
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
