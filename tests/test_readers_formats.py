"""Slides and CZI: what is particular to each, and what all kinds, planes, DICOM, ND2 and HDF5 too, must do."""

import pickle
import re
import shutil
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from contents import open_files, whole
from PIL import Image as Picture
from plane_folders import planes

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image

RANDOM = np.random.default_rng(11)


# Slides

SECOND_OPINIONS = [
    ("slides/CMU-1-Small-Region.svs", {0: 0}),
    ("slides/hamamatsu_test3_DAPI.ndpi", {0: 0, 1: 1, 2: 2, 3: 3}),
]


@pytest.mark.parametrize(("name", "levels"), SECOND_OPINIONS)
def test_openslide_and_tifffile_give_the_same_pixels_and_sizes(shared_data, name, levels):
    pytest.importorskip("openslide")
    from tilenet.readers.slide import SlideImage

    path = str(shared_data(name))
    with open_image(path) as tiff, SlideImage(path, axes=None, missing="error") as slide:
        for ours, theirs in levels.items():
            one, two = tiff.at_level(ours), slide.at_level(theirs)
            assert one.pixel_size == pytest.approx(two.pixel_size)
            for corner in ((0, 0), tuple(n // 2 for n in one.box_shape)):
                box = Box(corner, tuple(min(a + 600, n + 9) for a, n in zip(corner, one.box_shape, strict=True)))
                pixels = one.read(box)
                assert pixels.min() < pixels.max()
                # Both decode with libjpeg; two builds of it may round differently.
                assert np.abs(pixels.astype(int) - two.read(box)).max() <= 1


def test_a_level_of_an_uneven_reduction_does_not_depend_on_the_box(shared_data):
    pytest.importorskip("openslide")
    from tilenet.readers.slide import SlideImage

    path = str(shared_data("derived/cmu1_generic_pyramid.tif"))
    with SlideImage(path, axes=None, missing="error").at_level(1) as slide:
        assert slide._downsamples[1] != 2
        everything = whole(slide)
    with SlideImage(path, axes=None, missing="error").at_level(1) as slide:
        for box in (Box((700, 333), (1101, 801)), Box((511, 511), (513, 513))):
            np.testing.assert_array_equal(slide.read(box), everything[:, *box.slices])


def mirax(folder, tiles, *, fill=0xFFFFFF):
    """Write a MIRAX slide of two levels from {(row, column): (16, 16, 3)} on a grid of 4 x 4; return its path.

    Slidedat.ini says what there is; Index.dat holds a pointer to each level's list of (image,
    offset, length, file); Data0000.dat holds the PNGs.
    """
    inside = folder / "slide"
    inside.mkdir()
    coarse = {}
    for (row, column), pixels in tiles.items():
        corner = (row - row % 2, column - column % 2)
        part = coarse.setdefault(corner, np.full((16, 16, 3), 255, np.uint8))
        y, x = 8 * (row % 2), 8 * (column % 2)
        part[y : y + 8, x : x + 8] = pixels[::2, ::2]
    data, pages = b"", []
    for level in (tiles, coarse):
        entries = []
        for (row, column), pixels in sorted(level.items()):
            Picture.fromarray(pixels).save(inside / "tile.png")
            png = (inside / "tile.png").read_bytes()
            entries.append((row * 4 + column, len(data), len(png), 0))
            data += png
        pages.append(entries)
    (inside / "tile.png").unlink()
    (inside / "Data0000.dat").write_bytes(data)
    head = b"01.02" + b"ID"
    table = len(head) + 8
    index, at = b"", table + 8
    pointers = []
    for entries in pages:
        pointers.append(at + len(index))
        index += struct.pack("<ii", 0, at + len(index) + 8)
        index += struct.pack("<ii", len(entries), 0) + b"".join(struct.pack("<iiii", *e) for e in entries)
    (inside / "Index.dat").write_bytes(head + struct.pack("<ii", table, 0) + struct.pack("<ii", *pointers) + index)
    level = "OVERLAP_X = 0\nOVERLAP_Y = 0\nIMAGE_FORMAT = PNG\nDIGITIZER_WIDTH = 16\nDIGITIZER_HEIGHT = 16\n"
    (inside / "Slidedat.ini").write_text(
        "[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = ID\nIMAGENUMBER_X = 4\nIMAGENUMBER_Y = 4\n"
        "OBJECTIVE_MAGNIFICATION = 20\n[HIERARCHICAL]\nHIER_COUNT = 1\nNONHIER_COUNT = 0\nINDEXFILE = Index.dat\n"
        "HIER_0_NAME = Slide zoom level\nHIER_0_COUNT = 2\nHIER_0_VAL_0_SECTION = L0\nHIER_0_VAL_1_SECTION = L1\n"
        "[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n"
        + "".join(
            f"[L{k}]\nIMAGE_CONCAT_FACTOR = {k}\nMICROMETER_PER_PIXEL_X = {0.25 * 2**k}\n"
            f"MICROMETER_PER_PIXEL_Y = {0.25 * 2**k}\nIMAGE_FILL_COLOR_BGR = {fill}\n{level}"
            for k in range(2)
        )
    )
    Picture.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "slide.mrxs", format="jpeg")
    return folder / "slide.mrxs"


def test_a_mirax_slide_is_read_and_what_was_not_scanned_is_its_background(tmp_path):
    pytest.importorskip("openslide")
    places = [(r, c) for r in range(4) for c in range(4) if (r, c) not in ((1, 2), (3, 3))]
    tiles = {place: RANDOM.integers(0, 255, (16, 16, 3), dtype=np.uint8) for place in places}
    expected = np.empty((64, 64, 3), np.uint8)
    expected[...] = (0x10, 0x20, 0x30)
    for (row, column), pixels in tiles.items():
        expected[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = pixels
    with open_image(mirax(tmp_path, tiles, fill=0x302010)) as image:
        assert image.reader == "OpenSlide (mirax)"
        assert [level.shape for level in image.levels] == [(64, 64, 3), (32, 32, 3)]
        assert image.pixel_size == (0.25, 0.25)
        np.testing.assert_array_equal(whole(image), np.moveaxis(expected, 2, 0))
        scanned = np.s_[:, :16, :16]
        np.testing.assert_array_equal(whole(image.at_level(1))[scanned], np.moveaxis(expected[:32:2, :32:2], 2, 0))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_damaged_tile_of_a_mirax_slide_spoils_no_other(tmp_path, monkeypatch, threads):
    pytest.importorskip("openslide")
    monkeypatch.setattr("tilenet.readers.slide.SIDE", (16, 16))
    places = [(row, column) for row in range(4) for column in range(4)]
    tiles = {place: RANDOM.integers(0, 255, (16, 16, 3), dtype=np.uint8) for place in places}
    path = mirax(tmp_path, tiles)
    data = path.with_suffix("") / "Data0000.dat"
    content, damaged = data.read_bytes(), {(0, 1), (2, 2)}
    for place in damaged:
        at = [match.start() for match in re.finditer(b"IDAT", content)][places.index(place)] + 30
        content = content[:at] + bytes(8) + content[at + 8 :]
    data.write_bytes(content)

    def read(place):
        y, x = (16 * n for n in place)
        try:
            return image.read(Box((y, x), (y + 16, x + 16)))
        except ImageError:
            return None

    with open_image(path) as image, ThreadPoolExecutor(threads) as readers:
        for _ in range(3):
            found = dict(zip(places, readers.map(read, places), strict=True))
            assert {place for place in places if found[place] is None} == damaged
            for place in tiles.keys() - damaged:
                np.testing.assert_array_equal(found[place], np.moveaxis(tiles[place], 2, 0))


# CZI


@pytest.fixture
def czi_file(tmp_path):
    """Return what writes a CZI: (t, z, c, y, x) in two mosaic tiles with a gap of 10 px between them."""
    czi = pytest.importorskip("pylibCZIrw.czi")

    def write(pixels, *, skip=(), corner=(-7, 5), first=0, name="image.czi"):
        with czi.create_czi(str(tmp_path / name)) as document:
            for t, z, c in np.ndindex(pixels.shape[:3]):
                if (t, z, c) in skip:
                    continue
                for columns, at in ((slice(0, 40), 0), (slice(50, None), 50)):
                    part = np.ascontiguousarray(pixels[t, z, c, :, columns])
                    place = {"T": first + t, "Z": first + z, "C": first + c}
                    document.write(part, plane=place, location=(corner[0] + at, corner[1]))
            names = {first + c: f"dye {c}" for c in range(pixels.shape[2])}
            document.write_metadata("image", names, scale_x=0.25e-6, scale_y=0.5e-6, scale_z=2e-6)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("shape", "axes"), [((1, 1, 1), "yx"), ((1, 1, 3), "cyx"), ((1, 4, 2), "zcyx"), ((2, 3, 2), "tzcyx")]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_czi_mosaic_keeps_its_axes_channels_and_sizes(czi_file, shape, axes, dtype):
    pixels = RANDOM.integers(1, 250, (*shape, 30, 90)).astype(dtype)
    with open_image(czi_file(pixels)) as image:
        assert (image.axes, image.dtype) == (axes, dtype)
        assert image.pixel_size == pytest.approx(
            tuple({"t": None, "z": 2.0, "y": 0.5, "x": 0.25}[a] for a in image.box_axes)
        )
        assert image.channel_names == tuple(f"dye {c}" for c in range(shape[2]))
        pixels[..., 40:50] = 0
        expected = np.moveaxis(pixels, 2, 0).reshape(shape[2], *image.box_shape)
        np.testing.assert_array_equal(whole(image), expected)


def test_scenes_of_a_czi_form_one_image_and_lie_as_on_the_stage(tmp_path):
    czi, corners = pytest.importorskip("pylibCZIrw.czi"), [(300, 40), (220, -15), (410, 7)]
    parts = RANDOM.integers(1, 250, (3, 30, 50)).astype(np.uint8)
    expected = np.zeros((85, 240), np.uint8)
    with czi.create_czi(str(tmp_path / "scenes.czi")) as document:
        for scene, (part, (x, y)) in enumerate(zip(parts, corners, strict=True)):
            document.write(part, location=(x, y), scene=scene)
            expected[y + 15 : y + 45, x - 220 : x - 170] = part
    with open_image(tmp_path / "scenes.czi") as image:
        np.testing.assert_array_equal(whole(image)[0], expected)


def test_a_czi_that_is_cut_within_its_last_part_is_refused_when_it_is_opened(czi_file):
    path = czi_file(RANDOM.integers(1, 250, (1, 1, 1, 30, 90)).astype(np.uint8))
    whole = path.read_bytes() + struct.pack("<16sqq", b"ZISRAWATTACH", 64, 60) + bytes(64)
    for lost in (0, 4):  # at first nothing, then bytes that nothing is in
        path.write_bytes(whole[: len(whole) - lost])
        assert open_image(path).shape == (30, 90)
    path.write_bytes(whole[:-5])
    with pytest.raises(ImageError, match=rf"image\.czi: is cut off at byte {len(whole) - 5}, of {len(whole) - 4} at l"):
        open_image(path)


def test_a_czi_is_read_in_pieces_that_fit_together(czi_file, monkeypatch):
    pixels = RANDOM.integers(1, 60000, (1, 1, 1, 70, 120)).astype(np.uint16)
    monkeypatch.setattr("tilenet.readers.czi.SIDE", (32, 32))
    with open_image(czi_file(pixels)) as image:
        pixels[..., 40:50] = 0
        for box in (Box((0, 0), (70, 120)), Box((31, 20), (65, 97))):
            np.testing.assert_array_equal(image.read(box)[0], pixels[0, 0, 0][box.slices])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (2, 2, 2)])
