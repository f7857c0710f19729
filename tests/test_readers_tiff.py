"""Kinds of TIFF that the shared data lack, written here and read box by box."""

import errno
import logging
import os
import pickle
import shutil
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from bad_images import directory
from tiff_images import WINDOWS, assert_reads, noise, write

from tilenet.errors import EnvironmentFault, ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "packbits", "lzma", "png", "jpeg2000"])
@pytest.mark.parametrize("cut", [{"tile": (32, 48)}, {"rowsperstrip": 9}, {"rowsperstrip": 100}])
def test_every_lossless_compression_in_tiles_and_strips(tmp_path, compression, cut):
    pixels = noise((100, 130, 3))
    path = write(tmp_path, pixels, photometric="rgb", compression=compression, **cut)
    assert_reads(path, np.moveaxis(pixels, 2, 0))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "zlib", "predictor": True}])
def test_every_pixel_type_in_both_byte_orders(tmp_path, dtype, byteorder, options):
    if dtype == "f2" and options:
        options = {"tile": (32, 32), "compression": "zlib"}
    pixels = noise((100, 130), dtype)
    assert_reads(write(tmp_path, pixels, byteorder=byteorder, photometric="minisblack", **options), pixels[None])


def test_jpeg_tiles_are_those_that_tifffile_decodes(tmp_path):
    smooth = np.add.outer(np.arange(100), np.arange(130)).astype(np.uint8)
    path = write(tmp_path, np.stack([smooth, smooth, 255 - smooth], -1), tile=(32, 32), compression="jpeg")
    assert_reads(path, np.moveaxis(tifffile.imread(path), 2, 0))


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}, {"tile": (32, 32), "compression": "zlib"}])
def test_separate_colour_planes_are_channels(tmp_path, options):
    pixels = noise((3, 100, 130))
    path = write(tmp_path, pixels, photometric="rgb", planarconfig="separate", **options)
    assert assert_reads(path, pixels).axes == "cyx"


def test_a_bigtiff_is_read(tmp_path):
    pixels = noise((100, 130), np.uint16)
    assert_reads(write(tmp_path, pixels, bigtiff=True, tile=(32, 32)), pixels[None])


def test_one_bit_pixels_are_read_as_zeros_and_ones(tmp_path):
    pixels = noise((100, 130)) > 90
    assert_reads(write(tmp_path, pixels, photometric="minisblack"), pixels[None].astype(np.uint8))


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "zlib"}])
def test_alpha_is_dropped(tmp_path, kind, options):
    colour, grey = noise((100, 130, 4)), noise((100, 130, 2))
    path = write(tmp_path, colour, photometric="rgb", extrasamples=[kind], **options)
    image = assert_reads(path, np.moveaxis(colour[..., :3], 2, 0))
    assert (image.axes, image.drops_alpha, image.with_channels([0]).drops_alpha) == ("yxc", True, True)
    path = write(tmp_path, grey, photometric="minisblack", extrasamples=[kind], planarconfig="contig", **options)
    assert assert_reads(path, grey[None, ..., 0]).axes == "yx"


def test_samples_that_are_not_alpha_are_kept(tmp_path):
    pixels = noise((100, 130, 4))
    path = write(tmp_path, pixels, photometric="rgb", extrasamples=["unspecified"])
    assert not assert_reads(path, np.moveaxis(pixels, 2, 0)).drops_alpha


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_imagej_hyperstack_keeps_its_axes_and_spacing(tmp_path, compression):
    pixels = noise((2, 3, 4, 100, 130), np.uint16)  # (t, z, c, y, x)
    options = {"resolution": (4.0, 4.0), "metadata": {"axes": "TZCYX", "unit": "um", "spacing": 1.5}}
    path = write(tmp_path, pixels, imagej=True, compression=compression, **options)
    image = assert_reads(path, np.moveaxis(pixels, 2, 0))
    assert (image.axes, image.pixel_size) == ("tzcyx", (None, 1.5, 0.25, 0.25))


