"""What the tests of the store share, and what is true of one that was gone on with."""

import json

import pytest
from store_helpers import LAYOUTS, Children, make, run, tree_hash

from tilenet.errors import OutputIncomplete
from tilenet.store import open_mask


@pytest.fixture(scope="session", name="children")
def children_of_this_process():
    """Return what runs stores in processes of their own."""
    served = Children()
    yield served
    served.close()


@pytest.fixture(scope="session", name="right")
def hashes_of_uninterrupted_stores(tmp_path_factory):
    """Return the hash of an uninterrupted store, by the name of its layout."""
    hashes, folder = {}, tmp_path_factory.mktemp("right")

    def of(layout):
        if layout not in hashes:
            make(folder / layout / "m.zarr", LAYOUTS[layout])
            hashes[layout] = tree_hash(folder / layout / "m.zarr")
        return hashes[layout]

    return of


@pytest.fixture(scope="module", params=LAYOUTS, name="written")
def complete_store(request, tmp_path_factory):
    """Return path, layout and truth of a complete store."""
    path, layout = tmp_path_factory.mktemp("written") / "deep" / "er" / "m.zarr", LAYOUTS[request.param]
    return path, layout, make(path, layout)


@pytest.fixture(name="old")
def store_of_another_mask(tmp_path):
    """Return a complete store, with another mask in it than a new one would have."""
    make(tmp_path / "m.zarr", LAYOUTS["tiny"], seed=1)
    return tmp_path / "m.zarr"


def assert_resumes_to(expected, path, layout):
    """Go on where a run was killed; nothing may be left beside or inside."""
    zarr_json = path / "zarr.json"
    if zarr_json.exists() and not json.loads(zarr_json.read_bytes())["attributes"]["tilenet"]["complete"]:
        with pytest.raises(OutputIncomplete):
            open_mask(path)
    run(path, LAYOUTS[layout])
    assert tree_hash(path) == expected
    assert [file.name for file in path.parent.iterdir()] == [path.name]
