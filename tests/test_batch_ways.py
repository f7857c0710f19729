"""What a batch says to do about an error is what a batch can do."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from stub import BAD, Bright

import tilenet
from tilenet.batches.image_runs import BatchRun
from tilenet.errors import RESUME, EnvironmentFault
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs.outputs import open_store

PACKAGE = Path(tilenet.__file__).parent
# Messages of what never runs in a batch, or for `resume` and `overwrite` said or not, which a batch decides; and a
# warning that names the way of a batch, too.
ELSEWHERE = {
    *("cli", "training", "api.py", "checks.py", "models.py", "tiff_mask.py", "tiff_export.py", "shares.py"),
    *("object_shares.py", "since.py", "errors.py", "describe.py", "into.py", "store/begun.py"),
}


@pytest.fixture
def slide(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 200, (300, 400), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64))
    return tmp_path / "a.tif"


def test_a_damaged_mask_is_mended_by_what_the_batch_says(slide, tmp_path):
    def batch():
        (result,) = tilenet.batch(slide, tmp_path / "masks", model=Bright(), table=True, tile=64)
        return result

    assert batch().status == "done"
    (tmp_path / "masks" / "a.csv").unlink()
    shard = next(path for path in (tmp_path / "masks" / "a.zarr" / "0" / "c").rglob("*") if path.is_file())
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    said = "Repair it: remove the mask, and run the batch again"
    assert [batch().error.endswith(said) for _ in range(2)] == [True, True]
    for path in sorted((tmp_path / "masks" / "a.zarr").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "masks" / "a.zarr").rmdir()
    assert batch().status == "done"


def test_failed_blocks_locked_masks_and_lost_schedulers_say_to_run_the_batch_again(slide, tmp_path, monkeypatch):
    pixels = tifffile.imread(slide)
    pixels[100, 100] = BAD
    tifffile.imwrite(slide, pixels, tile=(64, 64))
    how = {"model": Bright(), "tile": 64}
    (result,) = tilenet.batch(slide, tmp_path / "masks", **how)
    assert result.error.endswith("The others are done. To retry these, run again")
    store, job = open_store(tmp_path / "masks" / "a.zarr", Request(slide, Bright(), Options(tile=64)), resume=True)
    (result,) = tilenet.batch(slide, tmp_path / "masks", **how)
    store.close()
    job.close()
    assert result.error.endswith("Wait for that run, or end it, and run again")

    def lost(run):
        raise EnvironmentFault("tcp://x: the scheduler is lost (CommClosedError). Run again", RESUME)

    monkeypatch.setattr(BatchRun, "run", lost)
    with pytest.raises(EnvironmentFault, match=r"the scheduler is lost \(CommClosedError\)\. Run again$"):
        tilenet.batch(slide, tmp_path / "masks", **how)
