"""Scores, against cases counted by hand, scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from skimage.io import imread
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.segmentation import expand_labels
from torchmetrics.detection import PanopticQuality
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from tilenet import metrics
from tilenet.errors import SettingsError

# Truth: object 1 has 4 px, object 2 has 4 px. Prediction: 5 covers 3 of object 1's pixels and
# nothing else (IoU 3/4); 7 covers 2 of object 2's and 2 of the background (IoU 2/6); 9 is false.
TRUTH = np.array([[1, 1, 1, 1, 0, 0], [2, 2, 2, 2, 0, 0]])
PREDICTION = np.array([[5, 5, 5, 0, 0, 9], [0, 0, 7, 7, 7, 7]])


@pytest.fixture
def partitions():
    rng = np.random.default_rng(3)
    truth = np.kron(rng.integers(0, 6, (8, 9)), np.ones((5, 4), int))
    prediction = np.where(rng.random(truth.shape) < 0.2, rng.integers(1, 9, truth.shape), truth + 1)
    return prediction, truth


def test_pixel_scores_equal_the_hand_count():
    a, b = [[0, 1, 1, 2]], [[0, 0, 1, 1]]
    assert metrics.pixel_error(a, b) == 0.5
    assert metrics.dice(a, b) == {0: 2 / 3, 1: 0.5, 2: 0.0}
    assert metrics.iou(a, b) == {0: 0.5, 1: pytest.approx(1 / 3), 2: 0.0}


def test_counts_of_two_images_add_to_those_of_both_side_by_side():
    a = [metrics.count_pixels(PREDICTION > 0, TRUTH > 0)[True], metrics.count_pixels(TRUTH > 0, TRUTH > 0)[True]]
    both = metrics.count_pixels(np.hstack([PREDICTION, TRUTH]) > 0, np.hstack([TRUTH, TRUTH]) > 0)
    assert a[0] + a[1] == both[True]
    assert a[0] != a[1]


def test_dice_and_iou_of_each_class_agree_with_torchmetrics(partitions):
    a, b = (torch.from_numpy(x) for x in partitions)
    options = {"num_classes": 10, "average": None}
    for ours, theirs in ((metrics.dice, multiclass_f1_score), (metrics.iou, multiclass_jaccard_index)):
        expected = theirs(a, b, **options).tolist()
        assert ours(*partitions) == pytest.approx({c: expected[c] for c in ours(*partitions)})
        assert 0 < max(expected) < 1


def test_panoptic_quality_agrees_with_torchmetrics(partitions):
    prediction, truth = partitions
    theirs = PanopticQuality(things={1}, stuffs={0})
    both = [torch.from_numpy(np.stack([x > 0, x], axis=-1))[None].int() for x in (np.maximum(prediction - 1, 0), truth)]
    found = theirs(*both)
    # Theirs is the mean over both classes; the background is one segment.
    background = metrics.panoptic_quality(both[0][0, ..., 0].numpy() == 0, both[1][0, ..., 0].numpy() == 0)
    objects = metrics.panoptic_quality(both[0][0, ..., 1].numpy(), truth)
    assert (objects + background) / 2 == pytest.approx(float(found), abs=1e-6)
    assert 0.3 < objects < 1


def test_objects_match_by_their_overlap_as_counted_by_hand():
    n = metrics.count_objects(PREDICTION, TRUTH)
    assert n[0.5] == metrics.ObjectCounts(matched=1, only_prediction=2, only_truth=1, iou_sum=0.75)
    assert (n[0.5].precision, n[0.5].recall, n[0.5].f1) == (1 / 3, 1 / 2, 0.4)
    assert n[0.5].panoptic_quality == 0.75 / 2.5 == metrics.panoptic_quality(PREDICTION, TRUTH)
    assert n[0.8].matched == 0


def test_an_iou_of_exactly_the_threshold_is_no_match():
    assert metrics.count_objects([1, 1, 0], [1, 1, 1], thresholds=(2 / 3,))[2 / 3].matched == 0
    assert metrics.count_objects([1, 1, 0], [1, 1, 1], thresholds=(0.66,))[0.66].matched == 1


def test_average_precision_is_the_mean_over_ten_thresholds():
    # The only pair has IoU 0.75: it matches at 0.50, 0.55, 0.60, 0.65, 0.70, each 1 / (1 + 2 + 1).
    assert metrics.mean_average_precision(PREDICTION, TRUTH) == pytest.approx(5 * 0.25 / 10)


def test_labels_may_be_any_numbers_in_any_order(partitions):
    prediction, truth = partitions
    renamed = np.array([0, 40, 3, 70, 8, 1000, 2, 9, 5])[prediction]
    assert (
        metrics.count_objects(renamed, truth)[0.5].matched == metrics.count_objects(prediction, truth)[0.5].matched > 3
    )
    assert metrics.panoptic_quality(renamed, truth) == pytest.approx(metrics.panoptic_quality(prediction, truth))
    assert metrics.rand_scores(renamed, truth).f_score == pytest.approx(metrics.rand_scores(prediction, truth).f_score)


def test_rand_scores_agree_with_scikit_image(partitions):
    prediction, truth = partitions
    inside = truth > 0
    _, *theirs = adapted_rand_error(truth, prediction, ignore_labels=(0,))
    scores = metrics.rand_scores(prediction, truth)
    squares = [np.square(np.bincount(x[inside])).sum() for x in (truth, prediction)]
    # scikit-image counts pairs of two different pixels: it takes n off above and below.
    n = inside.sum()
    ours = [(v * s - n) / (s - n) for v, s in zip((scores.split, scores.merge), squares, strict=True)]
    assert sorted(ours) == pytest.approx(sorted(theirs))
    assert scores.f_score < 0.95


def test_information_scores_agree_with_scikit_image(partitions):
    prediction, truth = partitions
    a, b = variation_of_information(truth, prediction, ignore_labels=(0,))
    inside = truth > 0
    p, t = (np.bincount(x[inside]) / inside.sum() for x in (prediction, truth))
    entropy = [-sum(q * np.log2(q) for q in x if q) for x in (p, t)]
    scores = metrics.information_scores(prediction, truth)
    assert scores.f_score == pytest.approx((sum(entropy) - a - b) / sum(entropy))
    assert scores.f_score < 0.95


def test_splitting_lowers_split_and_merging_lowers_merge():
    truth = np.array([1, 1, 1, 1, 2, 2, 2, 2])
    for score in (metrics.rand_scores, metrics.information_scores):
        halves, one = score([1, 1, 2, 2, 3, 3, 3, 3], truth), score(np.ones(8, int), truth)
        assert halves.split < 0.9 < halves.merge == pytest.approx(1)
        assert one.merge < 0.9 < one.split == pytest.approx(1)
    # Pairs by hand: sum p_ij^2 = 4 + 4 + 16, sum t_j^2 = 32.
    assert metrics.rand_scores([1, 1, 2, 2, 3, 3, 3, 3], truth).split == 24 / 32


def test_what_the_truth_leaves_out_does_not_count():
    truth = np.array([0, 0, 1, 1, 2, 2])
    assert metrics.rand_scores([7, 8, 1, 1, 2, 2], truth).f_score == 1
    assert metrics.rand_scores([7, 8, 1, 1, 1, 1], truth).f_score < 1


def test_thinned_borders_leave_only_errors_of_the_partition():
    truth = np.array([1, 1, 1, 1, 1, 0, 2, 2, 2, 2])
    wide = np.array([3, 3, 3, 0, 0, 0, 0, 4, 4, 4])
    # By hand, in the truth's nine pixels: pairs (1, 3) 3, (1, 0) 2, (2, 0) 1, (2, 4) 3; sum p_ij^2 = 23;
    # sum t_j^2 = 25 + 16; sum s_i^2 = 3^2 + 3^2 + 3^2.
    assert metrics.rand_scores(wide, truth).f_score == 2 * 23 / (41 + 27)
    assert metrics.rand_scores(metrics.thin_borders(wide), truth).f_score == 1
    merged = np.array([3, 3, 3, 3, 3, 3, 3, 3, 3, 0])
    assert metrics.rand_scores(metrics.thin_borders(merged), truth).merge == 41 / 81


@pytest.mark.parametrize("stem", ["20", "21", "22", "23"])
def test_real_membranes_one_pixel_wider_cost_the_plain_score_and_not_the_thinned_one(shared_data, stem):
    inside = imread(shared_data(f"isbi2012/label/{stem}.png")) > 0
    truth = label(inside, connectivity=1)
    wide = label(binary_erosion(inside, border_value=1), connectivity=1)
    assert 0.91 < metrics.rand_scores(wide, truth).f_score < 0.93
    assert metrics.rand_scores(metrics.thin_borders(wide), truth).f_score > 0.999


def test_thinned_borders_agree_with_scikit_image():
    labels = np.where(np.random.default_rng(0).random((40, 50)) < 0.02, np.arange(2000).reshape(40, 50), 0)
    thinned = metrics.thin_borders(labels)
    assert (thinned > 0).all()
    # Where two segments are equally near, either is right.
    apart = thinned != expand_labels(labels, 100)
    assert apart.mean() < 0.05
    assert np.array_equal(thinned[labels > 0], labels[labels > 0])
    assert not metrics.thin_borders(np.zeros((3, 3), int)).any()


def test_precision_of_nothing_found_and_recall_of_nothing_to_find_are_undefined():
    nothing = np.zeros_like(TRUTH)
    missed, false = (metrics.count_objects(*of)[0.5] for of in ((nothing, TRUTH), (PREDICTION, nothing)))
    assert (missed.precision, missed.recall, missed.f1) == (None, 0, 0)
    assert (false.precision, false.recall, false.f1) == (0, None, 0)
    both = missed + metrics.count_objects(TRUTH, TRUTH)[0.5]
    assert (both.precision, both.recall) == (1, 0.5)


def test_nothing_to_find_and_nothing_found_is_perfect():
    empty = np.zeros((3, 3), int)
    assert metrics.mean_average_precision(empty, empty) == 1
    assert metrics.rand_scores(empty, empty).f_score == 1
    assert metrics.mean_average_precision(PREDICTION, np.zeros_like(TRUTH)) == 0


@pytest.mark.parametrize(
    ("prediction", "truth", "says"),
    [([[1]], [1, 2], r"\(1, 1\) and truth \(2,\)"), ([0.5], [1], "float64, not integer labels")],
)
def test_what_cannot_be_compared_is_refused(prediction, truth, says):
    with pytest.raises(SettingsError, match=says):
        metrics.count_pixels(prediction, truth)


def test_a_threshold_at_which_objects_could_match_twice_is_refused():
    with pytest.raises(SettingsError, match="could match twice"):
        metrics.count_objects(PREDICTION, TRUTH, thresholds=(0.4,))