def test_a_czi_whose_planes_are_not_numbered_from_0_is_read(czi_file, shape):
    pixels = RANDOM.integers(1, 250, (*shape, 30, 90)).astype(np.uint8)
    with open_image(czi_file(pixels, first=3)) as image:
        assert image.n_missing == 0
        assert image.channel_names == tuple(f"dye {c}" for c in range(shape[2]))
        pixels[..., 40:50] = 0
        expected = np.moveaxis(pixels, 2, 0).reshape(shape[2], *image.box_shape)
        np.testing.assert_array_equal(whole(image), expected)


def test_of_a_czi_only_the_chosen_channels_are_decoded(czi_file):
    pixels = RANDOM.integers(1, 250, (1, 1, 3, 30, 90)).astype(np.uint8)
    with open_image(czi_file(pixels)) as image:
        pixels[..., 40:50] = 0
        np.testing.assert_array_equal(whole(image.with_channels([2])), pixels[0, 0, 2:])
        assert image.n_decoded == 1
        np.testing.assert_array_equal(whole(image), pixels[0, 0])
        assert image.n_decoded == 3


@pytest.mark.parametrize("first", [0, 3])
def test_a_plane_that_a_czi_lacks_is_refused_until_it_may_be_filled(czi_file, first):
    pixels = RANDOM.integers(1, 250, (1, 3, 2, 30, 90)).astype(np.uint8)
    path = czi_file(pixels, skip=[(0, 1, 1)], first=first)
    with pytest.raises(ImageError, match="1 of its 6 planes is missing.*--missing fill"):
        open_image(path)
    with open_image(path, missing="fill") as image:
        assert image.n_missing == 1
        assert not whole(image)[1, 1].any()


