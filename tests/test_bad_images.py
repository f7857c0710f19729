"""Damaged and hostile images: each is one line, one `ImageError`, soon and in little memory."""

import gzip
import json
import os
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image

PIXELS = np.repeat(np.random.default_rng(0).integers(0, 255, (128, 96), dtype=np.uint8), 2, axis=1)  # (128, 192)


def peak_memory(*, reset=False):
    """Return the peak resident kibibytes of this process, since the last reset; 0 where not to be had."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    except OSError:
        return 0


@pytest.fixture
def refused():
    """Return a check that an image is refused on opening, or (`reading`) on reading it whole."""

    def check(path, *, reading=False, says=""):
        before, start = peak_memory(reset=True), time.monotonic()
        with pytest.raises(ImageError) as caught:
            image = open_image(path)
            if reading:
                image.read(Box.of_shape(image.box_shape))
        message = str(caught.value)
        assert "\n" not in message
        assert os.fspath(path) in message
        assert says in message
        assert message.count(". ") >= 1, "no way out is named"
        assert time.monotonic() - start < 10
        assert peak_memory() - before < 512 * 1024
        return message

    return check


def tiff(folder, pixels=PIXELS, name="image.tif", **options):
    path = folder / name
    tifffile.imwrite(path, pixels, **({"tile": (32, 32), "compression": "zlib"} | options))
    return path


def set_tag(path, name, value, **options):
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags[name].overwrite(value, **options)


def patched(path, at, data):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def first_ifd(path):
    return struct.unpack("<I", path.read_bytes()[4:8])[0]


def directory(*entries, following=0, at=8):
    """Return a little-endian classic TIFF of one directory of (code, type, count, value) entries."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", at) + struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


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
    "no rows": (directory(*plain(64, 0)) + bytes(8000), ""),
    "no rows a strip": (directory(*plain(_278=(4, 0))) + bytes(8000), ""),
    "an unknown compression": (directory(*plain(_259=(3, 4711))) + bytes(8000), "4711"),
    "bits that no pixel has": (directory(*plain(_258=(3, 77))) + bytes(8000), ""),
    "complex pixels": (directory(*plain(_258=(3, 64), _339=(3, 6), _279=(4, 32768))) + bytes(50000), "complex64"),
    "65535 samples": (directory(*plain(_277=(3, 65535))) + bytes(8000), ""),
    "tiles of no size": (directory(*plain(), (322, 4, 1, 0), (323, 4, 1, 0), (324, 4, 1, 400), (325, 4, 1, 9)), ""),
    "a table longer than the file": (directory(*plain()[:5], (273, 4, 10**6, 400), *plain()[6:]) + bytes(8000), ""),
    "four billion tiles": (directory(*plain()[:5], (273, 4, 2**32 - 1, 400), *plain()[6:]) + bytes(8000), "lists"),
    "a gigabyte of description": (directory(*plain(), (270, 2, 2**30, 400)) + bytes(8000), "tag 270"),
    "a PNG of no content": (b"\x89PNG\r\n\x1a\n", ""),
    "a JPEG of no content": (b"\xff\xd8\xff\xe0", ""),
    "a JPEG of 65500 x 65500 px": (b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 65500, 65500) + bytes(9), "GiB"),
    "a PNG of 2^31 px": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1) + bytes(9), "GiB"),
    "a BMP of no content": (b"BM" + bytes(60), ""),
}


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


def test_a_loop_of_many_directories_is_found(tmp_path, refused):
    n, size = 300, 2 + 9 * 12 + 4
    pages = [directory(*plain(), following=8 + size * ((i + 1) if i + 1 < n else 150))[8:] for i in range(n)]
    refused(file_of(tmp_path, b"II*\0\x08\0\0\0" + b"".join(pages) + bytes(8000)), says="in a circle")


def test_too_few_offsets_are_refused_with_their_number(tmp_path, refused):
    path = tiff(tmp_path)
    set_tag(path, "TileOffsets", [8, 8, 8])
    refused(path, says="lists 3 tiles or strips of the 24")


def test_one_tile_of_30000_px_a_side_is_refused_when_it_exceeds_a_gibibyte(tmp_path, refused):
    path = tiff(tmp_path, tile=(128, 192))
    for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
        set_tag(path, name, 40000)
    refused(path, says="GiB")


def test_an_uncompressed_image_larger_than_its_file_is_refused(tmp_path, refused):
    path = tiff(tmp_path, tile=None, compression=None)
    set_tag(path, "ImageLength", 12800)
    set_tag(path, "RowsPerStrip", 12800)
    refused(path, says="is cut off")


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg"])
def test_tiles_too_large_for_their_bytes_are_refused_on_opening(tmp_path, refused, compression):
    path = tiff(tmp_path, tile=(128, 192), compression=compression)
    for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
        set_tag(path, name, 20000)
    refused(path, says="too few to fill them")


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


