"""Images in LIF files, as the tests write them."""

import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from contents import open_files, whole
from oracles import boxes, mirrored
from store_helpers import tree

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image

liffile = pytest.importorskip("liffile", reason="the extra lif is not installed")
from lif_files import Series, random_pixels, write_lif  # noqa: E402

RGB, BGR = (1, 2, 3), (3, 2, 1)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize(("stored", "shape", "axes"), [
    ("yx", (40, 53), "yx"),
    ("zyx", (3, 40, 53), "zyx"),
    ("cyx", (2, 40, 53), "cyx"),
    ("czyx", (2, 3, 40, 53), "zcyx"),
    ("tzcyx", (2, 3, 2, 40, 53), "tzcyx"),
    ("tczyx", (2, 2, 3, 40, 53), "tzcyx"),
    ("tyzcx", (2, 40, 3, 2, 53), "tzcyx"),
    ("xyzt", (19, 11, 3, 2), "tzyx"),
])  # fmt: skip
def test_boxes_are_those_that_were_written_whatever_the_order_of_the_axes(tmp_path, stored, shape, axes, dtype):
    pixels = random_pixels(shape, dtype)
    expected = pixels.transpose([stored.index(a) for a in sorted(axes, key="ctzyx".index)])
    expected = expected if "c" in axes else expected[None]
    for version, padding in ((1, 0), (2, 0), (2, 24)):
        path = write_lif(tmp_path / "a.lif", Series(pixels, stored, padding=padding), version=version)
        with open_image(path) as image:
            assert (image.axes, image.dtype, image.reader) == (axes, pixels.dtype, "LIF (liffile)")
            for box in [*boxes(image.box_shape, seed=1), Box.of_shape(image.box_shape)]:
                np.testing.assert_array_equal(image.read(box), mirrored(expected, box))


@pytest.mark.parametrize("padding", [0, 1, 6])
@pytest.mark.parametrize("tags", [RGB, BGR])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colours_are_channels_red_first_as_liffile_has_them(tmp_path, tags, dtype, padding):
    pixels, n = random_pixels((3, 40, 53, 3), dtype), np.dtype(dtype).itemsize
    path = write_lif(tmp_path / "a.lif", Series(pixels, "zyxs", tags=tags, padding=padding * n))
    with open_image(path) as image:
        assert (image.axes, image.channel_names) == ("zyxc", ("red", "green", "blue"))
        assert image.is_color == (dtype == "u1")
        expected = pixels[..., ::-1] if tags == BGR else pixels
        np.testing.assert_array_equal(whole(image), np.moveaxis(expected, -1, 0))
    if padding % 3 == 0:  # liffile takes no other, and knows it only once its shape was asked for
        with liffile.LifFile(path) as lif:
            assert lif.images[0].shape == expected.shape
            np.testing.assert_array_equal(lif.images[0].asarray(), expected)


@pytest.mark.parametrize("tags", [RGB, BGR])
def test_colours_beside_colours_are_channels_in_order(tmp_path, tags):
    pixels = random_pixels((2, 40, 53, 3))  # c, y, x, s
    with open_image(write_lif(tmp_path / "a.lif", Series(pixels, "cyxs", tags=tags * 2))) as image:
        assert (image.axes, image.shape, image.is_color) == ("cyx", (6, 40, 53), False)
        expected = np.moveaxis(pixels[..., ::-1] if tags == BGR else pixels, -1, 1).reshape(6, 40, 53)
        for box in boxes(image.box_shape, seed=3):
            np.testing.assert_array_equal(image.read(box), mirrored(expected, box))


