"""Decisions taken where the network runs: here on the CPU, by the code that a GPU runs."""

import numpy as np
import pytest
import torch
from oracles import integer_network, random_network

from tilenet.card import ModelCard
from tilenet.decide import DEPTH_UNIT, Decision
from tilenet.errors import EnvironmentFault
from tilenet.jobs.compute import ArraySink
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.predict.on_gpu import GpuPredictor, decided
from tilenet.predict.predictors import TorchPredictor
from tilenet.runner import run
from tilenet.scaling import Scaling

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 200, (3, 203, 150), dtype=np.uint8)
HALF = {"probability_dtype": "float16"}
DECISIONS = [
    Decision("softmax", (0, 3, 3, 7)),
    Decision("softmax", (2,)),
    Decision("sigmoid", (9,), 0.3),
    Decision("regression", (1,), 0.1),
]


def logits_of(decide, dtype=np.float32):
    """Return logits (K, *n) with many ties, and the threshold itself among them."""
    logits = RNG.integers(-3, 4, (len(decide.mask_of_class), 50, 61)).astype(dtype)
    logits[0, ::7] = decide.logit_threshold
    logits[:, 1::7] += RNG.normal(size=logits[:, 1::7].shape).astype(dtype)
    return logits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decide", DECISIONS, ids=lambda d: f"{d.kind}-{len(d.mask_of_class)}")
def test_a_mask_decided_there_is_that_of_numpy_bit_for_bit(decide, dtype):
    logits = logits_of(decide, dtype)
    expected, found = decide(logits)["mask"], decided(decide, torch.from_numpy(logits))["mask"].numpy()
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert len(np.unique(expected)) == len(
        {0, *decide.mask_of_class} if decide.kind != "softmax" else {*decide.mask_of_class}
    )


def test_ties_are_there_to_be_broken():
    logits = logits_of(DECISIONS[0])
    last = logits.shape[0] - 1 - logits[::-1].argmax(axis=0)
    assert (last != logits.argmax(axis=0)).mean() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_of_a_regression_are_rounded_as_numpy_rounds_them(dtype):
    decide = Decision("regression", (1, 1), arrays=("probabilities", "logits"), probability_dtype=dtype)
    values = np.concatenate([RNG.normal(size=500), [1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 6e-8]]).astype(np.float32)
    logits = np.stack([values, -values])
    found = {name: array.numpy() for name, array in decided(decide, torch.from_numpy(logits)).items()}
    for name, expected in decide(logits).items():
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)


