"""The promise on a CUDA device: run with -m gpu where there is one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import random_network, whole_image_logits
from training_helpers import write_discs

import tilenet
from tilenet.decide import Decision
from tilenet.errors import BlocksFailed
from tilenet.predict import predictors
from tilenet.predict.engine import HOPPER
from tilenet.predict.on_gpu import GpuPredictor
from tilenet.scaling import Scaling
from tilenet.training.loop import train
from tilenet.training.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
framed = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != HOPPER, reason="it is no Hopper GPU"
)
CUDA = torch.device("cuda")
IMAGE = np.random.default_rng(0).integers(0, 200, (403, 350), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    return random_network(depth=4, wf=4)


def test_fp32_logits_agree_with_the_whole_image_on_the_cpu(network):
    expected = whole_image_logits(network, IMAGE[None])
    for tile, engine in ((32, "auto"), (64, "plain"), (256, "auto")):
        got = tilenet.segment(IMAGE, model=network, tile=tile, device="cuda", engine=engine, output="logits")
        assert np.abs(got - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_record_gives_the_same_bytes(network, precision):
    options = {"model": network, "tile": 64, "batch": 4, "device": "cuda", "precision": precision, "output": "logits"}
    assert np.array_equal(tilenet.segment(IMAGE, **options), tilenet.segment(IMAGE, **options))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_leaves_no_seams(network, precision):
    options = {"model": network, "device": "cuda", "precision": precision, "engine": "plain", "output": "logits"}
    small, large = (tilenet.segment(IMAGE, tile=tile, **options) for tile in (64, 256))
    assert np.abs(small - large).max() <= 0.02 * np.ptp(large)


@framed
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_frames_no_bit_depends_on_tiles_or_batches(network, precision):
    options = {"model": network, "device": "cuda", "precision": precision, "engine": "fast", "output": "logits"}
    expected = tilenet.segment(IMAGE, tile=256, **options)
    for tile, batch in ((64, 1), (64, 7), (128, 2)):
        assert np.array_equal(tilenet.segment(IMAGE, tile=tile, batch=batch, **options), expected)


@framed
@pytest.mark.parametrize(
    "options",
    [{}, {"in_channels": 3, "batch_norm": True}, {"depth": 2, "wf": 7, "pooling": "avg", "n_classes": 19}],
    ids=str,
)
def test_frames_are_as_close_to_float64_as_they_should_be(options):
    network = random_network(**{"depth": 5, "wf": 4} | options).requires_grad_(False)
    axis = network.footprint.axes[0]
    x = torch.rand(2, network.in_channels, axis.legal_at_least(300), axis.legal_at_least(420))
    exact = copy.deepcopy(network).double().cuda()(x.double().cuda())
    for precision, allowed in (("fp32", 1e-5), ("fp16", 0.01), ("bf16", 0.05)):
        assert predictors.find_engine("auto", network, device=CUDA, precision=precision) == "fast"
        how = {"device": CUDA, "precision": precision, "engine": "fast", "scaling": Scaling()}
        found = torch.from_numpy(GpuPredictor(network, network.footprint, **how)(x.numpy())).double().cuda()
        assert (found - exact).abs().max() <= allowed * (exact.max() - exact.min())


@framed
def test_only_networks_that_have_frames_are_put_on_them(network):
    padded = random_network(depth=3, wf=4, padding=True)
    assert predictors.find_engine("auto", network, device=CUDA, precision="fp32") == "fast"
    assert predictors.find_engine("auto", padded, device=CUDA, precision="fp32") == "plain"
    assert predictors.find_engine("auto", network.double(), device=CUDA, precision="fp64") == "plain"
    network.float()


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


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_pixels_of_16_bits_give_the_logits_of_their_values(network, dtype):
    image = np.random.default_rng(1).integers(0, 30000, (303, 350)).astype(dtype)
    options = {"model": network, "tile": 64, "device": "cuda", "scaling": "linear:0,30000", "output": "logits"}
    assert np.array_equal(tilenet.segment(image, **options), tilenet.segment(image.astype(np.float32), **options))


def test_batches_in_flight_give_the_bytes_of_one_after_the_other(network, monkeypatch):
    image = np.random.default_rng(1).integers(0, 200, (1500, 1300), dtype=np.uint8)
    options = {"model": network, "tile": 64, "batch": 2, "device": "cuda"}
    found = tilenet.segment(image, **options)
    monkeypatch.setattr(GpuPredictor, "in_flight", 1)
    assert np.array_equal(found, tilenet.segment(image, **options))


def test_logits_that_are_not_finite_are_refused(network):
    spoiled = copy.deepcopy(network)
    spoiled.last.bias.data[0] = torch.inf
    with pytest.raises(BlocksFailed, match="is not finite"):
        tilenet.segment(IMAGE, model=spoiled, tile=64, device="cuda")


def test_a_training_that_was_begun_on_the_cpu_goes_on_on_the_device(tmp_path):
    write_discs(tmp_path, "01")
    recipe = Recipe(depth=2, wf=2, tile=40, epochs=2, crops=4, precision="fp32", device="cpu")

    def killed(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tmp_path / "m.safetensors", recipe=recipe, progress=killed)
    seen = []
    train(
        tmp_path, tmp_path / "m.safetensors", recipe=replace(recipe, device="cuda"), resume=True, progress=seen.append
    )
    assert [p.epoch for p in seen] == [2]
