"""Kinds of zarr that the shared data lack, and what OME-Zarr metadata mean."""

import json
import logging
import shutil

import numpy as np
import pytest
import zarr
from ome_images import CHANNELS, write_channels
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("options", [{}, {"compressors": None}, {"chunks": (2, 100, 40)}, {"shards": (2, 64, 64)}])
def test_a_plain_array_is_read_once_its_axes_are_said(tmp_path, zarr_format, options):
    if zarr_format == 2 and "shards" in options:
        pytest.skip("zarr v2 has no shards")
    options = {"chunks": (1, 32, 32)} | options
    zarr.create_array(tmp_path / "plain.zarr", data=CHANNELS, zarr_format=zarr_format, **options)
    with pytest.raises(ImageError, match="\\(3, 100, 130\\).*--axes"):
        open_image(tmp_path / "plain.zarr")
    image = open_image(tmp_path / "plain.zarr", axes="zyx")
    assert (image.axes, image.pixel_size) == ("zyx", (None, None, None))
    np.testing.assert_array_equal(image.read(Box((0, 0, 0), (3, 100, 130)))[0], CHANNELS)
    np.testing.assert_array_equal(image.read(Box((1, 31, 5), (3, 66, 129)))[0], CHANNELS[1:, 31:66, 5:129])


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("box", [Box((0, 0), (64, 64)), Box((0, 0), (100, 130)), Box((3, 4), (9, 30))])
def test_shards_are_read_whole_and_in_parts_wherever_their_index_is(tmp_path, location, box):
    codec = zarr.codecs.ShardingCodec(
        chunk_shape=(1, 32, 32), codecs=[zarr.codecs.BytesCodec(), zarr.codecs.BloscCodec()], index_location=location
    )
    options = {"chunks": (3, 64, 64), "serializer": codec, "compressors": None, "filters": None}
    zarr.create_array(tmp_path / "a", data=CHANNELS, **options)
    read = open_image(tmp_path / "a", axes="cyx").read(box)
    np.testing.assert_array_equal(read, CHANNELS[:, *box.slices])


@pytest.mark.parametrize("codec", [zarr.codecs.GzipCodec(), zarr.codecs.ZstdCodec(), zarr.codecs.BloscCodec()])
def test_every_common_codec_passes_the_check_for_bombs(tmp_path, codec):
    for name, pixels in (("noise", CHANNELS), ("flat", np.zeros_like(CHANNELS) + 7)):
        zarr.create_array(tmp_path / name, data=pixels, chunks=(3, 100, 130), compressors=codec)
        read = open_image(tmp_path / name, axes="cyx").read(Box((0, 0), (100, 130)))
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_uncompressed_chunks_are_not_copied_to_be_checked(tmp_path, monkeypatch, zarr_format):
    options = {"chunks": (3, 64, 64), "compressors": None, "zarr_format": zarr_format}
    zarr.create_array(tmp_path / "a", data=CHANNELS, **options)
    image, real = open_image(tmp_path / "a", axes="cyx"), Buffer.to_bytes
    copied = []
    monkeypatch.setattr(Buffer, "to_bytes", lambda self: (copied.append(len(self)), real(self))[1])
    np.testing.assert_array_equal(image.read(Box((0, 0), (100, 130))), CHANNELS)
    assert max(copied, default=0) < 1000


@pytest.mark.parametrize("codec", ["zlib", "bz2", "lzma", "lz4", "zstd", "gzip", "blosc"])
def test_every_common_codec_of_zarr_v2_passes_the_check_for_bombs(tmp_path, codec):
    import numcodecs

    compressor = numcodecs.get_codec({"id": codec})
    zarr.create_array(tmp_path / "a", data=CHANNELS, chunks=(3, 64, 64), compressors=compressor, zarr_format=2)
    read = open_image(tmp_path / "a", axes="cyx").read(Box((0, 0), (100, 130)))
    np.testing.assert_array_equal(read, CHANNELS)


def test_dimension_names_of_zarr_v3_and_of_xarray_say_the_axes(tmp_path):
    zarr.create_array(tmp_path / "v3", data=CHANNELS, dimension_names=["c", "y", "x"])
    zarr.create_array(tmp_path / "v2", data=CHANNELS, zarr_format=2, attributes={"_ARRAY_DIMENSIONS": ["z", "y", "x"]})
    zarr.create_array(tmp_path / "other", data=CHANNELS, dimension_names=["band", "row", "column"])
    assert (open_image(tmp_path / "v3").axes, open_image(tmp_path / "v2").axes) == ("cyx", "zyx")
    with pytest.raises(ImageError, match="--axes"):
        open_image(tmp_path / "other")


def test_chunks_that_were_never_written_are_the_fill_value(tmp_path):
    array = zarr.create_array(tmp_path / "a", shape=(64, 64), chunks=(32, 32), dtype="u1", fill_value=9)
    array[:32, :32] = 5
    pixels = open_image(tmp_path / "a").read(Box((0, 0), (64, 64)))[0]
    assert (pixels[:32, :32] == 5).all()
    assert (pixels[32:] == 9).all()


