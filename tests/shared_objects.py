"""A run with objects that shares divide, and what it must come to."""

import pytest
import tifffile
from blobs import blobs
from faults import stray, tree_hash
from stub import Bright

from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering, object_places
from tilenet.runs.object_outputs import making_of
from tilenet.store import is_complete, open_mask

SIDES, BLOCKS = (210, 140), 12
# Finds less than `Bright()`.
OTHER = Bright(bright=1700)


@pytest.fixture(scope="module", name="slide")
def a_slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    tifffile.imwrite(path, blobs(SIDES, seed=0, coarse=3), tile=(64, 64))
    return path


@pytest.fixture(name="wanted")
def a_wish(slide, monkeypatch):
    """Return what is wanted of the slide: its objects, found in as many blocks as the network runs on."""
    monkeypatch.setattr(object_places, "PIECES", {2: (64**2, 64)})
    return Request(slide, Bright(), Options(tile=64, block=64, output="objects"))


@pytest.fixture(scope="module", name="whole")
def a_hash(slide):
    """Return the hash of a run by one process."""
    out = slide.with_name("whole.zarr")
    numbering.store_objects(out, Request(slide, Bright(), Options(tile=64, block=64, output="objects")))
    assert open_mask(out).layout.n_blocks(0) == BLOCKS and open_mask(out)[...].max() > 10
    return tree_hash(out)


def same(out, whole):
    return (is_complete(out), tree_hash(out), stray(out), making_of(out, None).exists()) == (True, whole, [], False)
