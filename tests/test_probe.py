"""Networks and functions of users: refused, or warned of, where they do not suit."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

import tilenet
from tilenet.errors import ModelError, OutputMismatch, SettingsError
from tilenet.footprint import Footprint
from tilenet.probe.claims import ask, remarks

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8)


POINT, NEAR = Footprint.same(2, reach=0), Footprint.same(2, reach=1)


class EverySecond(nn.Module):
    """Counts pixels from the corner of its tile, as pooling does."""

    def forward(self, x):
        return x * (torch.arange(x.shape[-1]) % 2)


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
        (
            lambda x: np.where(x % 1, np.inf, x - 100),
            "was not checked for seams, as its logits of a test image are not finite",
        ),
        (lambda x: x / 255, "look like probabilities"),
        (lambda x: np.ones_like(x), "look like probabilities"),
        (lambda x: x - 100, ""),
        (lambda x: x > 100, ""),
        (lambda x: x < 300, ""),
        (lambda x: np.float32(x > 100), ""),
        (lambda x: np.concatenate([x <= 100, x > 100], axis=1), ""),
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
        "not finite",
        "map",
        "ones",
        "logits",
        "threshold",
        "threshold above all pixels",
        "threshold as numbers",
        "threshold of two classes",
    ],
)
def test_what_does_not_suit_is_told_before_the_run(caplog, model, warned):
    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.segment(IMAGE, model=model, footprint=NEAR)
    assert (warned in caplog.text) if warned else (caplog.text == "")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:The .grad attribute:UserWarning")
def test_traced_networks_are_taken_like_others():
    network = nn.Conv2d(1, 2, 3, padding=1)
    traced = torch.jit.trace(network, torch.zeros(1, 1, 8, 8))
    expected = tilenet.segment(IMAGE, model=network, footprint=NEAR, output="logits")
    np.testing.assert_allclose(tilenet.segment(IMAGE, model=traced, footprint=NEAR, output="logits"), expected)


def test_a_function_that_wants_tensors_is_told_what_it_gets():
    network = nn.Conv2d(1, 2, 3, padding=1)
    with pytest.raises(ModelError, match="a function gets NumPy float32, and gives an array"):
        tilenet.segment(IMAGE, model=lambda x: network(x), footprint=NEAR)
    with pytest.raises(ModelError, match="the network gives no NumPy array"):
        tilenet.segment(IMAGE, model=lambda x: network(torch.from_numpy(x)), footprint=NEAR)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda x: x[:, :0], r"an array of shape \(1, 0, 17, 17\) for one of \(1, 1, 17, 17\). Return logits"),
        (lambda x: np.concatenate([x, x]), r"an array of shape \(2, 1, 17, 17\)"),
        (lambda x: x[0], r"an array of 3 axes, \(1, 17, 17\), for one of 4, .* Return logits \(N, K, y, x\)"),
        (
            lambda x: np.repeat(x, 1 + (x.shape[3] > 60), 1),
            r"gives 1 outputs, and 2 for an input of .*. Return as many",
        ),
        (
            lambda x: np.repeat(x, 1 + (x.shape[2] > 60), 1),
            r"gives 1 outputs, and 2 for an input of .*. Return as many",
        ),
        (lambda x: np.full(x.shape, "high"), "the network gives no NumPy array .*. Give a function"),
    ],
    ids=["no outputs", "two tiles", "no tile", "more outputs of wide tiles", "more outputs of tall tiles", "text"],
)
def test_what_does_not_give_logits_of_every_tile_is_refused(model, told):
    with pytest.raises(ModelError, match=told):
        tilenet.segment(IMAGE, model=model, footprint=NEAR)


def test_a_footprint_of_inputs_that_no_machine_holds_is_refused():
    with pytest.raises(
        ModelError, match="inputs such as 2000000 x 2000000, too large to compute. Give one of a smaller"
    ):
        tilenet.segment(IMAGE, model=lambda x: x, footprint=Footprint.same(2, reach=1, step=10**6))


@pytest.mark.parametrize("axes", [1, 4])
def test_a_footprint_of_too_few_or_too_many_axes_is_refused(axes):
    with pytest.raises(SettingsError, match=f"has 2 or 3 axes, those of the network, not {axes}. Give one for each"):
        tilenet.segment(IMAGE, model=lambda x: x, footprint=Footprint.same(axes, reach=1))


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


def writing(x):
    x /= 255
    x -= 0.5
    return x


class Writing(nn.Module):
    """Scales its input in place, as networks in the wild do."""

    def forward(self, x):
        return writing(x)


@pytest.mark.parametrize("model", [writing, Writing()], ids=["function", "module"])
def test_a_model_that_writes_into_its_input_is_run_like_any_other(tmp_path, caplog, model):
    mask = tilenet.segment(IMAGE, tmp_path / "m.zarr", model=model, footprint=POINT)
    assert caplog.text == "" and np.array_equal(mask, IMAGE / 255 > 0.5)
    with pytest.raises(OutputMismatch, match="model answer"):
        tilenet.segment(IMAGE, tmp_path / "m.zarr", model=lambda x: 0.5 - x / 255, footprint=POINT, resume=True)


@pytest.mark.parametrize(
    "footprint",
    [
        Footprint.same(2, reach=500, step=32),
        Footprint.same(2, reach=1500, step=16),
        Footprint.same(3, reach=76, step=8),
        Footprint.valid(3, lost=20, step=4),
        Footprint((tilenet.AxisFootprint(4, 0, (8, 30), smallest=400),) * 2),
    ],
    ids=["ResNet", "wide", "3-D", "3-D without padding", "no short inputs"],
)
def test_networks_of_large_steps_and_reaches_are_checked_for_seams_too(footprint):
    def plain(x):
        lost = footprint.lost
        return x[(..., *(slice(n, side - n) for n, side in zip(lost, x.shape[2:], strict=True)))] - 100

    def normalised(x):
        return plain(x) - x.mean()

    def from_the_corner(x):
        return plain(x) * (np.arange(plain(x).shape[-1]) % (2 * footprint.step[-1]) < footprint.step[-1])

    assert (ask(plain, footprint, 1).seam, ask(plain, footprint, 1).unchecked) == (0, "")
    assert ask(normalised, footprint, 1).seam > 1e-3 and ask(from_the_corner, footprint, 1).seam > 1e-3


def test_a_network_of_such_a_reach_that_it_is_not_checked_is_told():
    answer = ask(lambda x: x - 100, Footprint.same(3, reach=150, step=32), 1)
    (said,) = remarks(tilenet.ModelCard(), answer)
    assert said.startswith("was not checked for seams, as that would take 2.36 million pixels. Write a mask to disk")
    assert said.endswith("tilenet.verify(mask, model=..., footprint=...)")


def trained_on_0_to_1(last, outputs=1):
    """Return a network whose logits of pixels from 0 to 1 lie around 0, so that those of 255 saturate it."""
    network = nn.Sequential(nn.Conv2d(1, outputs, 3, padding=1), last)
    with torch.no_grad():
        network[0].weight.fill_(10)
        network[0].weight[1:] = 9
        network[0].bias.fill_(-1)
    return network


@pytest.mark.parametrize(
    ("model", "output", "warned"),
    [
        (trained_on_0_to_1(nn.Sigmoid()), "softmax", True),
        (trained_on_0_to_1(nn.Sigmoid()), "regression", False),
        (trained_on_0_to_1(nn.Softmax(1), 2), "softmax", True),
        (trained_on_0_to_1(nn.Sigmoid(), 2), "sigmoid", True),
        (trained_on_0_to_1(nn.Sigmoid(), 2), "regression", False),
        (trained_on_0_to_1(nn.Identity()), "softmax", False),
    ],
    ids=["sigmoid", "regression", "softmax", "two sigmoids", "two regressions", "logits"],
)
def test_a_last_sigmoid_is_told_also_if_pixels_of_255_saturate_it(caplog, model, output, warned):
    with torch.no_grad():
        assert model(torch.full((1, 1, 5, 5), 255.0)).min() in (0, 1) or isinstance(model[1], nn.Identity)
    model.card = tilenet.ModelCard(name="network", output=output)
    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.segment(IMAGE, model=model, footprint=NEAR, scaling="linear:0,255", output="probabilities")
    assert ("look like probabilities" in caplog.text) is warned


class Attention(nn.Module):
    """Takes the tiles of a batch for the tokens of a sequence, as `batch_first=False` does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.attention = nn.Conv2d(1, 8, 1), nn.MultiheadAttention(8, 2)

    def forward(self, x):
        tokens = self.features(x).flatten(2)[..., 0].unsqueeze(1)
        return self.features(x) + self.attention(tokens, tokens, tokens)[0].squeeze(1)[..., None, None]


