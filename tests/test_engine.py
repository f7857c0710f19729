import logging
from collections import Counter
from itertools import product

import pytest
import torch

import tilenet
from tilenet.fast import layers, steps, winograd
from tilenet.fast.compiled import CompiledClassification, CompiledConvolution, CompiledUpsampling, DirectConvolution
from tilenet.fast.native import find_instructions
from tilenet.fast.stream import PassState
from tilenet.fast.winograd import WinogradConvolution
from tilenet.predict import engine
from tilenet.predict.engine import SteppedUNet, accelerate, channels_last

# Width factors of networks of which PyTorch does no convolution by Winograd's transform, one, and all but the first.
NARROW, WIDE, WIDER = 3, 6, 7
# The same three where the thresholds are those of the fixture `instructions`: sixteen times fewer products.
SIZES = (3, 4, 5)
BEST = find_instructions()
OPTIONS = [
    {"up_mode": up_mode, "padding": padding, "batch_norm": batch_norm, "pooling": pooling}
    for up_mode, padding, batch_norm, pooling in product(
        ("upconv", "upsample"), (False, True), (False, True), ("max", "avg")
    )
]


def network_of(wf, *, depth=2, **options):
    torch.manual_seed(0)
    network = tilenet.UNet(depth=depth, wf=wf, **options).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture(params=range(BEST + 1))
