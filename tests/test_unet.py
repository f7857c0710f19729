import pytest
import torch
from oracles import reference_forward, reference_state

from tilenet.models import load_model
from tilenet.unet import UNet


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
        ({"depth": 0}, "depth is at least 1"),
        ({"ndim": 4}, "ndim is 2 or 3"),
        ({"pooling": "median"}, "'max' or 'avg'"),
        ({"pool_size": (2, 2, 2)}, "needs 2 positive numbers"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**options)