@pytest.mark.parametrize("axes", ["yx", "cyx", "zcyx", "czyx", "tzcyx"])
def test_liffile_reads_the_same_pixels_and_the_same_places(tmp_path, axes):
    lengths = {"t": 2, "z": 3, "c": 2, "y": 40, "x": 53}
    um = {"z": 2.0, "y": 0.5, "x": 0.25}
    path = write_lif(tmp_path / "a.lif", Series(random_pixels([lengths[a] for a in axes], "u2"), axes, um=um))
    with liffile.LifFile(path) as lif, open_image(path) as image:
        theirs = lif.images[0]
        assert "".join(theirs.dims).lower() == axes
        front = np.moveaxis(theirs.asarray(), axes.index("c"), 0) if "c" in axes else theirs.asarray()[None]
        np.testing.assert_array_equal(whole(image), front)
        steps = [1e6 * np.diff(theirs.coords[a.upper()])[0] if a in um else None for a in image.box_axes]
        assert image.pixel_size == tuple(n and pytest.approx(n) for n in steps)


@pytest.mark.parametrize(("um", "unit", "shape", "found"), [
    ({"z": 2.0, "y": 0.5, "x": 0.25}, ("m", 1e-6), (3, 40, 53), (2.0, 0.5, 0.25)),
    ({"z": 2.0, "y": 0.5, "x": 0.25}, ("µm", 1.0), (3, 40, 53), (2.0, 0.5, 0.25)),
    ({"z": -2.0, "y": 0.5, "x": 0.25}, ("m", 1e-6), (3, 40, 53), (2.0, 0.5, 0.25)),
    ({"z": 2.0, "y": 0.5, "x": 0.25}, ("pixel", 1.0), (3, 40, 53), (None, None, None)),
    ({"x": 0.25}, ("m", 1e-6), (3, 1, 53), (None, None, 0.25)),
])  # fmt: skip
def test_the_pixel_size_is_a_length_divided_by_the_steps_in_it(tmp_path, um, unit, shape, found):
    with open_image(write_lif(tmp_path / "a.lif", Series(random_pixels(shape), "zyx", um=um, unit=unit))) as image:
        assert image.axes == "zyx"
        assert image.pixel_size == tuple(n and pytest.approx(n) for n in found)


@pytest.mark.parametrize(("said", "names"), [
    ({"luts": ("Green", "Gray")}, ("Green", "Gray")),
    ({"luts": ("Green", "Gray"), "dyes": ("Leica/ALEXA 488", "")}, ("ALEXA 488", "Gray")),
    ({"dyes": ("FITC/GFP", "Leica/DAPI")}, ("FITC/GFP", "DAPI")),
])  # fmt: skip
def test_a_channel_is_named_after_its_dye_or_the_colour_that_shows_it(tmp_path, said, names):
    with open_image(write_lif(tmp_path / "a.lif", Series(random_pixels((2, 30, 40)), "cyx", **said))) as image:
        assert image.channel_names == names
        np.testing.assert_array_equal(whole(image.with_channels([1])), whole(image)[1:])


def test_three_stains_that_are_shown_in_red_green_and_blue_are_no_colour_picture(tmp_path):
    series = Series(random_pixels((3, 30, 40)), "cyx", luts=("Red", "Green", "Blue"))
    with open_image(write_lif(tmp_path / "a.lif", series)) as image:
        assert not image.is_color
        assert image.channel_names == ("", "", "")


def test_pixels_of_12_bits_are_stored_in_16(tmp_path):
    pixels = random_pixels((30, 40), "u2") * 16
    with open_image(write_lif(tmp_path / "a.lif", Series(pixels, bits=12))) as image:
        np.testing.assert_array_equal(whole(image)[0], pixels)


def several(path):
    names = ("Series 1", "Series 10", "Day 2/Series.1", "Day 2/Series+1", "Day 2/Series+1/Zoom")
    images = {name: Series(random_pixels((20 + k, 30))) for k, name in enumerate(names)}
    return write_lif(path, images), images


def test_of_several_images_each_is_read_by_its_exact_path(tmp_path):
    (path, images), identities = several(tmp_path / "a.lif"), []
    for name, series in images.items():
        with open_image(f"{path}/{name}") as image:
            np.testing.assert_array_equal(whole(image)[0], series.pixels)
            identities.append(image.identity())
    assert all(identities.count(identity) == 1 for identity in identities)


