"""What computes, as far as the last bits of logits depend on it: an output says so, and going on elsewhere warns."""

import json

import numpy as np
import pytest
import tifffile
import torch
from oracles import random_network

import tilenet
from tilenet.fast import steps
from tilenet.fast.native import find_instructions
from tilenet.jobs import job
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.predict import last_bits
from tilenet.runs.outputs import open_store
from tilenet.workers.distributed import task_of
from tilenet.workers.worker import close_all, compute_blocks

VERSION = {"torch": torch.__version__}
PROCESSOR = {"processor": torch.backends.cpu.get_cpu_capability()}
WIDE, NARROW = (tilenet.UNet(depth=2, wf=wf).eval() for wf in (4, 3))


@pytest.mark.parametrize("found", ["avx512", "avx2", "pytorch"])
def test_the_processor_is_named_where_pytorch_convolves(monkeypatch, found):
    monkeypatch.setattr(last_bits, "convolutions", lambda: found)
    monkeypatch.setattr(steps, "find_instructions", lambda: ["pytorch", "avx2", "avx512"].index(found))
    compiled = VERSION | {"convolutions": found}
    assert last_bits.numerics_of(WIDE, "fast", "cpu") == compiled | (PROCESSOR if found == "pytorch" else {})
    assert last_bits.numerics_of(NARROW, "fast", "cpu") == compiled | PROCESSOR
    assert last_bits.numerics_of(WIDE, "plain", "cpu") == VERSION | PROCESSOR


def test_a_gpu_is_named_where_cudnn_convolves_and_triton_where_that_does(monkeypatch):
    monkeypatch.setattr(last_bits, "triton_version", lambda: "triton 3.9")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    assert last_bits.numerics_of(WIDE, "fast", "cuda") == VERSION | {"convolutions": "triton 3.9"}
    assert last_bits.numerics_of(WIDE, "plain", "cuda:1") == VERSION | {"gpu": "the GPU cuda:1"}
    assert last_bits.numerics_of(WIDE, "plain", "mps") == VERSION


@pytest.fixture
def wanted(tmp_path):
    tifffile.imwrite(tmp_path / "slide.tif", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    model = tilenet.save_model(random_network(in_channels=1, depth=2, wf=2), tmp_path / "small.safetensors")
    return Request(tmp_path / "slide.tif", str(model), Options(tile=32, block=32))


CHANGES = [
    ({"torch": "2.6.0"}, {"torch": "2.7.1"}, "was begun with torch 2.6.0, and goes on with torch 2.7.1: the last bits"),
    ({"convolutions": "avx512"}, {"convolutions": "pytorch"}, "convolutions avx512, and goes on with convolutions py"),
    ({"convolutions": "avx512"}, {"convolutions": "avx2"}, ""),
    ({"processor": "AVX2", "torch": "2"}, {"processor": "AVX512", "torch": "2"}, "processor AVX2, and goes on"),
    ({"gpu": "A"}, {"gpu": "B"}, "was begun with gpu A, and goes on with gpu B"),
    ({"torch": "2"}, {"torch": "2", "processor": "AVX2"}, ""),
    (["torch"], {"torch": "2"}, ""),
    (None, {"torch": "2"}, ""),
]


@pytest.mark.parametrize(("then", "now", "said"), CHANGES)
def test_going_on_where_bits_may_differ_warns(wanted, tmp_path, monkeypatch, caplog, then, now, said):
    monkeypatch.setattr(job, "numerics_of", lambda *_: then)
    for thing in open_store(tmp_path / "m.zarr", wanted):
        thing.close()
    monkeypatch.setattr(job, "numerics_of", lambda *_: now)
    assert not caplog.records
    store, settled = open_store(tmp_path / "m.zarr", wanted, resume=True)
    assert said in caplog.text and len(caplog.records) == (said != "")
    caplog.clear()
    result = compute_blocks(task_of(store, settled, wanted), (0, 1), flight="a", seconds=60)
    assert len(result.done) == 2 and said in caplog.text and len(caplog.records) == (said != "")
    lines = map(json.loads, (tmp_path / "m.zarr" / ".tilenet" / "log.jsonl").read_text().splitlines())
    assert [line["computed"] for line in lines if line["event"] == "computed"] == [now] * 2 * (said != "")
    close_all()
    store.close()
    settled.close()


def test_a_mask_that_is_complete_is_not_gone_on_with(wanted, tmp_path, monkeypatch, caplog):
    out = tmp_path / "m.zarr"
    tilenet.segment(wanted.image, out, model=wanted.model, tile=32)
    monkeypatch.setattr(job, "numerics_of", lambda *_: {"torch": "another"})
    tilenet.segment(wanted.image, out, model=wanted.model, tile=32, resume=True)
    assert not caplog.records


def test_nothing_is_known_of_what_a_function_computes_with(wanted, tmp_path, monkeypatch, caplog):
    def function(batch):
        return np.concatenate([batch, -batch], axis=1)

    function.footprint = tilenet.Footprint.same(2, reach=0)
    for version in "ab":
        monkeypatch.setattr(job, "numerics_of", lambda *_, version=version: {"torch": version})
        for thing in open_store(tmp_path / "m.zarr", Request(wanted.image, function), resume=True):
            thing.close()
    assert not caplog.records


@pytest.mark.skipif(find_instructions() < 2, reason="no AVX-512 here")
@pytest.mark.parametrize("options", [{"depth": 3, "batch_norm": True}, {"depth": 2, "padding": True}], ids=str)
def test_a_fast_unet_gives_the_same_bits_with_avx2_and_avx512(monkeypatch, options):
    network = random_network(in_channels=3, wf=4, **options)
    pixels, found = np.random.default_rng(0).integers(0, 255, (3, 90, 100), np.uint8), []
    for level in (1, 2):
        monkeypatch.setattr(steps, "find_instructions", lambda level=level: level)
        found.append(tilenet.segment(pixels, model=network, axes="cyx", engine="fast", output="logits"))
    np.testing.assert_array_equal(*found)
