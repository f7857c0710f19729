"""Folders of planes: one stack, in the order of the numbers in their names."""

import numpy as np
import pytest
import tifffile
from contents import whole
from plane_folders import planes
from stub import Threshold

import tilenet
from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image
from tilenet.readers.planes import PlanesImage

RANDOM = np.random.default_rng(11)


@pytest.mark.parametrize("suffix", ["tif", "png", "bmp"])
def test_planes_are_in_the_order_of_their_numbers(tmp_path, suffix):
    stack = planes(tmp_path / "s", [f"cell2_z{k}.{suffix}" for k in range(8, 12)])
    image = open_image(tmp_path / "s")
    assert (image.axes, image.shape) == ("zyx", (4, 20, 30))
    np.testing.assert_array_equal(whole(image)[0], stack)
    assert open_image(tmp_path / "s", axes="tyx").box_axes == "tyx"


def test_colour_planes_are_a_stack_with_channels(tmp_path):
    stack = planes(tmp_path / "s", ["1.png", "2.png"], shape=(20, 30, 3))
    image = open_image(tmp_path / "s")
    assert image.axes == "zyxc"
    np.testing.assert_array_equal(whole(image), np.moveaxis(stack, 3, 0))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["z1.tif", "z2.tif", "z4.tif"], "z2.tif and z4.tif are next to each other: 1 plane is missing"),
        (["z1.tif", "z01.tif", "z2.tif"], "have the same number"),
        (["z1c1.tif", "z2c2.tif"], "differ in 2 numbers"),
        (["z1.tif", "z2.png"], "z2.png is not named like z1.tif"),
        (["a.tif", "b.tif"], "not named like"),
        (["readme.tif", "t0.tif", "t1.tif"], "readme.tif is not named like t0.tif"),
        (["t0.tif", "t1.tif", "t10.png"], "t10.png is not named like t0.tif"),
        (["z1.tif"], "holds 1 file, so it is no stack"),
    ],
)
def test_files_that_are_no_numbered_series_are_refused(tmp_path, names, says):
    planes(tmp_path / "s", names)
    with pytest.raises(ImageError, match=says) as refused:
        open_image(tmp_path / "s")
    assert str(refused.value).endswith(f'; many images: tilenet batch "{tmp_path / "s"}/*"')


def test_a_folder_among_planes_is_refused_and_litter_is_not(tmp_path):
    planes(tmp_path / "s", ["z1.tif", "z2.tif"])
    (tmp_path / "s" / ".DS_Store").write_bytes(b"x")
    assert open_image(tmp_path / "s").shape == (2, 20, 30)
    (tmp_path / "s" / "old").mkdir()
    with pytest.raises(ImageError, match="holds the folder old"):
        open_image(tmp_path / "s")


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("other", [{"shape": (20, 31)}, {"dtype": np.uint16}])
def test_a_plane_unlike_the_first_is_named(tmp_path, suffix, other):
    planes(tmp_path / "s", [f"z{k}.{suffix}" for k in range(3)])
    planes(tmp_path / "s", [f"z1.{suffix}"], **other)
    with pytest.raises(ImageError, match=f"z1.{suffix}: is .* but z0.{suffix} is"):
        whole(open_image(tmp_path / "s"))


def test_a_folder_states_no_axes_that_others_could_contradict(tmp_path, caplog):
    caplog.set_level("INFO")
    planes(tmp_path / "s", ["t0.tif", "t1.tif"])
    with open_image(tmp_path / "s", axes="tyx") as image:
        assert (image.axes, image.stated_axes) == ("tyx", "")
        tilenet.segment(image, model=Threshold())
    assert "read as one stack along t" in caplog.text and "axes taken as" not in caplog.text


def test_a_stack_of_stacks_is_refused(tmp_path):
    planes(tmp_path / "s", ["z0.tif", "z1.tif"])
    tifffile.imwrite(tmp_path / "s" / "z0.tif", np.zeros((5, 20, 30), np.uint8), metadata={"axes": "ZYX"})
    with pytest.raises(ImageError, match="z0.tif: has the axes zyx"):
        open_image(tmp_path / "s")


def test_only_the_planes_of_a_box_are_read_and_each_once(tmp_path, monkeypatch):
    planes(tmp_path / "s", [f"z{k}.tif" for k in range(9)])
    image, read = open_image(tmp_path / "s"), []
    inner = PlanesImage._read
    monkeypatch.setattr(PlanesImage, "_read", lambda self, index, box: read.append(index) or inner(self, index, box))
    for _ in range(2):
        image.read(Box((3, 0, 0), (5, 5, 5)))
    assert read == [3, 4]


def test_a_plane_larger_than_the_cache_is_read_in_parts(tmp_path, monkeypatch):
    stack = planes(tmp_path / "s", [f"z{k}.tif" for k in range(3)])
    monkeypatch.setattr("tilenet.readers.planes.CACHE_BYTES", 100)
    image = open_image(tmp_path / "s")
    np.testing.assert_array_equal(whole(image)[0], stack)
    assert image._whole.n_decoded == 0


def test_a_changed_plane_changes_the_identity(tmp_path):
    planes(tmp_path / "s", [f"z{k}.png" for k in range(3)])
    before = open_image(tmp_path / "s").identity()
    assert before == open_image(tmp_path / "s").identity()
    planes(tmp_path / "s", ["z1.png"])
    assert open_image(tmp_path / "s").identity() != before