def test_of_several_images_one_must_be_named_and_all_are_listed(tmp_path):
    path, images = several(tmp_path / "a.lif")
    listed = ", ".join(f"{path}/{name}" for name in images)
    for asked, says in (
        (path, f"{path}: holds 5 images. Give one of its images: {listed}"),
        (path / "Series", f"{path}: has no image called 'Series'. Give one of its images: {listed}"),
        (path / "series 1", "has no image called 'series 1'"),
        (path / "Day 2", "has no image called 'Day 2'"),
        (path / "Day 2" / "Series?1", "has no image called"),
    ):
        with pytest.raises(ImageError) as caught:
            open_image(asked)
        assert says in str(caught.value)


def test_of_many_images_a_few_are_listed(tmp_path):
    path = write_lif(tmp_path / "a.lif", {f"S{k:02}": Series(random_pixels((20, 30))) for k in range(30)})
    with pytest.raises(ImageError, match=r"holds 30 images. .*/S00, .*/S07, \.\.\.$"):
        open_image(path)


def test_an_image_whose_name_another_one_has_is_refused_and_others_are_not(tmp_path):
    def rename(root):
        for element in root.iter("Element"):
            element.set("Name", element.get("Name").replace("Copy", "Series"))

    images = {name: Series(random_pixels((20, 30))) for name in ("Series", "Copy", "Last")}
    path = write_lif(tmp_path / "a.lif", images, change=rename)
    with pytest.raises(ImageError, match=r"a\.lif/Series: is the name of 2 images\. Rename them"):
        open_image(path / "Series")
    with open_image(path / "Last") as image:
        np.testing.assert_array_equal(whole(image)[0], images["Last"].pixels)


def test_the_one_image_of_a_file_need_not_be_named_and_photon_counts_are_no_image(tmp_path):
    series = {"Counts": Series(random_pixels((20, 30))), "Counts/Intensity": Series(random_pixels((25, 30)))}

    def count(root):
        ElementTree.SubElement(root.find(".//Element[@Name='Counts']/Data"), "SingleMoleculeDetection")

    path = write_lif(tmp_path / "a.lif", series, change=count)
    with open_image(path) as image, open_image(path / "Counts" / "Intensity") as named:
        np.testing.assert_array_equal(whole(image)[0], series["Counts/Intensity"].pixels)
        assert image.identity() == named.identity()


@pytest.mark.parametrize(("axis", "says"), [
    ("m", "has 4 tiles of a mosaic, .*Merge them in LAS X"),
    ("λ", "has 4 emission wavelengths, .*Export one of them"),
    ("a", "has 4 angles, "),
    ("l", "has 4 loops, "),
])  # fmt: skip
def test_an_axis_without_a_word_is_refused_if_it_is_longer_than_1(tmp_path, axis, says):
    with pytest.raises(ImageError, match=rf"a\.lif: {says}"):
        open_image(write_lif(tmp_path / "a.lif", Series(random_pixels((4, 30, 40)), f"{axis}yx")))
    with open_image(write_lif(tmp_path / "a.lif", Series(random_pixels((1, 30, 40)), f"{axis}yx"))) as image:
        assert image.axes == "yx"


def test_a_vertical_section_is_read_with_axes_that_name_it(tmp_path):
    series = Series(random_pixels((2, 30, 40)), "czx", um={"z": 2.0, "x": 0.25})
    path = write_lif(tmp_path / "a.lif", series)
    with pytest.raises(ImageError, match="does not name both y and x.*--axes"):
        open_image(path)
    with open_image(path, axes="ycx") as image:
        assert image.pixel_size == pytest.approx((2.0, 0.25))
        np.testing.assert_array_equal(whole(image), series.pixels)


