"""Volumes, series, stacks and masks of coarser pixels against the truth."""

import json

import numpy as np
import pytest
import tifffile
import torch
from ome_images import write_ome_tiff

import tilenet
from tilenet import metrics
from tilenet.errors import ImageError, SettingsError
from tilenet.evaluation import scoring
from tilenet.evaluation.labels import read_labels
from tilenet.evaluation.scoring import evaluate

# Four objects in a plane of 24 x 24 px.
TRUTH = np.kron([[1, 0, 2], [0, 0, 0], [3, 0, 4]], np.ones((8, 8), int)).astype(np.uint16)

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
