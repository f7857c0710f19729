"""Every real image against its whole level, read by the library that knows its format."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from oracles import boxes, mirrored
from skimage.io import imsave

from tilenet.errors import ImageError, ImageNotFound, SettingsError
from tilenet.geometry import Box, mirror
from tilenet.readers import open_image
from tilenet.readers.image import Image, fold

# Name, axes, shapes of the levels, micrometres along the axes without c (None: unknown).
TIFFS = {
    "slides/CMU-1-Small-Region.svs": ("yxc", [(2967, 2220, 3)], (0.499, 0.499)),
    "slides/OS-1-detail_HE.ome.tif": ("yxc", [(1101, 1101, 3)], (0.227102, 0.227097)),
    "slides/OS-2-vsi_Ki67.ome.tif": ("yxc", [(1445, 1445, 3)], (0.346056, 0.346053)),
    "slides/hamamatsu_test3_DAPI.ndpi": (
        "yxc",
        [(4864, 3968, 3), (2432, 1984, 3), (1216, 992, 3), (608, 496, 3)],
        (0.228175, 0.228175),
    ),
    "derived/cardiomyocyte_3ch_pyramid.ome.tif": ("cyx", [(3, 1080, 1280), (3, 540, 640), (3, 270, 320)], (0.65, 0.65)),
    "derived/cmu1_generic_pyramid.tif": ("yxc", [(2967, 2220, 3), (1483, 1110, 3), (741, 555, 3)], (0.499, 0.499)),
    "derived/test3_DAPI_gray_pyramid.ome.tif": (
        "yx",
        [(4864, 3968), (2432, 1984), (1216, 992), (608, 496), (304, 248)],
        (0.228175, 0.228175),
    ),
    "isbi2012/test_z00-09_unlabelled.tif": ("zyx", [(10, 512, 512)], (None, None, None)),
    "volumes/plant_nuclei_1135_image.tif": ("zyx", [(100, 100, 100)], (0.283718, 0.126786, 0.126786)),
    "volumes/plant_ovule_boundarymap_image.tif": ("zyx", [(32, 128, 128)], (0.235, 0.15, 0.15)),
    "volumes/xyzc_16bit__dna_conf_wf.tif": ("zcyx", [(45, 2, 130, 133)], (0.499413, 0.511878, 0.511878)),
    "small_fluo/hela_cells_3ch.tif": ("yxc", [(512, 672, 3)], (0.051493, 0.051493)),
    "small_fluo/mitocheck_t1_image.tif": ("yx", [(364, 260)], (0.1, 0.1)),
    "small_fluo/nup_nuclei_2ch_image.tif": ("cyx", [(2, 420, 476)], (None, None)),
}
BLASTOCYST = (0.500203, 0.360398, 0.360398)
ZARRS = {
    "zarr/blastocyst_z060-099_v04.ome.zarr": (
        "czyx",
        [(2, 40, 275, 271), (2, 40, 137, 135), (2, 40, 68, 67)],
        BLASTOCYST,
    ),
    "zarr/blastocyst_z070-099_v05_sharded.ome.zarr": (
        "czyx",
        [(2, 30, 275, 271), (2, 30, 137, 135), (2, 30, 68, 67)],
        BLASTOCYST,
    ),
    "zarr/cardiomyocyte_3ch_v04.ome.zarr": (
        "czyx",
        [(3, 1, 1080, 1280), (3, 1, 540, 640), (3, 1, 270, 320)],
        (1.0, 0.65, 0.65),
    ),
    "zarr/cardiomyocyte_3ch_v04.ome.zarr/labels/nuclei": (
        "zyx",
        [(1, 1080, 1280), (1, 540, 640), (1, 270, 320)],
        (1.0, 0.65, 0.65),
    ),
}
OTHERS = {
    "volumes/c_elegans_em_series": ("zyx", [(21, 256, 256)], (None, None, None)),
    "slides/camelyon_overview_jpeg2000.dcm": ("yxc", [(812, 1696, 3)], (28.968, 28.969)),
}
REAL = TIFFS | ZARRS | OTHERS


def whole_level(path, level, axes):
    """Return all pixels of a level (C, ...) as another library reads them."""
    if path.suffix in (".tif", ".svs", ".ndpi"):
        pixels = tifffile.imread(path, series=0, level=level)
    elif path.suffix == ".dcm":
        pixels = dicom_frames(path)
    elif path.name == "c_elegans_em_series":
        pixels = np.stack([tifffile.imread(path / f"c_elegans_em_z{z:04}.tif") for z in range(21)])
    else:
        pixels = zarr.open_array(path / str(level), mode="r")[...]
    return np.moveaxis(pixels, axes.index("c"), 0) if "c" in axes else pixels[None]


def dicom_frames(path):
    """Return the frames of a fully tiled DICOM side by side, as pydicom decodes them."""
    file = pytest.importorskip("pydicom").dcmread(path)
    high, wide = file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns
    rows, columns = -(-high // file.Rows), -(-wide // file.Columns)
    grid = file.pixel_array.reshape(rows, columns, file.Rows, file.Columns, 3)
    return grid.swapaxes(1, 2).reshape(rows * file.Rows, columns * file.Columns, 3)[:high, :wide]


def need_extra(name):
    """Skip where the extra that reads a file is not installed."""
    if name.endswith(".dcm"):
        pytest.importorskip("wsidicom", reason="the extra dicom is not installed")


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_says_its_axes_levels_and_pixel_size(shared_data, name):
    need_extra(name)
    axes, shapes, pixel_size = REAL[name]
    with open_image(shared_data(name)) as image:
        assert (image.axes, [level.shape for level in image.levels]) == (axes, shapes)
        assert image.pixel_size == tuple(None if n is None else pytest.approx(n, abs=1e-6) for n in pixel_size)


@pytest.mark.parametrize("name", REAL)
def test_boxes_of_every_level_are_those_of_the_whole_mirrored_level(shared_data, name):
    need_extra(name)
    path = shared_data(name)
    with open_image(path) as image:
        for k in range(len(image.levels)):
            level = image.at_level(k)
            whole = whole_level(path, k, level.axes)
            assert whole.min() < whole.max()
            for box in [*boxes(level.box_shape, seed=k), Box.of_shape(level.box_shape)]:
                pixels = level.read(box)
                assert pixels.dtype == level.dtype
                np.testing.assert_array_equal(pixels, mirrored(whole, box))


@pytest.mark.parametrize("name", REAL)
def test_channels_are_neighbours_in_memory_where_they_are_so_in_the_file(shared_data, name):
    need_extra(name)
    with open_image(shared_data(name)) as image:
        inside = Box((0,) * len(image.box_shape), tuple(min(n, 30) for n in image.box_shape))
        for box, chosen in product((inside, inside.shifted((0,) * (inside.ndim - 2) + (-9, -7))), ([0], [0, 0])):
            assert image.channels_last == image.axes.endswith("c")
            for view in (image, image.with_channels(chosen)):
                pixels = view.read(box)
                assert not image.channels_last or np.moveaxis(pixels, 0, -1).flags.c_contiguous


@pytest.mark.parametrize("name", REAL)
def test_threads_read_what_one_thread_reads(shared_data, name):
    need_extra(name)
    with open_image(shared_data(name)) as image:
        asked = list(boxes(image.box_shape, seed=7, count=8))
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(image.read, asked * 2))
    with open_image(shared_data(name)) as image:
        for pixels, box in zip(together, asked * 2, strict=True):
            np.testing.assert_array_equal(pixels, image.read(box))


@pytest.mark.parametrize("name", REAL)
def test_an_image_survives_pickling_at_its_level(shared_data, name):
    need_extra(name)
    with open_image(shared_data(name)) as image:
        last = image.at_level(len(image.levels) - 1)
        box = Box((0,) * len(last.box_shape), tuple(min(n, 50) for n in last.box_shape))
        with pickle.loads(pickle.dumps(last)) as again:
            assert (again.level, again.shape, again.identity()) == (last.level, last.shape, last.identity())
            np.testing.assert_array_equal(again.read(box), last.read(box))


@pytest.mark.parametrize(("name", "level", "n_tiles"), [
    ("slides/CMU-1-Small-Region.svs", 0, 4),
    ("derived/test3_DAPI_gray_pyramid.ome.tif", 1, 4),
    ("derived/cardiomyocyte_3ch_pyramid.ome.tif", 0, 12),
])  # fmt: skip
def test_only_the_tiles_of_a_box_are_decoded_and_each_once(shared_data, name, level, n_tiles):
    with open_image(shared_data(name), level=level) as image:
        assert image.n_decoded == 0
        # Around a corner where four tiles meet (a multiple of 240, 256 and 512 px less or more one).
        side = {"CMU": 240, "tes": 512, "car": 256}[name.split("/")[1][:3]]
        image.read(Box((side - 1, side - 1), (side + 1, side + 1)))
        assert image.n_decoded == n_tiles
        image.read(Box((side - 9, side - 9), (side + 9, side + 9)))
        assert image.n_decoded == n_tiles


def test_threads_that_want_the_same_tile_decode_it_once(shared_data):
    with open_image(shared_data("slides/CMU-1-Small-Region.svs")) as image:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(image.read, [Box((0, 0), (480, 480))] * 32))
        assert image.n_decoded == 4


def test_channel_names_come_from_the_file(shared_data):
    names = ("DAPI", "nanog", "Lamin B1")
    for name in ("derived/cardiomyocyte_3ch_pyramid.ome.tif", "zarr/cardiomyocyte_3ch_v04.ome.zarr"):
        with open_image(shared_data(name)) as image:
            assert image.channel_names == names


def test_channels_are_chosen_by_number_and_by_name(shared_data):
    path = shared_data("derived/cardiomyocyte_3ch_pyramid.ome.tif")
    with open_image(path) as image, open_image(path, channels=["Lamin B1", 0]) as chosen:
        box = Box((0, 0), (64, 64))
        np.testing.assert_array_equal(chosen.read(box), image.read(box)[[2, 0]])
        assert chosen.channel_names == ("Lamin B1", "DAPI")
    with pytest.raises(ImageError, match="no channel 'GFP' \\(DAPI, nanog, Lamin B1\\)"):
        open_image(path, channels=["GFP"])


def test_a_path_into_an_ome_zarr_opens_that_level_and_the_coarser_ones(shared_data):
    with open_image(shared_data("zarr/cardiomyocyte_3ch_v04.ome.zarr") / "1") as image:
        assert [level.shape for level in image.levels] == [(3, 1, 540, 640), (3, 1, 270, 320)]
        assert image.pixel_size == (1.0, 1.3, 1.3)


@pytest.mark.parametrize("name", ["slides/CMU-1-Small-Region.svs", "zarr/cardiomyocyte_3ch_v04.ome.zarr"])
def test_a_level_that_is_not_there_is_refused_with_those_that_are(shared_data, name):
    with pytest.raises(SettingsError, match="has levels 0 to [02], not 7"):
        open_image(shared_data(name), level=7)


def test_a_path_that_does_not_exist_is_not_found(tmp_path):
    for name in ("no.tif", "no.zarr", "no.zarr/0"):
        with pytest.raises(ImageNotFound, match="does not exist|no such image"):
            open_image(tmp_path / name)


def test_a_link_to_nothing_is_said_to_be_one(tmp_path):
    (tmp_path / "a.tif").symlink_to("../gone/a.tif")
    with pytest.raises(ImageNotFound, match=r"a\.tif: is a symbolic link to \.\./gone/a\.tif, which does not exist"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("path", ["C:\\slides\\he.tif", "lists/C:\\slides\\he.tif", "c:/slides/he.tif"])
def test_a_path_of_windows_that_does_not_exist_is_said_to_be_another_in_wsl(path):
    with pytest.raises(ImageNotFound, match=r"does not exist\. In WSL it is /mnt/c/slides/he\.tif$"):
        open_image(path)


# The contract: what holds for an image whatever it comes from. Each source is 70 x 90 px of three channels.
def pattern():
    return np.random.default_rng(3).integers(0, 255, (70, 90, 3), dtype=np.uint8)


def as_png(folder):
    imsave(folder / "image.png", pattern(), check_contrast=False)
    return folder / "image.png"


def as_tiff(folder):
    tifffile.imwrite(folder / "image.tif", pattern(), tile=(32, 32), compression="zlib", photometric="rgb")
    return folder / "image.tif"


def as_strips(folder):
    tifffile.imwrite(folder / "image.tif", pattern(), rowsperstrip=7, photometric="rgb")
    return folder / "image.tif"


def as_zarr(folder):
    array = zarr.create_array(folder / "image.zarr", data=pattern(), chunks=(32, 32, 3), dimension_names=list("yxc"))
    assert array.shape == (70, 90, 3)
    return folder / "image.zarr"


def as_slide(folder):
    pytest.importorskip("openslide", reason="the extra slide is not installed")
    tifffile.imwrite(folder / "image.bif", pattern(), tile=(32, 32), photometric="rgb")
    return folder / "image.bif"


def as_czi(folder):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="the extra czi is not installed")
    with czi.create_czi(str(folder / "image.czi")) as document:
        document.write(np.ascontiguousarray(pattern()[..., ::-1]))
        document.write_metadata("image")
    return folder / "image.czi"


def as_nd2(folder):
    pytest.importorskip("nd2", reason="the extra nd2 is not installed")
    from nd2_files import Nd2

    return Nd2(pattern()[:, :, None, ::-1], names=["Brightfield"]).write(folder / "image.nd2")


def as_lif(folder):
    pytest.importorskip("liffile", reason="the extra lif is not installed")
    from lif_files import Series, write_lif

    blue_first = np.ascontiguousarray(pattern()[..., ::-1])
    return write_lif(folder / "image.lif", Series(blue_first, "yxs", tags=(3, 2, 1), padding=2))


def as_hdf5(folder):
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    from hdf5_images import write_hdf5

    return write_hdf5(folder / "image.h5", pattern(), labels="yxc", chunks=(32, 32, 3), compression="gzip")


SOURCES = {
    "slide": as_slide,
    "czi": as_czi,
    "nd2": as_nd2,
    "lif": as_lif,
    "hdf5": as_hdf5,
    "png": as_png,
    "tiff": as_tiff,
    "strips": as_strips,
    "zarr": as_zarr,
    "numpy": lambda folder: pattern(),
    "dask": lambda folder: da.from_array(pattern(), chunks=(30, 40, 3)),
    "zarr array": lambda folder: zarr.open_array(as_zarr(folder), mode="r"),
}


@pytest.fixture(params=SOURCES)
def image(request, tmp_path):
    source = SOURCES[request.param](tmp_path)
    with open_image(source, axes="yxc" if hasattr(source, "shape") else None) as image:
        yield image


def test_every_image_says_what_it_is(image):
    assert (image.axes, image.shape, image.dtype) == ("yxc", (70, 90, 3), np.uint8)
    assert (image.box_axes, image.box_shape, image.n_channels) == ("yx", (70, 90), 3)
    assert len(image.channel_names) == 3
    assert image.level == 0


def test_every_image_is_mirrored_outside(image):
    whole = np.moveaxis(pattern(), 2, 0)
    for box in [*boxes((70, 90), seed=1, count=12), Box((-200, -500), (3, 400)), Box((69, 89), (70, 90))]:
        np.testing.assert_array_equal(image.read(box), mirrored(whole, box))


@given(length=st.integers(1, 7), start=st.integers(-30, 30), count=st.integers(1, 40))
def test_a_fold_gives_the_pixels_that_mirroring_asks_for(length, start, count):
    wanted = [mirror(i, length) for i in range(start, start + count)]
    found = fold(start, start + count, length)
    assert (found.start, found.stop) == (min(wanted), max(wanted) + 1)
    assert found.unfolded(np.arange(length)[None, found.start : found.stop], 1)[0].tolist() == wanted


def test_every_image_survives_pickling(image):
    box = Box((-5, 60), (40, 99))
    again = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(again.read(box), image.read(box))
    assert again.identity() == image.identity()


def test_every_image_gives_pixels_that_can_be_changed_without_changing_it(image):
    box = Box((3, 4), (20, 30))
    before = image.read(box).copy()
    image.read(box)[...] = 0
    np.testing.assert_array_equal(image.read(box), before)


def test_every_image_refuses_a_level_that_it_lacks(image):
    with pytest.raises(SettingsError, match="level"):
        image.at_level(1)


def test_an_open_image_is_returned_as_it_is(image):
    assert open_image(image) is image
    assert isinstance(open_image(image, channels=[1]), Image)


def test_opening_what_is_no_image_is_refused():
    with pytest.raises(ImageError, match="neither a path, an array nor an image"):
        open_image(42)
    with pytest.raises(SettingsError, match="missing='zero'"):
        open_image(np.zeros((4, 4)), missing="zero")


def test_importing_the_readers_imports_no_library_that_reads():
    heavy = ["zarr", "tifffile", "dask", "torch", "skimage", "imagecodecs", "h5py", "nd2", "liffile"]
    code = f"import sys, tilenet.readers; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
