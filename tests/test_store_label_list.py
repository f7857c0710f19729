"""The list of an image's labels: complete masks alone are on it, and no name is ever lost."""

import json
import shutil
import signal
import subprocess
import sys
from itertools import product

import pytest
from store_helpers import INFO, INSIDE, damage_of, make, replace_step, run, tree_hash, truth_of, write_all_blocks

from tilenet.errors import EnvironmentFault, OutputError, OutputLocked
from tilenet.store import Store, file_system, is_complete, label_list, open_mask
from tilenet.store.metadata import OWN

KILLED = -signal.SIGKILL
BOTH = pytest.mark.parametrize("layout", [INSIDE[name] for name in INSIDE], ids=list(INSIDE))
ROOTS = {2: ".zattrs", 3: "zarr.json"}


def group_with(folder, zarr_format, names=("theirs",), **more):
    """Make a labels group that somebody else wrote."""
    folder.mkdir(parents=True)
    document = {"labels": list(names), **more}
    if zarr_format == 2:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
    else:
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **document}}}
    (folder / ROOTS[zarr_format]).write_text(json.dumps(document))
    return folder


def names_in(folder, zarr_format):
    """Return the list as a viewer reads it."""
    path = folder / ROOTS[zarr_format]
    if not path.exists():
        return []
    document = json.loads(path.read_bytes())
    return (document["attributes"]["ome"] if zarr_format == 3 else document)["labels"]


@BOTH
def test_a_mask_is_listed_when_it_is_complete_and_not_before(tmp_path, layout):
    path = tmp_path / "labels" / "m"
    store = Store.create(path, layout, INFO)
    write_all_blocks(store, truth_of(layout))
    store.build_pyramid()
    assert names_in(path.parent, layout.zarr_format) == []
    store.finish()
    assert names_in(path.parent, layout.zarr_format) == ["m"]
    documents = {".zattrs", ".zgroup"} if layout.zarr_format == 2 else {"zarr.json"}
    assert {p.name for p in path.parent.iterdir()} == {"m", *documents}


@BOTH
def test_what_a_group_says_is_kept(tmp_path, layout):
    folder = group_with(tmp_path / "labels", layout.zarr_format, note={"by": "them"})
    make(folder / "m", layout)
    document = json.loads((folder / ROOTS[layout.zarr_format]).read_bytes())
    own = document if layout.zarr_format == 2 else document["attributes"]["ome"]
    assert own == {"labels": ["theirs", "m"], "note": {"by": "them"}} | (
        {"version": "0.5"} if layout.zarr_format == 3 else {}
    )


@BOTH
def test_a_mask_that_is_replaced_or_mended_is_off_the_list_meanwhile(tmp_path, layout):
    path = group_with(tmp_path / "labels", layout.zarr_format) / "m"
    truth = make(path, layout)
    store = Store.create(path, layout, INFO, overwrite=True)
    assert names_in(path.parent, layout.zarr_format) == ["theirs"]
    write_all_blocks(store, truth)
    store.build_pyramid()
    store.finish()
    assert names_in(path.parent, layout.zarr_format) == ["theirs", "m"]
    (path / layout.files(0, 1)[0]).write_bytes(b"torn")
    store = Store.resume(path)
    assert names_in(path.parent, layout.zarr_format) == ["theirs"]
    write_all_blocks(store, truth)
    store.finish()
    assert names_in(path.parent, layout.zarr_format) == ["theirs", "m"]


@BOTH
def test_resuming_lists_a_complete_mask_that_somebody_took_off_the_list(tmp_path, layout):
    path = tmp_path / "labels" / "m"
    make(path, layout)
    label_list.withdraw(path, layout)
    assert names_in(path.parent, layout.zarr_format) == []
    Store.resume(path).close()
    assert names_in(path.parent, layout.zarr_format) == ["m"]


def test_a_mask_that_cannot_be_replaced_is_listed_again(tmp_path, monkeypatch):
    layout = INSIDE["inside, format 3"]
    path = tmp_path / "labels" / "m"
    make(path, layout)
    real = file_system.os.rename

    def full(source, target):
        if target == path:
            raise OSError(28, "no space left on device")
        real(source, target)

    monkeypatch.setattr("tilenet.store.build.os.rename", full)
    monkeypatch.setattr("tilenet.store.build._take_back", take_back_with(real))
    with pytest.raises(EnvironmentFault):
        Store.create(path, layout, INFO, overwrite=True)
    assert names_in(path.parent, 3) == ["m"]
    assert open_mask(path).shape == layout.shape


def test_a_mask_whose_replacement_is_interrupted_is_listed_again(tmp_path, monkeypatch):
    layout = INSIDE["inside, format 3"]
    path = tmp_path / "labels" / "m"
    make(path, layout)

    def interrupted(name, do, *args, **kwargs):
        if name == "rename" and args[0] == path:
            raise KeyboardInterrupt
        return do(*args, **kwargs)

    with monkeypatch.context() as patch:
        replace_step(interrupted, patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            Store.create(path, layout, INFO, overwrite=True)
    assert names_in(path.parent, 3) == ["m"]
    assert is_complete(path)


def take_back_with(rename):
    """Return `_take_back` on a disk that works again."""
    from tilenet.store import build

    real = build._take_back

    def take_back(new, path):
        build.os.rename = rename
        real(new, path)

    return take_back


@pytest.mark.parametrize(
    "document",
    ["{", "[]", '{"labels": "m"}', '{"labels": [1]}'],
)
def test_a_list_that_cannot_be_understood_is_left_alone(tmp_path, document):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / ".zattrs").write_text(document)
    with pytest.raises(OutputError, match="no list of labels"):
        make(tmp_path / "labels" / "m", INSIDE["inside, format 2"])
    assert (tmp_path / "labels" / ".zattrs").read_text() == document
    assert [p.name for p in (tmp_path / "labels").iterdir() if p.name == OWN] == []


