"""A prediction against the truth, from files and folders."""

import json

import numpy as np
import pytest
import tifffile
import torch
import zarr
from ome_images import write_ome_tiff

import tilenet
from tilenet import metrics
from tilenet.errors import ImageError, ImageNotFound, SettingsError
from tilenet.evaluation import scoring
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


UM = (1.25, 0.25, 0.25)


@pytest.fixture
def balls():
    """Return two balls that touch, numbered, in flat voxels: they are one object if these are taken for cubes."""
    z, y, x = np.mgrid[-6:9:1.25, -6:7:0.25, -6:15:0.25]
    squares = np.stack([z**2 + y**2 + x**2, (z - 3) ** 2 + y**2 + (x - 8) ** 2])
    return np.where(squares.min(axis=0) < 25, 1 + squares.argmin(axis=0), 0).astype(np.uint16)


@pytest.mark.parametrize(
    ("of_mask", "of_truth", "given", "recall"),
    [
        (None, None, None, 0),
        (UM, None, None, 1),
        (None, UM, None, 1),
        (UM, tuple(2 * um for um in UM), None, 1),
        (None, None, UM, 1),
        ((1, 1, 1), UM, "1.25,0.25,0.25", 1),
        ((1, 1, 1), None, None, 0),
        (None, (1, 1, 1), (1.25, 0.25, 0.25), 1),
    ],
)
def test_masks_of_volumes_are_parted_in_micrometres(tmp_path, caplog, balls, of_mask, of_truth, given, recall):
    mask = write_ome_tiff(tmp_path / "mask.ome.tif", (balls > 0).astype(np.uint8), um=of_mask or ())
    truth = write_ome_tiff(tmp_path / "truth.ome.tif", balls, um=of_truth or ())
    scores = evaluate(mask, truth, pixel_size=given)
    assert scores["objects"]["0.5"]["recall"] == (1 if recall else 0.5)
    unknown = of_mask is None and of_truth is None and given is None
    assert (f"{mask}: the size of its voxels is not known" in caplog.text) == unknown == (caplog.text != "")


def test_files_of_voxels_of_different_shapes_are_refused(tmp_path, balls):
    mask = write_ome_tiff(tmp_path / "mask.ome.tif", (balls > 0).astype(np.uint8), um=(0.25,) * 3)
    truth = write_ome_tiff(tmp_path / "truth.ome.tif", balls, um=UM)
    with pytest.raises(ImageError, match=r"pixels of 0.25 um, and .* of 1.25 x 0.25 x 0.25 um. Give .*--pixel-size"):
        evaluate(mask, truth)
    for options in ({}, {"classes": True}):
        with pytest.raises(SettingsError, match="pixel_size is for masks that are split into objects"):
            evaluate(truth, truth, pixel_size=UM, **options)


def test_nuclei_of_a_real_volume_are_parted_in_the_micrometres_that_its_file_states(
    tmp_path, shared_data, tilenet_command, monkeypatch
):
    truth, mask, seen = shared_data("volumes/plant_nuclei_1135_label.tif"), tmp_path / "mask.tif", []
    labels = tifffile.imread(truth)
    tifffile.imwrite(mask, (labels > 0).astype(np.uint8), metadata={"axes": "ZYX"})
    monkeypatch.setattr(scoring, "objects", lambda found, spacing: seen.append(spacing) or labels)
    for more in ((), ("--pixel-size", "0.3,0.1,0.1")):
        code, out, err = tilenet_command("evaluate", mask, truth, "--axes", "zyx", "--json", *more)
        assert (code, err, json.loads(out)["remarks"]) == (0, "", []) and json.loads(out)["objects"]["0.5"]["f1"] == 1
    np.testing.assert_allclose(seen, [(0.2837, 0.1268, 0.1268), (0.3, 0.1, 0.1)], rtol=1e-3)


def series(seed, count=3):
    """Return the labels of a few objects, numbered anew in each frame."""
    rng = np.random.default_rng(seed)
    return np.stack([np.roll(TRUTH, rng.integers(0, 8, 2), (0, 1)) for _ in range(count)])


def numbered_through(labels):
    """Return labels whose objects have other numbers in each frame, as `segment --objects` numbers them."""
    return np.where(labels, labels + 10 * np.arange(len(labels), dtype=labels.dtype)[:, None, None], 0)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 3, 24, 24)])
