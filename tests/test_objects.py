"""Objects from masks and probabilities."""

import numpy as np
import pytest
from stub import Bright

import tilenet
from tilenet.card import DEPTH_CLASSES, ModelCard
from tilenet.decide import Decision
from tilenet.errors import SettingsError
from tilenet.instances.in_memory import objects
from tilenet.jobs.compute import Lost, remark_lost
from tilenet.training.targets import depth_classes


@pytest.mark.parametrize("kind", ["mask", "probabilities"])
def test_touching_discs_become_two_objects(kind):
    y, x = np.indices((30, 50))
    labels = np.where((y - 15) ** 2 + (x - 15) ** 2 <= 100, 1, 0)
    labels[(y - 15) ** 2 + (x - 33) ** 2 <= 100] = 2
    given = labels > 0 if kind == "mask" else np.eye(4, dtype=np.float32)[depth_classes(labels)].transpose(2, 0, 1)
    found = objects(given)
    assert found.max() == 2
    assert np.array_equal(found > 0, labels > 0)
    assert found[15, 10] != found[15, 38]


def test_objects_that_are_nowhere_surely_deep_are_dropped():
    labels = np.zeros((12, 30), int)
    labels[2:10, 2:10], labels[2:10, 18:26] = 1, 2
    probabilities = np.eye(4, dtype=np.float32)[depth_classes(labels)].transpose(2, 0, 1)
    doubtful = 0.6 * probabilities[:, labels == 2]
    doubtful[0] = 0.4  # the centre's expected depth is 0.6
    probabilities[:, labels == 2] = doubtful
    assert objects(probabilities, least_depth=0.75).max() == 1
    assert objects(probabilities, least_depth=0.5).max() == 2


def test_objects_below_the_least_size_are_dropped_and_numbers_have_no_gaps():
    mask = np.zeros((20, 30), int)
    mask[2:4, 2:4] = mask[8:16, 3:11] = mask[8:16, 18:26] = 1
    assert objects(mask).max() == 2
    mask[0, 0] = 1
    assert [objects(mask, min_size=size).max() for size in (0, 1, 2)] == [4, 4, 3]
    assert (objects(mask, min_size=64).max(), objects(mask, min_size=65).max()) == (2, 0)
    assert objects(np.zeros((5, 5), int)).max() == 0
    for option, values in {
        "prominence": (-0.1, np.nan, "0.1"),
        "least_depth": (2, np.nan, "1"),
        "min_size": (-1, np.nan, "20", None),
    }.items():
        for value in values:
            with pytest.raises(SettingsError, match=f"{option} .* is not"):
                objects(mask, **{option: value})
    with pytest.raises(SettingsError, match="names 2 classes"):
        objects(np.ones((3, 5, 5), np.float32), depth_of_class=(0, 1))
    for depths in ((0, 1, "a"), (0, 1, 1.5), (0, np.nan, 1), (0, -1, 1)):
        with pytest.raises(SettingsError, match=r"depth_of_class .*: each depth is a number from 0 to 1"):
            objects(np.ones((3, 5, 5), np.float32), depth_of_class=depths)
    for values in (np.ones((3, 5, 5), complex), np.ones((3, 5, 5), object)):
        with pytest.raises(SettingsError, match="not of values of"):
            objects(values)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.array([[-1, 1]] * 9, np.int16), "0 for the background and larger values for all else, not -1"),
        (np.full((3, 9, 9), np.nan, np.float32), "some of the probabilities are not finite"),
        ("mask.zarr", "not of the path 'mask.zarr'. Open it: tilenet.open_mask"),
    ],
)
def test_what_no_mask_holds_is_not_taken_for_background(given, said):
    with pytest.raises(SettingsError, match=said):
        tilenet.objects(given)


def test_what_becomes_no_object_is_told(caplog):
    pixels = np.zeros((60, 70), np.uint8)
    pixels[5:25, 5:25], pixels[40:43, 40:43] = 200, 200  # a speck of 9 px
    with caplog.at_level("INFO", "tilenet"):
        found = tilenet.segment(pixels, model=Bright(), objects=True)
    mask = (tilenet.segment(pixels, model=Bright()) > 0).sum()
    lost = mask - (found > 0).sum()
    assert found.max() == 1 and lost > 0
    assert f"{lost} of {mask} foreground pixels belong to no object" in caplog.text


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (Lost(900, 9, 40, 0), "9 of 900 foreground pixels belong to no object: specks"),
        (Lost(900, 30, 40, 1), "specks, and 1 object that --least-depth 0.75 leaves out (40 are kept)"),
        (Lost(900, 90, 20, 16), "leaves out (20 are kept). A smaller one keeps more of them; at another --mpp the"),
        (Lost(900, 90, 20, None), "specks, and what --least-depth 0.75 leaves out (20 are kept)"),
    ],
)
def test_the_option_that_leaves_objects_out_is_named_with_what_it_costs(caplog, lost, said):
    with caplog.at_level("INFO", "tilenet"):
        remark_lost("a.tif", lost, {"least_depth": 0.75})
    assert said in caplog.text and ("A smaller one" in caplog.text) == (lost.left_out == 16)
    assert "least-depth" not in caplog.text or lost.left_out != 0