@pytest.mark.parametrize(
    ("dots", "unit", "spacing"), [((72, 72), "inch", 1 / 72), ((4, 4), "mm", 1.5), ((4000, 4), "mm", 0.001)]
)
def test_a_calibration_that_is_implausible_in_the_plane_is_not_believed_along_z_either(tmp_path, dots, unit, spacing):
    about = {"axes": "ZYX", "unit": unit, "spacing": spacing}
    path = write(tmp_path, noise((3, 100, 130)), imagej=True, resolution=dots, metadata=about)
    with open_image(path) as image:
        assert image.pixel_size == (None, None, None)


def test_a_spacing_of_planes_alone_is_believed(tmp_path):
    path = write(tmp_path, noise((3, 100, 130)), imagej=True, metadata={"axes": "ZYX", "unit": "um", "spacing": 1.5})
    with open_image(path) as image:
        assert image.pixel_size[0] == 1.5


def test_one_plane_of_a_stack_decodes_one_page(tmp_path):
    path = write(tmp_path, noise((20, 100, 130)), metadata={"axes": "ZYX"}, compression="zlib", rowsperstrip=100)
    with open_image(path) as image:
        image.read(Box((7, 0, 0), (8, 100, 130)))
        assert image.n_decoded == 1


def test_channels_and_samples_become_one_axis_channel_by_channel(tmp_path):
    pixels = noise((2, 100, 130, 3))  # (C, y, x, S)
    path = tmp_path / "image.ome.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", metadata={"axes": "CYXS"}, tile=(32, 32))
    image = assert_reads(path, np.moveaxis(pixels, 3, 1).reshape(6, 100, 130))
    assert (image.axes, image.shape) == ("cyx", (6, 100, 130))


def test_an_ome_tiff_over_several_files_is_read(tmp_path):
    pixels = noise((3, 100, 130))
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="p{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(3)
    )
    document = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="130" SizeY="100" SizeZ="3" SizeC="1" '
        f'SizeT="1" PhysicalSizeZ="2000" PhysicalSizeZUnit="nm">{planes}</Pixels></Image></OME>'
    )
    for z in range(3):
        tifffile.imwrite(tmp_path / f"p{z}.ome.tif", pixels[z], compression="zlib", description=document, metadata=None)
    image = assert_reads(tmp_path / "p0.ome.tif", pixels[None])
    assert (image.axes, image.pixel_size) == ("zyx", (2.0, None, None))
    (tmp_path / "p1.ome.tif").unlink()
    with pytest.raises(ImageError, match="1 of its tiles is missing"):
        open_image(tmp_path / "p0.ome.tif")


def ome_document(files, uuid):
    """Return OME-XML of a stack whose planes are the pages of some files: (name, page) of each plane."""
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="{page}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
        for z, (name, page) in enumerate(files)
    )
    return (
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{uuid}"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="130" SizeY="100" SizeZ="{len(files)}" '
        f'SizeC="1" SizeT="1">{planes}</Pixels></Image></OME>'
    )


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("n_planes", [1, 2])
def test_pages_that_all_lie_in_another_file_are_read_from_that_file(tmp_path, compression, n_planes):
    here, there = noise((2, n_planes, 100, 130), np.uint16) + np.array([0, 999], np.uint16).reshape(2, 1, 1, 1)
    files = [("there.ome.tif", z) for z in range(n_planes)]
    for name, pixels in (("here.ome.tif", here), ("there.ome.tif", there)):
        options = {"description": ome_document(files, name), "metadata": None, "compression": compression}
        tifffile.imwrite(tmp_path / name, pixels, photometric="minisblack", **options)
    assert_reads(tmp_path / "here.ome.tif", there if n_planes == 1 else there[None])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.ome.tif").symlink_to(tmp_path / "here.ome.tif")
    assert_reads(tmp_path / "elsewhere" / "link.ome.tif", there if n_planes == 1 else there[None])


@pytest.mark.parametrize("other", [{"byteorder": ">"}, {"compression": None}, {"predictor": True}])
def test_pages_that_are_stored_differently_are_refused_not_decoded_alike(tmp_path, other):
    pixels, options = noise((2, 100, 130), np.uint16), {"compression": "zlib", "byteorder": "<"}
    files = [("a.ome.tif", 0), ("b.ome.tif", 0)]
    for (name, _), plane, own in zip(files, pixels, (options, options | other), strict=True):
        tifffile.imwrite(tmp_path / name, plane, description=ome_document(files, name), metadata=None, **own)
    with pytest.raises(ImageError, match=r"a\.ome\.tif: page 1 differs from the others in compression, byte order"):
        open_image(tmp_path / "a.ome.tif")


