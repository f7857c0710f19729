"""The image of a mask is told from others: moved it is the same, another of its size is not."""

import json
import logging
import shutil

import numpy as np
import pytest
import tifffile
import zarr
from ome_images import write_placed
from pyramids import write_pyramid
from stub import Bright

import tilenet
from tilenet.errors import ImageError, ImageNotFound, OutputMismatch
from tilenet.masks.provenance import check_image, difference, open_as_segmented, source_of

PIXELS = np.random.default_rng(0).integers(0, 200, (90, 120), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A slide and its mask; a moved copy; another slide of the same size; a re-encoded copy."""
    for name, pixels, how in (
        ("slide", PIXELS, {"tile": (32, 32)}),
        ("moved", PIXELS, {"tile": (32, 32)}),
        ("other", 199 - PIXELS, {"tile": (32, 32), "compression": "zlib"}),
        ("copy", PIXELS, {"tile": (64, 64)}),
    ):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, **how)
    tilenet.segment(tmp_path / "slide.tif", tmp_path / "m.zarr", model=Bright(), tile=64)
    return tmp_path


def test_a_moved_image_is_the_same_and_another_of_its_size_is_not(folder):
    mask = tilenet.open_mask(folder / "m.zarr")
    check_image(folder / "moved.tif", mask)
    for name in ("other", "copy"):
        with pytest.raises(OutputMismatch, match=rf"{name}.tif: is not the image .* \(bytes: \d+ there, \d+ here\)"):
            check_image(folder / f"{name}.tif", mask)


def test_an_open_image_stays_open(folder):
    with tilenet.open_image(folder / "slide.tif") as image:
        check_image(image, tilenet.open_mask(folder / "m.zarr"))
        assert image.read(tilenet.Box((0, 0), (5, 5))).shape == (1, 5, 5)
        assert difference(image, tilenet.open_mask(folder / "m.zarr")) == ""


def test_an_open_copy_with_its_channels_elsewhere_is_drawn_alike(tmp_path):
    colour = np.random.default_rng(0).integers(0, 200, (40, 50, 3), dtype=np.uint8)
    mask = tilenet.segment(colour, tmp_path / "m.zarr", axes="yxc", model=Bright(), channels=[0])
    planes = tilenet.open_image(np.moveaxis(colour, -1, 0), axes="cyx")
    planes.channel_names = ("red", "green", "blue")
    assert np.array_equal(tilenet.overlay(planes, mask), tilenet.overlay(tilenet.open_image(colour, axes="yxc"), mask))


def test_other_axes_or_levels_say_that_it_is_another_image_and_what_is_no_image_says_so(tmp_path):
    stack = np.zeros((2, 3, 40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "stack.ome.tif", stack, metadata={"axes": "CZYX"})
    tilenet.segment(tmp_path / "stack.ome.tif", tmp_path / "m.zarr", model=Bright(), channels=[0])
    tifffile.imwrite(tmp_path / "plant.tif", np.zeros((40, 50, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(tmp_path / "bare.tif", np.zeros((2, 3, 4, 40, 50), np.uint8), photometric="minisblack")
    mask = tilenet.open_mask(tmp_path / "m.zarr")
    for name in ("plant", "bare"):
        with pytest.raises(
            OutputMismatch, match=f"{name}.tif: is not the image of .* Give the image that was segmented"
        ):
            open_as_segmented(tmp_path / f"{name}.tif", mask)
    (tmp_path / "text.tif").write_text("nothing")
    with pytest.raises(ImageError, match="text.tif"):
        open_as_segmented(tmp_path / "text.tif", mask)
    with pytest.raises(ImageNotFound, match="none.tif"):
        open_as_segmented(tmp_path / "none.tif", mask)


def test_the_overlay_of_another_image_says_so_in_a_line_and_that_of_its_own_says_nothing(folder, tilenet_command):
    for name in ("slide", "moved"):
        out = folder / f"{name}.png"
        assert tilenet_command("overlay", folder / f"{name}.tif", folder / "m.zarr", "--out", out)[::2] == (0, "")
    for name in ("other", "copy"):
        out = folder / f"{name}.png"
        code, _, error = tilenet_command("overlay", folder / f"{name}.tif", folder / "m.zarr", "--out", out)
        assert (code, error.count("\n"), out.exists()) == (0, 1, True)
        assert f"{name}.tif: is not the image that" in error
    command = ("overlay", folder / "copy.tif", folder / "m.zarr", "--out", out, "--overwrite", "--json")
    code, text, error = tilenet_command(*command)
    assert (code, error) == (0, "")
    assert "is not the image" in json.loads(text)["remarks"][0]


def test_what_an_array_was_read_from_is_not_asked(folder, caplog):
    tilenet.segment(PIXELS, folder / "of_array.zarr", model=Bright(), tile=64)
    with caplog.at_level(logging.WARNING, "tilenet"):
        tilenet.overlay(folder / "slide.tif", folder / "of_array.zarr")
        tilenet.overlay(PIXELS, folder / "m.zarr")
        assert not caplog.records
        tilenet.overlay(folder / "other.tif", folder / "m.zarr")
        assert len(caplog.records) == 1


def test_only_the_image_of_a_mask_places_its_polygons(folder, tilenet_command):
    out = folder / "m.geojson"
    command = ("export", folder / "m.zarr", "--geojson", out, "--image")
    for name in ("other.tif", "copy.tif", "none.tif"):
        code, _, error = tilenet_command(*command, folder / name)
        assert (code, error.count("\n"), out.exists()) == (2, 1, False)
        assert name in error
    assert tilenet_command(*command, folder / "moved.tif")[0] == 0
    whole = out.read_bytes()
    assert tilenet_command("export", folder / "m.zarr", "--geojson", out, "--overwrite")[0] == 0
    assert out.read_bytes() == whole


def test_an_image_with_fewer_levels_is_refused_in_words(folder, tilenet_command):
    two = write_pyramid(folder / "two.tif", PIXELS)
    tilenet.segment(two, folder / "coarse.zarr", model=Bright(), level=1)
    command = ("export", folder / "coarse.zarr", "--geojson", folder / "c.geojson", "--image", folder / "slide.tif")
    code, _, error = tilenet_command(*command)
    assert (code, "out of range" in error, "no level 1" in error) == (2, False, True)


def test_labels_that_others_wrote_are_refused_with_the_way_out(folder, tilenet_command):
    (folder / "theirs.zarr").mkdir()
    (folder / "theirs.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for command in (
        ("overlay", folder / "slide.tif", folder / "theirs.zarr", "--out", folder / "o.png"),
        ("export", folder / "theirs.zarr", "--geojson", folder / "o.geojson"),
    ):
        code, _, error = tilenet_command(*command)
        assert (code, "Give one made by tilenet segment" in error) == (2, True)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_that_moved_with_their_image_find_it_and_those_of_another_file_do_not(tmp_path, version):
    image = write_placed(tmp_path / "image.zarr", version)
    shutil.copytree(image, tmp_path / "other.zarr")
    how = {"model": Bright(), "channels": [0], "tile": 64, "level": 1}
    for name, source in (("own", image), ("foreign", tmp_path / "other.zarr")):
        tilenet.segment(source, into=image, name=name, **how)
    tilenet.write_table(image / "labels" / "own", tmp_path / "before.csv")
    moved = image.rename(tmp_path / "moved.zarr")
    tilenet.write_table(moved / "labels" / "own", tmp_path / "after.csv")
    assert (tmp_path / "after.csv").read_bytes() == (tmp_path / "before.csv").read_bytes()
    assert tilenet.verify(moved / "labels" / "own", model=Bright()).windows > 0
    assert source_of(tilenet.open_mask(moved / "labels" / "foreign")) == str(tmp_path / "other.zarr")
    attributes = zarr.open_group(moved).attrs
    attributes["changed"] = True  # it is no longer the image that the labels were made from
    with pytest.raises(OutputMismatch, match=r"image\.zarr: does not exist.*If it has moved, name it by --image"):
        tilenet.write_table(moved / "labels" / "own", tmp_path / "changed.csv")
