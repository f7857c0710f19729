"""A mask that one version of tilenet began, and another one goes on with."""

import json

import numpy as np
import pytest
import tifffile
from stub import Bright

import tilenet
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering
from tilenet.runs.outputs import open_store

PIXELS = np.random.default_rng(0).integers(0, 200, (100, 120), np.uint8)
SAID = f"tilenet 0.0.9 wrote it so far, and {tilenet.__version__} goes on with it"


@pytest.fixture
def image(tmp_path):
    tifffile.imwrite(tmp_path / "i.tif", PIXELS)
    return tmp_path / "i.tif"


def versions_in(out):
    lines = map(json.loads, (out / ".tilenet" / "log.jsonl").read_text().splitlines())
    return [line["version"] for line in lines if line["event"] == "version"]


def test_going_on_with_another_version_is_said_once_and_in_the_log(image, tmp_path, monkeypatch, caplog):
    out, request = tmp_path / "m.zarr", Request(image, Bright(), Options(tile=32, block=32))
    for version, said in [("0.0.9", 0), ("0.0.9", 0), (tilenet.__version__, 1), (tilenet.__version__, 0), ("0.0.9", 1)]:
        monkeypatch.setattr(tilenet, "__version__", version)
        caplog.clear()
        for opened in open_store(out, request, resume=True):
            opened.close()
        assert len(caplog.messages) == said
    monkeypatch.undo()
    tilenet.segment(image, out, model=Bright(), resume=True)
    assert caplog.messages[-1] == f"{out}: {SAID}"
    assert versions_in(out) == [tilenet.__version__, "0.0.9", tilenet.__version__]
    caplog.clear()
    assert np.array_equal(
        tilenet.segment(image, out, model=Bright(), resume=True), tilenet.segment(image, model=Bright())
    )
    assert not caplog.messages


def test_a_share_of_another_version_says_so(image, tmp_path, monkeypatch, caplog):
    out, how = tmp_path / "m.zarr", {"model": Bright(), "tile": 32}
    monkeypatch.setattr(tilenet, "__version__", "0.0.9")
    tilenet.segment(image, out, shard=(1, 3), **how)
    monkeypatch.undo()
    for share in ((2, 3), (3, 3)):
        tilenet.segment(image, out, shard=share, **how)
    assert caplog.messages == [f"{out}: {SAID}"] and versions_in(out) == [tilenet.__version__]


def test_a_mask_of_objects_says_that_another_version_ran_the_network(image, tmp_path, monkeypatch, caplog):
    def killed(*_):
        raise KeyboardInterrupt

    out = tmp_path / "o.zarr"
    monkeypatch.setattr(tilenet, "__version__", "0.0.9")
    monkeypatch.setattr(numbering, "_fill_places", killed)
    with pytest.raises(KeyboardInterrupt):
        tilenet.segment(image, out, model=Bright(), objects=True)
    monkeypatch.undo()
    tilenet.segment(image, out, model=Bright(), objects=True, resume=True)
    assert f"{out}: {SAID}" in caplog.messages and versions_in(out) == [tilenet.__version__]