def test_an_imagej_stack_of_pages_stored_differently_is_refused(tmp_path):
    # Noise: tifffile takes a file too small for two uncompressed planes for no stack.
    path, pixels = tmp_path / "image.tif", np.random.default_rng(0).integers(0, 2**16, (100, 130), dtype=np.uint16)
    with tifffile.TiffWriter(path) as tiff:
        for compression, said in ((None, "ImageJ=1.11a\nimages=2\nslices=2\n"), ("zlib", None)):
            tiff.write(pixels, compression=compression, description=said, metadata=None)
    with pytest.raises(ImageError, match="page 1 differs from the others"):
        open_image(path)


@pytest.fixture
def sparse(tmp_path):
    """Return a TIFF of 4 x 5 tiles, two of them missing, and its pixels."""
    pixels = noise((100, 130))
    path = write(tmp_path, pixels, tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages.first.tags
        for name in ("TileOffsets", "TileByteCounts"):
            values = list(tags[name].value)
            values[0] = values[7] = 0
            tags[name].overwrite(values)
    pixels[:32, :32] = pixels[32:64, 64:96] = 0
    return path, pixels


def test_missing_tiles_are_counted_and_refused(sparse):
    with pytest.raises(ImageError, match="2 of its tiles are missing.*--missing fill"):
        open_image(sparse[0])


def test_missing_tiles_are_filled_with_zeros_when_asked(sparse):
    path, pixels = sparse
    image = assert_reads(path, pixels[None], missing="fill")
    assert image.n_missing == image.identity()["missing"] == 2
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(image)).read(WINDOWS[0])[0], pixels)


def test_tiles_that_gdal_leaves_out_are_missing_too(tmp_path):
    """Offset and length 0 (GDAL's SPARSE_OK), in a file that no library wrote."""
    pixels = noise((64, 64))
    corners = [(0, 0), (0, 32), (32, 0), (32, 32)]
    packed = [zlib.compress(pixels[y : y + 32, x : x + 32].tobytes()) for y, x in corners]
    packed[1] = b""
    table = 8 + 2 + 10 * 12 + 4
    offsets = [table + 32 + sum(map(len, packed[:k])) if data else 0 for k, data in enumerate(packed)]
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32, 323: 32}
    entries = [(code, 4, 1, value) for code, value in tags.items()]
    head = directory(*entries, (324, 4, 4, table), (325, 4, 4, table + 16))
    assert len(head) == table
    path = tmp_path / "sparse.tif"
    path.write_bytes(head + struct.pack("<8I", *offsets, *map(len, packed)) + b"".join(packed))
    with pytest.raises(ImageError, match="1 of its tiles is missing.*--missing fill"):
        open_image(path)
    pixels[:32, 32:] = 0
    with open_image(path, missing="fill") as image:
        np.testing.assert_array_equal(image.read(Box((0, 0), (64, 64)))[0], pixels)


def test_the_identity_is_that_of_the_content_not_of_the_path(tmp_path):
    first = write(tmp_path, noise((100, 130)), tile=(32, 32), compression="zlib")
    shutil.copy(first, tmp_path / "copy.tif")
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, noise((100, 130))[::-1], tile=(32, 32), compression="zlib")
    same, copied, changed = (open_image(p).identity() for p in (first, tmp_path / "copy.tif", other))
    assert same == copied
    assert same != changed


def test_reading_a_closed_image_is_an_error(tmp_path):
    for options in ({}, {"compression": "zlib"}):
        image = open_image(write(tmp_path, noise((100, 130)), **options))
        image.close()
        with pytest.raises(ImageError):
            image.read(WINDOWS[0])


def test_what_tifffile_logs_while_opening_is_not_printed(tmp_path, caplog):
    path = write(tmp_path, noise((100, 130)), extratags=[(42113, "s", 0, "no number", True)])
    with caplog.at_level(logging.DEBUG):
        open_image(path).close()
        assert not caplog.records
        tifffile.imread(path)
    assert "GDAL_NODATA" in caplog.text  # others who use tifffile still hear of it


