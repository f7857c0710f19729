import platform
import shutil
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convolved import assert_near, of
from hypothesis import given, settings
from hypothesis import strategies as st

from tilenet.decide import Decision
from tilenet.fast import native
from tilenet.fast.compiled import (
    CompiledClassification,
    CompiledConvolution,
    CompiledUpsampling,
    DirectConvolution,
    composed,
)
from tilenet.fast.native import AVX2, AVX512, find_instructions

LAST = torch.channels_last
BEST = find_instructions()
needs_it = pytest.mark.skipif(not BEST, reason="no compiled convolutions here: no x86-64 with AVX2, or no C compiler")
SETS = [level for level in (AVX2, AVX512) if level <= BEST]
X86 = platform.machine() == "x86_64" and platform.system() == "Linux"


def layer_of(inputs, outputs):
    return of((outputs, inputs, 3, 3), seed=1) / (9 * inputs) ** 0.5, of(outputs, seed=2)


def floats(layer):
    return [numbers.float() for numbers in layer]


def single(x):
    return x.float().contiguous(memory_format=LAST)


def both(x, *, outputs, padding=0, level=BEST):
    """Return the compiled convolution and ReLU in float32, and the plain ones in float64."""
    weight, bias = layer_of(x.shape[1], outputs)
    found = CompiledConvolution(weight.float(), bias.float(), padding, None, instructions=level)(
        [single(x)], zeros=(padding, padding)
    )
    return found, F.conv2d(x, weight, bias, padding=padding).relu()


@pytest.mark.skipif(not (X86 and shutil.which("cc")), reason="no x86-64, or no C compiler")
def test_where_there_is_a_compiler_there_are_compiled_convolutions():
    assert BEST in (AVX2, AVX512)


@needs_it
@settings(max_examples=80)
@given(
    st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 48]), st.integers(3, 60), st.integers(3, 60)),
    st.sampled_from([16, 32, 48, 64]),
    st.integers(0, 1),
    st.sampled_from(SETS),
)
def test_it_is_the_convolution_at_every_size(shape, outputs, padding, level):
    found, exact = both(of(shape), outputs=outputs, padding=padding, level=level)
    assert_near(found, exact)
    assert found.is_contiguous(memory_format=LAST)


@needs_it
@pytest.mark.parametrize("level", SETS)
@pytest.mark.parametrize("shape", [(256, 128), (512, 256), (1024, 512)])
def test_deep_convolutions_are_exact_too(shape, level):
    assert_near(*both(of((1, shape[0], 30, 27)), outputs=shape[1], level=level))


@needs_it
@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 5), st.integers(0, 1))
def test_rows_may_come_in_pieces_and_channels_from_two_tensors(heights, below, left, padding):
    x, other = of((2, 16, sum(heights) + below + 3, 11)), of((2, 48, sum(heights) + below + 3, 11), seed=3)
    weight, bias = layer_of(64, 32)
    pieces = list(single(x).split([*heights, below + 3], dim=2))
    # The middle of something larger, as a skip is.
    centre = F.pad(single(other), (left, 2, 1, 4)).contiguous(memory_format=LAST)[:, :, 1:-4, left:-2]
    convolution = CompiledConvolution(weight.float(), bias.float(), padding, None, instructions=BEST)
    found = convolution(pieces, [centre], zeros=(padding, padding))
    assert_near(found, F.conv2d(torch.cat([x, other], 1), weight, bias, padding=padding).relu())


@needs_it
@given(st.integers(0, 1), st.integers(0, 1))
def test_zeros_may_be_padded_above_or_below_alone(above, below):
    x, (weight, bias) = of((1, 16, 14, 13)), layer_of(16, 16)
    found = CompiledConvolution(weight.float(), bias.float(), 1, None, instructions=BEST)(
        [single(x)], zeros=(above, below)
    )
    assert_near(found, F.conv2d(F.pad(x, (1, 1, above, below)), weight, bias).relu())


@needs_it
@settings(max_examples=40)
@given(st.integers(3, 30), st.integers(3, 30), st.integers(0, 1), st.sampled_from(SETS))
def test_scale_shift_and_the_largest_of_two_by_two_come_with_it(height, width, padding, level):
    x, (weight, bias) = of((2, 16, height, width)), layer_of(16, 32)
    scale, shift = of(32, seed=4), of(32, seed=5)  # of either sign
    convolution = CompiledConvolution(
        weight.float(), bias.float(), padding, (scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)), instructions=level
    )
    zeros = (padding, padding)
    found, pooled = convolution.pooled([single(x)], zeros=zeros)
    exact = F.conv2d(x, weight, bias, padding=padding).relu() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    assert_near(found, exact)
    assert torch.equal(found, convolution([single(x)], zeros=zeros))
    if min(found.shape[2:]) > 1:
        assert torch.equal(pooled, F.max_pool2d(found, 2))
    else:
        assert pooled.numel() == 0


