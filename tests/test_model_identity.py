"""Whether a model is the one that began a run: told by its weights and its footprint, and by what it answers."""

import numpy as np
import pytest
import torch
from torch import nn

import tilenet
from tilenet.errors import OutputMismatch
from tilenet.footprint import Footprint
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.probe.claims import ask, difference
from tilenet.runs.outputs import open_store

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8)


POINT, NEAR = Footprint.same(2, reach=0), Footprint.same(2, reach=1)


def brighter_than(level):
    return lambda x: x - level


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain, self.conv = gain, nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x * self.gain)


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(1, 2, 3, padding=1)


def gain(value):
    torch.manual_seed(0)
    return Gain(value)


@pytest.mark.parametrize(
    ("first", "other", "footprint"),
    [
        (lambda: brighter_than(128), lambda: brighter_than(128.5), POINT),
        (lambda: lambda x: x > 128.0, lambda: lambda x: x > 50.0, POINT),
        (lambda: gain(1.0), lambda: gain(1.001), NEAR),
        (lambda: nn.Sequential(convolution(), nn.ReLU()), lambda: nn.Sequential(convolution(), nn.Tanh()), NEAR),
    ],
    ids=["function", "threshold", "attribute", "layer without weights"],
)
def test_a_run_is_not_gone_on_with_by_another_model(tmp_path, first, other, footprint):
    out, how = tmp_path / "m.zarr", {"footprint": footprint, "tile": 32}
    mask = np.asarray(tilenet.segment(IMAGE, out, model=first(), **how))
    again = tilenet.segment(IMAGE, out, model=first(), footprint=footprint, resume=True)
    assert np.array_equal(np.asarray(again), mask)
    with pytest.raises(OutputMismatch, match="was begun with model answer"):
        tilenet.segment(IMAGE, out, model=other(), footprint=footprint, resume=True)
    assert tilenet.verify(out, IMAGE, model=first(), footprint=footprint).ok
    with pytest.raises(OutputMismatch, match="answer"):
        tilenet.verify(out, IMAGE, model=other(), footprint=footprint)


def test_a_run_is_not_gone_on_with_under_another_footprint(tmp_path):
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=convolution(), footprint=NEAR)
    with pytest.raises(OutputMismatch, match="was begun with model footprint"):
        tilenet.segment(
            IMAGE, tmp_path / "m.zarr", model=convolution(), footprint=Footprint.same(2, reach=2), resume=True
        )


def compiled(network):
    return torch.compile(network, backend="eager")


def begin(out, model, footprint=NEAR):
    for opened in open_store(out, Request(IMAGE, model, Options(tile=32, block=32), footprint)):
        opened.close()


FORMS = [
    (convolution, lambda: compiled(convolution())),
    (lambda: compiled(convolution()), convolution),
    (lambda: nn.Sequential(convolution()), lambda: nn.Sequential(compiled(convolution()))),
]


@pytest.mark.parametrize(("begun", "gone_on"), FORMS, ids=["compiled later", "compiled before", "compiled in part"])
def test_a_compiled_network_is_the_network_that_was_compiled(tmp_path, caplog, begun, gone_on):
    out, model = tmp_path / "m.zarr", gone_on()
    begin(out, begun())
    mask = np.asarray(tilenet.segment(IMAGE, out, model=model, footprint=NEAR, resume=True))
    assert 0 < mask.mean() < 1 and model.training
    assert np.array_equal(mask, tilenet.segment(IMAGE, model=begun(), footprint=NEAR, tile=32))
    assert "goes on with network" in caplog.text and "the last bits of logits may differ" in caplog.text
    assert tilenet.verify(out, IMAGE, model=model, footprint=NEAR).ok
    with pytest.raises(OutputMismatch, match="was begun with model"):
        tilenet.segment(IMAGE, out, model=compiled(nn.Conv2d(1, 2, 3, padding=1)), footprint=NEAR, resume=True)


def noisy(sign):
    return lambda x: sign * (x - 100) + np.random.default_rng().normal(size=x.shape)


def sparse(sign):
    """Return a model whose logits of dark pixels are not finite."""
    return lambda x: np.where(x < 1, np.nan, sign * (x - 100))


def test_answers_of_which_one_is_infinite_differ_without_bound():
    old = {"values": [0.0, 0.5], "within": 1e-5}
    assert difference(old, {"values": [float("inf"), 0.5], "within": 1e-5}) == float("inf")


@pytest.mark.parametrize("kind", [noisy, sparse])
def test_an_answer_that_is_not_finite_or_does_not_repeat_is_not_that_of_any_model(tmp_path, kind):
    out, options = tmp_path / "m.zarr", {"footprint": POINT}
    bright = np.maximum(IMAGE, 1)
    tilenet.segment(bright, out, model=kind(1), **options)
    tilenet.segment(bright, out, model=kind(1), resume=True, **options)
    for other in (kind(-1), lambda x: 100 - x):
        with pytest.raises(OutputMismatch, match="model answer"):
            tilenet.segment(bright, out, model=other, resume=True, **options)


def test_what_is_recorded_of_a_model_stays_what_it_was():
    answer = ask(lambda x: x - 100, POINT, 1).to_json()
    assert answer["values"][:4] == [-100.0, -87.32907, -74.50642, -99.99964] and answer["within"] == 1e-5
