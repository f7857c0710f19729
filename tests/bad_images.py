"""Sound images for tests to damage, and damages that several of them do."""

import gzip
import io
import json
import struct
from functools import cache

import numpy as np
import tifffile
from ome_images import write_ome_zarr

PIXELS = np.repeat(np.random.default_rng(0).integers(0, 255, (128, 96), dtype=np.uint8), 2, axis=1)  # (128, 192)


def tiff(folder, pixels=PIXELS, name="image.tif", **options):
    path = folder / name
    tifffile.imwrite(path, pixels, **({"tile": (32, 32), "compression": "zlib"} | options))
    return path


def patched(path, at, data):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def directory(*entries, following=0, at=8):
    """Return a little-endian classic TIFF of one directory of (code, type, count, value) entries."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", at) + struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def ome_zarr(folder, *, name="image.zarr", **options):
    """Write an image of two levels."""
    levels = [(PIXELS[::k, ::k], (k, k)) for k in (1, 2)]
    return write_ome_zarr(folder / name, levels, **{"chunks": (32, 32), "shards": (64, 64)} | options)


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def levels(document):
    return document["attributes"]["ome"]["multiscales"][0]["datasets"]


def codec(**to):
    def change(document):
        document["codecs"][0]["configuration"]["codecs"][-1] = to

    return change


def chunks(*, outer=None, inner=None):
    """Return what changes the shape of shards, of the chunks in them, or of both."""

    def change(document):
        for place, shape in ((document["chunk_grid"], outer), (document["codecs"][0], inner)):
            if shape:
                place["configuration"]["chunk_shape"] = shape

    return change


def put(**to):
    return lambda document: document.update(to)


def level_path(path):
    return lambda document: levels(document)[1].update(path=path)


# What is done to which part of such an image, and what is said of it.
METADATA = {
    "an unknown codec": ("0", codec(name="nonsense", configuration={}), "nonsense"),
    "chunks of 0": ("0", chunks(inner=[0, 32]), ""),
    "chunks of -1": ("0", chunks(inner=[-1, 32]), ""),
    "chunks of one axis": ("0", chunks(outer=[64]), ""),
    "huge chunks": ("0", chunks(outer=[2**16, 2**16], inner=[2**16, 2**16]), "GiB"),
    "a huge shard index": ("0", chunks(outer=[2**20, 2**20], inner=[1, 1]), "GiB"),
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
    "axes twice": (
        "",
        lambda d: d["attributes"]["ome"]["multiscales"][0].update(axes=["y", "y"]),
        "names an axis twice",
    ),
    "axes unknown": ("", lambda d: d["attributes"]["ome"]["multiscales"][0].update(axes=["p", "q"]), "--axes"),
    "multiscales of text": ("", lambda d: d["attributes"]["ome"].update(multiscales="all"), ""),
    "attributes of a list": ("", lambda d: d.update(attributes=[1]), ""),
}


@cache
def bomb_gzip(size):
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as file:
        for _ in range(size // 2**24):
            file.write(bytes(2**24))
    return out.getvalue()
