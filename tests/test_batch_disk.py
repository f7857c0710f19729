"""A disk that takes nothing more ends a batch; what is wrong with one image does not."""

import errno
import os
import signal
from pathlib import Path

import pytest
from store_helpers import READ_ONLY, REMOUNT, replace_step, tree
from stub import Bright
from workers import Cluster, write_image

import tilenet
from tilenet.errors import DiskFault
from tilenet.interrupts import Interrupted
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.readers.tiff import TiffImage
from tilenet.runs.outputs import open_store
from tilenet.store import file_system
from tilenet.store.journal import Journal
from tilenet.workers import worker

HOW = {"model": Bright(), "tile": 64, "threads": 1}


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / f"{name}.tif", seed=i, sides=(300, 400)) for i, name in enumerate("abcdef")]


@pytest.mark.parametrize(
    "options",
    [{}, {"client": Cluster(workers=2)}, {"objects": True}, {"table": True}],
    ids=["plain", "workers", "objects", "tables"],
)
def test_a_full_disk_ends_a_batch_which_goes_on_when_there_is_more_room(images, small_disk, tmp_path, options):
    out, told = small_disk("size=100k") / "masks", []
    with pytest.raises(
        DiskFault, match=r"masks/.* no space left on device: .*Make room, then run again.*\. [1-6] of 6 "
    ):
        tilenet.batch(images, out, tell=told.append, **options, **HOW)
    assert {result.status for result in told} <= {"done"} and not list(out.rglob("lock.*"))
    assert not (out / "f.zarr").exists()
    small_disk("size=64m", REMOUNT)
    results = tilenet.batch(images, out, **options, **HOW)
    assert {result.status for result in results} <= {"skipped", "done"}
    tilenet.batch(images[-1:], tmp_path / "masks", **options, **HOW)
    assert tree(out / "f.zarr") == tree(tmp_path / "masks" / "f.zarr")
    worker.close_all()


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
def test_of_errors_in_writing_a_mask_those_that_no_other_mask_escapes_end_a_batch(images, tmp_path, monkeypatch, code):
    plain = file_system.step

    def step(name, do, *args, **kwargs):
        if name == "write" and "/b.zarr/" in str(Path(f"/proc/self/fd/{args[0]}").readlink()):
            raise OSError(code, os.strerror(code))
        return plain(name, do, *args, **kwargs)

    replace_step(step, monkeypatch.setattr)
    if code == errno.EFBIG:
        results = tilenet.batch(images, tmp_path / "masks", **HOW)
        assert [result.status for result in results] == ["done", "failed", *["done"] * 4]
        return
    with pytest.raises(DiskFault, match=r"b\.zarr.*, then run again with --resume\. [56] of 6 images are not done$"):
        tilenet.batch(images, tmp_path / "masks", **HOW)


def test_a_folder_that_is_read_only_ends_a_batch_at_its_first_image(images, small_disk, tilenet_command):
    out = small_disk("size=1m")
    small_disk("", REMOUNT | READ_ONLY)
    code, _, said = tilenet_command("batch", *images, "--out", out, "--model", "stub:bright", "--tile", 64)
    assert (code, said.count("\n")) == (4, 1)
    assert f"{out}: cannot be written, and {out}/a.zarr would be in it" in said and "images are not done" in said


def test_an_interrupted_batch_says_how_many_images_are_not_done(images, tmp_path, caplog):
    def tell(result):
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        tilenet.batch(images, tmp_path / "masks", tell=tell, objects=True, **HOW)
    assert caplog.messages[-1] == f"{tmp_path / 'masks'}: 5 of 6 images are not done"


def test_an_image_on_a_failing_disk_stops_no_other(images, tmp_path, monkeypatch):
    plain = TiffImage.read_inside

    def read(image, *args, **kwargs):
        if image.name == str(images[1]):
            raise OSError(errno.EIO, "Input/output error")
        return plain(image, *args, **kwargs)

    monkeypatch.setattr(TiffImage, "read_inside", read)
    results = tilenet.batch(images, tmp_path / "masks", **HOW)
    assert [result.status for result in results] == ["done", "failed", *["done"] * 4]


def test_a_mask_whose_journal_cannot_be_read_does_not_end_a_batch(images, tmp_path, monkeypatch):
    for thing in open_store(tmp_path / "masks" / "b.zarr", Request(images[1], HOW["model"], Options(tile=HOW["tile"]))):
        thing.close()
    plain = Journal.load

    def load(journal, folder):
        if folder.parent.name == "b.zarr":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(journal, folder)

    monkeypatch.setattr(Journal, "load", load)
    results = tilenet.batch(images, tmp_path / "masks", **HOW)
    assert [result.status for result in results] == ["done", "failed", *["done"] * 4]
    assert "b.zarr: cannot be accessed" in results[1].error
