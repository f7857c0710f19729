import numpy as np
import pytest

import tilenet
from tilenet.card import ModelCard
from tilenet.decide import Decision, ObjectRule
from tilenet.errors import SettingsError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("values", [(0, 3, 3, 7), (3, 3, 0, 0), (1, 0, 1, 0), (5, 5, 5, 5)])
@pytest.mark.parametrize("spread", [0.7, 1e3])  # of whole numbers, so that many are equal, or hardly any
@pytest.mark.parametrize("strip_bytes", [2**20, 1000, 1])  # all rows, a few, and one row that is too much
def test_classes_are_the_argmax_mapped_to_mask_values(values, spread, strip_bytes, monkeypatch):
    monkeypatch.setattr("tilenet.decide.STRIP_BYTES", strip_bytes)
    logits = np.rint(RNG.normal(scale=spread, size=(4, 30, 40))).astype(np.float32)
    mask = Decision("softmax", values)(logits)["mask"]
    assert np.array_equal(mask, np.array(values, np.uint8)[logits.argmax(axis=0)])
    assert mask.dtype == np.uint8


def test_of_equal_logits_the_first_class_wins():
    assert Decision("softmax", (5, 6, 7))(np.zeros((3, 2, 2)))["mask"].tolist() == [[5, 5], [5, 5]]


def test_a_sigmoid_is_cut_at_its_threshold():
    logits = RNG.normal(size=(1, 500))
    probability = 1 / (1 + np.exp(-logits[0]))
    for threshold in (0.2, 0.5, 0.9):
        mask = Decision("sigmoid", (1,), threshold)(logits)["mask"]
        assert np.array_equal(mask, probability > threshold)
    assert Decision("sigmoid", (1,))(np.zeros((1, 3)))["mask"].tolist() == [0, 0, 0], "0.5 is not above 0.5"


def test_probabilities_sum_to_one_and_do_not_overflow():
    logits = np.array([[1000.0, -1000, 3], [0, 0, 4]])
    found = Decision("softmax", (0, 1), arrays=("probabilities",))(logits)["probabilities"]
    assert np.allclose(found.sum(axis=0), 1)
    assert np.allclose(found[:, 2], [1 / (1 + np.e), np.e / (1 + np.e)])
    huge = Decision("sigmoid", (1,), arrays=("probabilities",))(np.array([[-1e4, 0.0, 1e4]]))["probabilities"]
    assert huge.tolist() == [[0, 0.5, 1]]


def test_values_of_a_regression_that_their_type_cannot_hold_are_refused_not_made_infinite():
    decide = Decision("regression", (1,), arrays=("probabilities",), probability_dtype="float16")
    assert decide(np.array([[65504.0, -65504]]))["probabilities"].tolist() == [[65504, -65504]]
    for value in (65536.0, -1e30):
        with pytest.raises(OverflowError, match=r"too large for float16 \(--probability-dtype\)"):
            decide(np.array([[3.0, value]]))


def test_certainty_is_the_gap_between_mask_values_not_classes():
    logits = np.array([[0.0], [5.0], [4.9]])
    assert Decision("softmax", (0, 1, 2)).certainty(logits)[0] == pytest.approx(0.1)
    assert Decision("softmax", (0, 1, 1)).certainty(logits)[0] == pytest.approx(5)
    assert Decision("softmax", (1, 1, 1)).certainty(logits)[0] == np.inf
    assert Decision("sigmoid", (1,), 0.8).certainty(logits[1:2])[0] == pytest.approx(5 - np.log(4))
    assert Decision("regression", (1,), 0.8).certainty(logits[:1])[0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("card", "options", "message"),
    [
        (ModelCard(), {"threshold": 0.5}, "a threshold is for a network of one output"),
        (ModelCard(output="sigmoid"), {}, "2 outputs of sigmoid make no mask"),
        (ModelCard(), {"output": "labels"}, "output 'labels' is none of"),
        (ModelCard(), {"probability_dtype": "int8"}, "probabilities are float16, float32, float64, not int8"),
    ],
)
def test_a_decision_that_cannot_be_made_is_refused(card, options, message):
    options = {"output": "mask", "threshold": None, "probability_dtype": "float32"} | options
    with pytest.raises(SettingsError, match=message):
        Decision.of_card(card.completed(2), **options)


@pytest.mark.parametrize("threshold", [-0.5, 0, 1, 1.5])
def test_a_threshold_outside_zero_to_one_is_refused_for_a_sigmoid_only(threshold):
    options = {"output": "mask", "threshold": threshold, "probability_dtype": "float32"}
    with pytest.raises(SettingsError, match=rf"threshold {threshold} is not between 0 and 1"):
        Decision.of_card(ModelCard().completed(1), **options)
    assert Decision.of_card(ModelCard(output="regression").completed(1), **options).threshold == threshold


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("min_size", [0, 7], [-1, np.nan, "7"]),
        ("prominence", [0, 0.5], [-0.1, np.nan]),
        ("least_depth", [0, 0.5, 1], [-0.1, 1.1, np.nan]),
        ("spacing", [(), (1, 2.5)], [(0.9, 1), (1, np.inf), (1, np.nan)]),
        ("link", [None, 0.01, 1], [0, 1.1, np.nan]),
    ],
)
def test_numbers_that_no_object_can_meet_are_refused_and_the_last_that_one_can_are_taken(name, taken, refused):
    assert [getattr(ObjectRule(**{name: value}), name) for value in taken] == taken
    for value in refused:
        with pytest.raises(SettingsError, match=f"^{name} "):
            ObjectRule(**{name: value})


def test_of_more_classes_than_mask_values_there_are_probabilities_but_no_mask(tmp_path):
    network = tilenet.UNet(depth=2, wf=1, n_classes=257)
    image = np.zeros((20, 30), np.uint8)
    found = tilenet.segment(image, model=network, output="probabilities")
    assert found.shape == (257, 20, 30) and np.allclose(found.sum(axis=0), 1, atol=1e-3)
    for output in ("mask", "both", "objects"):
        with pytest.raises(
            SettingsError, match="257 classes make no mask, which has 256 values. Ask for probabilities"
        ):
            Decision.of_card(ModelCard().completed(257), output, threshold=None, probability_dtype="float32")
    assert tilenet.load_model(tilenet.save_model(network, tmp_path / "m.safetensors")).card.mask_of_class == ()
    network.card = ModelCard(mask_of_class=(0, *[1] * 256))
    assert set(np.unique(tilenet.segment(image, model=network))) <= {0, 1}
    assert len(ModelCard().completed(256).mask_of_class) == 256
