"""What is written is what is read, in every shape, order and number of threads."""

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaozarrs
import zarr
from ome_zarr_models import v04, v05
from store_helpers import INFO, LABELS, LAYOUTS, make, part, replace_step, tree, tree_hash, truth_of, write_all_blocks

from tilenet.errors import (
    OutputError,
    OutputExists,
    OutputIncomplete,
    OutputNotFound,
)
from tilenet.geometry import Box
from tilenet.store import Layout, Mask, Store, codec, file_system, open_mask
from tilenet.store.layout import ArrayLayout
from tilenet.store.metadata import array_document


def test_plain_zarr_reads_what_was_written(written):
    path, layout, truth = written
    found = zarr.open_array(path / "0", mode="r")
    assert found.dtype == layout.mask_dtype
    if layout.zarr_format == 3:
        assert (found.shards, found.metadata.dimension_names) == (layout.block, tuple(layout.axes))
    else:
        assert (found.chunks, found.metadata.dimension_separator) == (layout.block, "/")
    assert np.array_equal(found[...], truth["mask"])
    assert truth["mask"].any() or not layout.labels


def test_probabilities_stand_with_their_classes_where_ome_wants_them(written):
    path, layout, truth = written
    assert (path / "probabilities").exists() == (layout.classes > 0)
    if layout.classes:
        found = zarr.open_array(path / "probabilities" / "0", mode="r")
        assert found.dtype == layout.probability_dtype
        assert (found.shards or found.chunks)[layout.class_axis] == 1
        assert np.array_equal(found[...], np.moveaxis(truth["probabilities"], 0, layout.class_axis))
        assert truth["probabilities"].std() > 0 or truth["probabilities"].size == 1


def test_every_level_is_every_second_pixel_of_the_one_above(written):
    mask = open_mask(written[0])
    for finer, coarser in zip(mask.levels, mask.levels[1:], strict=False):
        assert np.array_equal(finer[...][..., ::2, ::2], coarser[...])
    assert max(mask.levels[-1].shape[-2:]) <= 256
    assert all(max(level.shape[-2:]) > 256 for level in mask.levels[:-1])


def test_both_validators_accept_it(written):
    path, layout, _ = written
    models = {2: v04, 3: v05}[layout.zarr_format]
    yaozarrs.validate_zarr_store(path)
    models.ImageLabel.from_zarr(zarr.open_group(path, mode="r"))
    if layout.classes:
        yaozarrs.validate_zarr_store(path / "probabilities")
        models.Image.from_zarr(zarr.open_group(path / "probabilities", mode="r"))


def test_a_complete_store_is_undamaged_and_not_touched_by_resuming(written):
    path = written[0]
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    store = Store.resume(path)
    assert store.complete
    assert list(store.pending()) == []
    assert store.check() == []
    with pytest.raises(OutputError, match="cannot be written"):
        store.write(0, {"mask": np.zeros(1)})
    store.build_pyramid()
    store.finish()
    store.close()
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*")}


def test_the_store_that_has_just_finished_finds_no_damage_in_itself(tmp_path):
    store = Store.create(tmp_path / "m.zarr", LAYOUTS["tiny"], INFO)
    write_all_blocks(store, truth_of(LAYOUTS["tiny"]))
    store.build_pyramid()
    store.finish()
    assert store.complete
    assert store.check() == []


def test_no_file_but_shards_metadata_journal_and_log_is_left(written):
    path = written[0]
    own = sorted(file.name for file in (path / ".tilenet").iterdir())
    assert own == ["journal.jsonl", "log.jsonl"]
    others = [
        name
        for name in tree(path)
        if not re.search(r"(^|/)(zarr\.json|\.z(array|group|attrs))$|/\d+(/\d+)+$|/c(/\d+)+$", name)
    ]
    assert others == [".tilenet/journal.jsonl"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["m.zarr"]


def test_background_has_no_files_and_reads_as_background(written):
    path, layout, truth = written
    for index in range(layout.n_blocks(0)):
        exists = (path / layout.files(0, index)[0]).exists()
        assert exists == bool(part(layout, truth, index)["mask"].any())


@pytest.mark.parametrize("name", ["odd blocks", "all axes"])
def test_the_order_of_blocks_and_the_number_of_threads_leave_no_trace(tmp_path, name):
    layout = LAYOUTS[name]
    truth = make(tmp_path / "a.zarr", layout)
    store = Store.create(tmp_path / "b.zarr", layout, INFO)
    order = np.random.default_rng(1).permutation(layout.n_blocks(0)).tolist()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda index: store.write(index, part(layout, truth, index)), order))
    store.build_pyramid()
    store.finish()
    assert tree_hash(tmp_path / "a.zarr") == tree_hash(tmp_path / "b.zarr")
    other = make(tmp_path / "c.zarr", layout, seed=1)
    assert not np.array_equal(other["mask"], truth["mask"])
    assert tree_hash(tmp_path / "a.zarr") != tree_hash(tmp_path / "c.zarr")


