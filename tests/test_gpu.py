"""The promise on a CUDA device: run with -m gpu where there is one."""

import copy

import numpy as np
import pytest
import torch
from oracles import random_network, whole_image_logits

import tilenet
from tilenet.decide import Decision
from tilenet.device import DevicePredictor
from tilenet.errors import BlocksFailed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
IMAGE = np.random.default_rng(0).integers(0, 200, (403, 350), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    return random_network(depth=4, wf=4)


def test_fp32_logits_agree_with_the_whole_image_on_the_cpu(network):
    expected = whole_image_logits(network, IMAGE[None])
    for tile in (32, 64, 256):
        got = tilenet.segment(IMAGE, model=network, tile=tile, device="cuda", output="logits")
        assert np.abs(got - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_record_gives_the_same_bytes(network, precision):
    options = {"model": network, "tile": 64, "batch": 4, "device": "cuda", "precision": precision, "output": "logits"}
    assert np.array_equal(tilenet.segment(IMAGE, **options), tilenet.segment(IMAGE, **options))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_leaves_no_seams(network, precision):
    options = {"model": network, "device": "cuda", "precision": precision, "output": "logits"}
    small, large = (tilenet.segment(IMAGE, tile=tile, **options) for tile in (64, 256))
    assert np.abs(small - large).max() <= 0.02 * np.ptp(large)


def test_tf32_stays_as_the_caller_had_it(network):
    before = torch.backends.cuda.matmul.allow_tf32
    tilenet.segment(IMAGE, model=network, device="cuda")
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_mask_decided_on_the_device_is_that_of_its_logits(network, precision):
    options = {"model": network, "tile": 64, "batch": 3, "device": "cuda", "precision": precision}
    logits = tilenet.segment(IMAGE, output="logits", **options)
    assert np.array_equal(tilenet.segment(IMAGE, **options), Decision("softmax", (0, 1))(logits)["mask"])
    assert 0.01 < (logits[1] > logits[0]).mean() < 0.99


def test_probabilities_come_off_the_device_in_the_type_asked_for(network):
    options = {"model": network, "tile": 64, "device": "cuda"}
    logits = tilenet.segment(IMAGE, output="logits", **options)
    expected = Decision("softmax", (0, 1), arrays=("probabilities",))(logits)["probabilities"]
    for dtype, error in (("float32", 1e-6), ("float16", 2**-10)):
        found = tilenet.segment(IMAGE, output="probabilities", probability_dtype=dtype, **options)
        assert found.dtype == dtype
        assert np.abs(found.astype(float) - expected).max() <= error


def test_batches_in_flight_give_the_bytes_of_one_after_the_other(network, monkeypatch):
    image = np.random.default_rng(1).integers(0, 200, (1500, 1300), dtype=np.uint8)
    options = {"model": network, "tile": 64, "block": 256, "batch": 2, "device": "cuda"}
    found = tilenet.segment(image, **options)
    monkeypatch.setattr(DevicePredictor, "in_flight", 1)
    assert np.array_equal(found, tilenet.segment(image, **options))


def test_logits_that_are_not_finite_are_refused(network):
    spoiled = copy.deepcopy(network)
    spoiled.last.bias.data[0] = torch.inf
    with pytest.raises(BlocksFailed, match="is not finite"):
        tilenet.segment(IMAGE, model=spoiled, tile=64, device="cuda")
