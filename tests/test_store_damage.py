"""Files of a store that are not what was written: each is named, none falsely, and resuming mends them."""

import numpy as np
import pytest
from store_fixtures import assert_resumes_to
from store_helpers import (
    INFO,
    LAYOUTS,
    damage_of,
    make,
    part,
    tree,
    tree_hash,
    truth_of,
    write_all_blocks,
)

from tilenet.errors import BlocksFailed, OutputError, OutputIncomplete
from tilenet.store import Store, open_mask
from tilenet.store.damage import read_verified
from tilenet.store.lease import Lease

DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "emptied": lambda file: file.write_bytes(b""),
    "flipped": lambda file: file.write_bytes(flipped(file.read_bytes())),
    "deleted": lambda file: file.unlink(),
    "replaced": lambda file: file.write_bytes(b"\xff" * file.stat().st_size),
}


def flipped(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def shards_of(path):
    return [name for name in tree(path) if "/c/" in name]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_of_a_complete_store_are_named_and_resuming_mends_them(tmp_path, damage):
    path, layout = tmp_path / "m.zarr", LAYOUTS["odd blocks"]
    make(path, layout)
    expected = tree_hash(path)
    random = np.random.default_rng(len(damage))
    names = sorted(random.choice(shards_of(path), 20, replace=False).tolist())
    for name in names:
        DAMAGES[damage](path / name)
    found = damage_of(path)
    assert sorted(d.file for d in found) == names
    for d in found:
        assert d.what == {"deleted": "missing"}.get(damage, "changed")
        assert d.file in layout.files(0 if d.array.startswith("prob") else int(d.array), d.block)
        assert f"(array {d.array}, block {d.block})" in str(d)
    store = Store.resume(path)
    assert not store.complete
    blocks = {d.block for d in found if d.array in ("0", "probabilities/0")}
    assert set(store.pending()) == blocks
    store.close()
    assert_resumes_to(expected, path, "odd blocks")
    assert damage_of(path) == []


def test_a_damaged_mask_is_read_once_to_be_taken_up(tmp_path, monkeypatch):
    make(tmp_path / "m.zarr", LAYOUTS["tiny"])
    name, read = shards_of(tmp_path / "m.zarr")[0], []

    def counted(path, written):
        read.append(path)
        return read_verified(path, written)

    monkeypatch.setattr("tilenet.store.damage.read_verified", counted)
    for change in (lambda: None, lambda: DAMAGES["flipped"](tmp_path / "m.zarr" / name)):
        change()
        read.clear()
        Store.resume(tmp_path / "m.zarr").close()
        assert len(read) == len(set(read)) > 5


def test_a_mask_that_another_run_mends_meanwhile_is_looked_at_again(tmp_path, monkeypatch):
    path, take = tmp_path / "m.zarr", Lease.take
    make(path, LAYOUTS["tiny"])
    right, name = tree(path), shards_of(path)[0]

    def mended_first(*where):
        (path / name).write_bytes(data)
        (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes())
        return take(*where)

    data = (path / name).read_bytes()
    monkeypatch.setattr(Lease, "take", mended_first)
    DAMAGES["flipped"](path / name)
    store = Store.resume(path)
    assert store.complete and tree(path) == right


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_damaged_before_the_end_is_found_and_written_again(tmp_path, right, damage):
    path, layout = tmp_path / "m.zarr", LAYOUTS["tiny with classes"]
    for number, name in enumerate([*layout.files(0, 1)[1:], layout.files(0, 2)[0], layout.files(1, 0)[0]]):
        path = tmp_path / str(number) / "m.zarr"
        store, truth = Store.create(path, layout, INFO), truth_of(layout)
        write_all_blocks(store, truth)
        store.build_pyramid()
        DAMAGES[damage](path / name)
        # A wrong size is seen at once, a wrong byte when everything is verified.
        with pytest.raises((BlocksFailed, OutputIncomplete), match="--resume"):
            store.finish()
        store.close()
        assert_resumes_to(right("tiny with classes"), path, "tiny with classes")


def test_the_pyramid_is_not_built_from_a_damaged_shard(tmp_path, right):
    path, layout = tmp_path / "m.zarr", LAYOUTS["tiny"]
    store = Store.create(path, layout, INFO)
    write_all_blocks(store, truth_of(layout))
    DAMAGES["flipped"](path / layout.files(0, 1)[0])
    with pytest.raises(BlocksFailed, match=r"0/c/1/0 \(array 0, block 1\) is damaged"):
        store.build_pyramid()
    assert list(store.pending()) == [1]
    store.write(1, part(layout, truth_of(layout), 1))
    store.build_pyramid()
    store.finish()
    assert tree_hash(path) == right("tiny")


def test_damage_to_the_journal_and_metadata_of_a_complete_store_is_named_and_mended(tmp_path, right):
    layout = LAYOUTS["tiny with classes"]
    changes = [
        (".tilenet/journal.jsonl", lambda file: file.write_bytes(file.read_bytes()[:-200]), "is not in the journal"),
        (".tilenet/journal.jsonl", lambda file: file.unlink(), "journal.jsonl is cut short or missing"),
        (
            "0/zarr.json",
            lambda file: file.write_bytes(file.read_bytes().replace(b"128", b"127")),
            "0/zarr.json is changed",
        ),
        ("probabilities/zarr.json", lambda file: file.unlink(), "probabilities/zarr.json is missing"),
        ("1/zarr.json", lambda file: file.write_bytes(b""), "1/zarr.json is changed"),
    ]
    for number, (name, change, says) in enumerate(changes):
        path = tmp_path / str(number) / "m.zarr"
        make(path, layout)
        change(path / name)
        assert any(says in str(found) for found in damage_of(path))
        assert_resumes_to(right("tiny with classes"), path, "tiny with classes")


def test_a_changed_root_document_cannot_be_mended_and_is_said_so(tmp_path):
    path = tmp_path / "m.zarr"
    make(path, LAYOUTS["tiny"])
    root = path / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b"0.5,", b"0.7,", 1))
    assert [str(d) for d in damage_of(path)] == ["zarr.json is changed"]
    with pytest.raises(OutputError, match="--overwrite"):
        Store.resume(path)
    assert not list((path / ".tilenet").glob("lock*"))