def test_of_a_slide_that_its_reader_does_not_take_no_other_reads_the_picture_in_the_file(tmp_path):
    pytest.importorskip("openslide")
    path = tmp_path / "alone.mrxs"
    Picture.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(path, "jpeg")
    with pytest.raises(ImageError, match=r"alone\.mrxs"):
        open_image(path)


# All of them


@pytest.fixture(params=["planes", "slide", "dicom", "czi", "nd2", "lif", "hdf5", "imaris"])
def path(request, tmp_path):
    """Return an image of each kind."""
    if request.param == "planes":
        planes(tmp_path / "s", [f"z{k}.tif" for k in range(3)])
        return tmp_path / "s"
    if request.param == "slide":
        pytest.importorskip("openslide")
        return mirax(tmp_path, {(r, c): np.full((16, 16, 3), 9, np.uint8) for r in range(4) for c in range(4)})
    if request.param == "dicom":
        pytest.importorskip("wsidicom")
        return request.getfixturevalue("shared_data")("slides/camelyon_overview_jpeg2000.dcm")
    if request.param == "nd2":
        pytest.importorskip("nd2")
        from nd2_files import Nd2, loop

        return Nd2(RANDOM.integers(1, 250, (3, 30, 90, 1, 1)).astype(np.uint8), [loop("z", 3)]).write(
            tmp_path / "a.nd2"
        )
    if request.param == "lif":
        pytest.importorskip("liffile")
        from lif_files import Series, write_lif

        return write_lif(
            tmp_path / "image.lif", Series(RANDOM.integers(1, 250, (2, 3, 30, 90)).astype(np.uint8), "zcyx")
        )
    if request.param in ("hdf5", "imaris"):
        pytest.importorskip("h5py")
        from hdf5_images import write_hdf5, write_imaris

        pixels = RANDOM.integers(1, 250, (1, 2, 3, 30, 90)).astype(np.uint8)
        if request.param == "imaris":
            return write_imaris(tmp_path / "image.ims", [pixels])
        return write_hdf5(tmp_path / "image.h5", pixels, labels="tczyx", chunks=(1, 1, 3, 16, 16)).parent
    return request.getfixturevalue("czi_file")(RANDOM.integers(1, 250, (1, 2, 1, 30, 90)).astype(np.uint8))


