"""The model of a batch: read and checked once for all images, and again when it is another."""

import gc
import sys

import numpy as np
import pytest
import tifffile
from oracles import random_network
from store_helpers import tree
from workers import Cluster

import tilenet
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.models import named
from tilenet.predict import predictors
from tilenet.runs import object_places
from tilenet.runs.outputs import open_store
from tilenet.workers import worker
from tilenet.workers.distributed import task_of

TILES = {"tile": 64, "threads": 1}
OBJECTS = pytest.mark.parametrize("objects", [False, True], ids=["classes", "objects"])


def save_network(path, seed):
    network = random_network(seed=seed, depth=2, wf=3, in_channels=1, n_classes=2)
    network.last.bias.data[1] += 0.1 * seed
    return tilenet.save_model(network, path)


@pytest.fixture
def model(tmp_path):
    return save_network(tmp_path / "model.safetensors", seed=1)


@pytest.fixture
def images(tmp_path):
    """Return four images of squares of 16 px, in which a network with random weights finds objects."""
    paths = []
    for i, (name, sides) in enumerate({"a": (70, 90), "b": (128, 64), "c": (100, 100), "d": (60, 60)}.items()):
        squares = np.random.default_rng(i).integers(0, 2, (8, 8), dtype=np.uint8) * 200
        paths.append(tmp_path / f"{name}.tif")
        tifffile.imwrite(paths[-1], np.kron(squares, np.ones((16, 16), np.uint8))[: sides[0], : sides[1]])
    return paths


@pytest.fixture
def done(monkeypatch):
    """Return what was done: "read" for each file of weights, "checked" for each fast path."""
    found, load, accelerate = [], named.load_model, predictors.accelerate
    monkeypatch.setattr(named, "load_model", lambda model: (found.append("read"), load(model))[1])
    monkeypatch.setattr(predictors, "accelerate", lambda network: (found.append("checked"), accelerate(network))[1])
    return found


def assert_alone(masks, image, model, **options):
    """Check that a mask of a batch has the bytes that it has if its image is segmented alone."""
    alone = masks.parent / "alone.zarr"
    tilenet.segment(image, alone, model=model, overwrite=True, **options)
    assert tree(masks / f"{image.stem}.zarr") == tree(alone)
    return np.asarray(tilenet.open_mask(alone))


@OBJECTS
def test_a_model_is_read_and_checked_once_for_all_images(images, model, tmp_path, objects, done):
    results = tilenet.batch(images, tmp_path / "masks", model=model, objects=objects, **TILES)
    assert [result.status for result in results] == ["done"] * 4
    assert done == ["read", "checked"]
    for image in images:
        mask = assert_alone(tmp_path / "masks", image, model, objects=objects, **TILES)
        assert 0 < np.count_nonzero(mask) < mask.size


def test_the_fast_path_is_not_kept_while_objects_are_found_that_may_fill_the_memory(
    images, model, tmp_path, done, monkeypatch
):
    kept, found_in = [], object_places.PlacesTask.places
    monkeypatch.setattr(object_places, "may_fill", lambda memory, pixels: pixels > 70 * 90)
    monkeypatch.setattr(
        object_places.PlacesTask, "places", lambda task: kept.append(len(predictors._checked)) or found_in(task)
    )
    gc.collect()
    before = len(predictors._checked)
    tilenet.batch(images[:3], tmp_path / "masks", model=model, objects=True, **TILES)
    assert done == ["read", "checked", "checked"]  # of three images, the second and the third are larger
    assert kept[0] == before + 1 and max(kept[1:]) <= before
    for image in images[:3]:
        assert_alone(tmp_path / "masks", image, model, objects=True, **TILES)


def test_complete_masks_are_compared_with_one_model_that_is_read_once(images, model, tmp_path, done):
    for status in ("done", "skipped"):
        done.clear()
        results = tilenet.batch(images, tmp_path / "masks", model=model, **TILES)
        assert [result.status for result in results] == [status] * 4 and done.count("read") == 1