def test_coarser_blocks_may_be_made_by_another_process(tmp_path):
    layout, sent = LAYOUTS["odd blocks"], []

    def elsewhere(blocks):
        for block in map(pickle.loads, map(pickle.dumps, blocks)):
            sent.append((block.level, block.index))
            yield block.shard()

    make(tmp_path / "a.zarr", layout)
    store = Store.create(tmp_path / "b.zarr", layout, INFO)
    write_all_blocks(store, truth_of(layout))
    store.build_pyramid(make_shards=elsewhere)
    store.finish()
    assert tree_hash(tmp_path / "a.zarr") == tree_hash(tmp_path / "b.zarr")
    assert sent == [(level, i) for level in range(1, len(layout.levels)) for i in range(layout.n_blocks(level))]


def test_every_shard_is_written_once_and_never_read_before(tmp_path, monkeypatch):
    layout, put, real = LAYOUTS["odd blocks"], [], file_system.step

    def watch(name, do, *args, **kwargs):
        if name == "rename" and "/c/" in str(args[1]):
            put.append(args[1].relative_to(tmp_path).as_posix())
        return real(name, do, *args, **kwargs)

    replace_step(watch, monkeypatch.setattr)
    make(tmp_path / "m.zarr", layout)
    shards = [f"m.zarr/{name}" for name in tree(tmp_path / "m.zarr") if "/c/" in name]
    assert sorted(put) == sorted(shards)
    assert len(put) > 20


def test_a_block_is_in_the_journal_only_when_it_would_outlast_a_loss_of_power(tmp_path, monkeypatch):
    layout, steps, real = LAYOUTS["tiny"], [], file_system.step
    store, truth = Store.create(tmp_path / "m.zarr", layout, INFO), truth_of(layout)
    store.write(0, part(layout, truth, 0))  # makes folders and the journal's file

    def watch(name, do, *args, **kwargs):
        steps.append(name)
        return real(name, do, *args, **kwargs)

    replace_step(watch, monkeypatch.setattr)
    store.write(1, part(layout, truth, 1))
    monkeypatch.undo()
    store.close()
    file = "(make folder, sync folder, )*create, (write, )+sync, rename, "
    assert re.fullmatch(f"({file}){{{layout.n_files(0)}}}(sync folder, )+journal, sync journal", ", ".join(steps))


def test_a_torn_shard_in_the_way_is_replaced_unread(tmp_path):
    layout = LAYOUTS["tiny"]
    truth = truth_of(layout)
    with_garbage = Store.create(tmp_path / "a.zarr", layout, INFO)
    for index in range(layout.n_blocks(0)):
        file = with_garbage.path / layout.files(0, index)[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"torn")
    write_all_blocks(with_garbage, truth)
    with_garbage.build_pyramid()
    with_garbage.finish()
    make(tmp_path / "b.zarr", layout)
    assert tree_hash(tmp_path / "a.zarr") == tree_hash(tmp_path / "b.zarr")


def test_what_spans_two_shards_is_not_encoded():
    layout = LAYOUTS["plane"]
    whole = Layout("yx", (100, 100), (100, 100), (None, None), "").box(0, 0)
    document = array_document(layout.arrays["0"])
    assert len(codec.encode(document, whole, np.ones((100, 100), "uint8"))) > 50
    assert codec.encode(document, whole, np.zeros((100, 100), "uint8")) is None
    with pytest.raises(ValueError, match="not one shard but 2"):
        codec.encode(document, layout.box(0, 0).shifted((5, 0)), np.ones(layout.block, "uint8"))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(256, 256), (250, 130)])
