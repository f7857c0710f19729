"""Masks that a CPU's predictor makes at once, against those of its logits."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tilenet
from tilenet.decide import Decision
from tilenet.errors import BlocksFailed
from tilenet.fast.native import find_instructions
from tilenet.jobs.job import COPIES
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.predict.engine import SteppedUNet
from tilenet.predict.memory import bytes_saved, weight_bytes
from tilenet.predict.on_cpu import CpuPredictor
from tilenet.scaling import Scaling

needs_it = pytest.mark.skipif(not find_instructions(), reason="no compiled convolutions here")
SIDE = 300
OUTPUTS = ("mask", "both")


def unet(wf=4, classes=3):
    torch.manual_seed(1)
    return tilenet.UNet(1, classes, depth=2, wf=wf).eval()


def predictor_of(network, engine="fast"):
    cpu = torch.device("cpu")
    return CpuPredictor(network, network.footprint, device=cpu, precision="fp32", engine=engine, scaling=Scaling())


def tile_of(*place):
    return SimpleNamespace(crop=tilenet.Box(*zip(*place, strict=True)), write=tilenet.Box((0, 0), (9, 9)))


def batch_of(n=2):
    return np.random.default_rng(0).integers(0, 255, (n, 1, SIDE, SIDE), dtype=np.uint8)


@pytest.fixture
def calls(monkeypatch):
    """Note which passes of a run made masks at once."""
    made, at_once = [], SteppedUNet.decided

    def noted(self, *arguments, **options):
        mask = at_once(self, *arguments, **options)
        if not options:  # the pass by which the fast path is checked is in bands of its own
            made.append(mask)
        return mask

    monkeypatch.setattr(SteppedUNet, "decided", noted)
    return made


@needs_it
def test_masks_made_at_once_are_those_of_the_logits_bit_for_bit(calls):
    tiles, decide = [tile_of((0, 200), (7, 31)), tile_of((3, 4), (0, 216))], Decision("softmax", (0, 5, 2))
    predictor = predictor_of(unet())
    found = predictor.begin(batch_of(), tiles, decide)()
    assert len(calls) == 1 and calls[0] is not None
    for tile, arrays, logits in zip(tiles, found, predictor(batch_of()), strict=True):
        assert np.array_equal(arrays["mask"], decide.mask(logits[:, *tile.crop.slices]))
        assert len(np.unique(arrays["mask"])) > 1


@pytest.mark.parametrize(
    ("network", "engine", "decide"),
    [
        (unet(), "plain", Decision("softmax", (0, 1, 1))),
        (unet(wf=3), "fast", Decision("softmax", (0, 1, 1))),  # too few channels to be compiled
        (unet(), "fast", Decision("softmax", (0, 1, 1), arrays=("mask", "probabilities"))),
        (unet(classes=1), "fast", Decision("sigmoid", (1,))),
    ],
)
def test_everything_else_is_decided_upon_logits(network, engine, decide):
    predictor, tile = predictor_of(network, engine), tile_of((1, 200), (0, 216))
    (found,) = predictor.begin(batch_of(1), [tile], decide)()
    expected = decide(predictor(batch_of(1))[0][:, *tile.crop.slices])
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@needs_it
def test_logits_that_are_not_finite_are_refused_only_where_they_are_written(calls):
    predictor = predictor_of(unet())
    batch = batch_of(1).astype(np.float32)
    batch[0, 0, 150, 150] = np.nan
    decide = Decision("softmax", (0, 1, 1))
    (found,) = predictor.begin(batch, [tile_of((0, 20), (0, 20))], decide)()
    assert np.array_equal(found["mask"], decide.mask(predictor(batch)[0][:, :20, :20]))
    with pytest.raises(FloatingPointError, match="not finite"):
        predictor.begin(batch, [tile_of((0, 200), (0, 200))], decide)()
    assert calls == [None, None]


@needs_it
def test_a_run_for_masks_alone_never_has_logits_and_gives_the_same_mask(calls, monkeypatch):
    image, network = batch_of(1)[0, 0], unet()
    network.card = tilenet.ModelCard(classes=("a", "b", "c"), mask_of_class=(0, 1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(SteppedUNet, "_in_bands", refusing_logits(SteppedUNet._in_bands))
        found = tilenet.segment(image, model=network)
    assert calls
    probabilities = tilenet.segment(image, model=network, output="probabilities")
    assert np.array_equal(found, probabilities.argmax(axis=0))


def refusing_logits(passed):
    def refuse(self, x, prepared, state, pixels):
        # The run itself: what comes before is the check of the fast path, on a small random input.
        assert state.values is not None or x.shape[-1] < 200, "logits were made"
        return passed(self, x, prepared, state, pixels)

    return refuse


@needs_it
def test_a_run_that_cannot_decide_names_the_block(calls):
    image = batch_of(1)[0, 0].astype(np.float32)
    image[100, 100] = np.nan
    with pytest.raises(BlocksFailed, match=r"block 0 at \[0:300, 0:300\]: the network's output at .* is not finite"):
        tilenet.segment(image, model=unet(), scaling={"method": "none"})
    assert None in calls


@needs_it
def test_what_a_run_is_said_to_take_knows_of_it_and_the_plan_does_not():
    image, network = np.zeros((3000, 3000), np.uint8), unet()
    network.card = tilenet.ModelCard(classes=("a", "b", "c"), mask_of_class=(0, 1, 2))
    at_once, logits = (make_job(image, network, Options(output=output, memory=400_000_000)) for output in OUTPUTS)
    assert at_once.plan == logits.plan
    saved = bytes_saved(network, at_once.decision, engine="fast", device="cpu")
    assert saved == 8 * 3 - 2
    assert bytes_saved(network, logits.decision, engine="fast", device="cpu") == 0
    assert bytes_saved(network, at_once.decision, engine="plain", device="cpu") == 0
    plain = replace(at_once, record=at_once.record | {"engine": "plain"})
    read = np.prod(at_once.plan.largest_read)
    more = COPIES["fast"] * weight_bytes(network) - COPIES["plain"] * weight_bytes(network)
    assert abs(plain.needs()["host_bytes"] - at_once.needs()["host_bytes"] + more - saved * read) < 10
