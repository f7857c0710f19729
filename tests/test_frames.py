"""The layers of a GPU's fast path, on the CPU, where Triton interprets its kernels."""

import copy
import logging
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import random_network

from tilenet.errors import EnvironmentFault, SettingsError
from tilenet.predict import engine
from tilenet.unet import UNet

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA: pip install triton")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, -m gpu runs the kernels themselves"),
    # NumPy's, of rows that are not meant.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]

from tilenet.fast import frame_network, frames  # noqa: E402

GRID = [
    {},
    {"depth": 1, "in_channels": 3},
    {"depth": 3, "in_channels": 5, "n_classes": 17},
    {"in_channels": 3, "batch_norm": True, "pooling": "avg", "n_classes": 1},
    {"wf": 5, "batch_norm": True},
]


def network_of(**options):
    """Return a network whose normalisation, if any, does something."""
    network = random_network(**{"depth": 2, "wf": 4, "in_channels": 1} | options).requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(-2, 2)
            layer.bias.uniform_(-1, 1)
    return network


def images_for(network, *, n=2, seed=0, dtype=torch.float32):
    """Return images of two different legal sides, no multiples of the frame's pitch."""
    axis = network.footprint.axes[0]
    sides = (axis.legal_at_least(axis.smallest + 1), axis.legal_at_least(axis.smallest + 3 * axis.step + 1))
    x = torch.rand(n, network.in_channels, *sides, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype)


def on_frames(network, x):
    with torch.inference_mode():
        return frame_network.FramedUNet(network)(x, lambda x: x)


def plain(network, x):
    with torch.inference_mode():
        return network(x)


@pytest.mark.parametrize("options", GRID, ids=str)
def test_a_network_on_frames_gives_the_logits_of_the_plain_one(options):
    network = network_of(**options)
    x = images_for(network)
    expected, found = plain(network, x), on_frames(network, x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 2e-6 * (expected.max() - expected.min())


def test_half_precision_is_as_close_on_frames_as_it_is_without():
    # Not bf16, which Triton's interpreter does not multiply.
    network = network_of(in_channels=3)
    x = images_for(network)
    exact, half = plain(copy.deepcopy(network).double(), x.double()), copy.deepcopy(network).half()
    on_frame, without = ((made(half, x.half()).double() - exact).abs().max() for made in (on_frames, plain))
    assert 0 < on_frame <= 2 * without


def test_rows_that_are_not_meant_reach_no_logit(monkeypatch):
    network = network_of(depth=3, in_channels=3)
    x = images_for(network)
    expected = on_frames(network, x)
    made = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *of, **how: made(*of, **how).fill_(torch.nan))
    assert torch.equal(on_frames(network, x), expected)
    assert expected.isfinite().all()


def test_images_of_a_batch_do_not_meet():
    network = network_of(depth=3)
    x = images_for(network, n=3)
    together, alone = on_frames(network, x), [on_frames(network, image[None]) for image in x]
    assert (together - torch.cat(alone)).abs().max() <= 1e-6 * together.abs().max()


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_a_pixel_that_is_no_number_makes_those_logits_none_that_it_makes_in_the_plain_network(pooling):
    network = network_of(depth=2, pooling=pooling)
    x = images_for(network, n=1)
    x[0, 0, 1, 2] = torch.nan
    expected, found = plain(network, x).isnan(), on_frames(network, x).isnan()
    assert torch.equal(found, expected)
    assert 0 < expected.float().mean() < 1