def test_a_shard_has_the_bytes_that_zarr_by_itself_writes(tmp_path, dtype, shape):
    array = ArrayLayout("0", "yx", shape, block=(256, 256), chunk=(64, 64), dtype=dtype)
    values = np.zeros(shape, dtype)
    values[:64, :64] = 3
    values[200, 100] = values[64, 64] = 1
    np.negative(values[64:, 64:128], out=values[64:, 64:128])  # of floats, -0.0 is not 0.0
    document = array_document(array)
    (tmp_path / "zarr.json").write_bytes(document)
    zarr.open_array(tmp_path, mode="r+", config={"write_empty_chunks": False})[...] = values
    found = codec.encode(document, Box.of_shape(shape), values)
    assert found == (tmp_path / "c/0/0").read_bytes()
    np.testing.assert_array_equal(codec.decode(document, "c/0/0", found, Box.of_shape(shape)), values)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask": np.zeros((128, 255), "uint8")}, r"\(128, 256\) was expected, not \(128, 255\)"),
        ({"mask": np.zeros((128, 256), "int64")}, "uint8 were expected, not int64"),
    ],
)
def test_arrays_that_do_not_fit_the_block_are_refused(tmp_path, arrays, message):
    store = Store.create(tmp_path / "m.zarr", LAYOUTS["plane"], INFO)
    with pytest.raises(ValueError, match=message):
        store.write(0, arrays)
    with pytest.raises(IndexError, match="no block 99"):
        store.write(99, arrays)
    assert 0 in store.pending()
    store.close()


def test_the_metadata_say_pixel_size_labels_and_how_it_was_made(tmp_path):
    make(tmp_path / "m.zarr", LAYOUTS["volume"])
    attributes = json.loads((tmp_path / "m.zarr" / "zarr.json").read_bytes())["attributes"]
    (scales,) = attributes["ome"]["multiscales"]
    assert [axis["unit"] for axis in scales["axes"]] == ["micrometer"] * 3
    assert [d["coordinateTransformations"][0]["scale"] for d in scales["datasets"]] == [
        [2.0, 0.5, 0.5],
        [2.0, 1.0, 1.0],
    ]
    label = attributes["ome"]["image-label"]
    assert label["properties"] == [{"label-value": 1, "name": "one"}, {"label-value": 2, "name": "two"}]
    assert label["colors"][1] == {"label-value": 2, "rgba": [0, 0, 255, 255]}
    assert attributes["tilenet"].items() >= {**INFO, "complete": True}.items()


def test_colours_are_left_out_unless_every_label_has_one(tmp_path):
    labels = LABELS | {2: ("two", None)}
    make(tmp_path / "m.zarr", Layout("yx", (9, 9), (9, 9), (None, None), "", labels))
    attributes = json.loads((tmp_path / "m.zarr" / "zarr.json").read_bytes())["attributes"]["ome"]
    assert "colors" not in attributes["image-label"]
    assert [axis.get("unit") for axis in attributes["multiscales"][0]["axes"]] == [None, None]


def test_a_mask_reads_like_an_array(tmp_path):
    truth = make(tmp_path / "m.zarr", LAYOUTS["all axes"])
    mask = open_mask(str(tmp_path / "m.zarr"))
    assert isinstance(mask, Mask)
    assert (mask.axes, mask.shape, mask.dtype) == ("tzyx", (2, 3, 270, 33), np.uint8)
    assert mask.pixel_size == (1.0, 2.0, 0.5, 0.5)
    assert np.array_equal(np.asarray(mask), truth["mask"])
    assert np.array_equal(mask[1, :, 3:200:7], truth["mask"][1, :, 3:200:7])
    assert np.asarray(mask, dtype=float).dtype == float
    with pytest.raises(ValueError, match="without copying"):
        np.array(mask, copy=False)
    assert mask.info == INFO
    assert mask.probabilities.shape == (2, 2, 3, 270, 33)
    assert repr(mask) == "<Mask m.zarr: t 2, z 3, y 270, x 33, uint8, 2 levels, with probabilities>"