def test_a_closed_image_leaves_no_file_open(path):
    open_image(path).close()  # what a library opens once and keeps
    before = open_files()
    for _ in range(3):
        with open_image(path) as image:
            image.read(Box((0,) * len(image.box_shape), (1,) * len(image.box_shape)))
            pickle.loads(pickle.dumps(image)).close()
    assert open_files() == before


@pytest.mark.parametrize("keep", [0.03, 0.4, 0.9])
def test_a_file_cut_off_is_an_image_error_of_one_line(path, tmp_path, keep):
    if path.suffix == ".dcm":
        path = Path(shutil.copyfile(path, tmp_path / "cut.dcm"))  # which may be written, unlike the original
    victim = {"s": path / "z1.tif", "slide": path.parent / "slide" / "Data0000.dat"}.get(path.stem, path)
    source = victim.read_bytes()
    victim.write_bytes(source[: int(keep * len(source))])
    with pytest.raises(ImageError) as caught, open_image(path) as image:
        whole(image)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "module", "says"),
    [
        ("a.mrxs", b"\xff\xd8\xff", "openslide", 'is a slide, read with OpenSlide. .*"tilenet\\[slide\\]"'),
        ("a.dcm", b"\0" * 128 + b"DICM", "wsidicom", 'is a DICOM image, read with wsidicom. .*"tilenet\\[dicom\\]"'),
        ("a.ims", b"\x89HDF\r\n\x1a\n", "h5py", 'is an HDF5 file, read with h5py. .*"tilenet\\[hdf5\\]"'),
        ("a.nd2", b"\xda\xce\xbe\x0a", "nd2", 'is an ND2 file, read with nd2. .*"tilenet\\[nd2\\]"'),
        ("a.lif", b"p\0\0\0\x05\0\0\0*", "liffile", 'is a LIF file, read with liffile. .*"tilenet\\[lif\\]"'),
        ("a.czi", b"ZISRAWFILE", "pylibCZIrw", 'is a CZI file, read with pylibCZIrw. .*"tilenet\\[czi\\]"'),
    ],
)
def test_a_missing_extra_is_named_with_what_installs_it(
    tmp_path, monkeypatch, tilenet_command, name, content, module, says
):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"{name}: {says}"):
        open_image(tmp_path / name)
    code, _, err = tilenet_command("info", tmp_path / name)
    assert (code, err.count("\n")) == (2, 1)


def test_info_says_which_reader_reads_a_file(shared_data, tilenet_command):
    for name, reader in (
        ("slides/CMU-1-Small-Region.svs", "TIFF (tifffile)"),
        ("volumes/c_elegans_em_series", "folder of planes"),
    ):
        code, out, _ = tilenet_command("info", shared_data(name))
        assert code == 0
        assert reader in out