def test_weights_that_are_replaced_while_a_batch_runs_are_read_and_checked_again(images, model, tmp_path, done):
    def tell(result):  # with objects, the next image is not begun before this returns
        if result.slide == "b":
            save_network(model, seed=2)

    options = {"objects": True, **TILES}
    tilenet.batch(images, tmp_path / "masks", model=model, tell=tell, **options)
    assert done == ["read", "checked"] * 2
    sums = [tilenet.open_mask(tmp_path / "masks" / f"{image.stem}.zarr").info["model"]["sha256"] for image in images]
    assert sums[0] == sums[1] != sums[2] == sums[3]
    for seed, some in ((1, images[:2]), (2, images[2:])):
        save_network(model, seed)
        for image in some:
            assert_alone(tmp_path / "masks", image, model, **options)


def test_options_that_differ_between_images_are_those_of_each(images, model, tmp_path, done):
    rows = ["a.tif,,", 'b.tif,"linear:0,3",', "c.tif,,32", 'd.tif,"percentile:1,99",']
    (tmp_path / "list.csv").write_text("\n".join(["image,scaling,tile", *rows]))
    tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", model=model, **TILES)
    assert done == ["read", "checked"]
    own = [{}, {"scaling": "linear:0,3"}, {"tile": 32}, {"scaling": "percentile:1,99"}]
    for image, options in zip(images, own, strict=True):
        assert_alone(tmp_path / "masks", image, model, **TILES | options)


def test_of_the_models_of_a_list_one_is_in_memory_at_a_time_and_none_afterwards(images, tmp_path):
    paths = [save_network(tmp_path / f"{image.stem}.safetensors", seed=i) for i, image in enumerate(images)]
    rows = [f"{image},{path}" for image, path in zip(images, paths, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["image,model", *rows]))
    gc.collect()
    before, most = len(predictors._checked), []

    def tell(result):
        gc.collect()
        most.append(len(predictors._checked) - before)

    tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", objects=True, tell=tell, **TILES)
    gc.collect()
    assert most == [1] * 4 and len(predictors._checked) == before


def test_models_of_a_list_are_each_used_for_their_images(images, model, tmp_path, done):
    other = save_network(tmp_path / "other.safetensors", seed=2)
    rows = ["a.tif,model", "b.tif,model", "c.tif,other", "d.tif,other"]
    (tmp_path / "list.csv").write_text("\n".join(["image,model", *(f"{row}.safetensors" for row in rows)]))
    tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", objects=True, **TILES)
    assert done == ["read", "checked"] * 2
    for image, own in zip(images, [model, model, other, other], strict=True):
        assert_alone(tmp_path / "masks", image, own, objects=True, **TILES)


def test_a_function_is_called_for_each_image_as_it_may_return_another_network(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "from oracles import random_network\nmade = []\ndef build():\n    made.append(0)\n"
    (tmp_path / "counted_networks.py").write_text(f"{source}    return random_network(seed=1, depth=2, wf=3)\n")
    try:
        tilenet.batch(images[:3], tmp_path / "masks", model="counted_networks:build", **TILES)
        assert len(sys.modules["counted_networks"].made) == 3
    finally:
        sys.modules.pop("counted_networks", None)


@OBJECTS
def test_who_leads_workers_reads_and_checks_a_model_once_too(images, model, tmp_path, objects, done):
    results = tilenet.batch(images, tmp_path / "masks", model=model, client=Cluster(), objects=objects, **TILES)
    assert [result.status for result in results] == ["done"] * 4
    assert sorted(done) == ["checked", "checked", "read", "read"], "once by the worker, which is this process too"
    worker.close_all()
    for image in images:
        assert_alone(tmp_path / "masks", image, model, objects=objects, **TILES)


def test_a_worker_reads_and_checks_a_model_once_for_all_outputs(images, model, tmp_path, done):
    for image in images:
        wanted = Request(str(image), model, Options(**TILES))
        store, job = open_store(tmp_path / f"{image.stem}.zarr", wanted)
        done.clear()
        result = worker.compute_blocks(task_of(store, job, wanted), [0], flight="f", seconds=60.0)
        assert result.done[0].line and done == (["read", "checked"] if image is images[0] else [])
        store.close()
        job.close()
    worker.close_all()
