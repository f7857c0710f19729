"""A prediction against the truth, from files and folders."""

import json

import numpy as np
import pytest
import tifffile
import zarr

from tilenet import metrics
from tilenet.errors import ImageError, ImageNotFound
from tilenet.evaluation.labels import looks_like_intensities, read_labels
from tilenet.evaluation.scoring import evaluate

TRUTH = np.kron([[1, 0, 2], [0, 0, 0], [3, 0, 4]], np.ones((8, 8), int)).astype(np.uint16)


@pytest.fixture
def folders(tmp_path):
    for part in ("prediction", "truth"):
        (tmp_path / part).mkdir()
    worse = TRUTH.copy()
    worse[TRUTH == 4] = 0
    worse[8:12, :8] = 1
    for stem, found in (("a", TRUTH), ("b", worse)):
        tifffile.imwrite(tmp_path / f"prediction/{stem}.tif", found)
        tifffile.imwrite(tmp_path / f"truth/{stem}.ome.tif", TRUTH)
    return tmp_path / "prediction", tmp_path / "truth"


def test_a_folder_is_scored_as_counted_by_hand(folders):
    scores = evaluate(*folders)
    assert scores["images"] == 2
    # 512 true px, of which 64 are missed; 32 px are false; 1152 px in all.
    assert scores["pixel_error"] == 96 / 1152
    assert scores["dice"]["1"] == pytest.approx(2 * 448 / (512 + 480))
    # Eight true objects; seven match, at IoU 1 but for one at 64/96: none of that is false.
    assert scores["objects"]["0.5"] == {"f1": 14 / 15, "precision": 1.0, "recall": 7 / 8}
    assert scores["objects"]["0.7"]["f1"] == pytest.approx(12 / 15)
    assert scores["panoptic_quality"] == pytest.approx((6 + 64 / 96) / 7.5)
    # Where the truth has objects, each is one segment of the prediction, if only its background.
    assert scores["rand"] == pytest.approx(1)
    # Without background, the missed object falls to its two neighbours, about 32 px to each:
    # sum p_ij^2 = 3 * 64^2 + 2 * 32^2, sum t_j^2 = 4 * 64^2, sum s_i^2 = 64^2 + 2 * 96^2.
    assert scores["rand_thinned"] == pytest.approx((1 + 2 * 14336 / (16384 + 22528)) / 2, abs=1e-3)
    assert scores["information_thinned"] < scores["information"] == pytest.approx(1)
    json.dumps(scores)


def test_two_files_are_one_pair_whatever_their_names(folders):
    scores = evaluate(folders[0] / "b.tif", folders[1] / "a.ome.tif")
    assert scores["images"] == 1
    found = tifffile.imread(folders[0] / "b.tif")
    assert scores["mean_ap"] == metrics.mean_average_precision(found, TRUTH)


def test_classes_are_scored_one_by_one(folders):
    scores = evaluate(*folders, classes=True)
    assert scores["dice"]["2"] == 1
    assert scores["dice"]["4"] == pytest.approx(2 / 3)
    assert "objects" not in scores


def test_a_mask_of_two_values_is_parted_into_objects_first(folders):
    for path in folders[0].iterdir():
        tifffile.imwrite(path, (tifffile.imread(path) > 0).astype(np.uint8))
    assert evaluate(*folders)["objects"]["0.5"]["recall"] == 7 / 8


def test_how_objects_are_numbered_makes_no_difference(tmp_path):
    truth = np.zeros((30, 60), np.uint8)
    truth[5:10, 5:8], truth[5:25, 30:50] = 1, 2  # of 15 pixels, and of many
    for name, values in (("truth", (1, 2)), ("ones", (1, 0)), ("others", (7, 0))):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", np.array([0, *values], np.uint8)[truth])
        tifffile.imwrite(tmp_path / name / "b.tif", np.array([0, 5, 6], np.uint8)[truth])
    scores = [evaluate(tmp_path / name, tmp_path / "truth") for name in ("ones", "others")]
    assert scores[0] == scores[1]
    assert scores[0]["objects"]["0.5"]["recall"] == 3 / 4


def test_masks_are_parted_in_all_images_also_where_there_is_one_object(tmp_path):
    truth = np.zeros((60, 60), np.uint8)
    truth[5:25, 5:25] = 1
    found = truth.copy()
    found[40:55, 10:25] = 1
    for folder, images in (("truth", (truth, truth + (found - truth) * 2)), ("found", (found, found))):
        (tmp_path / folder).mkdir()
        for name, image in zip("ab", images, strict=True):
            tifffile.imwrite(tmp_path / folder / f"{name}.tif", image)
    assert evaluate(tmp_path / "found", tmp_path / "truth")["objects"]["0.5"]["recall"] == 1


