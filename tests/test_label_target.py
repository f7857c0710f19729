"""Labels added to an image: seen by both validators, in its format, at its place; the image itself is not touched."""

import itertools
import json
import shutil

import numpy as np
import pytest
import yaozarrs
import zarr
from ome_images import SIDES, write_placed
from ome_zarr_models import v04, v05
from oracles import random_network
from store_helpers import tree
from stub import Bright

import tilenet
from tilenet.errors import (
    ImageError,
    ImageNotFound,
    OutputError,
    OutputExists,
    OutputIncomplete,
    OutputMismatch,
    SettingsError,
)
from tilenet.masks.label_target import open_target
from tilenet.models.named import name_of
from tilenet.store import Store, open_mask

REAL = {
    "blastocyst_z060-099_v04.ome.zarr": v04,
    "blastocyst_z070-099_v05_sharded.ome.zarr": v05,
    "cardiomyocyte_3ch_v04.ome.zarr": v04,
}
MODELS = {"0.4": v04, "0.5": v05}


@pytest.fixture(scope="module")
def network():
    return random_network(depth=2, wf=1, seed=3)


@pytest.fixture
def real(shared_data, tmp_path):
    """Return a writable copy of a real image."""

    def copy(name):
        shutil.copytree(shared_data(f"zarr/{name}"), tmp_path / name, copy_function=shutil.copyfile)
        for folder in (tmp_path / name, *(tmp_path / name).rglob("*")):
            folder.chmod(0o755 if folder.is_dir() else 0o644)
        return tmp_path / name

    return copy


def places_of(group, array, axes):
    """Return, for pixel 0 and pixel 1 of an array of a multiscale image, where they lie: (2, axes), by the metadata."""
    attributes = zarr.open_group(group, mode="r").attrs
    image = attributes.get("ome", attributes)["multiscales"][0]
    names = [axis["name"] for axis in image["axes"]]
    said = next(d for d in image["datasets"] if d["path"] == array)["coordinateTransformations"]
    found = []
    for pixel in (0.0, 1.0):
        place = np.full(len(names), pixel)
        for one in (*said, *image.get("coordinateTransformations", ())):
            place = place * one["scale"] if one["type"] == "scale" else place + one["translation"]
        found.append([place[names.index(axis)] for axis in axes])
    return np.array(found)


def labels_of(image):
    """Return the list that viewers read."""
    attributes = zarr.open_group(image / "labels", mode="r").attrs
    return attributes.get("ome", attributes)["labels"]


def without(image, *names):
    """Return the content of every file of an image, but for some labels and the list."""
    listed = ("labels/.zattrs", "labels/.zgroup", "labels/zarr.json")
    ours = tuple(f"labels/{name}/" for name in names)
    return {file: data for file, data in tree(image).items() if file not in listed and not file.startswith(ours)}


@pytest.mark.parametrize("name", REAL)
def test_labels_are_added_to_a_real_image_and_nothing_else_changes(real, network, name):
    image, models = real(name), REAL[name]
    before = without(image)
    listed = labels_of(image) if (image / "labels").exists() else []
    options = {"model": network, "channels": [0], "tile": 256, "roi": np.s_[:4, :, :] if "blast" in name else None}
    mask = tilenet.segment(image, into=image, name="found", **options)
    assert without(image, "found") == before
    assert labels_of(image) == [*listed, "found"]
    assert np.array_equal(mask, tilenet.segment(image, **options))
    assert 0 < np.mean(mask) < 1
    yaozarrs.validate_zarr_store(image)
    yaozarrs.validate_zarr_store(image / "labels" / "found")
    group = zarr.open_group(image, mode="r")
    assert models.Image.from_zarr(group).labels.attributes is not None
    found = models.ImageLabel.from_zarr(group["labels/found"])
    attributes = found.attributes if models is v04 else found.ome_attributes
    label = attributes.model_dump().get("image_label") or attributes.image_label.model_dump()
    assert label["source"]["image"] == "../../"
    assert group["labels/found/0"].metadata.zarr_format == (2 if models is v04 else 3)
    axes = mask.axes
    assert np.array_equal(places_of(image / "labels" / "found", "0", axes), places_of(image, "0", axes))
    assert tilenet.verify(image / "labels" / "found", model=network, windows=2).ok