@needs_it
@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 9), max_size=2), st.integers(2, 20), st.integers(2, 30), st.sampled_from([16, 32, 48]),
    st.sampled_from(SETS),
)  # fmt: skip
def test_upsampling_and_the_convolution_after_it_are_one(heights, below, width, outputs, level):
    x = of((2, 64, sum(heights) + below, width))
    transposed, weight = of((64, 24, 2, 2), seed=1) / 64**0.5, of((outputs, 24, 3, 3), seed=2) / (9 * 24) ** 0.5
    upsampled = CompiledUpsampling(transposed, weight, instructions=level)
    found = upsampled(single(x).split([*heights, below], dim=2))
    assert_near(found, F.conv2d(F.conv_transpose2d(x, transposed, stride=2), weight))


@needs_it
@settings(max_examples=80)
@given(
    st.lists(st.integers(0, 9), max_size=2), st.integers(3, 20), st.integers(3, 40), st.sampled_from([1, 2, 3, 5, 17]),
    st.sampled_from([16, 32, 48]), st.integers(0, 1), st.sampled_from(SETS),
)  # fmt: skip
def test_few_channels_are_convolved_tap_by_tap(heights, below, width, inputs, outputs, padding, level):
    x, (weight, bias) = of((2, inputs, sum(heights) + below, width)), layer_of(inputs, outputs)
    scale, shift = of(outputs, seed=4), of(outputs, seed=5)
    convolution = DirectConvolution(
        weight.float(), bias.float(), padding, (scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)), instructions=level
    )
    found = convolution(single(x).split([*heights, below], dim=2), zeros=(padding, padding))
    exact = F.conv2d(x, weight, bias, padding=padding).relu() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    assert_near(found, exact)
    assert found.is_contiguous(memory_format=LAST)


@needs_it
@settings(max_examples=80)
@given(
    st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 48]), st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 19),
    st.sampled_from(SETS),
)
def test_the_last_convolution_gives_class_by_class(shape, outputs, level):
    x, weight, bias = of(shape), of((outputs, shape[1], 1, 1), seed=1), of(outputs, seed=2)
    found = CompiledClassification(weight.float(), bias.float(), instructions=level)(single(x))
    exact = F.conv2d(x, weight, bias)
    assert found.shape == exact.shape and found.is_contiguous()
    assert float((found - exact).abs().max()) <= 1e-5 * max(1, float(exact.abs().max()))


@needs_it
@settings(max_examples=80)
@given(
    st.tuples(st.integers(1, 3), st.sampled_from([16, 48]), st.integers(1, 60), st.integers(1, 60)),
    st.lists(st.integers(0, 255), min_size=1, max_size=7),
    st.sampled_from(SETS),
)
def test_masks_made_at_once_are_those_of_the_logits(shape, values, level):
    # Few weights, so that logits are often equal: of those the first wins.
    weight = of((len(values), shape[1], 1, 1)).round().float()
    classification = CompiledClassification(weight, torch.zeros(len(values)), instructions=level)
    x = single(of(shape).round() * (of(shape[2:], seed=1) > 0))
    found = classification.decided(x, torch.tensor(values, dtype=torch.uint8))
    decide = Decision("softmax", tuple(values))
    assert found.shape == (shape[0], 1, *shape[2:])
    for mask, logits in zip(found, classification(x), strict=True):
        assert np.array_equal(mask[0].numpy(), decide.mask(logits.numpy()))


@needs_it
def test_a_value_for_each_class_is_needed():
    classification = CompiledClassification(of((3, 16, 1, 1)).float(), of(3).float(), instructions=BEST)
    with pytest.raises(ValueError, match="2 values are not those of 3 outputs"):
        classification.decided(single(of((1, 16, 4, 4))), torch.tensor([0, 1], dtype=torch.uint8))


@needs_it
@pytest.mark.parametrize(("name", "other"), [("Classification", native.Convolution), ("FORMAT", native.FORMAT + 1)])
def test_a_library_of_another_version_is_not_used(monkeypatch, caplog, name, other):
    monkeypatch.setattr(native, name, other)
    native._library.cache_clear()
    try:
        assert native.convolutions() == "pytorch"
        assert "of another version of tilenet, and not used" in caplog.text
    finally:
        monkeypatch.undo()
        native._library.cache_clear()
    assert find_instructions() == BEST


@needs_it
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("level", SETS)
def test_no_mask_is_made_at_once_where_a_single_logit_is_not_finite(level, value):
    classification = CompiledClassification(of((2, 16, 1, 1)).float(), of(2).float(), instructions=level)
    values = torch.tensor([0, 1], dtype=torch.uint8)
    for row, column in product((0, 11, 22), (0, 20, 40)):
        x = single(of((2, 16, 23, 41)))
        assert classification.decided(x, values) is not None
        x[1, 5, row, column] = value
        assert classification.decided(x, values) is None


