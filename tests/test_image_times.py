"""An image that was written again since a run on it began: a warning says so, and a copy of it is none."""

import os
import shutil

import numpy as np
import pytest
import tifffile
import zarr
from stub import Bright

import tilenet
from tilenet.errors import BlocksFailed
from tilenet.jobs import image_times
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs.outputs import open_store

PIXELS = np.random.default_rng(0).random((128, 128), np.float32) * 200
HOW = {"model": Bright(), "tile": 32}


def write_tiff(path, pixels):
    tifffile.imwrite(path.with_suffix(".tif"), pixels, tile=(64, 64))
    return path.with_suffix(".tif")


def write_zarr(path, pixels):
    zarr.create_array(path, data=pixels, chunks=(64, 64))
    return path


def begin(image, out, count=1):
    """Begin a run, and leave it with `count` of its blocks written."""
    store, job = open_store(out, Request(image, HOW["model"], Options(tile=32, block=32)))
    for index in range(count):
        store.write(index, {"mask": np.zeros((32, 32), np.uint8)})
    store.close()
    job.close()


@pytest.fixture(params=[write_tiff, write_zarr])
def image(tmp_path, request):
    """An image that was written a minute ago, and the function that writes it anew."""
    path = request.param(tmp_path / "i", PIXELS)
    for file in (path, *path.rglob("*")):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    return path


def write_again(image, pixels):
    if image.is_dir():
        zarr.open_array(image)[:] = pixels
    else:
        write_tiff(image, pixels)


def test_a_run_on_an_image_that_was_written_meanwhile_warns_and_goes_on(image, tmp_path, caplog):
    begin(image, tmp_path / "m.zarr")
    write_again(image, PIXELS[::-1])
    tilenet.segment(image, tmp_path / "m.zarr", model=HOW["model"], resume=True)
    assert (
        f"{image}: was written again since the run on it began (on 2" in caplog.text
        and "; then it was of 2023-11-14 22:13:20 UTC" in caplog.text
    )
    assert "start again with --overwrite" in caplog.text and len(caplog.records) == 1


def test_a_time_beyond_all_dates_is_said_in_seconds(image, tmp_path, caplog, monkeypatch):
    begin(image, tmp_path / "m.zarr")
    monkeypatch.setattr(image_times, "last_written", lambda _: 3 * 10**20)
    tilenet.segment(image, tmp_path / "m.zarr", model=HOW["model"], resume=True)
    assert "(on 300000000000 s after 1970; then it was of 2023-11-14 22:13:20 UTC)" in caplog.text


def test_each_share_of_such_a_run_warns(image, tmp_path, caplog):
    tilenet.segment(image, tmp_path / "m.zarr", **HOW, shard=(1, 2))
    tilenet.segment(image, tmp_path / "m.zarr", model=HOW["model"], shard=(1, 2))
    assert not caplog.records
    write_again(image, PIXELS[::-1])
    tilenet.segment(image, tmp_path / "m.zarr", model=HOW["model"], shard=(2, 2))
    assert "was written again" in caplog.text


def test_what_was_only_read_or_copied_since_is_not_warned_of(image, tmp_path, caplog):
    begin(image, tmp_path / "m.zarr")
    begin(image, tmp_path / "n.zarr")
    copy = tmp_path / f"copy{image.suffix}"
    shutil.copytree(image, copy, copy_function=shutil.copyfile) if image.is_dir() else shutil.copyfile(image, copy)
    tilenet.segment(copy, tmp_path / "m.zarr", model=HOW["model"], resume=True)
    tilenet.segment(image, tmp_path / "n.zarr", model=HOW["model"], resume=True)
    assert not caplog.records


def test_a_complete_mask_and_one_without_the_time_of_its_image_say_nothing(image, tmp_path, caplog):
    tilenet.segment(image, tmp_path / "m.zarr", **HOW)
    begin(image, tmp_path / "begun.zarr")
    log = tmp_path / "begun.zarr" / ".tilenet" / "log.jsonl"
    kept = [line for line in log.read_text().splitlines(keepends=True) if '"image"' not in line]
    log.write_text("".join(kept) + '{"event": "image", "pa')  # and cut short
    write_again(image, PIXELS[::-1])
    for name in ("m.zarr", "begun.zarr"):
        tilenet.segment(image, tmp_path / name, model=HOW["model"], resume=True)
    assert not caplog.records


def test_labels_that_a_run_writes_into_its_image_are_no_change_of_it(tmp_path):
    image = write_zarr(tmp_path / "i.zarr", PIXELS)
    for file in (image, *image.rglob("*")):  # a file system may give what is written at once the same time
        os.utime(file, (1_700_000_000, 1_700_000_000))
    before = image_times.last_written(str(image))
    (image / "labels" / "nuclei").mkdir(parents=True)
    (image / "labels" / "nuclei" / "zarr.json").write_text("{}")
    assert image_times.last_written(str(image)) == before is not None
    (image / "c" / "more").write_text("")
    assert image_times.last_written(str(image)) > before


def test_of_arrays_addresses_and_folders_of_many_files_no_time_is_known(tmp_path, monkeypatch):
    image = write_zarr(tmp_path / "i.zarr", PIXELS)
    assert [image_times.last_written(name) for name in ("NumPy array", "s3://bucket/i.zarr")] == [None, None]
    monkeypatch.setattr(image_times, "MOST_FILES", 3)
    assert image_times.last_written(str(image)) is None


def test_pixels_that_are_not_finite_are_to_be_replaced_before_a_run_from_the_start(tmp_path):
    pixels = PIXELS.copy()
    pixels[:4, :4] = np.nan
    image = write_tiff(tmp_path / "i", pixels)
    with pytest.raises(BlocksFailed, match=r"Replace them in the image, then start again with --overwrite \("):
        tilenet.segment(image, tmp_path / "m.zarr", **HOW)
    with pytest.raises(BlocksFailed, match=r"not finite\. Replace them in the image$"):
        tilenet.segment(image, **HOW)
