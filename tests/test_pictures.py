"""Overlays: where the outlines lie, whatever the level, pixel size or part."""

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.pictures import UNNAMED, overlay


class Bright:
    """Class 1 where a pixel is brighter than 128."""

    footprint = tilenet.Footprint.same(2, reach=0)

    def __call__(self, batch):
        seen = batch[:, :1].astype(np.float32)
        return np.concatenate([128 - seen, seen - 128], axis=1)


@pytest.fixture
def square(tmp_path):
    """A bright square (40:60, 50:90) on black, with a pyramid, and its mask."""
    pixels = np.zeros((300, 400), np.uint8)
    pixels[40:60, 50:90] = 255
    with tifffile.TiffWriter(tmp_path / "slide.tif") as tiff:
        tiff.write(pixels, tile=(64, 64), subifds=1, resolution=(20000, 20000), resolutionunit="CENTIMETER")
        tiff.write(pixels[::2, ::2], tile=(64, 64), subfiletype=1)
    tilenet.segment(tmp_path / "slide.tif", tmp_path / "mask.zarr", model=Bright(), tile=64)
    return tmp_path


def outlined(picture):
    return (picture == UNNAMED).all(axis=-1)


def test_the_outline_is_the_inner_border_of_the_mask(square):
    picture = overlay(square / "slide.tif", square / "mask.zarr")
    expected = np.zeros((300, 400), bool)
    expected[40:60, 50:90] = True
    expected[41:59, 51:89] = False
    assert np.array_equal(outlined(picture), expected)
    assert picture.shape == (300, 400, 3)
    assert not outlined(np.asarray(overlay(square / "slide.tif", square / "mask.zarr", fill=True))).any()


def test_a_part_is_the_crop_of_the_whole_but_for_the_bar(square):
    whole = overlay(square / "slide.tif", square / "mask.zarr")
    part = overlay(square / "slide.tif", square / "mask.zarr", roi=[(30, 230), (40, 340)])
    assert np.array_equal(outlined(part)[:150], outlined(whole)[30:180, 40:340])
    assert outlined(part).any()


def test_a_mask_of_a_part_lies_where_the_part_is(square):
    tilenet.segment(square / "slide.tif", square / "part.zarr", model=Bright(), tile=64, roi=[(45, 200), (0, 70)])
    picture = overlay(square / "slide.tif", square / "part.zarr")
    assert picture.shape == (155, 70, 3)
    assert outlined(picture)[14, 50:70].all()
    assert not outlined(picture)[15:].any()


def test_objects_of_one_pixel_survive_the_reduction(tmp_path):
    pixels = np.zeros((500, 700), np.uint8)
    pixels[::50, ::50] = 255
    tilenet.segment(pixels, tmp_path / "mask.zarr", model=Bright())
    picture = overlay(pixels, tmp_path / "mask.zarr", max_side=400)
    assert picture.shape == (285, 400, 3)
    assert outlined(picture).sum() == 10 * 14


def test_a_mask_of_a_coarser_grid_is_drawn_on_that_grid(square):
    tilenet.segment(square / "slide.tif", square / "coarse.zarr", model=Bright(), level=1)
    picture = overlay(square / "slide.tif", square / "coarse.zarr")
    assert picture.shape == (150, 200, 3)
    assert outlined(picture)[20, 25:45].all()
    tilenet.segment(square / "slide.tif", square / "mpp.zarr", model=Bright(), mpp=1.5)
    picture = overlay(square / "slide.tif", square / "mpp.zarr")
    assert picture.shape == (100, 134, 3)
    assert outlined(picture).any()


def test_the_bar_is_as_long_as_it_says(square):
    picture = overlay(square / "slide.tif", square / "mask.zarr")  # 0.5 um per px: 50 um are 100 px
    rows = (picture == 255).all(axis=-1)[200:].sum(axis=1)
    assert rows.max() == 101


def test_a_mask_of_another_image_is_refused(square, tmp_path):
    with pytest.raises(OutputMismatch, match="that was segmented"):
        overlay(np.zeros((30, 40), np.uint8), square / "mask.zarr")
    with pytest.raises(SettingsError, match="nothing at|leaves the image"):
        overlay(square / "slide.tif", square / "mask.zarr", roi=[(0, 500), (0, 10)])


def test_the_command_draws_a_real_slide_and_keeps_what_is_there(shared_data, tmp_path, tilenet_command):
    slide = shared_data("slides/CMU-1-Small-Region.svs")
    tilenet.save_model(random_network(depth=2, wf=2, in_channels=3), tmp_path / "small.safetensors")
    options = ("-m", tmp_path / "small.safetensors", "--roi", "0:700,0:900")
    assert tilenet_command("segment", slide, "-o", tmp_path / "m.zarr", *options)[0] == 0
    target = tmp_path / "o.png"
    code, out, _ = tilenet_command("overlay", slide, tmp_path / "m.zarr", "--out", target, "--max-side", 450)
    assert (code, out) == (0, f"{target}: 350 x 450 px\n")
    before = target.read_bytes()
    code, _, err = tilenet_command("overlay", slide, tmp_path / "m.zarr", "--out", target)
    assert (code, err.count("\n")) == (2, 1)
    assert target.read_bytes() == before
    code, _, err = tilenet_command("overlay", slide, tmp_path / "m.zarr", "--out", tmp_path / "o.what")
    assert (code, err.count("\n")) == (2, 1)
