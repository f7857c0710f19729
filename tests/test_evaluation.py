"""A prediction against the truth, from files and folders."""

import json

import numpy as np
import pytest
import tifffile
import zarr

from tilenet import metrics
from tilenet.errors import ImageError, ImageNotFound
from tilenet.evaluation import evaluate

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
    for name in ("summary.csv", "summary.json", "a.overview.png"):
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
    with pytest.raises(ImageError, match=r"b\.tif: is \(23, 24\), but the truth of b is \(24, 24\)"):
        evaluate(*folders)
    tifffile.imwrite(folders[0] / "b.tif", TRUTH.astype(np.float32))
    with pytest.raises(ImageError, match=r"b\.tif: holds float32"):
        evaluate(*folders)