def test_objects_that_are_linked_later_are_said_to_be_those_of_planes(caplog):
    with caplog.at_level("INFO", "tilenet"):
        remark_lost("a.tif", Lost(900, 30, 40, 2), {"least_depth": 0.75, "link": 0.25})
    said = "2 objects that --least-depth 0.75 leaves out (40 are kept), counted in each plane, before they are linked"
    assert said in caplog.text


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5)])
def test_objects_are_of_planes_and_volumes(shape):
    with pytest.raises(SettingsError, match="a plane or a volume, not of an array of shape"):
        tilenet.objects(np.ones(shape, np.uint8))
    assert tilenet.objects(np.ones((0, 7), np.uint8)).shape == (0, 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mask_of_floats_is_said_to_be_taken_for_probabilities(dtype):
    mask = np.eye(40, dtype=dtype)
    with pytest.raises(SettingsError, match=r"probabilities \(classes, y, x\), .* \(40, 40\)\. .* array > 0\.5"):
        tilenet.objects(mask)
    assert tilenet.objects(mask > 0.5).shape == (40, 40)


def decision_of(classes, mask_of_class):
    card = ModelCard(name="m", classes=classes, mask_of_class=mask_of_class)
    return Decision.of_card(card, "objects", threshold=None, probability_dtype="float32")


def test_rim_body_and_centre_say_how_deep_a_pixel_lies():
    decision = decision_of(DEPTH_CLASSES, (0, 1, 1, 1))
    assert decision.depths == pytest.approx((0, 1 / 3, 2 / 3, 1))
    (depth,) = decision(np.log(np.array([[0.5], [0.1], [0.1], [0.3]])))["probabilities"]
    assert depth.dtype == np.float16 and depth == np.round(0.4 * 256) / 256


@pytest.mark.parametrize("mask_of_class", [(0, 1, 1), (0, 0, 1), (1, 0, 0), (0, 1, 2)])
def test_of_other_classes_the_mask_alone_says_what_is_in_an_object(mask_of_class):
    decision = decision_of(("out", "in", "rim"), mask_of_class)
    assert (decision.depths, decision.arrays) == ((), ("mask",))
    y, x = np.indices((60, 60))
    radius = np.hypot(y - 30, x - 30)
    of_pixel = np.select([radius < 11, radius < 15], [1, 2], 0)

    class Discs:
        footprint = tilenet.Footprint.same(2, reach=0)
        card = ModelCard(name="discs", classes=("out", "in", "rim"), mask_of_class=mask_of_class)

        def __call__(self, batch):
            return 9 * np.eye(3, dtype=np.float32)[batch[:, 0].astype(int).clip(0, 2)].transpose(0, 3, 1, 2)

    found = tilenet.segment(of_pixel.astype(np.uint8), model=Discs(), objects=True)
    assert np.array_equal(found > 0, np.take(mask_of_class, of_pixel) > 0) and found.max() >= 1


def test_objects_heed_the_threshold(tmp_path):
    y, x = np.indices((60, 90))
    image = np.select([np.hypot(y - 30, x - 20) < 9, np.hypot(y - 30, x - 60) < 9], [250, 180], 0).astype(np.uint8)

    class One:
        footprint = tilenet.Footprint.same(2, reach=0)
        card = ModelCard(name="one", output="sigmoid", classes=("bright",), threshold=0.9)

        def __call__(self, batch):
            share = np.clip(batch.astype(np.float32) / 255, 1e-3, 1 - 1e-3)
            return np.log(share / (1 - share))

    assert tilenet.segment(image, model=One(), objects=True).max() == 1
    assert tilenet.segment(image, tmp_path / "o.zarr", model=One(), threshold=0.5, objects=True)[...].max() == 2


def test_objects_that_are_dropped_as_uncertain_can_be_kept(tmp_path, caplog):
    y, x = np.indices((60, 120))
    image = np.where(np.hypot(y - 30, (x % 40) - 20) < 14, np.uint8(200), np.uint8(0))

    class Unsure:
        footprint = tilenet.Footprint.same(2, reach=0)
        card = ModelCard(name="unsure", classes=DEPTH_CLASSES, mask_of_class=(0, 1, 1, 1))

        def __call__(self, batch):
            inside = batch[:, 0] > 100
            shares = np.where(inside[:, None], [[[[0.1]], [[0.2]], [[0.6]], [[0.1]]]], [[[[0.97]], *[[[0.01]]] * 3]])
            return np.log(shares).astype(np.float32)

    with caplog.at_level("INFO", "tilenet"):
        assert tilenet.segment(image, model=Unsure(), objects=True).max() == 0
    said = "belong to no object: specks, and 3 objects that --least-depth 0.75 leaves out (0 are kept). A smaller one"
    assert said in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "tilenet"):
        tilenet.segment(image, tmp_path / "o.zarr", model=Unsure(), objects=True)
    assert said in caplog.text
    assert tilenet.segment(image, model=Unsure(), objects=True, least_depth=0.5).max() == 3
    with pytest.raises(SettingsError, match="not between 0 and 1"):
        tilenet.segment(image, model=Unsure(), objects=True, least_depth=2)
    with pytest.raises(SettingsError, match="is for objects of a model whose classes are background, rim"):
        tilenet.segment(image, model=Bright(), objects=True, least_depth=0.5)
