"""The journal read fast: what a million lines say, and every line that says nothing."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_helpers import INFO, LAYOUTS, part, truth_of, write_all_blocks

from tilenet.store import Layout, Store
from tilenet.store import journal as journals
from tilenet.store.journal import Journal, Written, line_of
from tilenet.store.journal_parser import Form

SHAPES = {
    **{name: LAYOUTS[name] for name in ("plane", "odd blocks", "one row", "volume", "series", "all axes")},
    "format 2": Layout("zyx", (5, 300, 90), (2, 64, 32), (None,) * 3, "two", {}, 2, zarr_format=2),
}


def written(random):
    return None if random.random() < 0.3 else Written(int(random.integers(1, 2**40)), random.bytes(32).hex())


def lines_of(layout, seed=0, levels=None):
    """Return a line for each block of the levels, in any order."""
    random = np.random.default_rng(seed)
    blocks = [(level, i) for level in levels or range(len(layout.levels)) for i in range(layout.n_blocks(level))]
    random.shuffle(blocks)
    return [line_of(layout, level, i, [written(random) for _ in layout.files(level, i)]) for level, i in blocks]


def slowly(layout, lines):
    """Return the journal read as JSON, line by line."""
    journal = Journal(layout)
    for line in lines:
        try:
            journal.note(line)
        except ValueError:
            continue
    return journal


def load(layout, lines, folder):
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    journal = Journal(layout)
    journal.load(folder)
    return journal


def content(layout, journal):
    blocks = [(level, i) for level in range(len(layout.levels)) for i in range(layout.n_blocks(level))]
    return [journal.files(*block) for block in blocks], journal.documents


@pytest.mark.parametrize("name", SHAPES)
def test_lines_read_together_say_what_they_say_one_by_one(tmp_path, name):
    layout = SHAPES[name]
    for level in range(len(layout.levels)):
        lines = lines_of(layout, levels=[level])
        assert len(Form(layout).read(lines).blocks) == len(lines) > 0
    lines = [b'{"documents":{"a":[1,"b"]}}\n', *lines_of(layout)]
    found = content(layout, load(layout, lines, tmp_path))
    assert found == content(layout, slowly(layout, lines))
    assert None not in found[0]


@pytest.mark.parametrize("name", SHAPES)
def test_of_the_lines_of_a_grid_that_is_larger_along_each_axis_only_those_of_own_blocks_count(name):
    layout, sides = SHAPES[name], zip(SHAPES[name].shape, SHAPES[name].block, strict=True)
    larger = replace(layout, shape=tuple(n + side for n, side in sides))
    files = [(index, larger.files(0, index)) for index in range(larger.n_blocks(0))]
    own = [index for index, said in files if index < layout.n_blocks(0) and said == layout.files(0, index)]
    found = Form(layout).read(lines_of(larger, levels=[0]))
    assert sorted(found.blocks) == own and 0 < len(own) < len(files)


def test_of_two_lines_about_one_block_the_last_counts(tmp_path):
    layout = SHAPES["volume"]
    lines = [*lines_of(layout, 1, [0]), *lines_of(layout, 2, [0])]
    assert len(Form(layout).read(lines).blocks) == 2 * layout.n_blocks(0)
    journal = load(layout, lines, tmp_path)
    assert content(layout, journal) == content(layout, slowly(layout, lines))
    assert content(layout, journal) == content(layout, slowly(layout, lines_of(layout, 2, [0])))


def changed(line, random):
    """Return a line with bytes replaced, taken away or put in."""
    data = bytearray(line)
    for _ in range(int(random.integers(1, 3))):
        at = int(random.integers(0, len(data)))
        kind = random.integers(0, 4)
        if kind == 0:
            data[at] = int(random.integers(0, 256))
        elif kind == 1:
            del data[at : at + int(random.integers(1, 9))]
        elif kind == 2:
            data[at:at] = random.choice([b"0", b"1", b" ", b"\n", b"\r", b"-", b"9" * 30, b'"', b"null"])
        else:
            data[at:at] = data[:at]
        data = data or bytearray(b"\n")
    return bytes(data)


@pytest.mark.parametrize("name", ["odd blocks", "plane", "format 2"])
def test_damaged_lines_are_ignored_as_if_each_were_read_alone(tmp_path, monkeypatch, name):
    layout, random = SHAPES[name], np.random.default_rng(1)
    monkeypatch.setattr(journals, "PIECE", 600)  # a few lines each, so that most pieces are still read together
    together = []
    read = Form.read
    monkeypatch.setattr(Form, "read", lambda form, lines: together.append(read(form, lines)) or together[-1])
    for number in range(60):
        lines = [*lines_of(layout, number, [0]), *lines_of(layout, number, [0])]
        for _ in range(3):
            at = int(random.integers(0, len(lines)))
            lines[at] = changed(lines[at], random)
        split = [line + b"\n" for line in b"".join(lines).split(b"\n")]
        assert content(layout, load(layout, lines, tmp_path)) == content(layout, slowly(layout, split)), number
    assert sum(found is None for found in together) > 60
    assert sum(found is not None for found in together) > 30


SPELLINGS = {
    "another name": lambda line: line.replace(b"c/0/1", b"c/1/0"),
    "a leading zero": lambda line: line.replace(b"c/0/1", b"c/0/01"),
    "outside the grid": lambda line: line.replace(b'"block":1', b'"block":999').replace(b"c/0/1", b"c/333/0"),
    "size -1": lambda line: line.replace(b"[5,", b"[-1,"),
    "size 0": lambda line: line.replace(b"[5,", b"[0,"),
    "a size that no file can have": lambda line: line.replace(b"[5,", b"[%d," % 2**63),
    "a size of 30 digits": lambda line: line.replace(b"[5,", b"[" + b"5" * 30 + b","),
    "another level": lambda line: line.replace(b'"level":0', b'"level":1'),
    "no such level": lambda line: line.replace(b'"level":0', b'"level":7'),
    "a short checksum": lambda line: line.replace(b"ab", b"", 1),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_line_that_only_looks_right_vouches_for_no_block(tmp_path, how):
    layout = LAYOUTS["plane"]
    line = line_of(layout, 0, 1, [Written(5, "ab" * 32)])
    blocks = [(level, index) for level in (0, 1) for index in range(layout.n_blocks(level))]
    right = load(layout, [line], tmp_path)
    assert [block for block in blocks if block in right] == [(0, 1)]
    wrong = SPELLINGS[how](line)
    assert wrong != line
    found = load(layout, [wrong], tmp_path)
    assert [block for block in blocks if block in found] == []


@pytest.mark.parametrize("name", ["odd blocks", "volume", "series", "all axes"])
def test_pending_are_the_blocks_whose_files_have_not_the_size_in_the_journal(tmp_path, name):
    layout, random = LAYOUTS[name], np.random.default_rng(2)
    truth, store = truth_of(layout), Store.create(tmp_path / "m.zarr", layout, INFO)
    for index in range(0, layout.n_blocks(0), 2):
        store.write(index, part(layout, truth, index))
    files = [file for i in range(0, layout.n_blocks(0), 2) for file in layout.files(0, i)]
    for file in random.permutation(files)[:9]:
        path = store.path / file
        path.unlink() if path.exists() and random.random() < 0.5 else os.truncate(path, 3) if path.exists() else None
    journal = store._blocks.journal
    expected = [i for i in range(layout.n_blocks(0)) if not as_in_the_journal(store.path, layout, journal, i)]
    assert list(store.pending()) == expected
    assert 0 < len(expected) < layout.n_blocks(0)
    for start, stop in ((0, 3), (1, layout.n_blocks(0) - 1), (2, 2)):
        assert list(store.pending(among=range(start, stop))) == [i for i in expected if start <= i < stop]
    store.close()


@pytest.mark.parametrize("at", [journals.FOLDER, ".tilenet"], ids=["of a writer", "of all"])
def test_a_store_finished_while_its_journals_are_read_has_nothing_pending(tmp_path, monkeypatch, at):
    store, is_file = Store.create(tmp_path / "m.zarr", LAYOUTS["tiny"], INFO), Path.is_file
    write_all_blocks(store, truth_of(store.layout))
    store.build_pyramid()

    def finished(path):
        found = is_file(path)
        if path.parent.name == at:
            monkeypatch.undo()
            store.finish()
        return found

    monkeypatch.setattr(Path, "is_file", finished)
    seen = Store.inspect(tmp_path / "m.zarr")
    assert store.complete and not seen.complete and list(seen.pending()) == []


def as_in_the_journal(path, layout, journal, index):
    files = journal.files(0, index)
    if files is None:
        return False
    sizes = [of.size if of else None for of in files]
    found = [(path / file).stat().st_size if (path / file).exists() else None for file in layout.files(0, index)]
    return sizes == found


def test_a_file_with_another_spelling_of_a_number_is_no_block(tmp_path):
    layout = LAYOUTS["plane"]
    store = Store.create(tmp_path / "m.zarr", layout, INFO)
    store.write(1, part(layout, truth_of(layout), 1))
    file = store.path / layout.files(0, 1)[0]
    assert 1 not in store.pending()
    file.rename(file.with_name("01"))
    assert 1 in store.pending()
    store.close()