@pytest.mark.parametrize(("kind", "classes"), [("softmax", 4), ("sigmoid", 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_probabilities_are_those_of_numpy_to_the_last_places(kind, classes, dtype):
    decide = Decision(kind, (1,) * classes, arrays=("probabilities",), probability_dtype=dtype)
    logits = RNG.normal(scale=20, size=(classes, 5000)).astype(np.float32)
    expected = decide(logits)["probabilities"]
    found = decided(decide, torch.from_numpy(logits))["probabilities"].numpy()
    assert found.dtype == expected.dtype
    assert np.abs(found.astype(float) - expected).max() <= 4 * np.finfo(dtype).eps
    assert 0.2 < expected.mean() < 0.6


def test_depths_there_are_those_of_numpy_but_for_rounding():
    logits = np.random.default_rng(2).normal(scale=3, size=(4, 90, 70)).astype(np.float32)
    decide = Decision("softmax", (0, 1, 1, 1), 0.5, ("mask", "probabilities"), "float16", (0.0, 1 / 3, 2 / 3, 1.0))
    expected, found = decide(logits), decided(decide, torch.from_numpy(logits))
    assert np.array_equal(found["mask"].numpy(), expected["mask"])
    there, here = found["probabilities"].numpy(), expected["probabilities"]
    assert (there.dtype, there.shape) == (here.dtype, here.shape) == (np.float16, (1, 90, 70))
    off = np.abs(there.astype(float) - here)
    assert off.max() <= DEPTH_UNIT and (off > 0).mean() < 1e-3 and here.std() > 0.1


def both_ways(network, *, output="mask", image=IMAGE, kinds=(TorchPredictor, GpuPredictor), **options):
    """Return failures and arrays of a run that decides in NumPy, and of one that decides in PyTorch."""
    options = {"axes": "cyx", "tile": 32, "block": 64, "batch": 3, "output": output} | options
    job = make_job(image, network, Options(**options))
    found = []
    for kind in kinds:
        predictor = kind(
            job.network,
            job.footprint,
            device=torch.device("cpu"),
            precision=job.record["precision"],
            engine=job.record["engine"],
            scaling=Scaling((3.0, 0.0, 1.0), (7.0,), (-1.0, 20.0)),
        )
        sink = ArraySink(job)
        report = run(job.plan, job.image, predictor, decide=job.decision, pending=sink.pending(), write=sink.write)
        found.append((report.failures, sink.arrays))
    return found


@pytest.mark.parametrize("output", ["mask", "logits"])
@pytest.mark.parametrize("padding", [False, True])
def test_a_run_that_decides_there_gives_the_same_bytes(output, padding):
    network = random_network(depth=3, wf=2, in_channels=3, n_classes=3, padding=padding)
    (_, expected), (failures, found) = both_ways(network, output=output)
    assert failures == {}
    assert np.array_equal(found[output], expected[output])
    assert len(np.unique(expected[output])) > 2


def test_a_run_of_two_outputs_gives_both():
    network = random_network(depth=2, wf=2, in_channels=3, n_classes=2)
    (_, expected), (_, found) = both_ways(network, output="both", **HALF)
    assert found["probabilities"].dtype == np.float16
    assert np.array_equal(found["mask"], expected["mask"])
    assert np.abs(found["probabilities"].astype(float) - expected["probabilities"]).max() <= 2**-10


class Spoiled(torch.nn.Module):
    """A network whose output is not finite in the midst of each tile, or only in the rim that is thrown away."""

    def __init__(self, *, inside):
        super().__init__()
        self.network, self.inside = integer_network(depth=2, wf=1, in_channels=3, padding=True), inside
        self.footprint, self.in_channels = self.network.footprint, 3

    def forward(self, x):
        out = self.network(x)
        if self.inside:
            out[:, 0, out.shape[2] // 2, out.shape[3] // 2] = torch.nan
        else:
            out[..., -1, :] = torch.inf
        return out


def test_logits_that_are_not_finite_fail_their_block_by_place_as_in_numpy():
    (expected, _), (failures, _) = both_ways(Spoiled(inside=True))
    assert failures == expected
    assert failures[0] == "the network's output at [0:32, 0:32] is not finite"


def test_values_that_their_type_cannot_hold_fail_their_block_as_in_numpy():
    network = random_network(depth=2, wf=1, in_channels=3, n_classes=1)
    network.card = ModelCard(output="regression")
    with torch.no_grad():
        network.last.bias.fill_(1e5)
    (expected, _), (failures, _) = both_ways(network, output="both", channels=(0, 1, 2), **HALF)
    assert failures == expected
    assert failures[0] == "the network gives values too large for float16 (--probability-dtype)"


def test_pixels_that_are_not_finite_are_named_as_the_cause_as_in_numpy():
    image = IMAGE.astype(np.float32)
    image[1, 10, 10] = np.nan
    (expected, _), (failures, _) = both_ways(random_network(depth=2, wf=2, in_channels=3), image=image)
    assert failures == expected
    assert failures[0].endswith("as there are pixels in the image that are not finite")


def test_logits_that_are_cropped_away_may_be_anything():
    (expected, masks), (failures, found) = both_ways(Spoiled(inside=False))
    assert failures == expected == {}
    assert np.array_equal(found["mask"], masks["mask"])


def test_what_goes_wrong_is_said_as_elsewhere():
    network = random_network(depth=2, wf=2, in_channels=3)
    network.footprint = network.footprint  # with a hook, one is asked for
    # It takes one tile or two, with which it is asked before the run, and no larger batches.
    network.register_forward_pre_hook(lambda layer, given: given[0].view(min(len(given[0]), 2), *given[0].shape[1:]))
    (expected, _), (failures, _) = both_ways(network, engine="plain")
    assert failures == expected
    assert "the network failed on a batch of shape" in failures[0]


class Unpinned(GpuPredictor):
    """A predictor for whose copies to and from the device no memory can be pinned."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._copies = self

    def send(self, x):
        raise RuntimeError("CUDA error: out of memory")


def test_where_no_memory_can_be_pinned_the_run_ends_with_the_batch_to_try(monkeypatch):
    def unpinned(*shape, pin_memory=False, **options):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*shape, **options)

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", unpinned)
    with pytest.raises(EnvironmentFault, match=r"for a batch of shape \(3, .*Start again with --batch 1$"):
        both_ways(random_network(depth=2, wf=2, in_channels=3), kinds=(Unpinned,))
