"""The promise on a CUDA device: run with -m gpu where there is one."""

import numpy as np
import pytest
import torch
from oracles import random_network, whole_image_logits

import tilenet

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
