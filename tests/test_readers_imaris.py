"""Imaris files."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from contents import whole
from oracles import boxes, mirrored

from tilenet.geometry import Box
from tilenet.readers import open_image

h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
from hdf5_images import SHAPE, characters, levels_of, write_imaris  # noqa: E402


def as_read(pixels):
    """Return pixels (t, c, z, y, x) as an image gives them: channels first, and no axis of length 1 but y and x."""
    first = np.moveaxis(pixels, 1, 0)
    outer = [n for n in first.shape[1:3] if n > 1]
    return first.reshape(len(first), *outer, *first.shape[3:])


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 9, 40, 53), (1, 2, 1, 40, 53), (3, 1, 1, 40, 53)])
@pytest.mark.parametrize("how", [{}, {"shuffle": True}, {"lz4": True}, {"compression": None, "compression_opts": None}])
def test_boxes_of_every_level_of_an_imaris_file_are_those_that_were_written(tmp_path, shape, how):
    factors = ((1, 1, 1), (1, 2, 2), (min(2, shape[2]), 4, 4))
    levels = levels_of(shape, factors=factors)
    with open_image(write_imaris(tmp_path / "a.ims", levels, **how)) as image:
        assert image.axes == "".join(a for a, n in zip("tczyx", shape, strict=True) if n > 1)
        assert image.dtype == np.uint16 and image.reader == "Imaris (h5py)"
        for k, pixels in enumerate(levels):
            level, expected = image.at_level(k), as_read(pixels)
            assert (level.n_channels, *level.box_shape) == expected.shape
            for box in [*boxes(level.box_shape, seed=k), Box.of_shape(level.box_shape)]:
                np.testing.assert_array_equal(level.read(box), mirrored(expected, box))


def test_an_imaris_file_says_its_pixel_sizes_by_axis_and_its_channels(tmp_path):
    path = write_imaris(tmp_path / "a.ims", levels_of(SHAPE), um=(2.0, 0.5, 0.25), names=["DAPI", "", "GFP"])
    with open_image(path) as image:
        sizes = [level.pixel_size for level in image.levels]
        assert sizes == [(None, 2.0, 0.5, 0.25), (None, 2.0, 1.0, 0.5), (None, 4.0, 2.0, 1.0)]
        assert image.channel_names == ("DAPI", "", "GFP")
        assert image.at_level(2).shift == (0, 0.25, 0.375, 0.375)
        np.testing.assert_array_equal(whole(image.with_channels([2, 0])), whole(image)[[2, 0]])


@pytest.mark.parametrize(("unit", "um"), [("nm", 0.5e-3), ("m", 0.5e6), ("", None), ("furlong", None)])
def test_an_extent_is_read_in_its_unit_and_in_no_other(tmp_path, unit, um):
    path = write_imaris(tmp_path / "a.ims", levels_of((1, 1, 9, 40, 53)), um=(2.0, 0.5, 0.5), unit=unit)
    with open_image(path) as image:
        assert image.pixel_size[-1] == (um and pytest.approx(um))


def test_an_extent_that_is_not_stated_is_an_unknown_pixel_size(tmp_path):
    path = write_imaris(tmp_path / "a.ims", levels_of((1, 1, 9, 40, 53)))
    with h5py.File(path, "a") as file:
        file["DataSetInfo/Image"].attrs["ExtMax0"] = characters("wide")
        file["DataSetInfo/Image"].attrs["ExtMax1"] = file["DataSetInfo/Image"].attrs["ExtMin1"]
        del file["DataSetInfo/Channel 0"]
    with open_image(path) as image:
        assert image.pixel_size == (1.0, None, None)
        assert image.channel_names == ("",)


def test_each_chunk_is_decoded_once_and_of_the_channels_asked_for_only(tmp_path):
    with open_image(write_imaris(tmp_path / "a.ims", levels_of(SHAPE))) as image:
        box = Box((0, 3, 15, 15), (1, 5, 17, 17))  # where eight chunks meet
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(image.with_channels([1]).read, [box] * 16))
        assert image.n_decoded == 8
        image.read(box)
        assert image.n_decoded == 24
