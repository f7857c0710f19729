"""Imaris files, and datasets in HDF5 files."""

import fcntl
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
import zarr
from contents import whole
from ome_images import write_ome_zarr
from store_helpers import tree
from stub import Bright
from test_readers import boxes, mirrored

import tilenet
from tilenet.batches.orders import read_orders
from tilenet.errors import ImageError, OutputMismatch, SettingsError
from tilenet.geometry import Box
from tilenet.options import Options
from tilenet.readers import open_image
from tilenet.since import last_written

h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
from hdf5_images import characters, write_hdf5, write_imaris  # noqa: E402

RANDOM = np.random.default_rng(5)
SHAPE = (2, 3, 9, 40, 53)


def levels_of(shape, dtype=np.uint16, *, factors=((1, 1, 1), (1, 2, 2), (2, 4, 4))):
    """Return random pixels (t, c, z, y, x), and means of them, in levels whose z shrinks less often than y and x."""
    finest = RANDOM.integers(0, 250, shape).astype(dtype)
    return [finest[..., ::a, ::b, ::c][..., : shape[2] // a, : shape[3] // b, : shape[4] // c] for a, b, c in factors]


def as_read(pixels):
    """Return pixels (t, c, z, y, x) as an image gives them: channels first, and no axis of length 1 but y and x."""
    first = np.moveaxis(pixels, 1, 0)
    outer = [n for n in first.shape[1:3] if n > 1]
    return first.reshape(len(first), *outer, *first.shape[3:])


# Imaris


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 9, 40, 53), (1, 2, 1, 40, 53), (3, 1, 1, 40, 53)])
@pytest.mark.parametrize("how", [{}, {"shuffle": True}, {"lz4": True}, {"compression": None, "compression_opts": None}])
def test_boxes_of_every_level_of_an_imaris_file_are_those_that_were_written(tmp_path, shape, how):
    factors = ((1, 1, 1), (1, 2, 2), (min(2, shape[2]), 4, 4))
    levels = levels_of(shape, factors=factors)
    with open_image(write_imaris(tmp_path / "a.ims", levels, **how)) as image:
        assert image.axes == "".join(a for a, n in zip("tczyx", shape, strict=True) if n > 1)
        assert image.dtype == np.uint16 and image.reader == "Imaris (h5py)"
        for k, pixels in enumerate(levels):
            level, expected = image.at_level(k), as_read(pixels)
            assert (level.n_channels, *level.box_shape) == expected.shape
            for box in [*boxes(level.box_shape, seed=k), Box.of_shape(level.box_shape)]:
                np.testing.assert_array_equal(level.read(box), mirrored(expected, box))


def test_an_imaris_file_says_its_pixel_sizes_by_axis_and_its_channels(tmp_path):
    path = write_imaris(tmp_path / "a.ims", levels_of(SHAPE), um=(2.0, 0.5, 0.25), names=["DAPI", "", "GFP"])
    with open_image(path) as image:
        sizes = [level.pixel_size for level in image.levels]
        assert sizes == [(None, 2.0, 0.5, 0.25), (None, 2.0, 1.0, 0.5), (None, 4.0, 2.0, 1.0)]
        assert image.channel_names == ("DAPI", "", "GFP")
        assert image.at_level(2).shift == (0, 0.25, 0.375, 0.375)
        np.testing.assert_array_equal(whole(image.with_channels([2, 0])), whole(image)[[2, 0]])


@pytest.mark.parametrize(("unit", "um"), [("nm", 0.5e-3), ("m", 0.5e6), ("", None), ("furlong", None)])
def test_an_extent_is_read_in_its_unit_and_in_no_other(tmp_path, unit, um):
    path = write_imaris(tmp_path / "a.ims", levels_of((1, 1, 9, 40, 53)), um=(2.0, 0.5, 0.5), unit=unit)
    with open_image(path) as image:
        assert image.pixel_size[-1] == (um and pytest.approx(um))


def test_an_extent_that_is_not_stated_is_an_unknown_pixel_size(tmp_path):
    path = write_imaris(tmp_path / "a.ims", levels_of((1, 1, 9, 40, 53)))
    with h5py.File(path, "a") as file:
        file["DataSetInfo/Image"].attrs["ExtMax0"] = characters("wide")
        file["DataSetInfo/Image"].attrs["ExtMax1"] = file["DataSetInfo/Image"].attrs["ExtMin1"]
        del file["DataSetInfo/Channel 0"]
    with open_image(path) as image:
        assert image.pixel_size == (1.0, None, None)
        assert image.channel_names == ("",)