def test_masks_of_255_are_masks_as_those_of_1(tmp_path):
    for folder, value in (("found", 255), ("ones", 1)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", ((TRUTH > 0) * value).astype(np.uint8))
    (tmp_path / "truth").mkdir()
    tifffile.imwrite(tmp_path / "truth" / "a.tif", TRUTH)
    assert evaluate(tmp_path / "found", tmp_path / "truth")["objects"]["0.5"]["recall"] == 1
    for a, b in (("found", "ones"), ("ones", "found")):
        assert evaluate(tmp_path / a, tmp_path / b)["objects"]["0.5"]["f1"] == 1


def test_what_a_batch_leaves_beside_masks_is_no_prediction(folders):
    for name in ("summary.csv", "summary.json", "a.overview.png", "a.geojson"):
        (folders[0] / name).write_text("")
    assert evaluate(*folders)["images"] == 2


def test_volumes_that_do_not_say_their_axes_are_scored_where_the_user_does(tmp_path):
    volume = np.kron(TRUTH[None], np.ones((5, 1, 1), np.uint16))
    tifffile.imwrite(tmp_path / "truth.tif", volume)
    zarr.save_array(tmp_path / "found.zarr", np.where(volume == 4, 0, volume))
    with pytest.raises(ImageError, match="--axes"):
        evaluate(tmp_path / "found.zarr", tmp_path / "truth.tif")
    scores = evaluate(tmp_path / "found.zarr", tmp_path / "truth.tif", axes="zyx")
    assert scores["objects"]["0.5"] == {"f1": 6 / 7, "precision": 1.0, "recall": 3 / 4}


def test_a_file_without_a_partner_is_an_error(folders):
    (folders[1] / "b.ome.tif").unlink()
    with pytest.raises(ImageNotFound, match=r"b\.tif: has no partner"):
        evaluate(*folders)
    with pytest.raises(ImageNotFound, match="nowhere: no such file"):
        evaluate(folders[0] / "nowhere", folders[1])


def test_files_that_cannot_be_compared_are_refused_by_name(folders):
    tifffile.imwrite(folders[0] / "b.tif", TRUTH[1:])
    with pytest.raises(ImageError, match=r"b\.tif: is \(23, 24\), but the truth b.ome.tif is \(24, 24\)"):
        evaluate(*folders)
    tifffile.imwrite(folders[0] / "b.tif", TRUTH.astype(np.float32))
    with pytest.raises(ImageError, match=r"b\.tif: holds float32"):
        evaluate(*folders)


def test_an_image_that_is_scored_as_labels_is_named(folders, caplog):
    shades = np.random.default_rng(0).integers(0, 60, TRUTH.shape).astype(np.uint8)
    tifffile.imwrite(folders[0] / "b.tif", shades)
    evaluate(*folders)
    (said,) = caplog.messages
    assert said.startswith(f"{folders[0] / 'b.tif'}: is scored as labels, but most of its values are in single pixels")
    tifffile.imwrite(folders[1] / "b.ome.tif", shades)
    evaluate(*folders, classes=True)
    assert "(the first of 2 such files)" in caplog.messages[-1]


def _slowly_like_an_image(labels):
    """Count, pixel by pixel, pieces of one value by filling them, and those of one pixel that touch other ones."""
    left, pieces, lonely = set(np.ndindex(labels.shape)), 0, 0
    steps = [tuple(sign * unit) for unit in np.eye(labels.ndim, dtype=int) for sign in (1, -1)]

    def near(pixel):
        return [q for step in steps if (q := tuple(np.add(pixel, step).tolist())) in places]

    places = set(left)
    for start in np.ndindex(labels.shape):
        if start not in left or not labels[start]:
            continue
        filled, ahead = 0, [start]
        left.discard(start)
        while ahead:
            pixel = ahead.pop()
            filled += 1
            more = [q for q in near(pixel) if q in left and labels[q] == labels[start]]
            left.difference_update(more)
            ahead += more
        pieces += 1
        lonely += filled == 1 and any(labels[q] for q in near(start))
    values = len(np.unique(labels))
    return values > 20 and pieces > 4 * values and 2 * lonely > pieces and lonely > 0.01 * np.count_nonzero(labels)


def test_images_are_told_from_labels_as_by_counting_pieces_pixel_by_pixel():
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 60, (40, 50))
    squares = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((4, 4), int))
    seeds = np.zeros((40, 50), int)
    seeds[::2, ::2] = np.arange(500).reshape(20, 25) % 100
    cases = {
        "noise": (noise, True),
        "dark noise": (np.maximum(noise - 40, 0) * 2 + (noise > 40), False),  # 20 values
        "a volume of noise": (rng.integers(0, 60, (8, 9, 10)), True),
        "noise of too many values to tell": (rng.permutation(2000).reshape(40, 50), False),
        "a gradient": (np.add.outer(np.arange(40), np.arange(50)) // 3, False),
        "a noisy map of classes": (rng.integers(0, 8, (40, 50)), False),
        "a mask": (noise > 30, False),
        "touching objects": (squares, False),
        "an object in each pixel": (np.arange(1, 2001).reshape(40, 50), False),
        "numbers on single pixels, many times": (seeds, False),
        "an empty plane": (np.zeros((40, 50), int), False),
    }
    for what, (labels, expected) in cases.items():
        assert looks_like_intensities(labels) == _slowly_like_an_image(labels) == expected, what


def test_real_images_are_told_from_real_labels(shared_data):
    for folder, expected in (("nuclei_dsb2018/labels", False), ("isbi2012/image", True)):
        paths = sorted(shared_data(folder).iterdir())[:20]
        assert [looks_like_intensities(*read_labels(path)) for path in paths] == [expected] * 20
    assert looks_like_intensities(
        *read_labels(shared_data("small_fluo/mitocheck_t1_image.tif"))
    )  # smoothed, mostly dark
    for kind, expected in (("image", True), ("label", False)):
        assert (
            looks_like_intensities(*read_labels(shared_data(f"volumes/plant_ovule_boundarymap_{kind}.tif"))) == expected
        )
