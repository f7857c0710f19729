"""Datasets in HDF5 files."""

import fcntl

import numpy as np
import pytest
from contents import whole
from oracles import boxes, mirrored

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image

h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
from hdf5_images import RANDOM, SHAPE, filtered, levels_of, write_hdf5  # noqa: E402


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


@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
@pytest.mark.parametrize("longest", [(None, 30, 40), (20, None, 40), (20, 30, None), (20, None, None), (None,) * 3])
def test_every_chunk_is_found_whatever_axis_may_grow_and_whatever_version_wrote_the_file(tmp_path, libver, longest):
    pixels = RANDOM.integers(1, 99, (8, 12, 10)).astype(np.uint16)
    pixels[:, 5:10] = 0  # a row of chunks that is never written
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        dataset = file.create_dataset("raw", pixels.shape, "u2", chunks=(4, 5, 3), maxshape=longest, compression="gzip")
        dataset[:, :5], dataset[:, 10:] = pixels[:, :5], pixels[:, 10:]
    with open_image(tmp_path / "a.h5", axes="zyx") as image:
        assert np.array_equal(whole(image)[0], pixels)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("longest", [None, (None, 50), (40, None)])
def test_a_dataset_of_which_no_chunk_was_written_is_its_fill_value(tmp_path, libver, longest):
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        file.create_dataset("raw", (40, 50), "u2", chunks=(16, 16), fillvalue=7, maxshape=longest)
    with open_image(tmp_path / "a.h5") as image:
        assert (whole(image) == 7).all() and image.identity()


def test_files_whose_planes_change_places_are_two(tmp_path):
    planes, identities = RANDOM.integers(0, 9, (3, 32, 32)).astype(np.uint8), set()
    planes[1] = 4
    for order in ([0, 1, 2], [1, 0, 2], [0, 2, 1]):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("raw", data=planes[order], chunks=(1, 32, 32), compression="gzip")
        with open_image(tmp_path / "a.h5", axes="zyx") as image:
            identities.add(image.identity()["data_sha256"])
    assert len(identities) == 3


def test_chunks_that_were_never_written_have_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("raw", (40, 50), "u2", chunks=(16, 16), fillvalue=7, compression="gzip")
        dataset[:16, :16] = 3
    with open_image(tmp_path / "a.h5") as image:
        pixels = whole(image)[0]
        assert (pixels[:16, :16] == 3).all() and (pixels[16:] == 7).all() and (pixels[:, 16:] == 7).all()
