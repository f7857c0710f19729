"""Overlays: where the outlines lie, whatever the level, pixel size or part."""

import json
import re

import numpy as np
import pytest
import tifffile
from oracles import random_network
from pyramids import write_pyramid
from skimage.io import imread
from stub import Threshold

import tilenet
from tilenet.card import PALETTE
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.pictures.drawing import draw_bar
from tilenet.pictures.overlays import overlay
from tilenet.store.tissue_map import TISSUE_COLOR


@pytest.fixture
def square(tmp_path):
    """A bright square (40:60, 50:90) on black, with a pyramid, and its mask."""
    pixels = np.zeros((300, 400), np.uint8)
    pixels[40:60, 50:90] = 255
    write_pyramid(tmp_path / "slide.tif", pixels, um=(0.5, 0.5))
    tilenet.segment(tmp_path / "slide.tif", tmp_path / "mask.zarr", model=Threshold(), tile=64)
    return tmp_path


def outlined(picture):
    return (picture == PALETTE[0][:3]).all(axis=-1)


def test_the_outline_is_the_inner_border_of_the_mask_two_pixels_wide(square):
    picture = overlay(square / "slide.tif", square / "mask.zarr")
    expected = np.zeros((300, 400), bool)
    expected[40:60, 50:90] = True
    expected[42:58, 52:88] = False
    assert np.array_equal(outlined(picture), expected)
    assert picture.shape == (300, 400, 3)
    assert not outlined(np.asarray(overlay(square / "slide.tif", square / "mask.zarr", fill=True))).any()


def test_a_part_is_the_crop_of_the_whole_but_for_the_bar(square):
    whole = overlay(square / "slide.tif", square / "mask.zarr")
    part = overlay(square / "slide.tif", square / "mask.zarr", roi=[(30, 230), (40, 340)])
    assert np.array_equal(outlined(part)[:150], outlined(whole)[30:180, 40:340])
    assert outlined(part).any()


def test_a_mask_of_a_part_lies_where_the_part_is(square):
    tilenet.segment(square / "slide.tif", square / "part.zarr", model=Threshold(), tile=64, roi=[(45, 200), (0, 70)])
    picture = overlay(square / "slide.tif", square / "part.zarr")
    assert picture.shape == (155, 70, 3)
    assert outlined(picture)[14, 50:70].all()
    assert not outlined(picture)[15:].any()


def test_objects_of_one_pixel_survive_the_reduction(tmp_path):
    pixels = np.zeros((500, 700), np.uint8)
    pixels[::50, ::50] = 255
    tilenet.segment(pixels, tmp_path / "mask.zarr", model=Threshold())
    picture = overlay(pixels, tmp_path / "mask.zarr", max_side=400)
    assert picture.shape == (285, 400, 3)
    assert outlined(picture).sum() == 10 * 14


def test_a_mask_of_a_coarser_grid_is_drawn_on_that_grid(square):
    tilenet.segment(square / "slide.tif", square / "coarse.zarr", model=Threshold(), level=1)
    picture = overlay(square / "slide.tif", square / "coarse.zarr")
    assert picture.shape == (150, 200, 3)
    assert outlined(picture)[20, 25:45].all()
    tilenet.segment(square / "slide.tif", square / "mpp.zarr", model=Threshold(), mpp=1.5)
    picture = overlay(square / "slide.tif", square / "mpp.zarr")
    assert picture.shape == (100, 134, 3)
    assert outlined(picture).any()


def test_the_bar_is_as_long_as_it_says(square):
    picture = overlay(square / "slide.tif", square / "mask.zarr")  # 0.5 um per px: 50 um are 100 px
    bar = (picture == 255).all(axis=-1)[-12]  # on black: the plate is seen
    left, right = (found := np.flatnonzero(bar))[[0, -1]]
    assert (right - left + 1, len(found)) == (4 + 101 + 4, 4 + 4)


