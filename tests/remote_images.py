"""What the tests of remote images share: a server with little patience needed, images on it, and their masks."""

import json
from datetime import timedelta

import numpy as np
import pytest
from ome_images import write_ome_zarr
from serving import serving
from store_helpers import tree
from stub import Bright

import tilenet
from tilenet.readers import remote


@pytest.fixture(name="impatient", autouse=True)
def milliseconds(monkeypatch):
    """Wait for milliseconds where a user waits for seconds."""
    short = {"base": 2, "init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5)}
    monkeypatch.setattr(remote, "BACKOFF", short)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(name="server")
def a_server(tmp_path):
    with serving(tmp_path) as server:
        yield server


def plain_zarr(folder, *, sides=(512, 640), chunk=64, name="image.zarr", **options):
    """Write an OME-Zarr image of one channel whose mask is neither empty nor full."""
    random = np.random.default_rng(3)
    pixels = random.integers(0, 136, sides, dtype=np.uint8) + np.linspace(0, 110, sides[1], dtype=np.uint8)
    return write_ome_zarr(folder / name, [(pixels, (0.5, 0.5))], chunks=(chunk, chunk), **options)


def segmented(image, out, **options):
    return tilenet.segment(image, out, model=Bright(), tile=64, threads=1, **options)


def same_masks(one, two):
    """Tell whether two masks have the same files, but for where the image lay."""
    trees = [tree(path) for path in (one, two)]
    for files, path in zip(trees, (one, two), strict=True):
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["tilenet"]["image"].pop("path")
        files["zarr.json"] = json.dumps(document)
    return {k: v for k, v in trees[0].items() if ".tilenet" not in k} == {
        k: v for k, v in trees[1].items() if ".tilenet" not in k
    }
