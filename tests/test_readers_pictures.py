"""PNG, JPEG and BMP against Pillow, which decodes them with code of its own."""

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Picture

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image

COLOUR = np.random.default_rng(4).integers(0, 255, (40, 50, 4), dtype=np.uint8)
WHOLE = Box((0, 0), (40, 50))


def save(folder, pixels, mode, name):
    Picture.fromarray(pixels).convert(mode).save(folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
@pytest.mark.parametrize(("mode", "axes"), [("L", "yx"), ("RGB", "yxc"), ("RGBA", "yxc"), ("LA", "yx")])
def test_a_lossless_picture_is_read_without_its_alpha(tmp_path, name, mode, axes):
    if name == "a.bmp" and "A" in mode:
        pytest.skip("Pillow writes no alpha into a BMP")
    path = save(tmp_path, COLOUR, mode, name)
    image = open_image(path)
    expected = np.atleast_3d(np.asarray(Picture.open(path)))[..., : 3 if "RGB" in mode else 1]
    assert image.axes == axes
    np.testing.assert_array_equal(image.read(WHOLE), np.moveaxis(expected, 2, 0))


def test_only_alpha_that_makes_a_pixel_transparent_is_told(tmp_path):
    image = open_image(save(tmp_path, COLOUR, "RGBA", "a.png"))
    opaque = open_image(save(tmp_path, COLOUR | np.array([0, 0, 0, 255], np.uint8), "RGBA", "b.png"))
    assert (image.drops_alpha, opaque.drops_alpha) == (True, False)


def test_a_jpeg_is_what_pillow_decodes(tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    for mode in ("L", "RGB"):
        path = save(tmp_path, smooth, mode, "a.jpg")
        expected = np.atleast_3d(np.asarray(Picture.open(path)))
        read = np.moveaxis(open_image(path).read(WHOLE), 0, 2)
        assert read.shape == expected.shape
        assert np.abs(read.astype(int) - expected).max() <= 1  # two builds of libjpeg may round differently


def test_a_palette_picture_is_read_as_its_colours(tmp_path):
    path = save(tmp_path, COLOUR[..., :3], "P", "a.png")
    expected = np.asarray(Picture.open(path).convert("RGB"))
    np.testing.assert_array_equal(open_image(path).read(WHOLE), np.moveaxis(expected, 2, 0))


def test_a_one_bit_png_is_read(tmp_path):
    bits = COLOUR[..., 0] > 100
    Picture.fromarray(bits).save(tmp_path / "a.png")
    read = open_image(tmp_path / "a.png").read(WHOLE)[0]
    np.testing.assert_array_equal(read > 0, bits)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, samples):
    pixels = np.random.default_rng(1).integers(0, 2**16, (40, 50, samples), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels.squeeze()))
    image = open_image(tmp_path / "a.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image.read(WHOLE), np.moveaxis(pixels, 2, 0)[: 3 if samples > 2 else 1])


def test_content_decides_not_the_extension(tmp_path):
    path = save(tmp_path, COLOUR, "RGB", "a.png").rename(tmp_path / "a.tif")
    assert open_image(path).shape == (40, 50, 3)


def test_a_cut_picture_is_refused_on_opening(tmp_path):
    path = save(tmp_path, COLOUR, "RGB", "a.png")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ImageError, match="cannot be read as a PNG"):
        open_image(path)


def test_a_jpeg_that_was_cut_off_is_refused_and_one_with_more_behind_it_is_read(tmp_path):
    whole = save(tmp_path, COLOUR[..., 0], "RGB", "a.jpg")
    data = whole.read_bytes()
    (tmp_path / "longer.jpg").write_bytes(data + b"appended by a camera")
    assert np.array_equal(open_image(tmp_path / "longer.jpg").read(WHOLE), open_image(whole).read(WHOLE))
    for kept in (len(data) - 2, len(data) - 200):
        (tmp_path / "half.jpg").write_bytes(data[:kept])
        with pytest.raises(ImageError, match=r"half\.jpg: is truncated: the JPEG has no end marker"):
            open_image(tmp_path / "half.jpg")