@needs_it
@pytest.mark.parametrize("level", SETS)
def test_what_is_not_a_number_is_felt_by_its_taps_alone_in_the_first_and_last(level):
    x, (weight, bias) = single(of((1, 3, 30, 30))), layer_of(3, 16)
    x[0, 1, 13, 14] = torch.nan
    made = DirectConvolution(weight.float(), bias.float(), 0, None, instructions=level)([x])
    assert torch.equal(made.isnan(), F.conv2d(x, weight.float()).isnan()) and made.isnan().any()
    logits = CompiledClassification(of((2, 16, 1, 1)).float(), of(2).float(), instructions=level)(made)
    assert torch.equal(logits.isnan().any(1), made.isnan().any(1))


@needs_it
@pytest.mark.parametrize("level", SETS)
def test_what_is_there_is_added_before_anything_else(level):
    x, there, (weight, bias) = of((2, 16, 23, 30)), of((2, 32, 21, 28), seed=3), layer_of(16, 32)
    scale = of(32, seed=4).view(1, -1, 1, 1)
    convolution = CompiledConvolution(weight.float(), bias.float(), 0, (scale, scale), instructions=level)
    found = convolution.added(single(there), [single(x)])
    assert_near(found, (F.conv2d(x, weight, bias) + there).relu() * scale + scale)


def test_a_transposed_convolution_and_the_next_are_one_of_2x2_taps_per_finer_pixel():
    transposed, convolution, x = of((6, 3, 2, 2)), of((5, 3, 3, 3)), of((1, 6, 7, 9))
    expected = F.conv2d(F.conv_transpose2d(x, transposed, stride=2), convolution)
    found = F.conv2d(x, composed(transposed, convolution)).view(1, 2, 2, 5, 6, 8)
    for row, column in product(range(2), range(2)):
        torch.testing.assert_close(found[:, row, column], expected[:, :, row::2, column::2])


@needs_it
@pytest.mark.parametrize("level", SETS)
def test_the_largest_of_pixels_one_of_which_is_not_a_number_is_none(level):
    weight, bias = layer_of(16, 16)
    for row, column in ((8, 8), (8, 9), (9, 8), (9, 9)):
        x = single(of((1, 16, 22, 22)))
        x[0, 0, row, column] = torch.nan
        found, pooled = CompiledConvolution(weight.float(), bias.float(), 0, None, instructions=level).pooled([x])
        assert torch.equal(pooled.isnan(), F.max_pool2d(found, 2).isnan()) and pooled.isnan().any()


@needs_it
@pytest.mark.parametrize("level", SETS)
def test_bits_depend_on_neither_threads_nor_neighbours(level):
    x, weight = single(of((1, 32, 90, 102))), of((5, 48, 1, 1)).float()
    convolution = CompiledConvolution(*floats(layer_of(32, 48)), 0, None, instructions=level)
    direct = DirectConvolution(*floats(layer_of(3, 48)), 0, None, instructions=level)
    classification = CompiledClassification(weight, weight[:, 0, 0, 0].contiguous(), instructions=level)
    pixels = single(x[:, :3])
    count = torch.get_num_threads()
    whole = [convolution([x]), direct([pixels]), classification(direct([pixels]))]
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = [convolution([x]), direct([pixels]), classification(direct([pixels]))]
            assert all(map(torch.equal, found, whole))
    finally:
        torch.set_num_threads(count)
    # A part: of Winograd's, that begins at a multiple of four, so that squares are the same.
    assert torch.equal(convolution([x[:, :, 8:62, 20:90]]), whole[0][:, :, 8:60, 20:88])
    part = direct([pixels[:, :, 7:60, 19:90]])
    assert torch.equal(part, whole[1][:, :, 7:58, 19:88])
    assert torch.equal(classification(part), whole[2][:, :, 7:58, 19:88])


@needs_it
def test_what_is_not_a_number_stays_none_and_is_felt_by_its_squares_alone():
    x = of((1, 16, 30, 30))
    x[0, 3, 13, 13] = torch.nan
    found, exact = both(x, outputs=16)
    assert found[exact.isnan()].isnan().all()
    felt = found.isnan().any(dim=1)[0].nonzero()
    assert (felt.min(), felt.max()) == (11, 15)  # by a direct convolution: 11 to 13


def test_a_library_that_cannot_be_loaded_is_none(monkeypatch, tmp_path):
    native._library.cache_clear()
    (tmp_path / f"_convolutions{native.EXTENSION_SUFFIXES[0]}").write_text("no library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert find_instructions() == 0
    native._library.cache_clear()