@pytest.mark.parametrize("programs", [0, 1])
@pytest.mark.parametrize("outputs", [16, 32])
def test_a_convolution_is_the_same_however_it_is_parted(programs, outputs):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 16, 9, 12, generator=generator), torch.randn(outputs, 16, 3, 3, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    frame = frames.Frame(x.permute(0, 2, 3, 1).reshape(-1, 16).contiguous(), (9, 12), (9, 12))
    parted = frames.Convolution(weight, bias, blocking=frames.Blocking(32, 16, 16, 4, 2, programs))(frame)
    rows = parted.rows.reshape(9, 12, outputs)[:7, :10].permute(2, 0, 1)
    assert (rows - F.conv2d(x, weight, bias).relu()[0]).abs().max() <= 1e-5 * rows.max()
    assert parted.shape == (7, 10)


def test_the_middle_of_a_frame_begins_where_its_first_pixel_lies():
    frame = frames.Frame(torch.arange(2 * 8 * 10)[:, None], (8, 10), (6, 9))
    middle = frame.middle((4, 5))
    assert (middle.shape, middle.first) == ((4, 5), 12)
    assert middle.used == 2 * 80 - 4 * 10 - 5


@pytest.mark.parametrize(
    "options",
    [{"padding": True}, {"up_mode": "upsample"}, {"wf": 3}, {"ndim": 3}, {"pool_size": (1, 2)}],
    ids=str,
)
def test_other_networks_have_no_frames(options):
    assert frame_network.can_frame(network_of())
    assert not frame_network.can_frame(UNet(**{"depth": 2, "wf": 4} | options))
    assert not frame_network.can_frame(network_of().double())


@pytest.fixture
def hopper(monkeypatch):
    """Take the processor for a GPU of the right kind."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def accelerated(network):
    return engine._tried(engine._on_frames, network, images_for(network, dtype=network.last.weight.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fast_path_that_is_right_is_taken(hopper, dtype):
    network = network_of().to(dtype)
    fast, x = accelerated(network), images_for(network, seed=1, dtype=dtype)
    assert isinstance(fast, frame_network.FramedUNet)
    with torch.inference_mode():
        found, expected = fast(x, lambda x: x), plain(network, x)
    allowed = 2e-6 if dtype == torch.float32 else 1e-2
    assert (found - expected).abs().max() <= allowed * (expected.max() - expected.min())


def test_it_is_for_one_generation_of_gpus_of_one_make(monkeypatch):
    cuda, network = torch.device("cuda"), network_of()
    for major, expected in ((7, False), (8, False), (9, True), (10, False), (12, False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        assert engine.may_accelerate(network, cuda, torch.bfloat16) is expected
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", "6.2")  # which counts its own as 9.x
    assert not engine.may_accelerate(network, cuda, torch.bfloat16)


def test_a_triton_that_is_too_old_is_no_reason_to_stop(hopper, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tilenet.fast.frame_network", None)  # as where an import in it fails
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert accelerated(network_of()) is None
    assert "the plain one is used" in caplog.text


def test_a_gpu_without_room_is_said_to_be_that(hopper, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(frames, "pooled", fail)
    with pytest.raises(EnvironmentFault, match="out of memory before the run began"):
        accelerated(network_of())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fast_path_that_is_wrong_is_left_with_a_line_that_says_so(hopper, monkeypatch, caplog, dtype):
    inner = frame_network.FramedUNet.__call__

    def wrong(self, x, prepared):
        logits = inner(self, x, prepared)
        logits[0, 0, 3, 4] += 0.2 * np.ptp(logits.numpy())
        return logits

    monkeypatch.setattr(frame_network.FramedUNet, "__call__", wrong)
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert accelerated(network_of().to(dtype)) is None
    assert "the plain one is used" in caplog.text


def test_a_compiler_that_fails_is_no_reason_to_stop(hopper, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(frames, "pooled", fail)
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert accelerated(network_of()) is None
    assert "cannot be had on this device (Failed to find C compiler): the plain one is used" in caplog.text


def test_what_compiles_the_kernels_has_a_version():
    assert engine.triton_version().startswith("triton 3.")


def test_an_image_of_more_values_than_32_bits_count_is_refused():
    network = network_of(in_channels=3)
    too_large = torch.zeros(1).expand(1, 3, 30_000, 30_000)
    with pytest.raises(SettingsError, match="30000 x 30000 px has 2.7e\\+09 values. Start again with a smaller --tile"):
        on_frames(network, too_large)
