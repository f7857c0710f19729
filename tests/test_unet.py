import pytest
import torch
from oracles import reference_forward, reference_state
from torch import nn

from tilenet.errors import ModelError, SettingsError
from tilenet.models.saved import load_model
from tilenet.unet import UNet, is_as_built


@pytest.mark.parametrize("up_mode", ["upconv", "upsample"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize(("depth", "wf", "in_channels", "n_classes"), [(2, 3, 1, 2), (4, 2, 3, 1), (5, 1, 1, 5)])
def test_a_reference_checkpoint_gives_the_same_logits(
    tmp_path, depth, wf, in_channels, n_classes, padding, batch_norm, up_mode
):
    state = reference_state(
        in_channels=in_channels, n_classes=n_classes, depth=depth, wf=wf, batch_norm=batch_norm, up_mode=up_mode
    )
    torch.save(state, tmp_path / "weights.pth")
    network = load_model(tmp_path / "weights.pth", padding=padding)
    read_off = {"depth": depth, "wf": wf, "in_channels": in_channels, "n_classes": n_classes}
    assert network.options.items() >= (read_off | {"batch_norm": batch_norm, "up_mode": up_mode}).items()
    length = network.footprint.axes[0].legal_at_least(120)
    x = torch.rand(1, in_channels, length, length, generator=torch.Generator().manual_seed(1))
    expected = reference_forward(state, x, depth=depth, padding=padding, batch_norm=batch_norm, up_mode=up_mode)
    with torch.inference_mode():
        got = network(x)
    assert got.shape == expected.shape
    assert expected.std() > 1e-3
    assert (got - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


def test_average_pooling_must_be_said_and_changes_the_logits(tmp_path):
    state = reference_state(depth=3)
    torch.save(state, tmp_path / "old.pt")
    x = torch.rand(1, 1, 60, 60)
    options = {"depth": 3, "padding": False, "batch_norm": False, "up_mode": "upconv"}
    expected = reference_forward(state, x, **options, pooling="avg")
    with torch.inference_mode():
        assert torch.allclose(load_model(tmp_path / "old.pt", pooling="avg")(x), expected, atol=1e-5)
        assert not torch.allclose(load_model(tmp_path / "old.pt")(x), expected, atol=1e-3)


def test_options_stand_in_the_order_of_the_reference():
    network = UNet(3, 4, 2, 1, True, True, "upsample")
    assert network.options == {
        "in_channels": 3,
        "n_classes": 4,
        "depth": 2,
        "wf": 1,
        "padding": True,
        "batch_norm": True,
        "up_mode": "upsample",
        "ndim": 2,
        "pooling": "max",
        "pool_size": [2, 2],
    }
    assert UNet(**network.options).options == network.options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"up_mode": "nearest"}, "upconv, upsample, not 'nearest'"),
        ({"depth": 0}, "depth is a whole number, 1 at least, not 0"),
        ({"depth": 2.5}, "depth is a whole number"),
        ({"wf": -1}, "wf is a whole number, 0 at least"),
        ({"in_channels": 0}, "in_channels is a whole number"),
        ({"n_classes": 0}, "n_classes is a whole number"),
        ({"ndim": 4}, "ndim is 2 or 3"),
        ({"pooling": "median"}, "'max' or 'avg'"),
        ({"pool_size": (2, 2, 2)}, "needs 2 positive numbers"),
        ({"pool_size": 2}, "needs 2 positive numbers, one per axis, not 2"),
        ({"pool_size": (0, 2)}, "needs 2 positive numbers"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        UNet(**options)


def network(change, **options):
    """Return a U-Net in which something was changed by hand."""
    made = UNet(depth=3, wf=2, **options)
    change(made)
    return made


def setting(path, name, value):
    """Return a change of one attribute of a layer."""
    return lambda network: setattr(network.get_submodule(path), name, value)


UPSAMPLE, NORM = {"up_mode": "upsample"}, {"batch_norm": True}
CHANGES = {
    "corners aligned": (UPSAMPLE, setting("up_path.1.up.0", "align_corners", True)),
    "nearest pixels": (UPSAMPLE, setting("up_path.1.up.0", "mode", "nearest")),
    "pooled otherwise on the way up": ({}, setting("up_path.0", "pool_size", (1, 1))),
    "a convolution's method": ({}, setting("last", "_conv_forward", lambda x, weight, bias: x)),
    "a block's forward": ({}, setting("up_path.0", "forward", lambda x, skip: x)),
    "its own forward": ({}, setting("", "forward", lambda x: x)),
    "what its call does": ({}, setting("", "_call_impl", lambda x: x)),
    "mirrored borders": ({"padding": True}, setting("down_path.0.block.0", "padding_mode", "reflect")),
    "no bias": ({}, setting("last", "bias", None)),
    "more outputs": ({}, setting("last", "weight", nn.Parameter(torch.zeros(3, 4, 1, 1)))),
    "statistics of the tile": (NORM, setting("down_path.0.block.2", "running_mean", None)),
    "another epsilon": (NORM, setting("down_path.0.block.2", "eps", 1.0)),
    "never in eval mode": (NORM, setting("down_path.0.block.2", "train", lambda mode=True: None)),
    "an option that cannot be": ({}, setting("", "pool_size", (2, 2, 2))),
    "an option that is no number": ({}, setting("", "wf", "wide")),
}


@pytest.mark.parametrize(("options", "change"), CHANGES.values(), ids=CHANGES)
def test_a_unet_of_which_anything_was_changed_is_not_as_built(options, change):
    assert is_as_built(network(lambda network: None, **options))
    assert not is_as_built(network(change, **options))


def test_what_no_output_depends_on_may_be_changed():
    def change(network):
        network.notes, network.loss = "trained twice", abs
        network.card = None
        network.train().register_full_backward_hook(lambda *gradients: None)
        network.double().requires_grad_(False)

    assert is_as_built(network(change))


UNKNOWN = {
    "padding in a word": setting("down_path.0.block", "0", nn.Conv2d(1, 4, 3, padding="same")),
    "an even kernel": setting("down_path.0.block", "0", nn.Conv2d(1, 4, 4)),
    "a stride": setting("down_path.0.block", "0", nn.Conv2d(1, 4, 3, stride=(1, 2))),
    "statistics of the tile": setting("down_path.0.block", "1", nn.InstanceNorm2d(4)),
    "statistics of the batch": setting("down_path.0.block", "1", nn.BatchNorm2d(4, track_running_stats=False)),
    "a class of somebody's": setting("last", "__class__", type("Conv2d", (nn.Conv2d,), {})),
    "a convolution's method": setting("last", "_conv_forward", lambda x, weight, bias: x),
    "a hook in a block": lambda network: network.down_path[0].block[1].register_forward_hook(lambda *all: None),
    "a block's forward": setting("up_path.0", "forward", lambda x, skip: x),
    "another block": setting("down_path", "0", nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))),
    "no block": setting("up_path.0", "conv_block", nn.Identity()),
    "pooled otherwise on the way up": setting("up_path.0", "pool_size", (1, 1)),
    "pooled otherwise": setting("", "pool_size", (3, 3)),
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_a_unet_through_whose_layers_no_length_can_be_followed_asks_for_a_footprint(change):
    with pytest.raises(ModelError, match=r"^this UNet was changed, .* Give footprint=Footprint.same\(2, "):
        _ = network(change).footprint


def test_the_layer_through_which_no_length_can_be_followed_is_named():
    with pytest.raises(ModelError, match=r"its layers \(no length is followed through Softplus\(.*\)\)\. Give"):
        _ = network(setting("down_path.0.block", "1", nn.Softplus())).footprint
