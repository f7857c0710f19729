import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from oracles import is_legal, lost

from tilenet.errors import SettingsError
from tilenet.extent import Extent
from tilenet.footprint import AxisFootprint, Footprint
from tilenet.unet import UNet

DEPTHS = (1, 2, 3, 4, 5)


def axis(**options):
    return UNet(wf=0, **options).footprint.axes[0]


def test_the_papers_tile_of_572_gives_388_with_a_margin_of_92():
    footprint = UNet(depth=5, wf=0).footprint
    assert footprint.output_shape((572, 572)) == (388, 388)
    assert footprint.margin == (92, 92)
    assert footprint.step == (16, 16)


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_lost_follows_the_closed_formula(depth):
    assert axis(depth=depth).lost == lost(depth) == {1: 2, 2: 8, 3: 20, 4: 44, 5: 92}[depth]


@pytest.mark.parametrize("depth", DEPTHS)
def test_bilinear_upsampling_spoils_one_pixel_less_than_a_step(depth):
    spoiled = 2 ** (depth - 1) - 1
    assert axis(depth=depth, up_mode="upsample").spoiled == (spoiled, spoiled)
    assert axis(depth=depth, up_mode="upconv").spoiled == (0, 0)


def test_zero_padding_spoils_94_or_109_pixels_at_depth_5():
    assert axis(depth=5, padding=True).spoiled == (94, 94)
    assert axis(depth=5, padding=True, up_mode="upsample").spoiled == (109, 109)


@pytest.mark.parametrize("up_mode", ["upconv", "upsample"])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_length_to_600_is_legal_just_where_no_window_is_cut_and_gives_the_length_that_is_said(
    depth, padding, up_mode
):
    network = UNet(depth=depth, wf=0, padding=padding, up_mode=up_mode).eval()
    (found, _), other = network.footprint.axes, network.footprint.axes[1].smallest
    with torch.inference_mode():
        for length in range(1, 601):
            assert found.is_legal(length) == is_legal(length, depth=depth, padding=padding), length
            if found.is_legal(length):
                shape = network(torch.zeros(1, 1, length, other)).shape
                assert shape[2] == found.output_length(length)


@pytest.mark.parametrize(("length", "nearest"), [(571, "556, 572"), (200, "188, 204"), (20, "188")])
def test_an_illegal_length_is_refused_with_its_neighbours(length, nearest):
    with pytest.raises(SettingsError, match=rf"{length} is not legal; nearest: {nearest} \(every 16 from 188\)"):
        axis(depth=5).output_length(length)


@pytest.mark.parametrize("step", [1, 3])
def test_the_shortest_legal_length_is_found_by_counting_up_to_it(step):
    found = AxisFootprint(step, lost=2, spoiled=(3, 5), smallest=7)
    assert found.margin == 2 + 5
    for length in range(30):
        assert found.legal_at_least(length) == next(n for n in range(length, 40) if n in range(7, 40, step))


def test_numbers_of_other_types_come_back_from_a_record_as_they_went():
    found = AxisFootprint(np.int64(4), np.int64(2), [np.int64(3), 5], np.int64(8))
    assert AxisFootprint(**json.loads(json.dumps(asdict(found)))) == found == AxisFootprint(4, 2, (3, 5), 8)


def test_anisotropic_pooling_has_a_footprint_of_its_own_per_axis():
    footprint = UNet(depth=3, wf=0, ndim=3, pool_size=(1, 2, 2)).footprint
    assert footprint.step == (1, 4, 4)
    assert footprint.lost == (lost(3, pool=1), lost(3), lost(3)) == (10, 20, 20)


def test_what_a_span_reads_is_legal_and_covers_what_it_writes():
    for depth in DEPTHS:
        for padding in (False, True):
            for up_mode in ("upconv", "upsample"):
                a = axis(depth=depth, padding=padding, up_mode=up_mode)
                for start in range(40):
                    for length in (1, 2, 17, 64):
                        read, crop = a.span(start, start + length)
                        n = read[1] - read[0]
                        origin = read[0] + a.lost
                        assert a.is_legal(n)
                        assert origin % a.step == 0
                        assert (origin + crop[0], origin + crop[1]) == (start, start + length)
                        assert crop[0] >= a.spoiled[0]
                        assert crop[1] <= a.output_length(n) - a.spoiled[1]


def test_a_network_without_a_legal_length_is_refused():
    with pytest.raises(ValueError, match="no input length is legal"):
        AxisFootprint.of_walk(lambda n: Extent.whole(min(n, 3)).conv(9, 0))


