"""Objects from masks and probabilities."""

import numpy as np
import pytest
from stub import Bright

import tilenet
from tilenet.errors import SettingsError
from tilenet.instances import objects
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
    assert objects(mask, min_size=1).max() == 3
    assert objects(np.zeros((5, 5), int)).max() == 0
    with pytest.raises(SettingsError, match="names 2 classes"):
        objects(np.ones((3, 5, 5), np.float32), depth_of_class=(0, 1))


def test_what_becomes_no_object_is_told(caplog):
    pixels = np.zeros((60, 70), np.uint8)
    pixels[5:25, 5:25], pixels[40:43, 40:43] = 200, 200  # a speck of 9 px
    with caplog.at_level("INFO", "tilenet"):
        found = tilenet.segment(pixels, model=Bright(), objects=True)
    mask = (tilenet.segment(pixels, model=Bright()) > 0).sum()
    lost = mask - (found > 0).sum()
    assert found.max() == 1 and lost > 0
    assert f"{lost} of {mask} foreground pixels belong to no object" in caplog.text
