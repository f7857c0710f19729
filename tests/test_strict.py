"""Strict runs: models whose masks may have seams are errors, where other runs warn."""

import numpy as np
import pytest
import tifffile
from torch import nn

import tilenet
from tilenet.errors import ModelError
from tilenet.footprint import Footprint
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs.outputs import open_store

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8)
NEAR = Footprint.same(2, reach=1)


def begin(out, model, **options):
    for opened in open_store(out, Request(IMAGE, model, Options(tile=32, block=32, **options))):
        opened.close()


def by_chance(batch):
    return batch + np.random.default_rng().normal(size=batch.shape)


DOUBTFUL = {
    "norm": (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2)), "there are seams"),
    "reach": (nn.Sequential(nn.Conv2d(1, 2, 5, padding=2)), r"there are seams.* tilenet\.measure_footprint\(network\)"),
    "random": (by_chance, "gives other logits for the same pixels"),
    "not checked": (lambda x: np.where(x % 1, np.inf, x - 100), "was not checked for seams"),
    "batch": (lambda batch: batch - batch.mean(axis=0), "with the other tiles of its batch"),
}


@pytest.mark.parametrize(("model", "told"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_strict_run_refuses_what_others_warn_of_before_anything_is_written(tmp_path, model, told):
    out, how = tmp_path / "m.zarr", {"footprint": NEAR, "tile": 32, "batch": 2}
    with pytest.raises(ModelError, match=rf"{told}.*\. Leave --strict \(strict=True\) out"):
        tilenet.segment(IMAGE, out, model=model, strict=True, **how)
    assert not out.exists()


def test_a_strict_run_goes_on_with_one_that_was_not_and_writes_the_same(tmp_path, caplog):
    class Probabilities(nn.Sequential):
        footprint = NEAR

    model, masks = Probabilities(nn.Conv2d(1, 1, 3, padding=1), nn.Sigmoid()), []
    for strict in (False, True):
        out = tmp_path / f"{strict}.zarr"
        begin(out, model, strict=strict)
        mask = tilenet.segment(IMAGE, out, model=model, strict=not strict, resume=True)
        masks.append((mask.info["record"], np.asarray(mask).tobytes()))
    assert masks[0] == masks[1] and "strict" not in str(mask.info)
    assert "look like probabilities" in caplog.text  # which makes no seams


def test_a_strict_command_ends_with_2(tmp_path, monkeypatch, tilenet_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doubtful.py").write_text(
        "import tilenet, torch\n"
        "def build():\n"
        "    network = torch.nn.GroupNorm(1, 1)\n"
        "    network.footprint = tilenet.Footprint.same(2, reach=0)\n"
        "    return network\n"
    )
    tifffile.imwrite("slide.tif", IMAGE)
    command = ("segment", "slide.tif", "--model", "doubtful:build", "--out", "m.zarr")
    code, _, err = tilenet_command(*command, "--strict")
    assert code == 2 and "there are seams" in err and not (tmp_path / "m.zarr").exists()
    code, _, err = tilenet_command("batch", "slide.tif", "--model", "doubtful:build", "--out", "masks", "--strict")
    assert code == 3 and "1 of 1 image failed" in err and not list(tmp_path.glob("masks/*.zarr"))
    assert tilenet_command(*command)[0] == 0


def test_a_strict_lazy_array_is_refused_when_it_is_made():
    with pytest.raises(ModelError, match="there are seams"):
        tilenet.lazy(IMAGE, model=DOUBTFUL["reach"][0], footprint=NEAR, strict=True)
