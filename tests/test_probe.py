"""Models of somebody else's: told apart by what they answer, and warned of where they do not suit."""

import logging

import numpy as np
import pytest
import torch
from oracles import random_network
from torch import nn

import tilenet
from tilenet.errors import ModelError, OutputMismatch, SettingsError
from tilenet.footprint import Footprint
from tilenet.job import Job

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


class EverySecond(nn.Module):
    """Counts pixels from the corner of its tile, as pooling does."""

    def forward(self, x):
        return x * (torch.arange(x.shape[-1]) % 2)


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


def test_nor_by_the_same_with_another_footprint(tmp_path):
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=convolution(), footprint=NEAR)
    with pytest.raises(OutputMismatch, match="was begun with model footprint"):
        tilenet.segment(
            IMAGE, tmp_path / "m.zarr", model=convolution(), footprint=Footprint.same(2, reach=2), resume=True
        )


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Sigmoid()), "look like probabilities"),
        (nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Softmax(1)), "look like probabilities"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2)), "there are seams"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2)), "there are seams"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)), ""),
        (nn.Sequential(nn.Conv2d(1, 2, 5, padding=2)), "there are seams"),
        (EverySecond(), "there are seams"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=8, dilation=8)), "there are seams"),
        (lambda x: x + np.random.default_rng().normal(size=x.shape), "gives other logits for the same pixels"),
        (lambda x: x / 255, "look like probabilities"),
        (lambda x: x - 100, ""),
    ],
    ids=[
        "sigmoid",
        "softmax",
        "instance norm",
        "group norm",
        "batch norm",
        "reach",
        "step",
        "dilation",
        "random",
        "map",
        "logits",
    ],
)
def test_what_does_not_suit_is_told_before_the_run(caplog, model, warned):
    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.segment(IMAGE, model=model, footprint=NEAR)
    assert (warned in caplog.text) if warned else (caplog.text == "")


def test_a_unet_whose_layer_was_replaced_is_run_as_it_is(caplog):
    network = random_network(depth=2, wf=4)
    plain = tilenet.segment(IMAGE, model=network, engine="plain", output="logits")
    network.last = nn.Sequential(network.last, nn.Identity())
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert np.array_equal(tilenet.segment(IMAGE, model=network, output="logits"), plain)
    assert "the plain one is used" in caplog.text
    with pytest.raises(SettingsError, match="--engine plain"):
        tilenet.segment(IMAGE, model=network, engine="fast")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_traced_networks_are_taken_like_others():
    network = convolution()
    traced = torch.jit.trace(network, torch.zeros(1, 1, 8, 8))
    expected = tilenet.segment(IMAGE, model=network, footprint=NEAR, output="logits")
    np.testing.assert_allclose(tilenet.segment(IMAGE, model=traced, footprint=NEAR, output="logits"), expected)


def test_a_function_that_wants_tensors_is_told_what_it_gets():
    network = convolution()
    with pytest.raises(ModelError, match="a function gets NumPy float32, and gives an array"):
        tilenet.segment(IMAGE, model=lambda x: network(x), footprint=NEAR)
    with pytest.raises(ModelError, match="the network gives no NumPy array"):
        tilenet.segment(IMAGE, model=lambda x: network(torch.from_numpy(x)), footprint=NEAR)


@pytest.mark.parametrize(
    "options", [{"reach": -1}, {"reach": 1.5}, {"reach": (1, 2, 3)}, {"reach": 1, "step": 0}, {"reach": "1"}], ids=str
)
def test_a_footprint_that_cannot_be_is_refused(options):
    with pytest.raises(SettingsError, match="give a whole number"):
        Footprint.same(2, **options)


def test_a_footprint_may_differ_from_axis_to_axis():
    footprint = Footprint.valid(3, lost=(1, 5, 6), step=(1, 2, 4))
    assert (footprint.lost, footprint.step) == ((1, 5, 6), (1, 2, 4))
    assert footprint.output_shape((3, 12, 16)) == (1, 2, 4)


def test_a_model_that_takes_no_short_inputs_is_asked_with_legal_ones(caplog):
    footprint = Footprint((tilenet.AxisFootprint(1, 0, (8, 8), smallest=64),) * 2)

    def at_least_64(x):
        assert min(x.shape[2:]) >= 64
        return x - 100

    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.segment(IMAGE, model=at_least_64, footprint=footprint)
    assert caplog.text == ""


def test_a_mask_of_a_version_that_asked_nothing_is_gone_on_with(tmp_path, monkeypatch):
    out, model = tmp_path / "m.zarr", brighter_than(128)
    with monkeypatch.context() as before:
        info = Job.info
        asked = ("footprint", "answer")

        def without(job, numbers):
            found = info(job, numbers)
            return found | {"model": {name: value for name, value in found["model"].items() if name not in asked}}

        before.setattr(Job, "info", without)
        tilenet.segment(IMAGE, out, model=model, footprint=POINT)
    assert tilenet.verify(out, IMAGE, model=model, footprint=POINT).ok
