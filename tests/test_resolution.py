"""Which level is read, and how far it is resampled: numbers alone."""

import random
from fractions import Fraction

import pytest

from tilenet.errors import SettingsError
from tilenet.resolution import AS_STORED, choose, coarser_size, recorded, resolve

PYRAMID = [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (2.0, 2.0)]


@pytest.mark.parametrize(
    ("wanted", "level", "factor"),
    [
        (0.25, 0, 1),
        (0.26, 0, 1),
        (0.275, 0, 1),  # 10 % coarser than the level
        (0.28, 0, Fraction(28, 25)),
        (0.4, 0, Fraction(8, 5)),
        (0.46, 1, 1),  # level 1 is coarser, by less than 10 %
        (0.45, 0, Fraction(9, 5)),  # by more
        (0.5, 1, 1),
        (0.75, 1, Fraction(3, 2)),
        (16.0, 3, 8),
        (0.125, 0, Fraction(1, 2)),
    ],
)
def test_the_coarsest_level_that_is_at_least_as_fine_is_taken(wanted, level, factor):
    assert choose(PYRAMID, wanted) == (level, (factor, factor))


def test_the_choice_is_that_of_a_plain_search():
    rng = random.Random(0)
    for _ in range(300):
        finest = rng.uniform(0.05, 1)
        sizes = [(finest * 2**k, finest * 2**k * rng.uniform(0.9, 1.1)) for k in range(4)]
        wanted = rng.uniform(finest / 2, finest * 20)
        level, factor = choose(sizes, wanted)
        at_least = [k for k, size in enumerate(sizes) if max(size) <= 1.1 * wanted]
        assert level == (at_least[-1] if at_least else 0)
        near = all(1 / 1.1 <= wanted / n <= 1.1 for n in sizes[level])
        assert (factor == AS_STORED) == near
        for f, size in zip(factor, sizes[level], strict=True):
            if not near:
                assert float(f) * size == pytest.approx(wanted, rel=6e-4)
                assert min(f.denominator, f.numerator) <= 1000


def test_pixels_that_are_not_square_get_a_factor_for_each_axis():
    assert choose([(0.5, 0.25)], 0.5) == (0, (Fraction(1), Fraction(2)))


@pytest.mark.parametrize(
    ("said", "level", "announced", "words"),
    [
        (
            {},
            0,
            True,
            "the model asks for no pixel size. To",
        ),
        ({"card_mpp": 1.0}, 2, True, "level 2 (1 um/px) as stored, for the 1 um/px that the model knows"),
        ({"card_mpp": 0.75}, 1, True, "resampled: averaged over 1.5 px, for the 0.75 um/px that the model knows"),
        ({"card_mpp": 0.75, "mpp": 0.5}, 1, True, "for the 0.5 um/px asked for"),
        ({"card_mpp": 0.75, "level": 0}, 0, False, "as asked"),
        ({"mpp": 0.2}, 0, True, "no finer than the file"),
    ],
)
def test_what_is_said_goes_before_the_card_and_the_reason_is_given(said, level, announced, words):
    found = resolve(PYRAMID, **said)
    assert (found.level, found.announced) == (level, announced)
    assert words in found.text


@pytest.mark.parametrize("unknown", [(None, None), (None, 0.25), (0.25, None), (2.0, None, 0.25)])
def test_a_size_that_is_not_known_along_y_and_x_is_not_told(unknown):
    assert resolve([unknown]).text == "level 0 as stored: neither the image nor the model says a pixel size"
    assert resolve([unknown], level=0).text == "level 0 as stored, as asked"
    assert resolve(PYRAMID, level=4).text == "level 4 as stored, as asked", "the image refuses it"
    with pytest.raises(SettingsError, match="does not say its pixel size, so mpp means nothing"):
        resolve([unknown], mpp=0.5)
    assert coarser_size(None, 30, 10) is None and coarser_size(0.5, 30, 10) == 1.5


