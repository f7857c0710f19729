"""Folders for the tests of the store, and what is true of one that was gone on with.

In memory where there is such a file system: a killed process loses nothing there either, and
thousands of synced files cost nothing.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from store_helpers import LAYOUTS, Children, make, run, tree_hash

from tilenet.errors import OutputIncomplete
from tilenet.store import open_mask


def new_folder():
    return Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


@pytest.fixture(name="tmp_path")
def folder_in_memory():
    folder = new_folder()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", name="children")
def children_of_this_process():
    """Return what runs stores in processes of their own."""
    served = Children()
    yield served
    served.close()


@pytest.fixture(scope="module", name="right")
def hashes_of_uninterrupted_stores():
    """Return the hash of an uninterrupted store, by the name of its layout."""
    hashes, folder = {}, new_folder()

    def of(layout):
        if layout not in hashes:
            make(folder / layout / "m.zarr", LAYOUTS[layout])
            hashes[layout] = tree_hash(folder / layout / "m.zarr")
        return hashes[layout]

    yield of
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=LAYOUTS, name="written")
def complete_store(request):
    """Return path, layout and truth of a complete store."""
    layout, folder = LAYOUTS[request.param], new_folder()
    path = folder / "deep" / "er" / "m.zarr"
    yield path, layout, make(path, layout)
    shutil.rmtree(folder)


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