def test_frames_of_a_series_are_scored_one_by_one(tmp_path, shape):
    truth = series(0, np.prod(shape[:-2])).reshape(shape)
    worse = numbered_through(truth.reshape(-1, 24, 24)).reshape(shape) if len(shape) == 3 else truth + 10 * (truth > 0)
    worse[-1] = np.where(worse[-1] % 10 == 4, 0, worse[-1])
    axes, paths = "TZYX"[-len(shape) :] if len(shape) == 4 else "TYX", (tmp_path / "found.tif", tmp_path / "true.tif")
    for path, array in zip(paths, (worse, truth), strict=True):
        tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": axes})
    scores, by_hand = evaluate(*paths), [metrics.count_objects(a, b)[0.5] for a, b in zip(worse, truth, strict=True)]
    total = sum(by_hand[1:], by_hand[0])
    assert scores["images"] == len(truth) and 0.7 < scores["objects"]["0.5"]["f1"] == total.f1 < 1
    assert scores["mean_ap"] == np.mean(
        [metrics.mean_average_precision(*pair) for pair in zip(worse, truth, strict=True)]
    )


def test_a_mask_of_a_series_is_split_frame_by_frame(tmp_path):
    truth = np.zeros((2, 24, 24), np.uint8)
    truth[0, 2:12, 2:12], truth[1, 8:20, 8:20] = 1, 1
    truth[1, 1:7, 1:7] = 2
    for name, array in (("found.tif", (truth > 0).astype(np.uint8)), ("true.tif", truth)):
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", metadata={"axes": "TYX"})
    assert evaluate(tmp_path / "found.tif", tmp_path / "true.tif")["objects"]["0.5"]["recall"] == 1


def test_a_series_and_a_stack_are_not_compared_unless_the_user_says_what_they_are(tmp_path):
    truth = series(1)
    for name, array, axes in (("found.tif", numbered_through(truth), "TYX"), ("true.tif", truth, "ZYX")):
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", metadata={"axes": axes})
    with pytest.raises(
        ImageError, match=r"is 3 frames of \(24, 24\), but the truth true\.tif is \(3, 24, 24\).*--axes"
    ):
        evaluate(tmp_path / "found.tif", tmp_path / "true.tif")
    assert evaluate(tmp_path / "found.tif", tmp_path / "true.tif", axes="tyx")["objects"]["0.5"]["f1"] == 1


def test_objects_that_cover_the_truth_but_never_match_are_remarked(tmp_path, caplog):
    truth = np.repeat(TRUTH[None], 3, axis=0)
    for name, array in (("found.tif", numbered_through(truth)), ("true.tif", truth)):
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", metadata={"axes": "ZYX"})
    assert evaluate(tmp_path / "found.tif", tmp_path / "true.tif")["objects"]["0.5"]["f1"] == 0
    (said,) = caplog.messages
    assert said.startswith(
        f"{tmp_path / 'found.tif'}: covers the objects of the truth (Dice 1.00), but no object matches"
    )


