"""Complete masks that were made on another device are taken as they are, in a batch and alone: nothing is computed."""

import csv

import numpy as np
import pytest
import tifffile
from oracles import random_network
from workers import recorded_as

import tilenet
from tilenet.errors import OutputMismatch
from tilenet.runs.shares import written_of

GPU = {"device": "cuda", "engine": "fast", "precision": "bf16", "batch": 500}


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 130, 140), np.uint8)
    for name, plane in zip("ab", pixels, strict=True):
        tifffile.imwrite(tmp_path / f"{name}.tif", plane, tile=(64, 64))
    return [tmp_path / "a.tif", tmp_path / "b.tif"]


@pytest.fixture
def without_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def model(tmp_path):
    return str(tilenet.save_model(random_network(depth=2, wf=1), tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    "options", [{}, {"device": "auto"}, {"device": "cuda:1", "engine": "auto", "precision": "bf16"}, {"memory": 10**6}]
)
def test_masks_that_a_gpu_made_are_collected_where_there_is_none(
    images, tmp_path, without_gpus, model, options, caplog
):
    how = {"model": model, "threads": 1, "objects": True, "table": True}
    with recorded_as(**GPU):
        tilenet.batch(images, tmp_path / "masks", **how)
    caplog.clear()
    results = tilenet.batch(images, tmp_path / "masks", **how, **options)
    assert [(result.status, result.error) for result in results] == [("skipped", "")] * 2
    assert caplog.messages == []
    lines = csv.DictReader((tmp_path / "masks" / "counts.csv").read_text().splitlines())
    assert [line["slide"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize("kind", [{}, {"objects": True}, {"shard": (1, 2)}], ids=str)
def test_a_mask_that_a_gpu_completed_is_resumed_where_there_is_none(images, tmp_path, without_gpus, model, kind):
    how, out = {"model": model, "threads": 1, "tile": 64}, tmp_path / "m.zarr"
    with recorded_as(**GPU):
        made = tilenet.segment(images[0], out, **how, objects="objects" in kind)
    resumed = tilenet.segment(images[0], out, **how, **kind, resume=True)
    assert resumed.info["record"]["device"] == "cuda"
    np.testing.assert_array_equal(np.asarray(resumed), np.asarray(made))
    with pytest.raises(OutputMismatch, match="begun with device = cuda, and now it is cpu"):
        tilenet.segment(images[0], out, **how, **kind, resume=True, device="cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cpu"}, "device = cuda, and now it is cpu"),
        ({"engine": "plain"}, "engine = fast, and now it is plain"),
        ({"precision": "fp32"}, "precision = bf16, and now it is fp32"),
        ({"tile": 32}, "tile = [64, 64], and now it is [32, 32]"),
        ({"roi": "0:900,0:9"}, "roi"),
    ],
)
def test_masks_that_a_gpu_made_in_another_way_are_not(images, tmp_path, without_gpus, model, options, said):
    how = {"model": model, "threads": 1, "tile": 64}
    with recorded_as(**GPU):
        tilenet.batch(images[0], tmp_path / "masks", **how)
    (result,) = tilenet.batch(images[0], tmp_path / "masks", **how | options)
    assert result.status == "failed" and said in result.error


def test_a_mask_that_a_gpu_did_not_complete_is_not_gone_on_with_elsewhere(images, tmp_path, without_gpus, model):
    with recorded_as(device="cuda"):
        tilenet.segment(images[0], tmp_path / "masks" / "a.zarr", model=model, threads=1, tile=64, shard=(1, 2))
    (result,) = tilenet.batch(images[0], tmp_path / "masks", model=model)
    assert result.status == "failed" and "device cuda: this machine has 0 CUDA devices" in result.error
    assert written_of(tmp_path / "masks" / "a.zarr")[0] < written_of(tmp_path / "masks" / "a.zarr")[1]