@pytest.mark.parametrize("levels", [1, 3])
def test_a_mask_has_as_many_levels_as_its_image_whose_consolidated_metadata_stay_as_they_are(tmp_path, levels):
    image = write_placed(tmp_path / "image.zarr", "0.4", levels=levels)
    zarr.consolidate_metadata(image)
    before = without(image)
    mask = tilenet.segment(image, into=image, name="found", model=Bright(), channels=[0])
    assert len(mask.levels) == levels and mask.layer()["name"] == "found"
    assert without(image, "found") == before and ".zmetadata" in before


@pytest.mark.parametrize("version", MODELS)
@pytest.mark.parametrize(
    ("options", "first", "step"),
    [
        ({}, (0, 0), 1),
        ({"level": 1}, (0.5, 0.5), 2),
        ({"roi": np.s_[20:60, 30:]}, (20, 30), 1),
        ({"level": 1, "roi": np.s_[20:30, 30:]}, (40.5, 60.5), 2),
        # 4 x 6 um a pixel at level 0: 12 and 18 are three of them, and their mean lies in their middle.
        ({"mpp": 15.0}, None, None),
    ],
    ids=["whole", "level", "part", "part of a level", "resampled"],
)
def test_a_pixel_of_the_labels_lies_where_those_that_it_was_made_of_lie(tmp_path, version, options, first, step):
    image = write_placed(tmp_path / "image.zarr", version)
    mask = tilenet.segment(image, into=image, model=Bright(), channels=[0], tile=64, **options)
    factor = np.array([a / b for a, b in mask.info["record"]["factor"]])
    if first is None:
        level = mask.info["record"]["level"]
        assert (factor != 1).any()
        first, step = (2**level - 1) / 2 + 2**level * (factor - 1) / 2, 2**level * factor
    zero, one = places_of(image, "s0", "yx")
    found = places_of(image / "labels" / "Bright", "0", "yx")
    expected = [zero + np.array(first) * (one - zero), zero + (np.array(first) + step) * (one - zero)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    MODELS[version].ImageLabel.from_zarr(zarr.open_group(image / "labels" / "Bright", mode="r"))
    units = [axis["unit"] for axis in open_target(image).frames[0]["axes"]]
    attributes = zarr.open_group(image / "labels" / "Bright", mode="r").attrs
    described = attributes.get("ome", attributes)["multiscales"][0]["axes"]
    assert [axis["unit"] for axis in described] == units == ["millimeter"] * 2


def test_two_names_stand_side_by_side_and_one_is_replaced_alone(tmp_path):
    image = write_placed(tmp_path / "image.zarr", "0.5")
    for name in ("a", "b"):
        tilenet.segment(image, into=image, name=name, model=Bright(), channels=[0], tile=64)
    before = tree(image / "labels" / "a")
    with pytest.raises(OutputExists, match="--overwrite"):
        tilenet.segment(image, into=image, name="b", model=Bright(), channels=[0], tile=64)
    mask = tilenet.segment(image, into=image, name="b", model=Bright(bright=5), channels=[0], tile=64, overwrite=True)
    assert np.mean(mask) > np.mean(open_mask(image / "labels" / "a"))
    assert labels_of(image) == ["a", "b"]
    assert tree(image / "labels" / "a") == before


def test_labels_are_not_made_of_themselves(tmp_path):
    image = write_placed(tmp_path / "a.zarr", "0.5")
    labels = tilenet.segment(image, into=image, name="x", model=Bright(), channels=[0]).path
    before = tree(tmp_path)
    for source in (labels, labels / "0", tilenet.open_image(labels)):
        with pytest.raises(OutputExists, match="holds the image that is to be read"):
            tilenet.segment(source, into=image, name="x", model=Bright(bright=0), overwrite=True)
    assert tree(tmp_path) == before
    assert tilenet.segment(labels, into=image, name="y", model=Bright(bright=0)).shape == SIDES


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_labels_of_somebody_else_are_never_touched(real, network, options):
    image = real("cardiomyocyte_3ch_v04.ome.zarr")
    before = tree(image)
    with pytest.raises(OutputExists, match="--name"):
        tilenet.segment(image, into=image, name="nuclei", model=network, channels=[0], **options)
    assert tree(image) == before


def test_a_name_that_is_listed_but_not_there_is_not_taken(tmp_path):
    image = write_placed(tmp_path / "image.zarr", "0.4")
    (image / "labels").mkdir()
    (image / "labels" / ".zattrs").write_text('{"labels": ["lost"]}')
    with pytest.raises(OutputExists, match="--name"):
        tilenet.segment(image, into=image, name="lost", model=Bright(), channels=[0])


@pytest.mark.parametrize("name", ["", " ", ".hidden", "__own", "a/b", "..", "a\\b", "a\nb"])
def test_what_cannot_be_a_name_is_refused(tmp_path, name):
    image = write_placed(tmp_path / "image.zarr", "0.5")
    with pytest.raises(OutputError, match="--name"):
        tilenet.segment(image, into=image, name=name, model=Bright(), channels=[0])
    assert not (image / "labels").exists()


def test_another_image_with_the_same_pixels_goes_in_and_one_without_does_not(tmp_path):
    image = write_placed(tmp_path / "image.zarr", "0.5")
    pixels = zarr.open_array(image / "s0", mode="r")[...]
    for name, some in {"fine": pixels[0], "coarse": pixels[0, ::2, ::2]}.items():
        tilenet.segment(some, into=image, name=name, model=Bright(), tile=64)
    for name, level in {"fine": "s0", "coarse": "s1"}.items():
        found = places_of(image / "labels" / name, "0", "yx")
        assert np.array_equal(found, places_of(image, level, "yx"))
    for wrong, objects in itertools.product((pixels[0, 1:], pixels[0, ::4, ::4]), (False, True)):
        with pytest.raises(OutputMismatch, match=r"segment the image itself"):
            tilenet.segment(wrong, into=image, name="wrong", model=Bright(), tile=64, objects=objects)
        assert [path.name for path in tmp_path.iterdir()] == ["image.zarr"]
    with pytest.raises(OutputMismatch, match=r"zyx \(1, 90, 300\)"):
        tilenet.segment(pixels[:1], axes="zyx", into=image, name="wrong", model=Bright(), tile=64)
    assert labels_of(image) == ["fine", "coarse"]
    assert not (image / "labels" / "wrong").exists()


def test_objects_and_probabilities_go_in_too(tmp_path, network, caplog):
    image = write_placed(tmp_path / "image.zarr", "0.4")
    options = {"model": network, "channels": [0], "tile": 64, "into": image}
    with caplog.at_level("INFO", "tilenet"):
        objects = tilenet.segment(image, name="objects", objects=True, pixel_size=0.7, **options)
    assert len(caplog.messages) == len(set(caplog.messages)) > 0
    assert any("pixel size taken as 0.7 um" in said for said in caplog.messages)
    assert (objects.dtype, objects[...].max() > 1) == (np.uint32, True)
    both = tilenet.segment(image, name="both", output="both", **options)
    truth = tilenet.segment(image, output="probabilities", model=network, channels=[0], tile=64)
    assert np.array_equal(both.probabilities, truth)
    v04.Image.from_zarr(zarr.open_group(image / "labels" / "both" / "probabilities", mode="r"))
    assert labels_of(image) == ["objects", "both"]


@pytest.mark.parametrize("how", [{}, {"objects": True}, {"shard": (1, 1)}])
def test_labels_with_the_name_of_a_tiff_are_labels(tmp_path, how):
    image = write_placed(tmp_path / "image.zarr", "0.5", axes="yx")
    options = {"into": image, "name": "found.tif", "model": Bright(), "tile": 64}
    mask = tilenet.segment(np.zeros(SIDES, np.uint8), **options, **how)
    assert isinstance(mask, tilenet.Mask) and mask.path == image / "labels" / "found.tif"
    assert labels_of(image) == ["found.tif"]
    assert sorted(path.name for path in (image / "labels").iterdir()) == ["found.tif", "zarr.json"]


def test_shares_list_the_labels_when_the_last_is_done(tmp_path):
    image = write_placed(tmp_path / "image.zarr", "0.5")
    options = {"into": image, "model": Bright(), "channels": [0], "tile": 32}
    whole = tilenet.segment(image, name="whole", **options)
    assert Store.inspect(image / "labels" / "whole").layout.n_blocks(0) >= 1
    assert tilenet.segment(image, name="shared", shard=(1, 2), **options) is None
    assert labels_of(image) == ["whole"]
    with pytest.raises(OutputIncomplete):
        open_mask(image / "labels" / "shared")
    mask = tilenet.segment(image, name="shared", shard=(2, 2), **options)
    assert np.array_equal(mask, whole)
    assert labels_of(image) == ["whole", "shared"]


def test_what_labels_cannot_go_into_is_refused_with_the_way_out(tmp_path):
    def refused(kind, path, match):
        with pytest.raises(kind, match=match):
            tilenet.segment(np.zeros(SIDES, np.uint8), into=path, name="m", model=Bright())

    refused(ImageNotFound, tmp_path / "none.zarr", "Check the path")
    refused(ImageNotFound, __file__, "is no folder")
    (tmp_path / "folder").mkdir()
    refused(ImageError, tmp_path / "folder", "--out")
    zarr.create_array(tmp_path / "array.zarr", shape=SIDES, dtype="uint8", zarr_format=3)
    refused(ImageError, tmp_path / "array.zarr", "--out")
    refused(ImageError, write_placed(tmp_path / "old.zarr", "0.3"), "OME-Zarr 0.3")
    image = write_placed(tmp_path / "image.zarr", "0.5", axes="yx")
    mask = tilenet.segment(image, into=image, name="m", model=Bright())
    refused(ImageError, mask.path, "holds labels itself")
    refused(ImageError, image / "labels", f"{image / 'labels' / 'm'}")
    document = json.loads((image / "zarr.json").read_bytes())
    wrong = document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    wrong[0]["scale"][0] = -1.0
    (image / "zarr.json").write_text(json.dumps(document))
    refused(ImageError, image, "not positive")


def test_out_into_and_name_are_asked_for_as_they_go_together(tmp_path):
    pixels = np.zeros((20, 20), np.uint8)
    with pytest.raises(SettingsError, match="give only one of them"):
        tilenet.segment(pixels, tmp_path / "m.zarr", into=tmp_path / "i.zarr", model=Bright())
    with pytest.raises(SettingsError, match="with into"):
        tilenet.segment(pixels, tmp_path / "m.zarr", name="m", model=Bright())


def test_a_model_is_called_as_its_card_or_its_file_or_its_class(tmp_path, network):
    tilenet.save_model(network, tmp_path / "mine.safetensors", card=tilenet.ModelCard(name="glands"))
    (tmp_path / "broken.pt").write_bytes(b"no model")
    assert name_of("nuclei") == "nuclei"
    assert name_of(tmp_path / "mine.safetensors") == "glands"
    assert name_of(tmp_path / "broken.pt") == "broken"
    assert (name_of(Bright()), name_of(network)) == ("Bright", "UNet")


def test_the_command_says_where_the_labels_are_and_goes_on_with_them(tmp_path, network, tilenet_command):
    image = write_placed(tmp_path / "image.zarr", "0.5")
    tilenet.save_model(network, tmp_path / "mine.safetensors", card=tilenet.ModelCard(name="glands"))
    said = ("segment", image, "--into", image, "--model", tmp_path / "mine.safetensors", "--channels", "0")
    code, text, _ = tilenet_command(*said)
    assert (code, text.startswith(f"{image}/labels/glands: 90 x 300 px")) == (0, True)
    assert labels_of(image) == ["glands"]
    assert tilenet_command(*said)[0] == 2
    assert tilenet_command(*said, "--resume")[0] == 0
    assert tilenet_command("verify", image / "labels" / "glands", "--windows", "1")[0] == 0
    code, _, error = tilenet_command("segment", image)
    assert (code, "--out mask.zarr, or --into" in error) == (2, True)
    code, text, _ = tilenet_command(*said, "--name", "shared", "--shard", "1/2", "--json")
    assert json.loads(text)["out"] == f"{image}/labels/shared"