def test_jpeg_2000_tiles_of_an_svs_have_the_colours_that_openslide_shows(tmp_path):
    openslide = pytest.importorskip("openslide", reason="openslide reads the same slide as a second opinion")
    smooth = np.add.outer(np.arange(256), np.arange(256)) // 2
    ycbcr = np.stack([smooth, 255 - smooth, np.full_like(smooth, 90)], axis=-1).astype(np.uint8)
    tile = imagecodecs.jpeg2k_encode(ycbcr, level=0, codecformat="j2k", mct=False)
    path = tmp_path / "image.svs"
    options = {"shape": (256, 256, 3), "dtype": "u1", "tile": (256, 256), "photometric": "rgb", "compression": 33005}
    tifffile.imwrite(path, iter([tile]), description="Aperio Image Library v1|MPP = 0.5", metadata=None, **options)
    for compression, difference in ((33003, 1), (33005, 0)):  # YCbCr, RGB
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages.first.tags["Compression"].overwrite(compression)
        shown = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (256, 256)))[..., :3]
        with open_image(path) as image:
            read = np.moveaxis(image.read(Box((0, 0), (256, 256))), 0, 2)
            assert image.pixel_size == (0.5, 0.5)
        assert np.abs(read.astype(int) - shown).max() <= difference


def test_of_several_images_alike_in_a_file_it_is_said_that_one_is_read(tmp_path, caplog):
    path = tmp_path / "positions.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for value in range(3):
            tiff.write(np.full((60, 70), value, np.uint8))
    with open_image(path) as image:
        assert image.shape == (60, 70)
    assert "positions.ome.tif: holds 3 images, of which one is read, 60 x 70 px" in caplog.text


def test_a_small_image_beside_another_is_a_label_and_not_told(tmp_path, caplog):
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(np.zeros((600, 700), np.uint8))
        tiff.write(np.zeros((60, 70), np.uint8))
    with open_image(path) as image:
        assert image.shape == (600, 700)
    assert not caplog.text


def test_numbers_of_colours_are_told_and_a_table_that_only_shows_greys_in_colour_is_not(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    ramp = np.linspace(0, 2**16 - 1, 256).astype(np.uint16)
    mixed = np.random.default_rng(1).permutation(ramp)
    tables = {
        "green": [0 * ramp, ramp, 0 * ramp],
        "colours": [mixed, ramp, mixed],
    }
    for name, table in tables.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="palette", colormap=np.array(table, np.uint16))
        with open_image(tmp_path / f"{name}.tif") as image:
            assert np.array_equal(image.read(Box((0, 0), (40, 50)))[0], pixels)
    assert caplog.text.count("numbers of a palette") == 1
    said = "colours.tif: its pixels are numbers of a palette, and are read as these numbers, which is right for labels"
    assert said in caplog.text


def test_a_slash_behind_the_name_of_a_file_is_no_damage(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.uint8))
    with open_image(f"{tmp_path / 'a.tif'}/") as image:
        assert image.name == str(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("fault", "kind", "remedy"),
    [
        (OSError(errno.EIO, "Input/output error"), ImageError, "The disk, or the connection to it, failed"),
        (MemoryError(), ImageError, "Use a smaller --tile"),
        (OSError(errno.ESTALE, "Stale file handle"), EnvironmentFault, "run again with --resume"),
        (OSError(errno.EMFILE, "Too many open files"), EnvironmentFault, "run again with --resume"),
        (OSError(errno.ENFILE, "Too many open files in system"), EnvironmentFault, "run again with --resume"),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), EnvironmentFault, "run again with --resume"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), EnvironmentFault, "run again with --resume"),
    ],
)
def test_faults_of_the_machine_are_not_called_damage_of_the_file(tmp_path, monkeypatch, fault, kind, remedy):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(32, 32), compression="zlib")

    def fail(*_):
        raise fault

    with open_image(tmp_path / "a.tif") as image:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(kind, match=rf"a\.tif: tile 0 of page 0 cannot be decoded .*{remedy}"):
            image.read(Box((0, 0), (8, 8)))