def test_of_a_truth_without_objects_nothing_is_remarked(tmp_path, caplog):
    for name in ("found.tif", "true.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((50, 50), np.uint8))
    assert evaluate(tmp_path / "found.tif", tmp_path / "true.tif")["dice"] == {"0": 1.0} and not caplog.messages


def thresholded():
    """Return a 2-D network that finds what is brighter than half."""
    layer = torch.nn.Conv2d(1, 1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(8)
        layer.bias.fill_(-4)
    return layer.eval()


@pytest.mark.parametrize("suffix", [".zarr", ".ome.tif"])
def test_objects_that_a_2d_network_finds_in_a_stack_are_scored_plane_by_plane(tmp_path, caplog, suffix):
    truth, mask = np.repeat(TRUTH[None], 3, axis=0), tmp_path / f"mask{suffix}"
    tifffile.imwrite(tmp_path / "true.tif", truth, photometric="minisblack", metadata={"axes": "ZYX"})
    image, footprint = (truth > 0).astype(np.float32), tilenet.Footprint.valid(2, lost=0)
    tilenet.segment(image, mask, model=thresholded(), footprint=footprint, axes="zyx", objects=True)
    assert len(np.unique(read_labels(mask)[0])) == 13
    scores = evaluate(mask, tmp_path / "true.tif")
    assert (scores["images"], scores["objects"]["0.5"]["f1"]) == (3, 1)
    assert f"{mask}: its objects lie in one plane each, so those of the truth are cut into planes" in caplog.text


@pytest.mark.parametrize(("mpp", "factor"), [(0.5, 2), (0.375, 1.5), (0.2, 0.8)])
def test_a_mask_at_another_pixel_size_is_compared_at_the_centres_of_the_true_pixels(tmp_path, caplog, mpp, factor):
    truth = np.random.default_rng(0).integers(0, 2, (37, 41)).astype(np.uint8)
    mask = tmp_path / "mask.zarr"
    tifffile.imwrite(tmp_path / "true.tif", truth)
    how = {"model": thresholded(), "footprint": tilenet.Footprint.valid(2, lost=0), "axes": "yx", "pixel_size": 0.25}
    tilenet.segment(truth.astype(np.float32), mask, mpp=mpp, **how)
    coarse = read_labels(mask)[0]
    assert coarse.shape != truth.shape
    found = np.array([[coarse[int((y + 0.5) / factor), int((x + 0.5) / factor)] for x in range(41)] for y in range(37)])
    scores = evaluate(mask, tmp_path / "true.tif", classes=True)
    assert scores["pixel_error"] == pytest.approx(np.mean(found != truth))
    assert f"{mask}: is at another resolution than the truth" in caplog.text
    tifffile.imwrite(tmp_path / "true.tif", truth[:, :-4])
    with pytest.raises(ImageError, match="Score images of one size"):
        evaluate(mask, tmp_path / "true.tif", classes=True)


@pytest.mark.parametrize("how", [{"level": 1}, {"mpp": 0.5}, {"mpp": 0.75}])
def test_a_mask_of_a_coarser_level_is_compared_with_the_truth_at_full_resolution(tmp_path, how):
    truth = np.random.default_rng(0).integers(0, 2, (64, 96)).astype(np.uint8)
    image, mask = tmp_path / "image.tif", tmp_path / "mask.zarr"
    with tifffile.TiffWriter(image) as tiff:
        tiff.write(truth, subifds=1)
        tiff.write(truth[::2, ::2], subfiletype=1)
    tifffile.imwrite(tmp_path / "true.tif", truth)
    network = {"model": thresholded(), "footprint": tilenet.Footprint.valid(2, lost=0)}
    tilenet.segment(image, mask, pixel_size=0.25, **network, **how)
    coarse, factor = read_labels(mask)[0], how.get("mpp", 0.5) / 0.25
    found = np.array([[coarse[int((y + 0.5) / factor), int((x + 0.5) / factor)] for x in range(96)] for y in range(64)])
    assert evaluate(mask, tmp_path / "true.tif", classes=True)["pixel_error"] == pytest.approx(np.mean(found != truth))
    image.rename(tmp_path / "moved.tif")
    with pytest.raises(ImageError, match="those of a coarser level need at its place"):
        evaluate(mask, tmp_path / "true.tif", classes=True)


@pytest.mark.parametrize("up", [True, False], ids=["rounded up", "rounded down"])
@pytest.mark.parametrize("how", [{"level": 1}, {"mpp": 1.3}, {"mpp": 1.75}])
@pytest.mark.parametrize("sides", [(67, 99), (65, 98), (64, 97)])
def test_a_mask_of_a_level_whose_sides_were_rounded_is_compared_with_the_truth(tmp_path, sides, how, up):
    truth = np.random.default_rng(0).integers(0, 2, sides).astype(np.uint8)
    level = truth[::4, ::4] if up else truth[: sides[0] // 4 * 4 : 4, : sides[1] // 4 * 4 : 4]
    with tifffile.TiffWriter(tmp_path / "image.tif") as tiff:
        tiff.write(truth, subifds=1)
        tiff.write(np.ascontiguousarray(level), subfiletype=1)
    tifffile.imwrite(tmp_path / "true.tif", truth)
    network = {"model": thresholded(), "footprint": tilenet.Footprint.valid(2, lost=0)}
    mask = tilenet.segment(tmp_path / "image.tif", tmp_path / "mask.zarr", pixel_size=0.25, **network, **how)
    mask, (rows, columns), step = np.asarray(mask), mask.shape, how.get("mpp", 1) / 0.25
    held = np.empty_like(truth)
    for y, x in np.ndindex(sides):
        held[y, x] = mask[min(int((y + 0.5) / step), rows - 1), min(int((x + 0.5) / step), columns - 1)]
    found = evaluate(tmp_path / "mask.zarr", tmp_path / "true.tif", classes=True)
    assert found["pixel_error"] == pytest.approx(np.mean(held != truth))
    tifffile.imwrite(tmp_path / "other.tif", truth[1:])
    with pytest.raises(ImageError, match="Score images of one size"):
        evaluate(tmp_path / "mask.zarr", tmp_path / "other.tif", classes=True)


def test_a_real_volume_is_scored_at_its_own_pixel_size(tmp_path, shared_data):
    image, truth = (shared_data(f"volumes/plant_nuclei_1135_{what}.tif") for what in ("image", "label"))
    tilenet.segment(image, tmp_path / "mask.zarr", mpp=0.25, objects=True)
    scores = evaluate(tmp_path / "mask.zarr", truth)
    assert scores["images"] == len(tifffile.imread(truth)) and scores["dice"]["1"] > 0.6