@pytest.mark.parametrize(("card_mpp", "announced"), [(None, False), (0.5, True)])
def test_an_image_without_pixel_size_is_read_as_it_is_and_only_mpp_is_refused(card_mpp, announced):
    found = resolve([(None, None)], card_mpp=card_mpp)
    assert (found.level, found.factor, found.announced) == (0, AS_STORED, announced)
    with pytest.raises(SettingsError, match=r"slide.tif: does not say its pixel size, so mpp means nothing. Give it"):
        resolve([(None, None)], card_mpp=card_mpp, mpp=0.5, name="slide.tif")


@pytest.mark.parametrize(
    ("z", "how", "words"),
    [
        (2.0, {}, "level 0 (2 x 0.25 x 0.25 um/px) as stored: "),
        (None, {}, "level 0 (? x 0.25 x 0.25 um/px) as stored: the model asks for no pixel size. To resample, give"),
        (0.25, {"mpp": 0.5}, "level 0 (0.25 um/px) resampled: averaged over 2 px, for the 0.5 um/px"),
        (None, {"mpp": 0.5}, "level 0 (? x 0.25 x 0.25 um/px) resampled: averaged over 2 px, for the 0.5 um/px"),
    ],
)
def test_a_size_along_z_is_told_and_decides_nothing(z, how, words):
    found, plane = resolve([(z, 0.25, 0.25)], **how), resolve([(0.25, 0.25)], **how)
    assert found.text.startswith(words) and found.to_json() == plane.to_json()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"level": 0, "mpp": 0.5}, "level 0 and mpp 0.5 both say what to read"),
        ({"mpp": 0.0}, "mpp 0 is not"),
        ({"mpp": -1.0}, "mpp -1 is not"),
        ({"mpp": float("nan")}, "mpp nan is not"),
        ({"mpp": 0.02}, "12.5 times coarser than the 0.02 um/px asked for"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(said, words):
    with pytest.raises(SettingsError, match=words):
        resolve(PYRAMID, **said)


@pytest.mark.parametrize(
    ("size", "said", "words"),
    [
        (
            1e-310,
            {"mpp": 0.5},
            r"a\.tif: has 1e-310 um/px at its finest, .* the 0\.5 um/px asked for is no number\. Give another size",
        ),
        (1e-310, {"card_mpp": 0.5}, "the 0.5 um/px that the model knows"),
        (0.25, {"mpp": 1e308}, "the 1e[+]308 um/px asked for"),
        (0.25, {"mpp": 1e-310}, "the 1e-310 um/px asked for"),
    ],
)
def test_sizes_whose_ratio_is_no_number_are_refused(size, said, words):
    with pytest.raises(SettingsError, match=words):
        resolve([(size, size)], **said, name="a.tif")


@pytest.mark.parametrize(
    ("how", "level", "factor", "words"),
    [
        ({"mpp": 0.7}, 1, [7, 5], "resampled by 1.4 x 1.4"),
        ({"mpp": 0.03125}, 0, [1, 8], "resampled by 0.125 x 0.125"),  # as fine as it may be
        ({"level": 2}, 2, [1, 1], "as stored"),
    ],
)
def test_a_record_brings_back_what_was_decided(how, level, factor, words):
    found = resolve(PYRAMID, **how)
    kept = found.to_json()
    assert kept == {"level": level, "mpp": how.get("mpp"), "factor": [factor, factor]}
    again = recorded(kept["level"], kept["factor"], kept["mpp"])
    assert (again.level, again.factor, again.mpp) == (found.level, found.factor, found.mpp)
    assert again.text == f"level {level} {words}, as the run was started"


@pytest.mark.parametrize("factor", [[[1, 0], [1, 1]], [[1, 1]], [[-3, 2], [3, 2]], [1, "x"], [["a", 2], [1, 1]], 7])
def test_a_changed_record_is_refused(factor):
    with pytest.raises(SettingsError, match="was changed"):
        recorded(0, factor, None)
