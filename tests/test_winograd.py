import pytest
import torch
import torch.nn.functional as F
from convolved import assert_near, of
from hypothesis import given, settings
from hypothesis import strategies as st

from tilenet.fast import winograd
from tilenet.fast.winograd import WinogradConvolution

LAST = torch.channels_last


def both(x, *, outputs):
    """Return Winograd's convolution and ReLU in float32, and the plain ones in float64."""
    channels = x.shape[1]
    weight, bias = of((outputs, channels, 3, 3), seed=1) / (9 * channels) ** 0.5, of(outputs, seed=2)
    found = WinogradConvolution(weight.float(), bias.float())(x.float().to(memory_format=LAST))
    return found, F.conv2d(x, weight, bias).relu()


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(3, 40), st.integers(3, 40)),
    st.integers(1, 9),
    st.integers(1, 10**6),
)
def test_it_is_the_convolution_at_every_size_and_in_strips_of_any_size(shape, outputs, strip):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "STRIP_BYTES", strip)
        found, exact = both(of(shape), outputs=outputs)
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [128, 1024])
def test_wide_convolutions_are_near_the_exact_ones(channels):
    found, exact = both(of((1, channels, 30, 27)), outputs=128)
    assert_near(found, exact)
    assert found.is_contiguous(memory_format=LAST)


def test_a_convolution_is_the_same_without_onednn(monkeypatch):
    monkeypatch.setattr(winograd.torch.ops, "mkldnn", object())
    assert_near(*both(of((1, 64, 30, 27)), outputs=64))


def test_a_strip_is_not_seen_in_what_it_makes(monkeypatch):
    x, whole = of((1, 8, 62, 45)), None
    for strip in (1, 10**5, 10**9):
        monkeypatch.setattr(winograd, "STRIP_BYTES", strip)
        found, _ = both(x, outputs=8)
        whole = found if whole is None else whole
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_what_is_not_a_number_stays_none_and_is_felt_by_its_squares_alone():
    x = of((1, 8, 30, 30))
    x[0, 3, 13, 13] = torch.nan
    found, exact = both(x, outputs=8)
    assert found[exact.isnan()].isnan().all()
    felt = found.isnan().any(dim=1)[0].nonzero()
    assert (felt.min(), felt.max()) == (11, 15)  # by a direct convolution: 11 to 13