def test_a_layer_for_napari_lies_where_the_metadata_put_the_mask(written):
    path, layout, truth = written
    document = json.loads((path / layout.root).read_bytes())
    ome = document["attributes"]["ome"] if layout.zarr_format == 3 else document
    first = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    layer = open_mask(path).layer()
    placed = {"scale": layer["scale"], "translation": layer["translate"]}
    assert placed == {"translation": [0.0] * len(layout.axes)} | {one["type"]: one[one["type"]] for one in first}
    assert [level.shape for level in layer["data"]] == list(layout.levels)
    assert np.array_equal(layer["data"][0][...], truth["mask"])


@pytest.mark.parametrize(
    ("name", "scale", "translate"),
    [
        ("part with tissue", [2.0, 0.5, 0.5], [0.0, 180.5, 95.0]),  # begins at (0, 361, 190)
        ("series", [1.0, 0.5, 0.5], [0.0, 0.0, 0.0]),  # no time step is known
        ("odd blocks", [1.0, 1.0], [0.0, 0.0]),  # no pixel size is known
        ("format 2", [60.0, 500.0, 250.0], [0.0, 3.0, 0.0]),  # the image's own
    ],
)
def test_a_layer_for_napari_has_the_place_of_parts_series_and_unknown_sizes(tmp_path, name, scale, translate):
    make(tmp_path / "m.zarr", LAYOUTS[name])
    layer = open_mask(tmp_path / "m.zarr").layer()
    assert (layer["name"], layer["scale"], layer["translate"]) == (LAYOUTS[name].name, scale, translate)


def test_only_a_complete_mask_of_tilenet_is_opened(tmp_path):
    with pytest.raises(OutputNotFound, match="no such mask"):
        open_mask(tmp_path / "m.zarr")
    store = Store.create(tmp_path / "m.zarr", LAYOUTS["tiny"], INFO)
    with pytest.raises(OutputIncomplete, match="--resume"):
        open_mask(tmp_path / "m.zarr")
    with pytest.raises(OutputIncomplete, match="block 0 is not written"):
        store.finish()
    with pytest.raises(OutputIncomplete, match="block 0 is not written"):
        store.build_pyramid()
    write_all_blocks(store, truth_of(store.layout))
    with pytest.raises(OutputIncomplete, match="block 0 of level 1 is not written"):
        store.finish()
    store.close()
    (tmp_path / "file.zarr").write_text("{}")
    zarr.create_group(tmp_path / "group.zarr", attributes={"tilenet": {"complete": True}})
    for foreign in ("file.zarr", "group.zarr"):
        with pytest.raises(OutputError, match="not a mask that tilenet wrote"):
            open_mask(tmp_path / foreign)
        with pytest.raises(OutputError, match="not a mask that tilenet wrote"):
            Store.resume(tmp_path / foreign)
    with pytest.raises(OutputExists):
        Store.create(tmp_path / "group.zarr", LAYOUTS["tiny"], INFO)


def test_what_create_was_given_is_what_resume_finds(tmp_path):
    info = {"record": {"tile": (16, 16), "scaling": {"low": [0.1, 1e-300]}}, "name": "µ\u2028", "none": None}
    created = Store.create(tmp_path / "m.zarr", LAYOUTS["volume"], info)
    created.close()
    resumed = Store.resume(tmp_path / "m.zarr")
    assert created.info == resumed.info == info | {"record": {**info["record"], "tile": [16, 16]}}
    assert created.layout == resumed.layout == LAYOUTS["volume"]
    resumed.close()


def test_progress_of_the_pyramid_ends_at_its_total(tmp_path):
    layout = LAYOUTS["plane"]
    store = Store.create(tmp_path / "m.zarr", layout, INFO)
    write_all_blocks(store, truth_of(layout))
    steps = []
    store.build_pyramid(progress=lambda done, total: steps.append((done, total)))
    total = sum(layout.n_blocks(level) for level in range(1, len(layout.levels)))
    assert steps == [(i + 1, total) for i in range(total)]
    store.close()