def test_a_network_whose_loss_depends_on_the_length_is_refused():
    with pytest.raises(ValueError, match="depends on the length of its input"):
        AxisFootprint.of_walk(lambda n: Extent.whole(1 + n // 4))


def test_a_skip_that_does_not_line_up_is_refused():
    skip = Extent.whole(10)
    with pytest.raises(ValueError, match="does not line up"):
        replace(skip, length=7, origin=2).joined(skip)


def test_footprints_of_other_networks_are_said_in_one_line():
    assert Footprint.valid(2, lost=9).axes[0].span(0, 10) == ((-9, 19), (0, 10))
    assert Footprint.same(3, reach=5).margin == (5, 5, 5)
    assert Footprint.valid(1, lost=9, step=4).axes[0].smallest == 22, "which leaves one step"


def test_unpadded_unets_are_said_by_what_they_lose_their_shortest_input_and_what_they_spoil():
    paper, upsampled = UNet(depth=5, wf=0), UNet(depth=4, wf=0, ndim=3, pool_size=(1, 2, 2), up_mode="upsample")
    assert repr(paper.footprint) == "Footprint.valid(2, lost=92, step=16, smallest=188)"
    assert Footprint.valid(2, lost=92, step=16, smallest=188) == paper.footprint != Footprint.valid(2, lost=92, step=16)
    numbers = {"lost": (14, 44, 44), "step": (1, 8, 8), "smallest": (29, 92, 92), "spoiled": (0, 7, 7)}
    assert Footprint.valid(3, **numbers) == upsampled.footprint


@pytest.mark.parametrize("name", ["lost", "step", "smallest", "spoiled"])
def test_a_number_of_an_unpadded_network_that_cannot_be_is_refused_by_its_name(name):
    for value in (-1, 1.5, (1, 2, 3), (5, -1), ()):
        with pytest.raises(SettingsError, match=rf"^{name} {re.escape(str(value))}: give a whole number"):
            Footprint.valid(2, **{"lost": 4, name: value})


def test_a_network_without_axes_is_refused():
    for values in (5, ()):
        with pytest.raises(SettingsError, match="one for each of 0 axes"):
            Footprint.same(0, reach=values)


@pytest.mark.parametrize(
    "numbers",
    [
        {"spoiled": (-1, 0)},
        {"spoiled": (0, -1)},
        {"spoiled": (1,)},
        {"spoiled": 1},
        {"lost": -1},
        {"step": 0},
        {"step": 1.5},
        {"smallest": 0},
    ],
    ids=str,
)
def test_numbers_that_no_axis_has_are_refused_with_their_names(numbers):
    ((name, value),) = numbers.items()
    with pytest.raises(SettingsError, match=rf"^AxisFootprint.*{re.escape(f'{name}={value}')}.*: give whole numbers"):
        AxisFootprint(**numbers)


@pytest.mark.parametrize(
    "text",
    [
        "Footprint.same(2, reach=11, step=4)",
        "Footprint.same(3, reach=(2, 20, 20), step=(1, 4, 4))",
        "Footprint.same(2, reach=0)",
        "Footprint.valid(2, lost=32, step=4)",
        "Footprint.valid(3, lost=(2, 9, 9))",
        "Footprint(axes=(AxisFootprint(step=4, lost=0, spoiled=(11, 11), smallest=8),))",
        "Footprint(axes=(AxisFootprint(step=4, lost=0, spoiled=(3, 5), smallest=4),))",
        "Footprint.valid(2, lost=92, step=16, smallest=188)",
        "Footprint.valid(2, lost=20, step=4, spoiled=3)",
        "Footprint.valid(3, lost=(0, 44, 44), step=(1, 8, 8), smallest=(1, 92, 92), spoiled=(0, 7, 7))",
        "Footprint(axes=())",
    ],
)
def test_a_footprint_is_printed_as_the_code_that_makes_it(text):
    made = eval(text, {"Footprint": Footprint, "AxisFootprint": AxisFootprint})
    assert repr(made) == text


def test_a_footprint_of_bare_numbers_is_refused():
    with pytest.raises(SettingsError, match="give one AxisFootprint for each axis, or use Footprint.same"):
        Footprint((1, 4))
    with pytest.raises(SettingsError, match="give one AxisFootprint for each axis"):
        Footprint((AxisFootprint(), 4))
    assert Footprint([AxisFootprint()]) == Footprint((AxisFootprint(),))
