"""Damaged and hostile TIFFs and pictures: each is one line, one `ImageError`, soon and in little memory."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from bad_images import directory, patched, tiff

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image

FUZZ = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"


def set_tag(path, name, value, **options):
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags[name].overwrite(value, **options)


def plain(width=64, length=64, **changes):
    """Return the entries of a small uncompressed grey image whose data lie at byte 400."""
    tags = {256: (4, width), 257: (4, length), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 400), 277: (3, 1)}
    tags |= {278: (4, length), 279: (4, width * length)} | {int(k[1:]): v for k, v in changes.items()}
    return [(code, kind, 1, value) for code, (kind, value) in tags.items()]


def file_of(folder, content, name="image.tif"):
    path = folder / name
    path.write_bytes(content)
    return path


WHOLE_FILES = {
    "empty": (b"", "is empty"),
    "text": (b"this is not an image at all", "not an image"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "an HTML page": (b"<html><body>404</body></html>", "not an image"),
    "only a byte order": (b"II", "not an image"),
    "only a header": (b"II*\0\0\0\0\0", "only the header"),
    "half a header": (b"II*\0\x08", "ends in its header"),
    "a BigTIFF header only": (b"II+\0\x08\0\0\0" + bytes(8), "only the header"),
    "half a BigTIFF header": (b"II+\0\x08\0\0\0", ""),
    "a BigTIFF of odd offsets": (b"II+\0\x05\0\0\0" + struct.pack("<QQ", 16, 0) + bytes(100), ""),
    "a directory beyond the end": (b"II*\0" + struct.pack("<I", 10**6) + bytes(50), "ends beyond that"),
    "a directory cut off": (directory(*plain())[:60], "ends beyond that"),
    "65535 tags": (b"II*\0\x08\0\0\0\xff\xff" + bytes(10**6), "65535 tags"),
    "no tags": (b"II*\0\x08\0\0\0\0\0" + bytes(100), "0 tags"),
    "a directory that follows itself": (directory(*plain(), following=8) + bytes(8000), "in a circle"),
    "no offsets": (directory(*[e for e in plain() if e[0] != 273]) + bytes(8000), ""),
    "no width": (directory(*[e for e in plain() if e[0] != 256]) + bytes(8000), ""),
    "offset zero": (directory(*plain(_273=(4, 0))) + bytes(8000), "missing"),
    "data cut off": (directory(*plain()) + bytes(2000), "is cut off"),
    "2^31 x 2^31 px": (directory(*plain(2**31 - 1, 2**31 - 1, _279=(4, 1000))) + bytes(8000), ""),
    "2^32 - 1 px in a side": (directory(*plain(2**32 - 1, 1)) + bytes(8000), ""),
    "a negative number of rows": (directory(*plain(_257=(6, 240))) + bytes(8000), "of the type 6 in its tag 257"),
    "a width that is no whole number": (directory(*plain(_256=(11, 0x42800000))) + bytes(8000), "of the type 11"),
    "no rows": (directory(*plain(64, 0)) + bytes(8000), ""),
    "no rows a strip": (directory(*plain(_278=(4, 0))) + bytes(8000), ""),
    "an unknown compression": (directory(*plain(_259=(3, 4711))) + bytes(8000), "4711"),
    "bits that no pixel has": (directory(*plain(_258=(3, 77))) + bytes(8000), ""),
    "complex pixels": (directory(*plain(_258=(3, 64), _339=(3, 6), _279=(4, 32768))) + bytes(50000), "complex64"),
    "65535 samples": (directory(*plain(_277=(3, 65535))) + bytes(8000), ""),
    "tiles of no size": (directory(*plain(), (322, 4, 1, 0), (323, 4, 1, 0), (324, 4, 1, 400), (325, 4, 1, 9)), ""),
    "a table longer than the file": (directory(*plain()[:5], (273, 4, 10**6, 400), *plain()[6:]) + bytes(8000), ""),
    "four billion tiles": (directory(*plain()[:5], (273, 4, 2**32 - 1, 400), *plain()[6:]) + bytes(8000), "lists"),
    "a description cut off": (directory(*plain(), (270, 2, 100, 8200)) + bytes(8000), "its tag 270 ends beyond that"),
    "a gigabyte of description": (directory(*plain(), (270, 2, 2**30, 400)) + bytes(8000), "tag 270"),
    "a PNG of no content": (b"\x89PNG\r\n\x1a\n", ""),
    "a JPEG of no content": (b"\xff\xd8\xff\xe0", ""),
    "a JPEG of 65500 x 65500 px": (b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 65500, 65500) + bytes(9), "GiB"),
    "a PNG of 2^31 px": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1) + bytes(9), "GiB"),
    "a BMP of no content": (b"BM" + bytes(60), ""),
}


def test_the_preview_of_a_vsi_slide_is_not_taken_for_the_slide(tmp_path):
    tifffile.imwrite(tmp_path / "slide.vsi", np.zeros((40, 50), np.uint8))
    with pytest.raises(ImageError, match=r"slide\.vsi: is a VSI slide.* Convert it"):
        open_image(tmp_path / "slide.vsi")
    (tmp_path / "slide.vsi").rename(tmp_path / "slide.tif")
    open_image(tmp_path / "slide.tif").close()


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_file_that_is_no_sound_image_is_refused_on_opening(tmp_path, refused, name):
    content, says = WHOLE_FILES[name]
    refused(file_of(tmp_path, content), says=says)


def test_the_small_tiff_that_these_damages_start_from_is_sound(tmp_path):
    image = open_image(file_of(tmp_path, directory(*plain()) + bytes(8000)))
    assert image.read(Box((0, 0), (64, 64))).shape == (1, 64, 64)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"tile": None, "compression": None}])
def test_a_truncated_tiff_is_refused_before_it_is_read(tmp_path, refused, keep, options):
    path = tiff(tmp_path, **options)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refused(path)


def test_a_truncated_level_of_a_real_pyramid_is_found(shared_data, tmp_path, refused):
    content = shared_data("derived/test3_DAPI_gray_pyramid.ome.tif").read_bytes()
    refused(file_of(tmp_path, content[: len(content) // 2], "half.ome.tif"))


def test_ome_xml_that_lacks_its_last_bytes_is_not_left_out(shared_data, tmp_path, refused):
    content = shared_data("derived/cardiomyocyte_3ch_pyramid.ome.tif").read_bytes()  # it ends with its OME-XML
    refused(file_of(tmp_path, content[:-1], "cut.ome.tif"), says="its tag 270 ends beyond that")


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ('<!DOCTYPE a [<!ENTITY e "b">]><OME>&e;</OME>', "its OME-XML defines a type of its own"),
        ("<OME>" + "<a/>" * 99 + "</OME>", "its OME-XML has 103 tags and attributes, over 100"),
    ],
)
def test_ome_xml_that_grows_in_memory_is_refused_before_it_is_parsed(tmp_path, refused, monkeypatch, xml, says):
    monkeypatch.setattr("tilenet.readers.tiff_metadata.MOST_MARKS", 100)
    path = tmp_path / "grows.ome.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), description=f'<?xml version="1.0"?>{xml}', metadata=None)
    refused(path, says=says)


def test_a_loop_of_many_directories_is_found(tmp_path, refused):
    n, size = 300, 2 + 9 * 12 + 4
    pages = [directory(*plain(), following=8 + size * ((i + 1) if i + 1 < n else 150))[8:] for i in range(n)]
    refused(file_of(tmp_path, b"II*\0\x08\0\0\0" + b"".join(pages) + bytes(8000)), says="in a circle")


def test_too_few_offsets_are_refused_with_their_number(tmp_path, refused):
    path = tiff(tmp_path)
    set_tag(path, "TileOffsets", [8, 8, 8])
    refused(path, says="lists 3 tiles or strips of the 24")


def test_an_uncompressed_image_larger_than_its_file_is_refused(tmp_path, refused):
    path = tiff(tmp_path, tile=None, compression=None)
    set_tag(path, "ImageLength", 12800)
    set_tag(path, "RowsPerStrip", 12800)
    refused(path, says="is cut off")


@pytest.mark.parametrize(
    ("compression", "side", "says"),
    [
        *((compression, 20000, "too few to fill them") for compression in ("zlib", "lzw", "jpeg")),
        ("zlib", 40000, "GiB"),
    ],
)
def test_a_tile_too_large_for_its_bytes_or_for_memory_is_refused_on_opening(tmp_path, refused, compression, side, says):
    path = tiff(tmp_path, tile=(128, 192), compression=compression)
    for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
        set_tag(path, name, side)
    refused(path, says=says)


@pytest.mark.parametrize("number", [0, 11])
def test_a_damaged_tile_is_named_when_it_is_read(tmp_path, refused, number):
    path = tiff(tmp_path)
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[number]
    message = refused(patched(path, offset, b"\xff" * 8), reading=True)
    assert f"tile {number} of page 0" in message


@pytest.mark.parametrize("size", [(65000, 65000), (16, 16)])
def test_a_jpeg_tile_of_another_size_than_its_tile_is_refused(tmp_path, refused, size):
    path = tiff(tmp_path, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages.first.dataoffsets[3], file.pages.first.databytecounts[3]
    at = path.read_bytes().index(b"\xff\xc0", offset, offset + count)
    refused(patched(path, at + 5, struct.pack(">HH", *size)), reading=True, says="tile 3 of page 0")


def test_a_deflate_bomb_in_a_tile_is_refused(tmp_path, refused):
    import zlib

    path = tiff(tmp_path)
    bomb = zlib.compress(bytes(2**28), 9)
    with tifffile.TiffFile(path, mode="r+") as file:
        offsets, counts = (list(file.pages.first.tags[n].value) for n in ("TileOffsets", "TileByteCounts"))
    offsets[0], counts[0] = path.stat().st_size, len(bomb)
    path.write_bytes(path.read_bytes() + bomb)
    set_tag(path, "TileOffsets", offsets)
    set_tag(path, "TileByteCounts", counts, dtype="I")
    refused(path, reading=True)


def ome(**sizes):
    sizes = {"X": 192, "Y": 128, "Z": 1, "C": 1, "T": 1} | sizes
    attributes = " ".join(f'Size{k}="{v}"' for k, v in sizes.items())
    return (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYZCT" Type="uint8" {attributes}><TiffData IFD="0"/></Pixels></Image></OME>'
    )


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (ome(Z=2000000000), "planes"),
        (ome(Z="many"), ""),
        (ome(Z=5), "missing"),
        (ome(X=50), ""),
        (ome().replace('IFD="0"/>', 'IFD="0"><UUID FileName="/etc/passwd">a</UUID></TiffData>'), "not beside it"),
        (ome().replace('IFD="0"/>', 'IFD="0"><UUID FileName="../a.tif">a</UUID></TiffData>'), "not beside it"),
        (ome().replace('IFD="0"/>', 'IFD="0" PlaneCount="999999999"/>'), "planes"),
        (ome().replace("</Image>", ""), ""),
    ],
)
def test_damaged_ome_xml_is_refused(tmp_path, refused, document, says):
    refused(tiff(tmp_path, name="image.ome.tif", description=document, metadata=None), says=says)


@pytest.mark.parametrize(
    "about", [{"shape": [10**6, 128, 192]}, {"shape": [7, 7]}, {"shape": [128, 192], "axes": "YY"}]
)
def test_a_shape_that_is_not_that_of_the_pages_is_refused_or_ignored(tmp_path, about):
    path = tiff(tmp_path, description=json.dumps(about), metadata=None)
    try:
        assert open_image(path).shape == (128, 192)
    except ImageError as error:
        assert "\n" not in str(error)


def test_a_path_that_no_system_takes_is_refused(tmp_path, refused):
    refused(tmp_path / ("long" * 2000))
    refused(str(tmp_path / "nul\0byte"))


def test_of_files_with_a_few_bytes_changed_each_is_opened_or_refused():
    done = subprocess.run([sys.executable, FUZZ, "--mutations", "150"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    name, count, opened, refused, fault = done.stdout.splitlines()[-2].split()
    assert (name, int(count), int(fault)) == ("all", 150, 0)
    assert int(opened) > 20 and int(refused) > 20
