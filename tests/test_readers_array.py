"""Arrays as images: what they are taken for, and what is refused."""

import re

import dask.array as da
import numpy as np
import pytest
import zarr
from dask import delayed

from tilenet.errors import ImageError, SettingsError
from tilenet.geometry import Box
from tilenet.readers import open_image


def test_a_boolean_array_is_read_as_zeros_and_ones():
    image = open_image(np.array([[True, False], [False, True]]))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image.read(Box((0, 0), (2, 2))), [[[1, 0], [0, 1]]])


@pytest.mark.parametrize("array", [np.zeros((5, 20, 20)), da.zeros((5, 20, 20)), zarr.zeros((5, 20, 20))])
def test_an_array_of_more_than_two_axes_must_say_them(array):
    with pytest.raises(ImageError, match="\\(5, 20, 20\\).*axes='zyx'"):
        open_image(array)
    assert open_image(array, axes="zyx").box_axes == "zyx"


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 100, 100, 3), "zyxc"),
        ((2, 5, 100, 100, 4), "tzyxc"),
        ((2, 5, 100, 100), "czyx"),
        ((100, 100, 3), "yxc"),
        ((3, 100, 100), "cyx"),
        ((2, 3, 3, 3), "czyx"),
    ],
)
def test_the_axes_that_are_suggested_open_an_array_with_its_colours_last(shape, axes):
    with pytest.raises(ImageError, match=f"e.g. axes='{axes}'$"):
        open_image(np.zeros(shape, np.uint8))
    assert open_image(np.zeros(shape, np.uint8), axes=axes).shape == shape


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_array_that_names_its_dimensions_has_the_axes_that_its_path_has(tmp_path, zarr_format):
    names = ["Z", "y", "x", "c"]
    how = {"dimension_names": names} if zarr_format == 3 else {"attributes": {"_ARRAY_DIMENSIONS": names}}
    held = zarr.create_array(tmp_path / "a.zarr", shape=(4, 20, 30, 3), dtype="u1", zarr_format=zarr_format, **how)
    held[...] = np.random.default_rng(0).integers(0, 255, held.shape)
    by_path, image = open_image(tmp_path / "a.zarr"), open_image(held)
    assert (image.axes, image.shape) == (by_path.axes, by_path.shape) == ("zyxc", held.shape)
    box = Box((1, 3, 5), (3, 9, 28))
    assert np.array_equal(image.read(box), by_path.read(box))
    assert open_image(held, axes="tyxc").axes == "tyxc"
    with pytest.raises(ImageError, match="axes"):
        open_image(held, axes="xyzc")


class Frame(np.ndarray):
    metadata = {"frame": 3}  # noqa: RUF012 - as frames of videos have


def test_metadata_of_another_kind_than_zarr_s_say_nothing_of_axes():
    assert open_image(np.zeros((20, 30), np.uint8).view(Frame)).axes == "yx"


@pytest.mark.parametrize("axes", ["yx", "zyxc", "zzy", "qyx", "tzc"])
def test_axes_that_do_not_describe_an_array_are_refused(axes):
    with pytest.raises(ImageError, match="\\(5, 20, 20\\)|does not name both y and x"):
        open_image(np.zeros((5, 20, 20)), axes=axes)


@pytest.mark.parametrize("box", [Box((0,), (3,)), Box((0, 0, 0), (1, 3, 3))], ids=str)
def test_a_box_of_other_axes_than_the_image_has_is_refused(box):
    with pytest.raises(SettingsError, match=rf"numpy array: has the axes yx. Give a box of 2 ranges, not {box.ndim}"):
        open_image(np.zeros((4, 5))).read(box)


@pytest.mark.parametrize("box", [((0, 0), (2, 2)), np.s_[0:2, 0:2]], ids=str)
def test_what_is_no_box_is_refused_with_how_to_make_one(box):
    with pytest.raises(SettingsError, match=r"numpy array: cannot be read at .* Give a box: tilenet\.Box\(\(0, 0\), "):
        open_image(np.zeros((4, 5))).read(box)


@pytest.mark.parametrize("box", [Box((1, 3), (3, 2)), Box((-1, 3), (9, 2)), Box((0, -2), (2, -4))], ids=str)
def test_a_box_that_stops_before_it_starts_is_refused(box):
    with pytest.raises(SettingsError, match=re.escape(f"numpy array: cannot be read at {box}, which stops before it")):
        open_image(np.zeros((4, 5))).read(box)


def test_a_box_of_other_than_whole_numbers_is_refused():
    with pytest.raises(SettingsError, match=r"numpy array: cannot be read at \[0:2.5, 0:2\]. Give a box of whole"):
        open_image(np.zeros((4, 5))).read(Box((0, 0), (2.5, 2)))


@pytest.mark.parametrize("start", [(1, 1), (-3, 1), (9, 9)], ids=str)
def test_an_empty_box_reads_no_pixels_wherever_it_lies(start):
    box = Box(start, (start[0], start[1] + 2))
    assert open_image(np.zeros((4, 5, 3), np.uint8), axes="yxc").read(box).shape == (3, 0, 2)


@pytest.mark.parametrize("array", [np.zeros((4, 4), complex), np.array([["a"]]), np.zeros((4, 4), object)])
def test_pixels_that_are_not_numbers_are_refused(array):
    with pytest.raises(ImageError, match="not integers or floats"):
        open_image(array)


def test_an_array_of_no_pixels_is_refused():
    with pytest.raises(ImageError, match="no pixels"):
        open_image(np.zeros((0, 4)))


def test_what_a_dask_array_raises_becomes_an_image_error():
    def fail(block):
        raise OSError("the server is gone")

    image = open_image(da.zeros((8, 8), chunks=4).map_blocks(fail, dtype=float, meta=np.zeros((0, 0))))
    with pytest.raises(ImageError, match="the server is gone"):
        image.read(Box((0, 0), (8, 8)))


@pytest.mark.parametrize(
    ("block", "found", "way_out"),
    [
        (np.full((4, 4), 0.5), r"float64 \(4, 4\)", r"dtype=float64, or convert with \.astype\(uint8\)"),
        (np.full((4, 4), 300), "int64", "dtype=int64, or convert"),
        (np.ones((1, 4), "u1"), r"\(1, 4\)", "Correct the chunks"),
    ],
    ids=["floats", "larger integers", "one row"],
)
def test_a_dask_array_that_computes_other_than_it_says_is_not_converted(block, found, way_out):
    array = da.from_delayed(delayed(lambda: block)(), (4, 4), np.uint8)
    with pytest.raises(ImageError, match=rf"{found}.*, and the array says uint8 \(4, 4\)\. .*{way_out}"):
        open_image(array).read(Box((0, 0), (4, 4)))
    right = da.from_delayed(delayed(lambda: block.astype(np.uint8).repeat(4 // len(block), axis=0))(), (4, 4), np.uint8)
    assert open_image(right).read(Box((0, 0), (4, 4))).dtype == np.uint8


def test_a_masked_array_is_refused_as_its_mask_would_not_be_heeded():
    with pytest.raises(ImageError, match="is a masked array, and its mask would be ignored"):
        open_image(np.ma.masked_array(np.zeros((9, 9)), mask=np.eye(9)))


def test_an_array_of_more_axes_than_an_image_has_is_refused_with_their_number():
    with pytest.raises(ImageError, match="It has 6 axes; at most 5 can be read. Write each image to a file"):
        open_image(np.zeros((2, 2, 2, 2, 9, 9), np.uint8))
