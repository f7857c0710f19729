"""Which engine a network gets, and that it is this network's as it is now."""

import copy
import gc
import logging
import weakref

import numpy as np
import pytest
import torch

import tilenet
from tilenet import machine
from tilenet.errors import EnvironmentFault, SettingsError
from tilenet.predict import last_bits, predictors
from tilenet.predict.memory import demand_of
from tilenet.scaling import Scaling
from tilenet.sizes import DEFAULT_DEMAND

CPU = torch.device("cpu")
BATCH = np.random.default_rng(0).integers(0, 255, (1, 1, 60, 60), dtype=np.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return tilenet.UNet(depth=2, wf=3).eval()


def predictor_of(network, *, engine, precision="fp32"):
    options = {"device": CPU, "precision": precision, "scaling": Scaling()}
    return predictors.TorchPredictor(network, network.footprint, engine=engine, **options)


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


def write_unseen(network):
    """Change weights as moving averages do, without PyTorch counting it."""
    for weights in network.parameters():
        weights.data.mul_(1.5)


def replace(network):
    """Change one weight for another."""
    network.last.weight = torch.nn.Parameter(torch.rand(network.last.weight.shape))


CHANGES = [change, load, write_unseen, replace]


@pytest.fixture
def built(monkeypatch):
    """Return a list of the networks of which a fast path was made."""
    found, real = [], predictors.accelerate
    monkeypatch.setattr(predictors, "accelerate", lambda copied: (found.append(copied), real(copied))[1])
    return found


@pytest.mark.parametrize("changing", [lambda network: None, *CHANGES])
def test_the_fast_path_that_was_checked_is_used_unless_a_weight_has_changed_since(network, changing, built):
    assert predictors.find_engine("auto", network, device=CPU, precision="fp32") == "fast"
    changing(network)
    assert_same_logits(network)
    assert len(built) == 1 + (changing in CHANGES)


def test_the_fast_path_is_checked_once_for_many_images(network, built):
    image = BATCH[0, 0]
    for scaling in ({"method": "none"}, {"method": "linear", "subtract": 7.0, "divide": 255.0}):
        for _ in range(2):
            how = {"output": "logits", "scaling": scaling}
            again, new = (tilenet.segment(image, model=model, **how) for model in (network, copy.deepcopy(network)))
            assert np.array_equal(again, new) and np.ptp(new) > 0
    assert sum(made.last.weight.equal(network.last.weight) for made in built) == 1 + 4, "one, and each copy's own"


@pytest.mark.parametrize("changing", CHANGES)
def test_after_a_change_of_weights_the_next_image_gets_the_new_ones(network, changing):
    image = BATCH[0, 0]
    before = tilenet.segment(image, model=network, output="logits")
    changing(network)
    after = tilenet.segment(image, model=network, output="logits")
    assert np.array_equal(after, tilenet.segment(image, model=copy.deepcopy(network), output="logits"))
    assert not np.array_equal(after, before)


class Silent(tilenet.UNet):
    """A network that saves no weights: an adapter around one that is stored elsewhere."""

    def state_dict(self, *args, **kwargs):
        return {}


def test_the_weights_that_a_network_does_not_save_count_too():
    network, image = Silent(depth=2, wf=3).eval(), BATCH[0, 0]
    before = tilenet.segment(image, model=network, output="logits")
    change(network)
    after = tilenet.segment(image, model=network, output="logits")
    assert np.array_equal(after, tilenet.segment(image, model=copy.deepcopy(network), output="logits"))
    assert not np.array_equal(after, before)


def test_a_layer_that_was_changed_since_the_check_is_noticed(network, built, caplog):
    image, footprint = BATCH[0, 0], network.footprint
    tilenet.segment(image, model=network)
    network.pooling = "avg"
    new, plain = (tilenet.segment(image, model=network, output="logits", engine=engine) for engine in ("fast", "plain"))
    assert len(built) == 2 and np.abs(new - plain).max() <= 1e-5 * np.ptp(plain)
    network.down_path[0].block[1] = torch.nn.LeakyReLU(0.5)
    tilenet.segment(image, model=network, footprint=footprint)
    assert "the plain one is used" in caplog.text


def test_the_checked_fast_path_does_not_outlive_its_network():
    network = tilenet.UNet(depth=2, wf=3).eval()
    tilenet.segment(BATCH[0, 0], model=network)
    fast = weakref.ref(predictors._checked[network][1])
    del network
    gc.collect()
    assert fast() is None


def test_weights_whose_changes_nobody_counts_are_checked_again():
    with torch.inference_mode():
        network = tilenet.UNet(depth=2, wf=3).eval()
        assert predictors.find_engine("auto", network, device=CPU, precision="fp32") == "fast"
        change(network)
    assert_same_logits(network)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_the_fast_path_is_of_float32_alone_also_where_it_was_checked(network, precision):
    predictors.find_engine("auto", network, device=CPU, precision="fp32")
    with pytest.raises(SettingsError, match="--engine plain"):
        predictor_of(network, engine="fast", precision=precision)


def test_a_float64_network_that_is_run_in_float32_may_take_it(network):
    assert predictors.find_engine("auto", network.double(), device=CPU, precision="fp64") == "plain"
    assert predictor_of(network, engine="fast")(BATCH).dtype == np.float32


def test_of_a_tile_done_in_bands_only_a_band_is_in_memory(network):
    plain, fast = (
        demand_of(network, network.footprint, "fp32", 1, engine=engine, device="cpu") for engine in ("plain", "fast")
    )
    assert fast.of((400, 400)) < 0.7 * plain.of((400, 400))
    assert fast.of((4000, 4000)) < 0.2 * plain.of((4000, 4000))
    padded = tilenet.UNet(depth=2, wf=3, padding=True)
    assert demand_of(padded, padded.footprint, "fp32", 1, engine="fast", device="cpu") == plain


def test_people_hear_of_convolutions_that_were_not_compiled_and_outputs_say_which_were_used(
    network, monkeypatch, caplog
):
    for name in ("avx2", "pytorch"):
        for module in (predictors, last_bits):
            monkeypatch.setattr(module, "convolutions", lambda name=name: name)
        with caplog.at_level(logging.INFO, "tilenet"):
            assert predictors.find_engine("auto", network, device=CPU, precision="fp32") == "fast"
        assert ("C compiler" in caplog.text) == (name == "pytorch")
        assert last_bits.numerics_of(network, "fast", "cpu")["convolutions"] == name


def test_a_predictor_that_does_not_say_what_it_needs_gets_the_default():
    pointwise = tilenet.Footprint.same(2, reach=0)
    assert demand_of(lambda batch: batch, pointwise, "fp32", 1, engine="plain", device="cpu") == DEFAULT_DEMAND


def test_pixels_for_a_device_without_float64_are_sent_in_float32(network):
    predictor = predictor_of(network, engine="plain")
    for dtype in (np.float64, np.int64, np.uint32, np.uint16):
        predictor.device = torch.device("cpu")
        assert predictor.tensor_of(BATCH.astype(dtype)).dtype == (torch.uint16 if dtype == np.uint16 else torch.float64)
        predictor.device = torch.device("mps")
        assert predictor.tensor_of(BATCH.astype(dtype)).dtype == torch.float32


@pytest.mark.parametrize("engine", ["plain", "fast"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32])
def test_pixels_of_every_type_give_the_logits_of_their_values(network, engine, dtype):
    limits = np.iinfo(dtype)
    batch = np.random.default_rng(0).integers(limits.min, limits.max, (1, 1, 60, 60), dtype, endpoint=True)
    predictor = predictors.TorchPredictor(
        network,
        network.footprint,
        device=CPU,
        precision="fp32",
        engine=engine,
        scaling=Scaling((float(limits.min),), (float(limits.max),)),
    )
    wide = batch.astype(np.float64 if batch.itemsize > 2 else np.float32)
    np.testing.assert_array_equal(predictor(batch), predictor(wide))


def test_a_device_without_float64_is_not_asked_to_compute_in_it(network, monkeypatch):
    monkeypatch.setattr(machine, "find_device", torch.device)
    with pytest.raises(SettingsError, match=r"probability_dtype float64: not on mps\. Use --device cpu"):
        tilenet.segment(BATCH[0, 0], model=network, device="mps", output="probabilities", probability_dtype="float64")
    with pytest.raises(SettingsError, match=r"precision fp64: not on mps\. Use --device cpu, or --precision fp32"):
        tilenet.segment(BATCH[0, 0], model=network.double(), device="mps")


@pytest.mark.parametrize("name", ["meta", "xpu", "tpu", "hpu:1"])
def test_devices_that_tilenet_does_not_know_are_refused(name):
    with pytest.raises(SettingsError, match=f"device '{name}' is none of auto, cpu, cuda, cuda:N, mps"):
        machine.find_device(name)


def test_a_fast_path_that_cannot_be_had_is_refused_before_anything_is_written(tmp_path):
    network, out = tilenet.UNet(depth=2, wf=2, ndim=3).eval(), tmp_path / "m.zarr"
    with pytest.raises(SettingsError, match="Start again with --engine plain"):
        tilenet.segment(np.zeros((20, 20, 20), np.uint8), out, model=network, engine="fast", axes="zyx")
    assert not out.exists()


def test_the_fast_path_of_a_changed_network_whose_footprint_is_given_is_refused(network):
    footprint = network.footprint
    network.down_path[0] = torch.nn.Sequential(network.down_path[0])
    with pytest.raises(SettingsError, match="Start again with --engine plain"):
        tilenet.segment(BATCH[0, 0], model=network, footprint=footprint, engine="fast")


def test_a_fast_path_that_was_asked_for_is_checked_once(network, built):
    tilenet.segment(BATCH[0, 0], model=network, engine="fast")
    assert len(built) == 1


def test_memory_that_does_not_hold_the_network_is_a_fault_of_the_machine(network, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    for engine in ("auto", "plain"):
        with pytest.raises(EnvironmentFault, match="cpu: out of memory before the run began"):
            tilenet.segment(BATCH[0, 0], model=network, engine=engine)


def test_a_pass_on_frames_needs_less_than_the_plain_one():
    network = tilenet.UNet(depth=5, wf=6)
    for precision in ("fp32", "bf16"):
        plain, fast = (
            demand_of(network, network.footprint, precision, 3, engine=engine, device="cuda")
            for engine in ("plain", "fast")
        )
        assert fast.axis is None
        assert 0.4 < fast.of((1000, 1000)) / plain.of((1000, 1000)) < 0.7


class Stacked(torch.nn.Module):
    """Takes channels as planes: a 3-D layer in a 2-D network, with a buffer of another rank."""

    footprint = tilenet.Footprint.same(2, reach=1)

    def __init__(self):
        super().__init__()
        self.through, self.across = torch.nn.Conv3d(1, 4, (3, 1, 1)), torch.nn.Conv2d(4, 2, 3, padding=1)
        self.register_buffer("scale", torch.full((1, 1, 1, 1, 1), 2.0))

    def forward(self, x):
        return self.across((self.through(x[:, None]) * self.scale)[:, :, 0])


def test_a_network_may_have_layers_of_another_rank():
    torch.manual_seed(0)
    image, network = np.random.default_rng(0).random((3, 40, 50), np.float32), Stacked().eval()
    found = tilenet.segment(image, model=network, axes="cyx", tile=16, output="logits")
    with torch.inference_mode():
        mirrored = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        expected = network(torch.from_numpy(mirrored[None]))[0, :, 1:-1, 1:-1].numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_a_batch_may_lie_in_memory_in_any_order(network, engine):
    predictor = predictor_of(network, engine=engine)
    batch = np.random.default_rng(0).random((1, 1, 60, 60), np.float32)
    expected = predictor(batch)
    backward = np.ascontiguousarray(batch[:, :, ::-1])[:, :, ::-1]
    fixed = np.asfortranarray(batch)
    fixed.flags.writeable = False
    for same in (backward, fixed):
        np.testing.assert_allclose(predictor(same), expected, atol=1e-5)
