"""Images in Imaris and HDF5 files in masks, batches and other processes, which find them by their paths."""

import os
import pickle
import shutil

import numpy as np
import pytest
import tifffile
import zarr
from contents import whole
from ome_images import write_ome_zarr
from store_helpers import tree
from stub import Bright

import tilenet
from tilenet.batches.image_list import read_image_list
from tilenet.errors import ImageError, OutputMismatch, SettingsError
from tilenet.jobs.image_times import last_written
from tilenet.jobs.options import Options
from tilenet.readers import open_image

pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
from hdf5_images import SHAPE, levels_of, write_hdf5, write_imaris


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
        items = read_image_list([said], model=None, options=Options())
        assert [item.name for item in items] == ["one", "two"]
    (order,) = read_image_list([tmp_path / "list.txt"], model=None, options=Options())
    assert (order.name, order.image) == ("one", str(tmp_path / "one.h5" / "raw"))
    with pytest.raises(SettingsError, match="no image matches"):
        read_image_list([tmp_path / "*.hdf" / "raw"], model=None, options=Options())


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
