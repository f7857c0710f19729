"""Which engine a network gets, and that it is this network's as it is now."""

import numpy as np
import pytest
import torch

import tilenet
from tilenet import predict
from tilenet.errors import SettingsError
from tilenet.scaling import Scaling

CPU = torch.device("cpu")
BATCH = np.random.default_rng(0).integers(0, 255, (1, 1, 60, 60), dtype=np.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return tilenet.UNet(depth=2, wf=3).eval()


def predictor_of(network, *, engine, precision="fp32"):
    options = {"device": CPU, "precision": precision, "scaling": Scaling()}
    return predict.TorchPredictor(network, network.footprint, engine=engine, **options)


def assert_same_logits(network):
    plain, fast = (predictor_of(network, engine=engine)(BATCH) for engine in ("plain", "fast"))
    assert np.abs(plain - fast).max() <= 1e-5 * np.ptp(plain)


def change(network):
    """Change weights, as an optimiser does."""
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(torch.rand(weights.shape))


def load(network):
    """Change weights, as somebody does who loads others."""
    network.load_state_dict({name: torch.rand(old.shape) for name, old in network.state_dict().items()})


def replace(network):
    """Change one weight for another."""
    network.last.weight = torch.nn.Parameter(torch.rand(network.last.weight.shape))


@pytest.mark.parametrize("changing", [lambda network: None, change, load, replace])
def test_the_fast_path_that_was_checked_is_used_unless_a_weight_has_changed_since(network, changing, monkeypatch):
    assert predict.find_engine("auto", network, device=CPU, precision="fp32") == "fast"
    built, real = [], predict.accelerate
    monkeypatch.setattr(predict, "accelerate", lambda copied: (built.append(copied), real(copied))[1])
    changing(network)
    assert_same_logits(network)
    assert len(built) == (changing in (change, load, replace))


def test_it_is_used_once_and_does_not_outlive_its_network(network):
    predict.find_engine("auto", network, device=CPU, precision="fp32")
    assert network in predict._checked
    predictor_of(network, engine="fast")
    assert network not in predict._checked
    change(network)
    assert_same_logits(network)


def test_weights_whose_changes_nobody_counts_are_checked_again():
    with torch.inference_mode():
        network = tilenet.UNet(depth=2, wf=3).eval()
        assert predict.find_engine("auto", network, device=CPU, precision="fp32") == "fast"
        change(network)
    assert_same_logits(network)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_the_fast_path_is_of_float32_alone_also_where_it_was_checked(network, precision):
    predict.find_engine("auto", network, device=CPU, precision="fp32")
    with pytest.raises(SettingsError, match="--engine plain"):
        predictor_of(network, engine="fast", precision=precision)


def test_a_float64_network_that_is_run_in_float32_may_take_it(network):
    assert predict.find_engine("auto", network.double(), device=CPU, precision="fp64") == "plain"
    assert predictor_of(network, engine="fast")(BATCH).dtype == np.float32


def test_bands_spare_memory_and_the_plain_engine_has_none(network):
    plain, fast = (predict.bytes_per_pixel(network, "fp32", 1, engine=engine) for engine in ("plain", "fast"))
    assert fast < 0.6 * plain
    padded = tilenet.UNet(depth=2, wf=3, padding=True)
    assert predict.bytes_per_pixel(padded, "fp32", 1, engine="fast") == plain