# Zarr: a sound image of two levels, and what is done to it.
def ome_zarr(folder, *, name="image.zarr", **options):
    group = zarr.create_group(folder / name)
    for k in range(2):
        options = {"chunks": (32, 32), "shards": (64, 64)} | options
        group.create_array(str(k), data=PIXELS[:: 2**k, :: 2**k], **options)
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [2**k] * 2}]} for k in range(2)
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return folder / name


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def levels(document):
    return document["attributes"]["ome"]["multiscales"][0]["datasets"]


def chunk_grid(shape):
    def change(document):
        document["chunk_grid"]["configuration"]["chunk_shape"] = shape

    return change


def codec(**to):
    def change(document):
        document["codecs"][0]["configuration"]["codecs"][-1] = to

    return change


def inner_chunks(shape):
    def change(document):
        document["codecs"][0]["configuration"]["chunk_shape"] = shape

    return change


def put(**to):
    return lambda document: document.update(to)


def level_path(path):
    return lambda document: levels(document)[1].update(path=path)


METADATA = {
    "an unknown codec": ("0", codec(name="nonsense", configuration={}), "nonsense"),
    "chunks of 0": ("0", inner_chunks([0, 32]), ""),
    "chunks of -1": ("0", inner_chunks([-1, 32]), ""),
    "chunks of one axis": ("0", chunk_grid([64]), ""),
    "huge chunks": ("0", lambda d: [chunk_grid([2**16, 2**16])(d), inner_chunks([2**16, 2**16])(d)], "GiB"),
    "a huge shard index": ("0", lambda d: [chunk_grid([2**20, 2**20])(d), inner_chunks([1, 1])(d)], "GiB"),
    "a shape of 2^62": ("0", put(shape=[2**62, 2**62]), ""),
    "a negative shape": ("0", put(shape=[-5, 10]), ""),
    "a shape of 0": ("0", put(shape=[0, 10]), "no pixels"),
    "a shape of text": ("0", put(shape="wide"), ""),
    "no shape": ("0", lambda d: d.pop("shape"), ""),
    "three axes": ("0", put(shape=[2, 128, 192]), ""),
    "a type of complex numbers": ("0", put(data_type="complex64", fill_value=[0, 0]), ""),
    "a type unknown": ("0", put(data_type="float7"), ""),
    "a format unknown": ("0", put(zarr_format=9), ""),
    "another type in level 1": ("1", put(data_type="uint16"), ""),
    "a path out of the group": ("", level_path("../other.zarr/0"), "outside"),
    "an absolute path": ("", level_path("/etc"), "outside"),
    "an address": ("", level_path("s3://bucket/0"), "outside"),
    "a level that is not there": ("", level_path("7"), "lacks 7"),
    "a level that is the group": ("", level_path("."), ""),
    "no levels": ("", lambda d: levels(d).clear(), "no resolution levels"),
    "a level without a path": ("", lambda d: levels(d)[0].pop("path"), ""),
    "a scale of three": ("", lambda d: levels(d)[0]["coordinateTransformations"][0].update(scale=[1, 1, 1]), ""),
    "a scale of text": ("", lambda d: levels(d)[0]["coordinateTransformations"][0].update(scale=["a", "b"]), ""),
    "axes twice": ("", lambda d: d["attributes"]["ome"]["multiscales"][0].update(axes=["y", "y"]), "twice"),
    "axes unknown": ("", lambda d: d["attributes"]["ome"]["multiscales"][0].update(axes=["p", "q"]), "--axes"),
    "multiscales of text": ("", lambda d: d["attributes"]["ome"].update(multiscales="all"), ""),
    "attributes of a list": ("", lambda d: d.update(attributes=[1]), ""),
}


@pytest.mark.parametrize("name", METADATA)
def test_zarr_metadata_that_makes_no_sound_image_is_refused(tmp_path, refused, name):
    where, change, says = METADATA[name]
    path = ome_zarr(tmp_path)
    assert open_image(path).shape == (128, 192)
    edit(path / where / "zarr.json", change)
    refused(path, says=says)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"zarr_format": 3}'],
)
@pytest.mark.parametrize("where", ["", "0"])
def test_a_zarr_document_that_is_cut_or_nested_is_refused(tmp_path, refused, content, where):
    path = ome_zarr(tmp_path)
    (path / where / "zarr.json").write_bytes(content)
    refused(path)


def test_a_zarr_document_of_many_megabytes_is_refused(tmp_path, refused):
    path = ome_zarr(tmp_path)
    (path / "zarr.json").write_bytes(b" " * (17 * 2**20))
    refused(path, says="too many for metadata")


@pytest.mark.parametrize("keep", [0, 3, 50, 0.9])
def test_a_truncated_shard_is_found_on_opening(tmp_path, refused, keep):
    path = ome_zarr(tmp_path)
    shard = path / "0" / "c" / "1" / "1"
    content = shard.read_bytes()
    shard.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refused(path, says="c/1/1 is cut off")


