"""Which axes and pixel sizes a TIFF has: those that it states, and those that the caller gives."""

import numpy as np
import pytest
import tifffile
from tiff_images import assert_reads, noise, write

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image


@pytest.mark.parametrize("shape", [(5, 100, 130), (2, 5, 100, 130)])
def test_a_tiff_that_does_not_say_its_axes_is_refused_until_they_are_said(tmp_path, shape):
    pixels = noise(shape)
    path = write(tmp_path, pixels, photometric="minisblack", metadata=None)
    with pytest.raises(ImageError, match="--axes"):
        open_image(path)
    if len(shape) == 3:
        assert assert_reads(path, pixels[None], axes="zyx").axes == "zyx"
        assert assert_reads(path, pixels, axes="cyx").axes == "cyx"


def test_said_axes_must_fit_the_file(tmp_path):
    path = write(tmp_path, noise((5, 100, 130)), photometric="minisblack", metadata=None)
    with pytest.raises(ImageError, match="\\(5, 100, 130\\), which axes='yx' does not describe"):
        open_image(path, axes="yx")


@pytest.mark.parametrize("axes", ["zyx", "cyx", "xyc", "yxz", "yxq"])
def test_a_slide_keeps_its_colour_axis(tmp_path, axes):
    path = write(tmp_path, noise((100, 130, 3)), photometric="rgb")
    with pytest.raises(
        ImageError, match=f"says that its axes are yxc, and axes='{axes}' does not keep.*--axes\\) out$"
    ):
        open_image(path, axes=axes)
    with open_image(path, axes="yxc") as image:
        assert (image.axes, image.stated_axes) == ("yxc", "yxc")


def test_channels_that_are_planes_may_be_said_to_be_z_or_time_but_rows_stay_rows(tmp_path):
    pixels = noise((2, 5, 100, 130))
    path = write(tmp_path, pixels, photometric="minisblack", metadata={"axes": "ZCYX"}, ome=True)
    with open_image(path, axes="tzyx") as image:
        assert (image.axes, image.stated_axes, image.box_shape) == ("tzyx", "zcyx", pixels.shape)
        np.testing.assert_array_equal(image.read(Box((0,) * 4, pixels.shape))[0], pixels)
    for axes in ("zcxy", "yxzc", "zycx"):
        with pytest.raises(ImageError, match="says that its axes are zcyx.*or rename t, z and c only"):
            open_image(path, axes=axes)
    for axes in ("zyx", "tzcyx"):
        count = f"axes='{axes}' has {len(axes)} letters for 4 axes. Leave axes .--axes. out, or rename"
        with pytest.raises(ImageError, match=count):
            open_image(path, axes=axes)


def test_axes_may_be_named_in_capitals_as_other_programs_do(tmp_path):
    pixels = noise((5, 100, 130))
    path = write(tmp_path, pixels, photometric="minisblack", metadata={"axes": "ZYX"}, imagej=True)
    for source in (path, pixels):
        with open_image(source, axes="ZYX") as image:
            assert image.axes == "zyx"


def test_channels_of_colour_are_opened_again_by_the_axes_that_were_recorded(tmp_path):
    pixels = noise((2, 100, 130, 3))
    path = write(tmp_path, pixels, photometric="rgb", metadata={"axes": "CYXS"}, ome=True)
    with open_image(path) as first, open_image(path, axes=first.axes) as again:
        assert (again.axes, again.n_channels) == ("cyx", 6)


def test_resolution_tags_give_a_pixel_size_only_when_sane(tmp_path):
    pixels = noise((100, 130))
    for resolution, unit, expected in [
        ((20000, 40000), "CENTIMETER", (0.25, 0.5)),  # (x, y) in the file
        ((50800, 50800), "INCH", (0.5, 0.5)),
        ((72, 72), "INCH", (None, None)),
        ((300, 300), "INCH", (None, None)),
        ((2, 2), "NONE", (None, None)),
    ]:
        path = write(tmp_path, pixels, resolution=resolution, resolutionunit=unit)
        with open_image(path) as image:
            assert image.pixel_size == tuple(n if n is None else pytest.approx(n) for n in expected)


def test_levels_carry_their_own_pixel_size(tmp_path):
    path = tmp_path / "image.ome.tif"
    pixels = noise((100, 130))
    with tifffile.TiffWriter(path) as tiff:
        about = {"axes": "YX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
        tiff.write(pixels, subifds=1, tile=(32, 32), metadata=about)
        tiff.write(pixels[::2, ::2], tile=(32, 32), subfiletype=1)
    with open_image(path, level=1) as image:
        assert (image.shape, image.pixel_size) == ((50, 65), (1.0, 1.0))


def test_axes_without_y_are_answered_with_how_many_letters_to_give(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 1, 1, 100, 100, 1), np.uint8), metadata=None)
    with pytest.raises(ImageError, match="'zcx', which does not name both y and x. Give one letter .* of its 3 axes"):
        open_image(tmp_path / "a.tif", axes="zcx")