@pytest.mark.parametrize(("stored", "box", "n_bytes"), [
    ("zcyx", Box((1, 0, 0), (2, 40, 53)), 2 * 2 * 40 * 53),  # a plane of each channel
    ("zcyx", Box((1, 7, 10), (2, 27, 20)), 2 * 2 * 20 * 10),  # a narrow box, row by row
    ("zcyx", Box((0, 7, 3), (3, 27, 53)), 3 * 2 * 2 * (20 * 53 - 3)),  # a wide one, with what lies between its rows
    ("zycx", Box((1, 7, 3), (2, 27, 53)), 2 * 2 * 20 * 50),
])  # fmt: skip
def test_only_the_rows_of_a_box_are_read_and_each_once(tmp_path, monkeypatch, stored, box, n_bytes):
    lengths, read, preadv = {"z": 3, "c": 2, "y": 40, "x": 53}, [], os.preadv

    def noted(handle, buffers, at):
        read.extend(range(at, at + len(buffers[0])))
        return preadv(handle, buffers, at)

    path = write_lif(tmp_path / "a.lif", Series(random_pixels([lengths[a] for a in stored], "u2"), stored))
    with open_image(path) as image:
        expected = whole(image)[:, *box.slices]
        monkeypatch.setattr("os.preadv", noted)
        np.testing.assert_array_equal(image.read(box), expected)
        assert len(read) == len(set(read)) == n_bytes
        read.clear()
        image.with_channels([1]).read(box)
        assert len(read) == n_bytes / 2


def test_what_the_system_reads_in_parts_is_put_together(tmp_path, monkeypatch):
    series, preadv = Series(random_pixels((30, 40))), os.preadv
    with open_image(write_lif(tmp_path / "a.lif", series)) as image:
        monkeypatch.setattr("os.preadv", lambda handle, buffers, at: preadv(handle, [buffers[0][:100]], at))
        np.testing.assert_array_equal(whole(image)[0], series.pixels)


def test_threads_and_processes_read_what_one_thread_reads(tmp_path, monkeypatch):
    images = {name: Series(random_pixels((3, 2, 70, 90)), "zcyx") for name in ("one", "two")}
    write_lif(tmp_path / "a.lif", images)
    monkeypatch.chdir(tmp_path)
    with open_image("a.lif/two") as image:
        asked = list(boxes(image.box_shape, seed=7, count=40))
        expected = [image.read(box) for box in asked]
        monkeypatch.chdir("/")
        with ThreadPoolExecutor(8) as threads, ProcessPoolExecutor(2, get_context("spawn")) as processes:
            for found in (threads.map(image.read, asked), processes.map(image.read, asked)):
                for pixels, wanted in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(pixels, wanted)
        with pickle.loads(pickle.dumps(image)) as again:
            assert again.identity() == image.identity()
    with pytest.raises(ImageError, match="is closed. Open it again"):
        image.read(asked[0])


def test_an_image_that_nobody_closes_closes_its_file_when_it_is_gone(tmp_path):
    before = open_files()
    image = open_image(write_lif(tmp_path / "a.lif", Series(random_pixels((30, 40)))))
    assert len(open_files()) == len(before) + 1
    del image
    assert open_files() == before


def test_the_mask_of_a_series_is_that_of_the_same_pixels_as_ome_tiff(shared_data, tmp_path, tilenet_command):
    pixels = tifffile.imread(shared_data("derived/cardiomyocyte_3ch_pyramid.ome.tif"))[:, :500, :600]
    series = Series(pixels, "cyx", um={"y": 0.65, "x": 0.65}, luts=("Blue", "Green", "Red"), padding=8)
    lif = write_lif(tmp_path / "a.lif", {"Day 1/Series 001": series, "Overview": Series(random_pixels((30, 40)))})
    about = {"axes": "CYX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata=about, tile=(128, 128))
    masks = []
    for image in (lif / "Day 1" / "Series 001", tmp_path / "a.ome.tif"):
        out = tmp_path / f"{len(masks)}.zarr"
        code, _, said = tilenet_command("segment", image, "--out", out, "--channels", "0", "--threads", "1")
        assert code == 0, said
        masks.append({place: data for place, data in tree(out).items() if place[:1].isdigit()})
    assert masks[0] == masks[1]
    assert len(masks[0]) > 3
    assert tilenet_command("verify", tmp_path / "0.zarr")[0] == 0