def test_an_empty_chunk_is_found_on_opening(tmp_path, refused):
    path = ome_zarr(tmp_path, shards=None)
    (path / "0" / "c" / "2" / "3").write_bytes(b"")
    refused(path, says="c/2/3 is cut off after 0 bytes")


@pytest.mark.parametrize("damage", [b"\0" * 12, b"\xff" * 12])
def test_a_damaged_chunk_is_refused_when_it_is_read(tmp_path, refused, damage):
    path = ome_zarr(tmp_path, shards=None)
    patched(path / "0" / "c" / "1" / "2", 0, damage)
    refused(path, reading=True, says="level 0")


def test_a_chunk_file_larger_than_any_chunk_is_refused(tmp_path, refused):
    path = ome_zarr(tmp_path, shards=None)
    with (path / "0" / "c" / "0" / "0").open("r+b") as file:
        file.truncate(2**34)  # sparse: takes no room on the disk
    refused(path, says="17179869184 bytes")


def bomb_gzip(size):
    import io

    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as file:
        for _ in range(size // 2**24):
            file.write(bytes(2**24))
    return out.getvalue()


def bomb_zstd(size):
    import imagecodecs

    return bytes(imagecodecs.zstd_encode(bytes(size), level=9))


def bomb_blosc(size):
    import imagecodecs

    return bytes(imagecodecs.blosc_encode(bytes(size), level=9))


@pytest.mark.parametrize(
    ("compressor", "bomb"),
    [
        (zarr.codecs.GzipCodec(), lambda: bomb_gzip(2**29)),
        (zarr.codecs.ZstdCodec(), lambda: bomb_zstd(2**29)),
        (zarr.codecs.BloscCodec(), lambda: bomb_blosc(2**27)),
    ],
)
def test_a_decompression_bomb_in_a_chunk_is_refused(tmp_path, refused, compressor, bomb):
    pixels = np.zeros((1024, 1024), np.uint8)
    zarr.create_array(tmp_path / "image.zarr", data=pixels + 1, chunks=(1024, 1024), compressors=compressor)
    (tmp_path / "image.zarr" / "c" / "0" / "0").write_bytes(bomb())
    refused(tmp_path / "image.zarr", reading=True)


def test_a_bomb_inside_a_shard_is_refused_when_all_of_the_shard_is_read(tmp_path, refused):
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)
    options = {"chunks": (256, 256), "shards": (512, 512), "compressors": zarr.codecs.BloscCodec()}
    zarr.create_array(tmp_path / "image.zarr", data=pixels, **options)
    # Bytes 4 to 8 of a blosc chunk say what it unpacks to.
    patched(tmp_path / "image.zarr" / "c" / "0" / "0", 4, struct.pack("<I", 2**30))
    refused(tmp_path / "image.zarr", reading=True, says="unpacks to more")


@pytest.mark.parametrize("where", ["0/c", "0/c/0", "0"])
def test_a_link_out_of_the_image_is_refused(tmp_path, refused, where):
    path = ome_zarr(tmp_path)
    (path / where).rename(tmp_path / "elsewhere")
    (path / where).symlink_to(tmp_path / "elsewhere")
    refused(path, says="link")


def test_a_link_to_a_whole_image_is_followed(tmp_path):
    (tmp_path / "link.zarr").symlink_to(ome_zarr(tmp_path))
    assert open_image(tmp_path / "link.zarr").read(Box((0, 0), (128, 192))).shape == (1, 128, 192)


def test_a_pipe_among_the_chunks_is_refused(tmp_path, refused):
    path = ome_zarr(tmp_path)
    (path / "0" / "c" / "0" / "0").unlink()
    os.mkfifo(path / "0" / "c" / "0" / "0")
    refused(path, says="is not a file")


@pytest.mark.parametrize(
    "change",
    [put(chunks=[0, 0]), put(compressor={"id": "nonsense"}), put(dtype="<c8"), put(dtype="|O"), put(order="Q")],
)
def test_damaged_metadata_of_zarr_v2_are_refused(tmp_path, refused, change):
    zarr.create_array(tmp_path / "image.zarr", data=PIXELS, chunks=(32, 32), zarr_format=2)
    edit(tmp_path / "image.zarr" / ".zarray", change)
    refused(tmp_path / "image.zarr")


def test_groups_that_are_no_image_say_what_to_open_instead(tmp_path, refused):
    plain_group = zarr.create_group(tmp_path / "group.zarr")
    plain_group.create_array("inside", data=PIXELS)
    refused(tmp_path / "group.zarr", says="inside")
    zarr.create_group(tmp_path / "plate.zarr").attrs["ome"] = {"plate": {}}
    refused(tmp_path / "plate.zarr", says="plate")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", says="no zarr metadata")


def test_a_path_that_no_system_takes_is_refused(tmp_path, refused):
    refused(tmp_path / ("long" * 2000))
    refused(str(tmp_path / "nul\0byte"))
