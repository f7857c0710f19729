"""Training on time series and on planes of stacks: frames are images, and time is no axis of an object."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from training_helpers import discs, image_of, write_pair

from tilenet.errors import ImageError, SettingsError
from tilenet.models.saved import fingerprint, load_model
from tilenet.training.data import describe_training, read_pairs, split
from tilenet.training.history import caption_of
from tilenet.training.loop import train
from tilenet.training.recipe import Recipe

SMALL = Recipe(depth=2, wf=2, tile=40, epochs=1, crops=4, scaling="linear:0,255")


def write_series(folder, stem, labels, axes):
    """Write an image and its labels, both with the given axes, and return them."""
    image = image_of(labels, np.random.default_rng(len(stem)))
    write_pair(folder, f"{stem}.ome", image, labels, metadata={"axes": axes})
    return image, labels


def frames(seed, count=3):
    rng = np.random.default_rng(seed)
    return np.stack([discs(rng) for _ in range(count)])


def test_the_frames_of_a_series_are_images_of_their_own(tmp_path):
    image, labels = write_series(tmp_path, "a", frames(0), "TYX")
    pairs = read_pairs(tmp_path, SMALL.scaling)
    assert [p.name for p in pairs] == ["a"] * 3
    for k, pair in enumerate(pairs):
        np.testing.assert_array_equal(pair.image[0], image[k] / np.float32(255))
        np.testing.assert_array_equal(pair.label, labels[k])


def test_the_frames_of_a_series_of_volumes_are_volumes(tmp_path):
    _, labels = write_series(tmp_path, "a", frames(0, 6).reshape(2, 3, 60, 70), "TZYX")
    pairs = read_pairs(tmp_path, SMALL.scaling)
    assert [p.label.shape for p in pairs] == [(3, 60, 70)] * 2
    np.testing.assert_array_equal(np.stack([p.label for p in pairs]), labels)


def test_a_series_trains_a_2d_network_and_the_same_one_as_its_frames_in_files(tmp_path):
    folders = tmp_path / "series", tmp_path / "files"
    for k, folder in enumerate(folders):
        folder.mkdir()
        for seed in range(2):
            labels = frames(seed, 1) if k else frames(seed, 1)[0]
            write_series(folder, f"cells{seed}", labels, "TYX" if k else "YX")
    models = [train(folder, folder / "m.safetensors", recipe=SMALL) for folder in folders]
    assert [model.ndim for model in models] == [2, 2]
    assert fingerprint(models[0]) == fingerprint(models[1])


def test_all_frames_of_a_file_are_on_one_side_of_the_split(tmp_path):
    for k in range(4):
        write_series(tmp_path, f"cells{k}", frames(k), "TYX")
    pairs = read_pairs(tmp_path, SMALL.scaling)
    learned, held = split(pairs, 0.25, seed=0)
    assert (len(learned), len(held)) == (9, 3)
    assert not {p.name for p in learned} & {p.name for p in held}
    with pytest.raises(SettingsError, match="cells0, whose 3 frames are too much alike"):
        split(pairs[:3], 0.25, seed=0)


def test_a_training_begins_with_a_line_that_says_what_is_trained(tmp_path, caplog):
    for k in range(3):
        write_series(tmp_path, f"cells{k}", frames(k), "TYX")
    out = tmp_path / "m.safetensors"
    with caplog.at_level(logging.INFO, "tilenet"):
        train(tmp_path, out, recipe=SMALL, axes="tyx")
        train(tmp_path, out, recipe=SMALL, axes="tyx", resume=True)  # nothing is left to train
    (said,) = caplog.messages
    assert said == (
        f"{tmp_path}: 2-D network over yx of 1 channel: 2 images of 6 frames in all to train on, 1 image of 3 frames "
        f"in all for validation; intensities of each file scaled: linear (subtract 0.0, divide 255.0)"
    )


def test_each_frame_of_a_series_has_a_caption_of_its_own(tmp_path):
    write_series(tmp_path, "a", frames(0), "TYX")
    write_series(tmp_path, "b", frames(0, 1)[0], "YX")
    assert [caption_of(pair) for pair in read_pairs(tmp_path, SMALL.scaling)] == ["a, t 0", "a, t 1", "a, t 2", "b"]


def test_planes_of_a_stack_train_a_2d_network_where_they_are_called_frames(tmp_path):
    for stem in "ab":
        write_series(tmp_path, stem, frames(0), "ZYX")
    for axes, ndim, count in (("zyx", 3, 1), ("tyx", 2, 3)):
        pairs = read_pairs(tmp_path, SMALL.scaling, axes=axes)
        assert [(p.name, p.label.ndim) for p in pairs] == [("a", ndim)] * count + [("b", ndim)] * count
        assert describe_training((pairs[:count], pairs[count:]), {"method": "none"}).startswith(
            f"{ndim}-D network over "
        )


@pytest.mark.parametrize("channels", [1, "DAPI"])
def test_a_model_of_chosen_channels_is_the_one_of_images_that_have_no_others(tmp_path, channels):
    alone, among = tmp_path / "alone", tmp_path / "among"
    for seed in range(2):
        labels = frames(seed, 1)[0]
        image, _ = write_series(alone, f"cells{seed}", labels, "YX")
        stained = np.stack([np.full_like(image, 9), image])
        names = {"axes": "CYX", "Channel": {"Name": ["actin", "DAPI"]}}
        write_series(among, f"cells{seed}", labels, "YX")
        tifffile.imwrite(among / "images" / f"cells{seed}.ome.tif", stained, metadata=names)
    one = train(alone, alone / "m.safetensors", recipe=SMALL)
    chosen = train(among, among / "m.safetensors", recipe=SMALL, channels=channels)
    every = train(among, among / "all.safetensors", recipe=SMALL)
    assert [model.in_channels for model in (one, chosen, every)] == [1, 1, 2]
    assert fingerprint(one) == fingerprint(chosen)
    with pytest.raises(ImageError, match=r"cells0\.ome\.tif: has no channel 'Ki67' \(actin, DAPI\)"):
        train(among, among / "none.safetensors", recipe=SMALL, channels="Ki67")


def test_a_series_whose_labels_are_a_volume_is_refused(tmp_path):
    image, _ = write_series(tmp_path, "a", frames(0), "ZYX")
    tifffile.imwrite(tmp_path / "images" / "a.ome.tif", image, metadata={"axes": "TYX"})
    with pytest.raises(ImageError, match=r"a\.ome\.tif: is \(3, 60, 70\), but a\.ome\.tif is 3 frames of \(60, 70\)"):
        train(tmp_path, tmp_path / "m.safetensors", recipe=SMALL)
    assert len(read_pairs(tmp_path, SMALL.scaling, axes="tyx")) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_with_pixels_that_are_not_finite_are_refused_by_file_name(tmp_path, value):
    for stem in "ab":
        image, _ = write_series(tmp_path, stem, frames(0, 1)[0], "YX")
    wrong = image.astype(np.float32)
    wrong[3, 4:6] = value
    tifffile.imwrite(tmp_path / "images" / "b.ome.tif", wrong)
    for rule in ("linear:0,255", {"method": "none", "clip": [0, 1]}):
        with pytest.raises(ImageError, match=r"b\.ome\.tif: holds values that are not finite \(2\)"):
            train(tmp_path, tmp_path / "m.safetensors", recipe=replace(SMALL, scaling=rule))
    assert not (tmp_path / "m.training").exists()


def test_a_training_stops_at_a_loss_that_is_not_finite_and_keeps_what_it_had(tmp_path):
    for stem in "ab":
        write_series(tmp_path, stem, frames(0, 1)[0], "YX")
    out, recipe = tmp_path / "m.safetensors", replace(SMALL, epochs=3, rate=1e30)
    seen = []
    with pytest.raises(SettingsError, match=r"m\.safetensors: the loss of epoch \d is (nan|inf).*--rate below 1e\+30"):
        train(tmp_path, out, recipe=recipe, progress=seen.append)
    assert len(seen) < 3
    if out.exists():
        assert load_model(out)
