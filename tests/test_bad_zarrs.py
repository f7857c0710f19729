"""Damaged and hostile zarr images: each is one line, one `ImageError`, soon and in little memory."""

import bz2
import gzip
import lzma
import os
import struct

import numcodecs
import numpy as np
import pytest
import zarr
from bad_images import (
    METADATA,
    PIXELS,
    bomb_gzip,
    edit,
    ome_zarr,
    patched,
    put,
)

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image
from tilenet.readers.decoded_size import unpacks_to_more


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


def zstd_without_a_size(n_blocks):
    """Return a zstd frame of repeated zeros that does not state its size, in blocks of 128 KiB (RFC 8878, 3.1.1)."""
    blocks = (2**17 << 3 | 2 | (k == n_blocks - 1) for k in range(n_blocks))
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(block.to_bytes(3, "little") + b"\0" for block in blocks)


SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0skip"  # a zstd frame that decoders skip


@pytest.mark.parametrize(
    ("codec", "small", "bomb"),
    [
        ("gzip", lambda: gzip.compress(b"small"), lambda: bomb_gzip(2**27)),
        ("gzip", lambda: gzip.compress(b"small") + bytes(8), lambda: bomb_gzip(2**27)),
        ("bz2", lambda: bz2.compress(b"small"), lambda: bz2.compress(bytes(2**24))),
        ("lzma", lambda: lzma.compress(b"small"), lambda: lzma.compress(bytes(2**24))),
        ("zstd", lambda: bomb_zstd(9), lambda: zstd_without_a_size(128)),
        ("zstd", lambda: bomb_zstd(9), lambda: bomb_zstd(2**24)),
        ("zstd", lambda: SKIPPED, lambda: zstd_without_a_size(128)),
        ("zstd", lambda: SKIPPED, lambda: bomb_zstd(2**24)),
    ],
)
def test_a_bomb_behind_a_small_stream_counts_because_its_decoder_goes_on_to_it(codec, small, bomb):
    data = small() + bomb()
    decoded = numcodecs.get_codec({"id": codec}).decode(data)
    assert len(decoded) >= 2**24
    assert unpacks_to_more(data, codec, limit=2**20)
    assert not unpacks_to_more(data, codec, limit=len(decoded))


@pytest.mark.parametrize("codec", ["gzip", "bz2", "lzma", "zstd", "zlib"])
@pytest.mark.parametrize("content", [b"", b"\x28\xb5\x2f\xfd", b"nonsense", bytes(2**17)])
def test_what_no_decoder_accepts_is_left_to_the_decoder_to_refuse(codec, content):
    assert not unpacks_to_more(content, codec, limit=10)


@pytest.mark.usefixtures("zarr_reads")
def test_chunks_that_lie_side_by_side_in_a_shard_are_checked_one_by_one(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)
    path, part = tmp_path / "image.zarr", Box((0, 0), (128, 384))
    zarr.create_array(path, data=pixels, chunks=(128, 128), shards=(512, 512), compressors=zarr.codecs.BloscCodec())
    assert np.array_equal(open_image(path).read(part)[0], pixels[:128, :384])
    patched(path / "c" / "0" / "0", 4, struct.pack("<I", 2**30))
    with pytest.raises(ImageError, match="unpacks to more than"):
        open_image(path).read(part)


@pytest.mark.usefixtures("zarr_reads")
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
    "changed",
    [{"chunks": [0, 0]}, {"compressor": {"id": "nonsense"}}, {"dtype": "<c8"}, {"dtype": "|O"}, {"order": "Q"}],
)
def test_damaged_metadata_of_zarr_v2_are_refused(tmp_path, refused, changed):
    zarr.create_array(tmp_path / "image.zarr", data=PIXELS, chunks=(32, 32), zarr_format=2)
    edit(tmp_path / "image.zarr" / ".zarray", put(**changed))
    refused(tmp_path / "image.zarr", reading="chunks" in changed)  # which are pixels for zarr 3.2 and later


def test_groups_that_are_no_image_say_what_to_open_instead(tmp_path, refused):
    plain_group = zarr.create_group(tmp_path / "group.zarr")
    plain_group.create_array("inside", data=PIXELS)
    refused(tmp_path / "group.zarr", says="inside")
    zarr.create_group(tmp_path / "plate.zarr").attrs["ome"] = {"plate": {}}
    refused(tmp_path / "plate.zarr", says="plate")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", says="no zarr metadata")
