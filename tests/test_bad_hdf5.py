"""Imaris files, and datasets in HDF5 files, that are damaged or malicious."""

import os

import numpy as np
import pytest

from tilenet.readers import open_image

h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
from hdf5_images import RANDOM, SHAPE, characters, filtered, levels_of, write_hdf5, write_imaris  # noqa: E402


def put_attribute(place, key, text):
    def change(file):
        file[place].attrs[key] = characters(text)

    return change


def replace(place, make):
    def change(file):
        del file[place]
        make(file, place)

    return change


FINE = "DataSet/ResolutionLevel 0/TimePoint 1/Channel 2"
DAMAGES = {
    "no time point 0": (lambda f: f.__delitem__("DataSet/ResolutionLevel 0/TimePoint 0"), "lacks TimePoint 0"),
    "no level 1": (lambda f: f.__delitem__("DataSet/ResolutionLevel 1"), "lacks ResolutionLevel 1"),
    "no levels": (replace("DataSet", lambda f, p: f.create_group(p)), "lacks ResolutionLevel 0"),
    "a channel less": (lambda f: f.__delitem__(FINE), "has 2 to 3 channels a time point"),
    "a time point less": (lambda f: f.__delitem__("DataSet/ResolutionLevel 1/TimePoint 1"), "its level 1 is"),
    "no data": (lambda f: f.__delitem__(f"{FINE}/Data"), "has nothing called 'Data'"),
    "no image": (lambda f: f.__delitem__("DataSetInfo/Image"), "has nothing called 'Image'"),
    "a group for data": (replace(f"{FINE}/Data", lambda f, p: f.create_group(p)), "/Data is a group"),
    "a dataset for a group": (replace(FINE, lambda f, p: f.create_dataset(p, data=[1])), ""),
    "no size": (lambda f: f[FINE].attrs.__delitem__("ImageSizeY"), "9 x ? x 53"),
    "a size of text": (put_attribute(FINE, "ImageSizeX", "wide"), "9 x 40 x wide"),
    "a size of 0": (put_attribute(FINE, "ImageSizeX", "0"), "9 x 40 x 0"),
    "a size beyond the data": (put_attribute(FINE, "ImageSizeX", "65"), "9 x 40 x 65"),
    "another size": (put_attribute(FINE, "ImageSizeX", "52"), "differ in size"),
    "another type": (
        replace(f"{FINE}/Data", lambda f, p: f.create_dataset(p, (12, 48, 64), "u1", chunks=(4, 16, 16))),
        "differ in size, chunks or type",
    ),
    "two dimensions": (replace(f"{FINE}/Data", lambda f, p: f.create_dataset(p, (48, 64), "u2")), "which is (48, 64)"),
    "several images": (lambda f: f.attrs.modify("NumberOfDataSets", np.array([2], np.uint32)), "holds 2 images"),
    "a long attribute": (put_attribute("DataSetInfo/Image", "Unit", "m" * 2**21), "2097152 bytes"),
    "a level elsewhere": (
        replace(f"{FINE}/Data", lambda f, p: f.__setitem__(p, h5py.ExternalLink("b.h5", "/raw"))),
        "to another file",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_imaris_file_is_refused_on_opening(tmp_path, refused, name):
    change, says = DAMAGES[name]
    path = write_imaris(tmp_path / "a.ims", levels_of(SHAPE))
    if name == "a long attribute":
        path = write_latest(path)
    with h5py.File(path, "a") as file:
        change(file)
    refused(path, says=says)


def write_latest(path):
    """Write a file anew in the newest form of HDF5, which has room for long attributes."""
    newest = path.with_suffix(".new.ims")
    with h5py.File(path) as file, h5py.File(newest, "w", libver="latest") as other:
        for key in file:
            file.copy(key, other)
    return newest


def external_storage(file):
    file.create_dataset("raw", (64, 64), "u1", external=[("/etc/passwd", 0, 4096)])


def virtual(file):
    layout = h5py.VirtualLayout((64, 64), "u1")
    layout[...] = h5py.VirtualSource("other.h5", "raw", (64, 64))
    file.create_virtual_dataset("raw", layout)


def link_to(target):
    return lambda file: file.__setitem__("raw", target)


def dataset(**how):
    return lambda file: file.create_dataset("raw", **how)


def roundabout(file):
    file["out"] = h5py.ExternalLink("other.h5", "/")
    file["raw"] = h5py.SoftLink("/out/raw")


def of_12_bits(file):
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((8, 8))
    kind = h5py.h5t.STD_U16LE.copy()
    kind.set_precision(12)
    h5py.h5d.create(file.id, b"raw", kind, h5py.h5s.create_simple((8, 8)), created)


HOSTILE = {
    "an external link": (link_to(h5py.ExternalLink("other.h5", "/raw")), "is a link to another file"),
    "a link through an external one": (roundabout, "is a link to another file"),
    "a link to itself": (link_to(h5py.SoftLink("/raw")), "leads nowhere"),
    "a dangling link": (link_to(h5py.SoftLink("/gone")), "has nothing called 'gone'"),
    "external storage": (external_storage, "keeps its pixels in another file"),
    "a virtual dataset": (virtual, "is put together from other datasets"),
    "a group": (lambda file: file.create_group("raw"), "/raw is a group. No dataset in it"),
    "one axis": (dataset(data=np.arange(9)), "Give a plane at least"),
    "no axis": (dataset(data=3), ""),
    "nothing": (dataset(data=h5py.Empty("u1")), ""),
    "no pixels": (dataset(shape=(0, 64), dtype="u1", chunks=(8, 8), maxshape=(None, 64)), "holds no pixels"),
    "text": (dataset(data=[["a", "b"]] * 2), ""),
    "records": (dataset(shape=(8, 8), dtype=[("a", "u1"), ("b", "u1")]), ""),
    "complex numbers": (dataset(shape=(8, 8), dtype="c8"), "complex64"),
    "an absurd side": (dataset(shape=(2**40, 8), dtype="u1", chunks=(8, 8)), "1099511627776"),
    "a huge chunk": (dataset(shape=(2**16, 2**15), dtype="u1", chunks=(2**16, 2**15)), "GiB"),
    "numbers of 12 bits": (of_12_bits, "of an unusual form. Write it again as uint16"),
    "six axes": (dataset(shape=(2,) * 6, dtype="u1"), "at most 5"),
    "too many labels": (
        lambda f: dataset(data=np.eye(3))(f).attrs.update(DIMENSION_LABELS=list("zyx")),
        "3 names for 2",
    ),
    "no JSON": (lambda f: dataset(data=np.eye(3))(f).attrs.update(axistags="{"), ""),
    "other JSON": (lambda f: dataset(data=np.eye(3))(f).attrs.update(axistags="[1]"), ""),
    "a text for a size": (lambda f: dataset(data=np.eye(3))(f).attrs.update(element_size_um="small"), None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_must_not_be_read_is_refused_on_opening(tmp_path, refused, name):
    make, says = HOSTILE[name]
    os.mkfifo(tmp_path / "other.h5")  # opening it would wait for ever
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    if says is None:
        open_image(tmp_path / "a.h5" / "raw").close()
    else:
        refused(tmp_path / "a.h5" / "raw", says=says)


def test_a_filter_that_is_not_decoded_is_named_with_a_way_out(tmp_path, refused):
    path = filtered(tmp_path / "a.h5", np.zeros((64, 64), np.uint16), 32026, bytes)
    refused(path, says="is encoded by the filter 32026")
    refused(path, says="hdf5plugin is not used")


@pytest.mark.parametrize("keep", [0.001, 0.02, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("how", [{}, {"chunks": (16, 16), "compression": "gzip"}])
def test_a_truncated_file_is_refused_before_it_is_read(tmp_path, refused, keep, how):
    path = write_hdf5(tmp_path / "a.h5", RANDOM.integers(0, 250, (128, 128), np.uint8), **how)
    content = path.parent.read_bytes()
    path.parent.write_bytes(content[: int(keep * len(content))])
    refused(path.parent)


@pytest.mark.parametrize(("number", "encode"), [
    (1, lambda data: __import__("zlib").compress(bytes(2**28), 9)),
    (1, lambda data: __import__("zlib").compress(data)[:-9]),
    (1, lambda data: __import__("zlib").compress(data[:-2])),
    (3, lambda data: data + b"1234"),
    (2, lambda data: data[:-1]),
    (32004, lambda data: b"\0\0\0\x7f" + bytes(4) + b"\0\0\x10\0" + data),
    (32001, lambda data: b"\x02\x01\x01\x01\xff\xff\xff\x7f" + bytes(8) + data),
    (32000, lambda data: b"\xff" * 9),
])  # fmt: skip
def test_a_chunk_that_does_not_unpack_to_its_pixels_is_refused_when_it_is_read(tmp_path, refused, number, encode):
    path = filtered(tmp_path / "a.h5", RANDOM.integers(0, 250, (64, 64)).astype(np.uint16), number, encode)
    refused(path, reading=True, says="[0:64, 0:64] of level 0 cannot be decoded")


def test_a_chunk_of_more_bytes_than_it_can_have_is_not_fetched(tmp_path, refused):
    path = filtered(tmp_path / "a.h5", np.zeros((64, 64), np.uint16), 1, lambda data: bytes(2**20))
    refused(path, reading=True, says="1048576 bytes required")