def test_a_foreign_file_does_not_make_a_complete_mask_be_written_again(tmp_path):
    path, layout = tmp_path / "m.zarr", LAYOUTS["tiny"]
    make(path, layout)
    (path / "0/c/Thumbs.db").write_bytes(b"x")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    store = Store.resume(path)
    assert store.complete and [str(found) for found in store.check()] == ["0/c/Thumbs.db is extra"]
    mask = open_mask(path)
    mask.refuse_damage()
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    background = next(n for i in range(layout.n_blocks(0)) for n in layout.files(0, i) if not (path / n).exists())
    (path / background).parent.mkdir(parents=True, exist_ok=True)
    (path / background).write_bytes(b"x")  # where a block that is all background has no file, one is damage
    with pytest.raises(BlocksFailed, match=r"1 file not as written \(0/c/0/0 .* is extra\)"):
        mask.refuse_damage()
    store = Store.resume(path)
    assert not store.complete
    store.close()


def test_files_that_nobody_wrote_are_named_and_those_of_the_system_are_not(tmp_path, right):
    path, layout = tmp_path / "m.zarr", LAYOUTS["tiny"]
    make(path, layout)
    background = next(n for i in range(layout.n_blocks(0)) for n in layout.files(0, i) if not (path / n).exists())
    (path / background).parent.mkdir(parents=True, exist_ok=True)
    (path / background).write_bytes(b"\0" * 40)
    (path / "0" / "c" / ".DS_Store").write_bytes(b"")
    assert [(d.file, d.what) for d in damage_of(path)] == [(background, "extra")]
    (path / "0" / "c" / "9").mkdir()
    for extra in ("0/c/9/9", "0/c/notes.txt"):
        (path / extra).write_bytes(b"")
    assert {d.file for d in damage_of(path)} == {background, "0/c/9/9", "0/c/notes.txt"}