def test_each_chunk_is_decoded_once_and_of_the_channels_asked_for_only(tmp_path):
    with open_image(write_imaris(tmp_path / "a.ims", levels_of(SHAPE))) as image:
        box = Box((0, 3, 15, 15), (1, 5, 17, 17))  # where eight chunks meet
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(image.with_channels([1]).read, [box] * 16))
        assert image.n_decoded == 8
        image.read(box)
        assert image.n_decoded == 24


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


# Datasets


@pytest.mark.parametrize("how", [
    {}, {"chunks": (3, 8, 16)}, {"chunks": (3, 8, 16), "compression": "gzip", "shuffle": True, "fletcher32": True},
    {"chunks": (3, 8, 16), "compression": "lzf", "shuffle": True}, {"chunks": (7, 8, 16), "maxshape": (None,) * 3},
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", ">f4", "<f8", "bool"])
def test_boxes_of_a_dataset_are_those_that_were_written(tmp_path, how, dtype):
    pixels = RANDOM.integers(0, 2, (5, 40, 53)).astype(dtype) if dtype == "bool" else levels_of(SHAPE, dtype)[0][0, 0]
    path = write_hdf5(tmp_path / "a.h5", pixels, labels="zyx", **how)
    with open_image(path) as image:
        assert (image.axes, image.reader, image.dtype.isnative) == ("zyx", "HDF5 (h5py)", True)
        for box in [*boxes(pixels.shape, seed=0), Box.of_shape(pixels.shape)]:
            np.testing.assert_array_equal(image.read(box), mirrored(pixels[None], box))


@pytest.mark.parametrize(("number", "encode"), [(32001, "blosc"), (32004, "lz4h5"), (32015, "zstd")])
def test_chunks_of_filters_that_hdf5_lacks_are_decoded(tmp_path, number, encode):
    import imagecodecs

    pixels = levels_of(SHAPE)[0][0, 0, 0]  # (40, 53)
    path = filtered(tmp_path / "a.h5", pixels, number, getattr(imagecodecs, f"{encode}_encode"))
    with open_image(path) as image:
        np.testing.assert_array_equal(whole(image)[0], pixels)


def filtered(path, pixels, number, encode):
    """Write a dataset of one chunk, encoded by a function, and said to be encoded by a filter of a number."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk(pixels.shape)
    created.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(path, "w") as file:
        space, kind = h5py.h5s.create_simple(pixels.shape), h5py.h5t.py_create(pixels.dtype)
        dataset = h5py.h5d.create(file.id, b"raw", kind, space, created)
        dataset.write_direct_chunk((0,) * pixels.ndim, encode(np.ascontiguousarray(pixels).tobytes()))
    return path / "raw"


@pytest.mark.parametrize(("said", "axes", "stated"), [
    ({"labels": "zyx"}, None, "zyx"), ({"axistags": "zyx"}, None, "zyx"), ({"axistags": "yxc"}, None, "yxc"),
    ({"labels": "tyx", "axistags": "zyx"}, None, "tyx"), ({}, "zyx", ""), ({"labels": "zyx"}, "tyx", "zyx"),
])  # fmt: skip
def test_axes_are_those_of_the_labels_of_the_axistags_or_of_the_caller(tmp_path, said, axes, stated):
    pixels = np.zeros((4, 5, 3), np.uint8)
    with open_image(write_hdf5(tmp_path / "a.h5", pixels, **said), axes=axes) as image:
        assert (image.axes, image.stated_axes) == (axes or stated, stated)


def test_axes_that_nothing_states_are_asked_for_and_those_of_a_plane_are_not(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", np.zeros((9, 5, 6), np.uint8))
    with pytest.raises(ImageError, match="nothing says which axis is which. .*--axes"):
        open_image(path)
    with open_image(write_hdf5(tmp_path / "a.h5", np.zeros((5, 6), np.uint8), name="plane")) as image:
        assert image.axes == "yx"


@pytest.mark.parametrize(("um", "found"), [
    ((2.0, 0.5, 0.25), (2.0, 0.5, 0.25)), ((0.5, 0.25), (None, 0.5, 0.25)), ((0, 0.5, 0.25), (None, 0.5, 0.25)),
    ((1.0,), (None,) * 3), (None, (None,) * 3),
])  # fmt: skip
def test_the_pixel_size_is_that_of_element_size_um(tmp_path, um, found):
    with open_image(write_hdf5(tmp_path / "a.h5", np.zeros((4, 5, 3), np.uint8), labels="zyx", um=um)) as image:
        assert image.pixel_size == found


def test_of_a_file_with_one_image_the_dataset_need_not_be_named(tmp_path):
    pixels = levels_of(SHAPE)[0][0, 0]
    write_hdf5(tmp_path / "a.h5", pixels, name="deep/raw", labels="zyx")
    write_hdf5(tmp_path / "a.h5", np.arange(7), name="times")
    with open_image(tmp_path / "a.h5") as image, open_image(f"{tmp_path}/a.h5/deep/raw") as named:
        np.testing.assert_array_equal(whole(image), pixels[None])
        assert image.identity() == named.identity()
    write_hdf5(tmp_path / "a.h5", pixels, name="other")
    with pytest.raises(ImageError, match=rf"Give one of .*: {tmp_path}/a.h5/deep/raw, {tmp_path}/a.h5/other$"):
        open_image(tmp_path / "a.h5")
    with pytest.raises(ImageError, match=r"has nothing called 'rwa' in /deep\. Give one of"):
        open_image(tmp_path / "a.h5" / "deep" / "rwa")


def test_of_many_datasets_some_are_listed(tmp_path):
    for k in range(30):
        write_hdf5(tmp_path / "a.h5", np.zeros((5, 6), np.uint8), name=f"d{k:02}")
    with pytest.raises(ImageError, match=r"more than 8 datasets .*/d07, \.\.\.$"):
        open_image(tmp_path / "a.h5")


def test_of_more_objects_than_are_looked_at_none_is_taken_for_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr("tilenet.readers.hdf5_file.MOST_OBJECTS", 5)
    for k in range(6):
        write_hdf5(tmp_path / "a.h5", np.zeros((5, 6) if k == 0 else 5, np.uint8), name=f"d{k}")
    with pytest.raises(ImageError, match="more than 5 groups and datasets. Name the dataset"):
        open_image(tmp_path / "a.h5")
    open_image(tmp_path / "a.h5" / "d0").close()


def test_a_file_that_is_being_written_is_refused_and_needs_no_other_remedy(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", np.zeros((5, 6), np.uint8))
    with path.parent.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ImageError, match="is open for writing in another program. Close it there"):
            open_image(path)
    open_image(path).close()


def test_a_file_behind_a_block_of_the_users_is_known_by_its_signature_and_not_by_its_name(tmp_path):
    pixels = levels_of(SHAPE)[0][0, 0, 0]
    with h5py.File(tmp_path / "volume.mat", "w", userblock_size=512) as file:
        file.create_dataset("raw", data=pixels, chunks=(8, 8), compression="gzip")
    with (tmp_path / "volume.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    with open_image(tmp_path / "volume.mat") as image:
        np.testing.assert_array_equal(whole(image)[0], pixels)


def test_soft_links_are_followed_inside_the_file(tmp_path):
    pixels = levels_of(SHAPE)[0][0, 0, 0]
    write_hdf5(tmp_path / "a.h5", pixels, name="deep/raw")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["short"] = h5py.SoftLink("/deep")
        file["deep/also"] = h5py.SoftLink("raw")
    with open_image(tmp_path / "a.h5" / "short" / "also") as image:
        np.testing.assert_array_equal(whole(image)[0], pixels)


def test_chunks_that_were_never_written_have_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("raw", (40, 50), "u2", chunks=(16, 16), fillvalue=7, compression="gzip")
        dataset[:16, :16] = 3
    with open_image(tmp_path / "a.h5") as image:
        pixels = whole(image)[0]
        assert (pixels[:16, :16] == 3).all() and (pixels[16:] == 7).all() and (pixels[:, 16:] == 7).all()


# Files that are damaged or malicious


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
    refused(path, reading=True, says="a chunk of 1048576 bytes for 8192 bytes of pixels")


# What else is done with images: by their paths


def test_an_image_in_a_file_survives_pickling_and_a_closed_one_says_so(tmp_path, monkeypatch):
    pixels = levels_of(SHAPE)[0][0, 0]
    write_hdf5(tmp_path / "a.h5", pixels, labels="zyx", chunks=(4, 16, 16))
    monkeypatch.chdir(tmp_path)
    image = open_image("a.h5/raw")
    sent = pickle.dumps(image)
    monkeypatch.chdir("/")
    with pickle.loads(sent) as again:
        np.testing.assert_array_equal(whole(again), whole(image))
        assert again.identity() == image.identity()
    image.close()
    with pytest.raises(ImageError, match="is closed"):
        whole(image)


def test_batches_name_masks_after_files_and_find_datasets_in_them(tmp_path):
    for name in ("one", "two"):
        write_hdf5(tmp_path / f"{name}.h5", np.zeros((5, 6), np.uint8))
    (tmp_path / "list.txt").write_text("one.h5/raw\n")
    for said in (tmp_path / "*.h5" / "raw", tmp_path / "*.h5"):
        orders = read_orders([said], model=None, options=Options())
        assert [order.name for order in orders] == ["one", "two"]
    (order,) = read_orders([tmp_path / "list.txt"], model=None, options=Options())
    assert (order.name, order.image) == ("one", str(tmp_path / "one.h5" / "raw"))
    with pytest.raises(SettingsError, match="no image matches"):
        read_orders([tmp_path / "*.hdf" / "raw"], model=None, options=Options())


def test_a_mask_knows_its_dataset_and_its_file_wherever_it_moves(tmp_path, caplog, monkeypatch):
    pixels, how = levels_of((1, 1, 1, 90, 120))[0][0, 0, 0], {"chunks": (32, 32), "compression": "gzip"}
    image, out = write_hdf5(tmp_path / "a.h5", pixels, **how), tmp_path / "m.zarr"
    write_hdf5(tmp_path / "a.h5", pixels, name="twin", **how)
    monkeypatch.chdir(tmp_path)
    tilenet.segment("a.h5/raw", out, model=Bright(), tile=64)
    assert tilenet.open_mask(out).info["image"]["path"] == str(image)
    assert tilenet.verify(out, model=Bright()).ok
    shutil.copy(tmp_path / "a.h5", tmp_path / "b.h5")
    assert tilenet.verify(out, image=tmp_path / "b.h5" / "raw", model=Bright()).ok
    write_hdf5(tmp_path / "c.h5", 249 - pixels, **how)
    for other in ("a.h5/twin", "c.h5/raw"):
        with pytest.raises(OutputMismatch, match=rf"{other}: is not the image"):
            tilenet.verify(out, image=tmp_path / other, model=Bright())
    os.utime(tmp_path / "a.h5", (1, 1))
    assert last_written(str(image)) == 10**9
    with pytest.raises(tilenet.OutputExists, match="holds the image|is the image"):
        tilenet.segment(image, tmp_path / "a.h5", model=Bright(), tile=64, overwrite=True)


def test_lazy_reads_a_dataset_by_its_path_wherever_it_is_sent(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", levels_of((1, 1, 1, 90, 120))[0][0, 0, 0], chunks=(32, 32))
    mask = tilenet.segment(path, tmp_path / "m.zarr", model=Bright(), tile=64)
    array = pickle.loads(pickle.dumps(tilenet.lazy(path, model=Bright(), tile=64)))
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), mask[...])


def test_a_real_volume_gives_the_same_mask_as_imaris_as_hdf5_and_as_zarr(shared_data, tmp_path):
    pixels = tifffile.imread(shared_data("volumes/xyzc_16bit__dna_conf_wf.tif"))[:8]  # (z, c, y, x)
    um, masks = (0.499413, 0.511878, 0.511878), {}
    apart = np.moveaxis(pixels, 1, 0)
    sources = {
        "imaris": write_imaris(tmp_path / "a.ims", [apart[None], apart[None, :, :, ::2, ::2][..., :65, :66]], um=um),
        "hdf5": write_hdf5(tmp_path / "a.h5", pixels, labels="zcyx", um=um, chunks=(4, 1, 64, 64), compression="gzip"),
        "zarr": write_ome_zarr(
            tmp_path / "a.zarr",
            [(apart, (1, *um))],
            axes="czyx",
            units=dict.fromkeys("zyx", "micrometer"),
            chunks=(1, 4, 64, 64),
        ),
    }
    for name, source in sources.items():
        tilenet.segment(source, tmp_path / f"{name}.zarr", channels=[0], roi="2:6,:,:", threads=1)
        mask = zarr.open_array(tmp_path / f"{name}.zarr" / "0", mode="r")[...]
        masks[name] = {p: data for p, data in tree(tmp_path / f"{name}.zarr").items() if p.startswith("0/")}
        assert 0 < (mask > 0).mean() < 1
    assert masks["imaris"] == masks["hdf5"] == masks["zarr"]
