"""Folders for the tests of the store.

In memory where there is such a file system: a killed process loses nothing there either, and
thousands of synced files cost nothing.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from store_helpers import LAYOUTS, Children, make, tree_hash


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