@pytest.mark.parametrize(
    ("layout", "when", "overwrite", "every"),
    [
        ("inside, format 3", "after", False, 4),
        *(
            pytest.param(*how, 1, marks=pytest.mark.slow)
            for how in product(INSIDE, ("before", "torn", "after"), (False, True))
        ),
    ],
)
def test_killed_at_every_step_only_whole_masks_are_listed(children, tmp_path, layout, when, overwrite, every):
    mine, zarr_format = INSIDE[layout], INSIDE[layout].zarr_format
    make(tmp_path / "right" / "labels" / "m", mine)
    expected = tree_hash(tmp_path / "right" / "labels" / "m")
    for number in range(1, 1000, every):
        path = group_with(tmp_path / str(number) / "labels", zarr_format) / "m"
        if overwrite:
            make(path, mine, seed=1)
        status = children.run(path, layout, kill=[number, when], overwrite=overwrite)
        if status == 0:
            break
        assert status == KILLED
        names = names_in(path.parent, zarr_format)
        assert names in (["theirs"], ["theirs", "m"])
        if "m" in names:
            assert open_mask(path).shape == mine.shape
            assert damage_of(path) == []
        run(path, mine, overwrite=overwrite)
        assert names_in(path.parent, zarr_format) == ["theirs", "m"]
        assert tree_hash(path) == expected
        kept = {p.name for p in path.parent.iterdir()}
        assert kept == {"m", ROOTS[zarr_format]} | ({".zgroup"} if zarr_format == 2 else set())
        shutil.rmtree(path.parent.parent)
    assert status == 0 and number > 61


ENLIST = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tilenet.store import label_list
for name in sys.argv[2:]:
    label_list.enlist(Path(sys.argv[1]) / name, SimpleNamespace(source="../../", zarr_format=2))
"""


def test_runs_that_end_together_lose_no_name(tmp_path):
    folder = group_with(tmp_path / "labels", 2)
    names = [[f"{run}-{i}" for i in range(12)] for run in range(4)]
    runs = [subprocess.Popen([sys.executable, "-c", ENLIST, folder, *some]) for some in names]
    assert [run.wait(60) for run in runs] == [0] * 4
    listed = names_in(folder, 2)
    assert sorted(listed) == sorted(["theirs", *(name for some in names for name in some)])
    assert [[name for name in listed if name in some] for some in names] == names
    assert sorted(p.name for p in folder.iterdir()) == [".zattrs", ".zgroup"]


def test_two_that_read_the_same_list_cannot_both_write_it(tmp_path, monkeypatch):
    folder, layout = group_with(tmp_path / "labels", 2), INSIDE["inside, format 2"]
    read, refused = label_list._read, []

    def read_while_another_writes(group, zarr_format):
        document = read(group, zarr_format)
        monkeypatch.setattr(label_list, "_read", read)
        with pytest.raises(OutputLocked):
            label_list.enlist(group / "other", layout)
        refused.append(True)
        return document

    monkeypatch.setattr(label_list, "_read", read_while_another_writes)
    monkeypatch.setattr(label_list, "PATIENCE", -1.0)
    label_list.enlist(folder / "m", layout)
    assert (refused, names_in(folder, 2)) == ([True], ["theirs", "m"])


def test_who_has_slept_until_another_took_the_lease_reads_the_list_again(tmp_path, monkeypatch):
    folder, layout = group_with(tmp_path / "labels", 2), INSIDE["inside, format 2"]
    read = label_list._read

    def read_and_sleep(group, zarr_format):
        document = read(group, zarr_format)
        monkeypatch.setattr(label_list, "_read", read)
        (lock,) = (group / OWN).glob("lock.*")
        lock.rename(group / OWN / "lock.2")  # as one leaves it who takes the holder for dead
        return document

    monkeypatch.setattr(label_list, "_read", read_and_sleep)
    monkeypatch.setattr(label_list, "PATIENCE", -1.0)
    with pytest.raises(OutputLocked, match="taken over"):
        label_list.enlist(folder / "m", layout)
    assert names_in(folder, 2) == ["theirs"]
    (folder / OWN / "lock.2").unlink()
    label_list.enlist(folder / "m", layout)
    assert names_in(folder, 2) == ["theirs", "m"]


def test_a_lease_of_a_killed_run_is_no_obstacle(children, tmp_path):
    layout = INSIDE["inside, format 3"]
    path = tmp_path / "labels" / "m"
    make(path, layout)
    label_list.withdraw(path, layout)
    left = path.parent / OWN
    left.mkdir()
    (left / "half.part").write_bytes(b"{")
    (left / "lock.1").write_text('{"host": "here", "pid": 999999999, "run": "x", "machine": "y", "started": "z"}')
    import os
    import time

    os.utime(left / "lock.1", (time.time() - 1000,) * 2)
    label_list.enlist(path, layout)
    assert names_in(path.parent, 3) == ["m"]
    assert not left.exists()