@pytest.mark.parametrize("ground", [0, 128, 255])
@pytest.mark.parametrize("side", [160, 200, 2048])
def test_bar_and_text_are_black_on_white_whatever_the_background(ground, side):
    picture = np.full((side, side, 3), ground, np.uint8)
    assert draw_bar(picture, 0.5)
    y, x = np.nonzero((picture != ground).any(axis=-1))
    drawn = picture[y.min() : y.max() + 1, x.min() : x.max() + 1]
    assert drawn.shape[0] > max(12, side // 40) and drawn.shape[1] >= side // 8
    assert (drawn == 0).all(axis=-1).sum() > 30
    if ground != 255:  # where the plate is seen, its edges are whole
        assert all((edge == 255).all() for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]))
    assert (picture[: side // 2] == ground).all()


@pytest.mark.parametrize("sides", [(100, 40), (64, 64), (30, 400), (80, 80)])
def test_a_bar_that_would_cover_much_of_a_small_picture_is_left_out_and_told(tmp_path, caplog, sides):
    caplog.set_level("INFO")
    picture = np.zeros((*sides, 3), np.uint8)
    assert not draw_bar(picture, 0.5) and not picture.any()
    pixels = np.zeros(sides, np.uint8)
    tilenet.segment(pixels, tmp_path / "m.zarr", model=Threshold(), pixel_size=0.5)
    overlay(tilenet.open_image(pixels, pixel_size=0.5), tmp_path / "m.zarr")
    assert "m.zarr: the picture is too small for a scale bar; a pixel of it is 0.5 um" in caplog.text


def test_planes_of_a_stack_are_shown_as_bright_as_they_are_to_each_other(tmp_path):
    bright, dim = np.full((60, 70), 20, np.uint16), np.full((60, 70), 20, np.uint16)
    bright[10:30, 20:50], dim[10:30, 20:50] = 2020, 520
    stack = np.stack([bright, dim])
    for scaling, shown in (("percentile:0,100", 64), ("none", 255)):
        tilenet.segment(stack, tmp_path / "m.zarr", axes="zyx", model=Threshold(), scaling=scaling, overwrite=True)
        pictures = [overlay(stack, tmp_path / "m.zarr", plane=k) for k in (0, 1)]
        assert [picture[20, 35].max() for picture in pictures] == [255, shown]


def test_a_reduced_outline_is_one_pixel_wide_so_that_small_objects_are_not_filled(square):
    picture = overlay(square / "slide.tif", square / "mask.zarr", max_side=300)
    assert picture.shape == (225, 300, 3)
    rows = outlined(picture)[31:44, 37:68]  # the square is 30:45, 37:68 here
    assert rows.sum(axis=1).max() <= 2 and outlined(picture).any()


def test_a_mask_of_another_image_is_refused(square, tmp_path):
    with pytest.raises(OutputMismatch, match="that was segmented"):
        overlay(np.zeros((30, 40), np.uint8), square / "mask.zarr")
    with pytest.raises(SettingsError, match="nothing at|leaves the image"):
        overlay(square / "slide.tif", square / "mask.zarr", roi=[(0, 500), (0, 10)])


def test_an_image_with_fewer_channels_than_were_segmented_is_another_and_is_closed(tmp_path, monkeypatch):
    from tilenet.readers.tiff import TiffImage

    pixels, closed = np.zeros((3, 60, 70), np.uint8), []
    for name, channels in (("three", pixels), ("two", pixels[:2])):
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", channels, metadata={"axes": "CYX"}, photometric="minisblack")
    tilenet.segment(tmp_path / "three.ome.tif", tmp_path / "m.zarr", model=Threshold(), channels=2)
    monkeypatch.setattr(TiffImage, "close", lambda self: closed.append(self.name))
    with pytest.raises(
        OutputMismatch, match=r"m\.zarr: was made from the channels 2, and .*two\.ome\.tif has 2, from 0"
    ):
        overlay(tmp_path / "two.ome.tif", tmp_path / "m.zarr")
    assert str(tmp_path / "two.ome.tif") in closed


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


@pytest.mark.parametrize(("plane", "drawn"), [(None, 2), (0, 0), ([3], 3), (np.int64(1), 1), (np.array([1]), 1)])
def test_the_plane_of_a_stack_is_the_one_that_is_asked_for(tmp_path, plane, drawn):
    stack = np.zeros((4, 60, 80), np.uint8)
    for z in range(4):
        stack[z, 10 : 20 + 5 * z, 10:20] = 255
    mask = tilenet.segment(stack, tmp_path / "mask.zarr", model=Threshold(), axes="zyx")
    picture = overlay(stack, tmp_path / "mask.zarr", plane=plane, fill=True)
    bare = overlay(np.zeros_like(stack), tmp_path / "mask.zarr", plane=plane, fill=True)
    assert np.array_equal(bare.any(axis=-1), mask[drawn] > 0)
    assert picture.any()


def test_planes_and_times_are_in_array_order_and_refused_where_there_are_none(tmp_path, square, tilenet_command):
    series = np.zeros((2, 3, 50, 60), np.uint8)
    series[1, 2, 5:30, 5:9] = 255
    tilenet.segment(series, tmp_path / "m.zarr", model=Threshold(), axes="tzyx", roi=[(0, 2), (1, 3), (0, 50), (0, 60)])
    assert outlined(overlay(series, tmp_path / "m.zarr", plane=(1, 2))).any()
    assert not outlined(overlay(series, tmp_path / "m.zarr", plane=(0, 2))).any()
    tifffile.imwrite(tmp_path / "s.ome.tif", series, metadata={"axes": "TZYX"})
    options = ("overlay", tmp_path / "s.ome.tif", tmp_path / "m.zarr", "-o", tmp_path / "o.png", "--plane", "1,2")
    assert tilenet_command(*options)[0] == 0 and outlined(imread(tmp_path / "o.png")).any()
    for wrong in (2, (2, 1), (1, 0), (0, 1, 1)):
        with pytest.raises(SettingsError, match="one number for each of t 0 to 1, z 1 to 2"):
            overlay(series, tmp_path / "m.zarr", plane=wrong)
    for wrong in ((0.5, 1), "middle", [(0, 1), (0,)]):
        with pytest.raises(SettingsError, match="give a whole number, or one for each axis"):
            overlay(series, tmp_path / "m.zarr", plane=wrong)
    with pytest.raises(SettingsError, match="It has one plane"):
        overlay(square / "slide.tif", square / "mask.zarr", plane=0)


def test_the_tissue_map_is_outlined_and_what_was_skipped_is_darker(tmp_path):
    pixels = np.random.default_rng(0).integers(100, 110, (600, 1100), dtype=np.uint8)
    there = np.zeros((60, 110), bool)
    there[10:20, 10:20] = True
    tilenet.segment(pixels, tmp_path / "mask.zarr", model=Threshold(), tile=512, tissue=there)
    plain, drawn = (overlay(pixels, tmp_path / "mask.zarr", tissue=t) for t in (False, True))
    blue = (drawn == TISSUE_COLOR).all(axis=-1)
    y, x = np.nonzero(blue)
    assert (y.min(), y.max(), x.min(), x.max()) == (99, 200, 99, 200) and not blue[105:195, 105:195].any()
    above_the_bar = np.s_[512:550]
    assert np.array_equal(drawn[above_the_bar], plain[above_the_bar] // 2)
    assert np.array_equal(drawn[:512, 300:512], plain[:512, 300:512])
    tilenet.segment(pixels, tmp_path / "plain.zarr", model=Threshold(), tile=512)
    with pytest.raises(SettingsError, match="made without --tissue"):
        overlay(pixels, tmp_path / "plain.zarr", tissue=True)


def test_the_overview_lies_beside_the_mask_and_keeps_the_store_whole(square, tilenet_command):
    slide, rest = square / "slide.tif", ("-m", square / "small.safetensors", "--threads", 1)
    tilenet.save_model(tilenet.UNet(depth=2, wf=1), square / "small.safetensors")
    for name in ("m.zarr", "t.ome.tif"):
        code, out, _ = tilenet_command("segment", slide, "-o", square / name, *rest, "--overview")
        picture = square / f"{name.partition('.')[0]}.overview.png"
        assert code == 0 and str(picture) in out
        tilenet_command("overlay", slide, square / name, "--out", square / "same.png", "--overwrite")
        assert picture.read_bytes() == (square / "same.png").read_bytes()
        assert tilenet_command("verify", square / name)[0] == 0
    assert tilenet_command("segment", slide, "-o", square / "m.zarr", *rest, "--overview", "--overwrite")[0] == 0


def test_what_the_overview_remarks_is_a_remark_of_the_run(tmp_path, tilenet_command):
    tifffile.imwrite(tmp_path / "dot.tif", np.zeros((16, 16), np.uint8), resolution=(40000, 40000), resolutionunit=3)
    model = tilenet.save_model(tilenet.UNet(depth=2, wf=1), tmp_path / "small.safetensors")
    command = ("segment", tmp_path / "dot.tif", "-o", tmp_path / "m.zarr", "-m", model, "--overview", "--overwrite")
    code, out, _ = tilenet_command(*command, "--json")
    assert code == 0 and any("too small for a scale bar" in remark for remark in json.loads(out)["remarks"])
    _, _, err = tilenet_command(*command)
    assert re.search(r"^tilenet: .*too small for a scale bar", err, re.MULTILINE)


def test_a_batch_draws_an_overview_of_each_and_what_lacks_one(square, tilenet_command):
    command = ("batch", square / "slide.tif", "-o", square / "masks", "-m", square / "small.safetensors", "--overview")
    tilenet.save_model(tilenet.UNet(depth=2, wf=1), square / "small.safetensors")
    assert tilenet_command(*command)[0] == 0
    picture = square / "masks" / "slide.overview.png"
    drawn = picture.read_bytes()
    picture.unlink()
    code, out, _ = tilenet_command(*command)
    assert code == 0 and "1 skipped" in out and picture.read_bytes() == drawn


def test_an_image_of_another_pixel_size_is_refused_and_one_that_says_none_is_drawn(square):
    pixels = tifffile.imread(square / "slide.tif")
    for name, size in (("other", (50000, 50000)), ("near", (20200, 20200)), ("none", None)):
        more = {"resolution": size, "resolutionunit": "CENTIMETER"} if size else {}
        tifffile.imwrite(square / f"{name}.tif", pixels, tile=(64, 64), **more)
    with pytest.raises(OutputMismatch, match=r"has pixels of 0\.5 um along y, and .*other\.tif of 0\.2 um"):
        overlay(square / "other.tif", square / "mask.zarr")
    for name in ("near", "none"):
        assert outlined(overlay(square / f"{name}.tif", square / "mask.zarr")).any()


def test_a_part_that_leaves_the_mask_is_refused_not_cut(square):
    with pytest.raises(SettingsError, match="leaves the image"):
        overlay(square / "slide.tif", square / "mask.zarr", roi=np.s_[200:400, 100:200])
    tilenet.segment(square / "slide.tif", square / "part.zarr", model=Threshold(), roi=np.s_[100:200, 100:200])
    with pytest.raises(SettingsError, match="does not contain all of .* Choose a part inside"):
        overlay(square / "slide.tif", square / "part.zarr", roi=np.s_[50:150, 100:200])