def blurred(batch):
    """Blur along the tiles of a batch too, as a filter does that is not told its axes."""
    padded = np.pad(batch, ((1, 1), (0, 0), (0, 0), (0, 0)), mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3 - 100


def normalised(batch):
    return (batch - batch.mean(axis=0)) / 255


@pytest.mark.parametrize(
    "model",
    [blurred, lambda x: blurred(x) > 0, lambda x: blurred(x / 255 + 99.8) > 0, normalised, Attention()],
    ids=["blur", "threshold of a blur", "threshold of a blur of 0 to 1", "batch statistics", "attention"],
)
def test_a_model_that_mixes_the_tiles_of_a_batch_is_told_of_if_there_are_batches(caplog, model):
    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.segment(IMAGE, model=model, footprint=POINT, tile=32, batch=1)
        assert "other tiles of its batch" not in caplog.text
        tilenet.segment(IMAGE, model=model, footprint=POINT, tile=32, batch=2)
    assert "with the other tiles of its batch, so that there are seams. Let it treat each tile by itself" in caplog.text


def test_a_model_that_treats_each_tile_by_itself_is_not_told_of(caplog):
    with caplog.at_level(logging.WARNING, "tilenet"):
        for model in (lambda batch: np.stack([blurred(tile[None])[0] for tile in batch]), nn.BatchNorm2d(1)):
            tilenet.segment(IMAGE, model=model, footprint=POINT, tile=32, batch=2)
    assert caplog.text == ""


def one_by_one(batch):
    if len(batch) > 1:
        raise ValueError("one tile at a time")
    return batch - 100


def test_a_model_that_takes_one_tile_at_a_time_runs_where_there_are_no_batches():
    expected = IMAGE > 100
    # One tile in each block, or one in each batch.
    assert np.array_equal(tilenet.segment(IMAGE, model=one_by_one, footprint=POINT, tile=128, batch=8), expected)
    assert np.array_equal(tilenet.segment(IMAGE, model=one_by_one, footprint=POINT, tile=32, batch=1), expected)
    with pytest.raises(ModelError, match=r"one tile at a time. If it takes only .*, run with batch=1 \(--batch 1\)"):
        tilenet.segment(IMAGE, model=one_by_one, footprint=POINT, tile=32, batch=8)