def instructions(request, monkeypatch):
    """Convolutions of PyTorch, and those compiled for each set of instructions that this processor has.

    Of fewer channels than in use: which step is taken depends on them, not what it computes.
    """
    monkeypatch.setattr(steps, "find_instructions", lambda: request.param)
    monkeypatch.setattr(steps, "LEAST_WINOGRAD", steps.LEAST_WINOGRAD // 4)
    monkeypatch.setattr(steps, "MOST_MERGED", steps.MOST_MERGED // 4)


def difference(network, x, **how):
    """Return how far the fast path is off, as a part of the logits' range."""
    fast = SteppedUNet(network)
    with torch.inference_mode():
        plain, quick = network(x), fast(x, channels_last, **how)
    assert plain.std() > 0
    return float((quick - plain).abs().max() / (plain.max() - plain.min()))


@pytest.mark.parametrize("wf", SIZES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(str(v) for v in options.values()))
@pytest.mark.usefixtures("instructions")
def test_the_fast_path_gives_the_logits_of_the_plain_network(wf, options):
    network = network_of(wf, **options)
    length = network.footprint.axes[0].legal_at_least
    assert difference(network, torch.rand(2, 1, length(40), length(64))) <= engine.TOLERANCE


@pytest.mark.parametrize("wf", SIZES)
@pytest.mark.parametrize("options", OPTIONS[::3], ids=lambda options: "-".join(str(v) for v in options.values()))
@pytest.mark.usefixtures("instructions")
def test_the_number_of_threads_changes_no_bit(wf, options):
    network, before = network_of(wf, depth=3, in_channels=3, n_classes=3, **options), torch.get_num_threads()
    side = network.footprint.axes[0].legal_at_least(100)
    fast, x, found = SteppedUNet(network), torch.rand(2, 3, side, side), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(fast(x, channels_last))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(logits, found[0]) for logits in found[1:])


@pytest.mark.parametrize("wf", SIZES[::2])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.usefixtures("instructions")
def test_the_fast_path_gives_the_logits_of_shallow_and_deeper_networks(wf, depth):
    network = network_of(wf, depth=depth, in_channels=3, n_classes=4)
    length = network.footprint.axes[0].legal_at_least(60)
    assert difference(network, torch.rand(1, 3, length, length)) <= engine.TOLERANCE


@pytest.mark.parametrize("wf", SIZES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.usefixtures("instructions")
def test_a_pixel_that_is_no_number_makes_logits_that_are_none(wf, value, batch_norm):
    network = network_of(wf, depth=3, batch_norm=batch_norm)
    length = network.footprint.axes[0].legal_at_least(60)
    x = torch.rand(1, 1, length, length)
    x[0, 0, length // 2, length // 2] = value
    fast = SteppedUNet(network)
    with torch.inference_mode():
        assert not torch.isfinite(network(x)).all()
        assert not torch.isfinite(fast(x, channels_last)).all()


@pytest.mark.parametrize(
    ("options", "compiled", "by_pytorch"),
    [
        ({}, 3, 3),
        ({"wf": WIDE}, 3, 2),
        ({"wf": WIDER}, 3, 0),
        ({"padding": True}, 3, 0),
        ({"up_mode": "upsample"}, 2, 2),
        ({"pool_size": (1, 2)}, 0, 0),
    ],
    ids=str,
)
def test_what_is_resized_or_not_halved_is_not_done_in_bands(options, compiled, by_pytorch, monkeypatch):
    network = network_of(**{"wf": NARROW, **options})
    for level, blocks in ((BEST, compiled if BEST else by_pytorch), (0, by_pytorch)):
        monkeypatch.setattr(steps, "find_instructions", lambda level=level: level)
        assert sum(block.in_bands for block in SteppedUNet(network)._steps) == blocks


IN_BANDS = [{}, {"batch_norm": True}, {"pooling": "avg"}, {"pool_size": (3, 2)}, {"up_mode": "upsample"}]
OF_A_BLOCK = [*IN_BANDS, {"padding": True}, {"padding": True, "batch_norm": True}, {"padding": True, "pooling": "avg"}]


@pytest.mark.parametrize("wf", SIZES[::2])
@pytest.mark.parametrize("options", IN_BANDS, ids=str)
@pytest.mark.parametrize("pixels", [1, 5_000, 10**9])
@pytest.mark.usefixtures("instructions")
def test_bands_of_any_height_give_the_logits_of_the_plain_network(wf, options, pixels):
    network = network_of(wf, depth=3, in_channels=3, **options)
    y, x = (axis.legal_at_least(n) for axis, n in zip(network.footprint.axes, (140, 60), strict=True))
    assert difference(network, torch.rand(1, 3, y, x), pixels=pixels) <= engine.TOLERANCE


@pytest.mark.parametrize("options", OF_A_BLOCK, ids=str)
@pytest.mark.parametrize("band", [1, 60_000, 10**9])
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("wf", [NARROW, 4])
def test_rows_of_a_block_however_few_give_the_logits_of_the_plain_network(wf, band, options, monkeypatch):
    monkeypatch.setattr(steps, "CACHED_BYTES", band)
    network = network_of(wf, depth=3, in_channels=3, **options)
    y, x = (axis.legal_at_least(n) for axis, n in zip(network.footprint.axes, (60, 84), strict=True))
    assert difference(network, torch.rand(1, 3, y, x)) <= engine.TOLERANCE


@pytest.mark.parametrize(
    ("options", "heights"), [({}, [44, 32, 4]), ({"padding": True}, [80]), ({"depth": 1}, [32, 32, 16])]
)
def test_each_row_is_prepared_once_in_the_order_of_bands(options, heights):
    seen = []
    network = network_of(NARROW, **{"depth": 3, **options})
    assert network.footprint.axes[0].is_legal(80)
    x = torch.arange(80.0)[:, None].expand(1, 1, 80, 80)
    SteppedUNet(network)(x, lambda band: (seen.append(band[0, 0, :, 0]), channels_last(band))[1], pixels=80 * 32)
    assert [len(rows) for rows in seen] == heights
    assert torch.equal(torch.cat(seen), torch.arange(80.0))


@pytest.mark.parametrize("options", [{"padding": True}, {"up_mode": "upsample"}], ids=str)
def test_a_network_that_pads_or_clamps_could_not_be_done_in_bands(options, monkeypatch):
    monkeypatch.setattr(engine, "can_band", lambda axis: True)
    network = network_of(NARROW, depth=3, **options)
    length = network.footprint.axes[0].legal_at_least(140)
    try:
        off = difference(network, torch.rand(1, 1, length, length), pixels=1)
    except RuntimeError:  # rows are missing
        off = torch.inf
    assert off > engine.TOLERANCE


@pytest.mark.skipif(not BEST, reason="no compiled convolutions here")
@pytest.mark.parametrize(
    ("options", "layers"),
    [({"wf": 4}, 2), ({"wf": 6}, 1), ({"padding": True}, 0), ({"up_mode": "upsample"}, 0), ({"pool_size": (1, 2)}, 0)],
    ids=str,
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_upsampling_and_a_narrow_convolution_are_one(options, layers, batch_norm, monkeypatch):
    taken, real = [], CompiledUpsampling.__call__
    monkeypatch.setattr(CompiledUpsampling, "__call__", lambda self, x: (taken.append(self), real(self, x))[1])
    network = network_of(**{"wf": 4, "depth": 3, "batch_norm": batch_norm, **options})
    y, x = (axis.legal_at_least(60) for axis in network.footprint.axes)
    assert difference(network, torch.rand(2, 1, y, x)) <= engine.TOLERANCE
    assert len(taken) == layers


@pytest.mark.parametrize(
    ("wf", "level", "kinds"),
    [
        (NARROW, 0, {}),
        (WIDE, 0, {WinogradConvolution: 1}),
        (WIDER, 0, {WinogradConvolution: 5}),
        (NARROW, BEST, {CompiledConvolution: 1, DirectConvolution: 1}),
        (WIDER, BEST, {CompiledConvolution: 5, DirectConvolution: 1}),
    ],
)
def test_convolutions_are_compiled_ones_or_if_wide_winograd_s_of_pytorch(wf, level, kinds, monkeypatch):
    if level != 0 and not BEST:
        pytest.skip("no compiled convolutions here")
    monkeypatch.setattr(steps, "find_instructions", lambda: level)
    taken = Counter()

    def counting(real):
        return lambda self, *arrays, **how: (taken.update([type(self)]), real(self, *arrays, **how))[1]

    for kind in (WinogradConvolution, CompiledConvolution, DirectConvolution):
        monkeypatch.setattr(kind, "_convolve", counting(kind._convolve))
    assert difference(network_of(wf), torch.rand(1, 1, 44, 44)) <= engine.TOLERANCE
    assert taken == kinds


@pytest.mark.parametrize("classes", [steps.MOST_CLASSES, 2 * 10**5])
def test_outputs_of_any_number_leave_the_stack_alone(classes):
    network = tilenet.UNet(depth=1, wf=4, n_classes=classes).eval().requires_grad_(False)
    assert difference(network, torch.rand(1, 1, 6, 6)) <= engine.TOLERANCE
    assert steps.decides_at_once(network) == (BEST > 0 and classes == steps.MOST_CLASSES)


def test_a_fast_path_that_differs_is_not_taken_and_says_so(monkeypatch, caplog):
    network = network_of(NARROW)
    assert accelerate(network) is not None
    monkeypatch.setattr(layers, "_folded", lambda layer, before: (layer.weight * 1.001, layer.bias))
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert accelerate(network) is None
    assert "the plain one is used" in caplog.text


def test_a_fast_path_that_raises_an_error_is_not_taken(monkeypatch, caplog):
    def fails(weight):
        raise TypeError("_linear_pointwise() takes another argument")

    monkeypatch.setattr(winograd, "_multiplication", fails)
    monkeypatch.setattr(steps, "find_instructions", lambda: 0)
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert accelerate(network_of(WIDER)) is None
    assert "(_linear_pointwise() takes another argument): the plain one is used" in caplog.text


@pytest.mark.skipif(not BEST, reason="no compiled convolutions here")
def test_a_fast_path_that_decides_other_classes_than_its_logits_is_not_taken(monkeypatch, caplog):
    real = CompiledClassification.decided
    monkeypatch.setattr(CompiledClassification, "decided", lambda self, x, values: real(self, x, values.flip(0)))
    with caplog.at_level(logging.WARNING, "tilenet"):
        assert accelerate(network_of(4)) is None
    assert "gives masks that its logits do not: the plain one is used" in caplog.text


def test_a_fast_path_that_differs_between_two_bands_alone_is_not_taken(monkeypatch):
    network, real = network_of(NARROW, depth=3), PassState.with_kept

    def forgetting(*arguments):
        before, *pieces = real(*arguments)
        return [torch.zeros_like(before), *pieces]

    monkeypatch.setattr(PassState, "with_kept", forgetting)
    length = network.footprint.axes[0].legal_at_least(60)
    assert difference(network, torch.rand(1, 1, length, length)) <= engine.TOLERANCE
    assert accelerate(network) is None


@pytest.mark.parametrize(
    "network",
    [
        torch.nn.Conv2d(1, 2, 3),
        tilenet.UNet(ndim=3, depth=2, wf=2).eval(),
        network_of(NARROW).double(),
        network_of(NARROW).to("meta"),  # neither a CPU nor a CUDA device
    ],
    ids=["no U-Net", "3-D", "float64", "another device"],
)
def test_what_has_no_fast_path_is_left_alone(network):
    assert accelerate(network) is None


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("depth", "pool_size"), [(3, (1, 4)), (4, (1, 2)), (4, (2, 3)), (4, (4, 2)), (5, (1, 3))])
def test_networks_that_pool_unequally_have_a_fast_path_too(depth, pool_size, padding):
    network = network_of(4, depth=depth, pool_size=pool_size, padding=padding)
    assert accelerate(network) is not None


def test_a_network_of_constant_logits_is_no_other_one_than_itself(caplog):
    network = network_of(4)
    for weights in network.parameters():
        weights.zero_()
    assert accelerate(network) is not None and caplog.text == ""


def test_a_difference_from_constant_logits_counts():
    assert engine._difference(torch.ones(2), torch.zeros(2)) == float("inf")