@pytest.mark.parametrize("unit", ["angstrom", "foot", "inch", "mile", "parsec", "yard", "yoctometer"])
def test_units_of_length_that_ome_zarr_defines_are_kept_in_the_frame(tmp_path, unit):
    frame = open_image(write_channels(tmp_path, unit=unit)).frame
    assert [axis["unit"] for axis in frame["axes"]] == [unit] * 2
    assert frame["scale"] == [0.5, 0.25]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("unit", "factor"), [("micrometer", 1), ("nanometer", 1e-3), ("millimeter", 1e3), ("pixel", None), (None, None)]
)
def test_scales_are_micrometres_whatever_their_unit(tmp_path, version, unit, factor):
    image = open_image(write_channels(tmp_path, unit=unit, version=version), level=1)
    assert image.pixel_size == (
        (None, None) if factor is None else (pytest.approx(factor), pytest.approx(0.5 * factor))
    )


def test_a_level_without_a_scale_follows_from_the_finest(tmp_path):
    assert open_image(write_channels(tmp_path, scaled=1), level=1).pixel_size == (1.0, 0.5)


def test_the_scale_of_the_whole_multiscale_multiplies_that_of_its_levels(tmp_path):
    path = write_channels(tmp_path)
    attributes = dict(zarr.open_group(path).attrs)
    attributes["ome"]["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 10, 10]}]
    zarr.open_group(path).attrs.update(attributes)
    assert open_image(path).pixel_size == (5.0, 2.5)


def test_channel_labels_are_taken_only_when_there_is_one_for_each_channel(tmp_path):
    three = [{"label": a} for a in ("red", "", "blue")]
    assert open_image(write_channels(tmp_path / "a", omero={"channels": three})).channel_names == ("red", "", "blue")
    assert open_image(write_channels(tmp_path / "b", omero={"channels": three[:2]})).channel_names == ("", "", "")


def test_only_the_chunks_of_a_box_are_fetched(tmp_path, monkeypatch):
    image = open_image(write_channels(tmp_path))
    fetched, get = [], LocalStore.get

    async def counting(self, key, *arguments, **options):
        fetched.append(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(LocalStore, "get", counting)
    image.read(Box((31, 63), (33, 65)))
    assert sorted(fetched) == sorted(f"c/{c}/{y}/{x}" for c in range(3) for y in (0, 1) for x in (1, 2))


def test_the_identity_follows_the_metadata(tmp_path):
    path = write_channels(tmp_path)
    before = open_image(path).identity()
    assert before == open_image(path).identity()
    json.dumps(before)
    zarr.open_group(path).attrs["note"] = "changed"
    assert open_image(path).identity() != before


def test_opening_prints_and_warns_nothing(tmp_path, caplog, capsys):
    path = write_channels(tmp_path)
    (path / "notes.txt").write_text("not zarr")
    with caplog.at_level(logging.DEBUG, logger="zarr"):
        open_image(path)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


# Arrays that another library wrote


V2 = [{}, {"compressor": {"id": "zlib", "level": 5}, "dimension_separator": "/"}, {"compressor": None, "order": "F"}]
SHARDED = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [1, 32, 32],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}],
        "index_location": "start",
    },
}
V3 = [
    {},
    {
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "big"}},
            {"name": "gzip", "configuration": {"level": 5}},
        ]
    },
    {"codecs": [SHARDED], "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 64, 64]}}},
    {"codecs": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}, {"name": "bytes"}, {"name": "blosc"}]},
]


def by_tensorstore(path, pixels, driver, metadata):
    """Write an array with tensorstore."""
    tensorstore = pytest.importorskip("tensorstore", reason="another library that writes zarr: pip install tensorstore")
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    array = tensorstore.open(spec, create=True, dtype=pixels.dtype.name, shape=pixels.shape).result()
    array.write(pixels).result()


@pytest.mark.parametrize(
    ("driver", "metadata"), [("zarr", m) for m in V2] + [("zarr3", m) for m in V3], ids=lambda value: str(value)[:40]
)
def test_arrays_that_another_library_wrote_are_read(tmp_path, driver, metadata):
    by_tensorstore(
        tmp_path / "a.zarr", CHANNELS, driver, {"chunks": [1, 50, 40]} | metadata if driver == "zarr" else metadata
    )
    image = open_image(tmp_path / "a.zarr", axes="cyx")
    for box in (Box((0, 0), (100, 130)), Box((31, 5), (66, 129))):
        np.testing.assert_array_equal(image.read(box), CHANNELS[:, *box.slices])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_whose_arrays_another_library_wrote_is_read(tmp_path, version):
    path = write_channels(tmp_path, axes="czyx", scale=(1, 2, 0.5, 0.25), version=version)
    for k in range(2):
        pixels = CHANNELS[:, None, :: 2**k, :: 2**k]
        shutil.rmtree(path / str(k))
        if version == "0.4":
            metadata = {"chunks": [1, 1, 50, 40], "dimension_separator": "/"}
        else:
            sharded = {**SHARDED, "configuration": SHARDED["configuration"] | {"chunk_shape": [1, 1, 16, 16]}}
            grid = {"name": "regular", "configuration": {"chunk_shape": [3, 1, 32, 32]}}
            metadata = {"codecs": [sharded], "chunk_grid": grid}
        by_tensorstore(path / str(k), pixels, "zarr" if version == "0.4" else "zarr3", metadata)
    for k in range(2):
        image = open_image(path, level=k)
        assert (image.axes, image.pixel_size) == ("czyx", (2.0 * 2**k, 0.5 * 2**k, 0.25 * 2**k))
        np.testing.assert_array_equal(image.read(Box.of_shape(image.box_shape)), CHANNELS[:, None, :: 2**k, :: 2**k])
