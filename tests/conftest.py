import ctypes
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, settings
from store_fixtures import (  # noqa: F401 - found by their names
    children_of_this_process,
    complete_store,
    hashes_of_uninterrupted_stores,
    store_of_another_mask,
)
from store_helpers import tree_hash

from tilenet.cli.main import main
from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.machine import keep_freed_memory
from tilenet.readers import open_image
from tilenet.store import open_mask

# Small tensors by the thousand: more threads, or memory mapped afresh for each, only cost time.
torch.set_num_threads(1)
keep_freed_memory()
# Read when kernels are first imported: without a GPU they are tested as plain array functions.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Temporary folders in memory: a killed process loses nothing there either, and synced files cost nothing.
if "TMPDIR" not in os.environ and os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 * 2**30:
    tempfile.tempdir = "/dev/shm"
# How long an example takes says how busy the machine is. Where the variable CI is set, Hypothesis starts from its own
# profile for that, which tries the same cases each time, and this one inherits it; elsewhere each run draws new ones.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def shared_data():
    """Return the path of a file of the shared real data, or skip the test where they are not."""
    root = Path(os.environ.get("TILENET_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))

    def find(name):
        if not (root / name).exists():
            pytest.skip(f"{name} is not in {root}: set TILENET_TEST_DATA to the folder of real images")
        return root / name

    return find


def peak_memory(*, reset=False):
    """Return the peak resident kibibytes of this process, since the last reset; 0 where not to be had."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    except OSError:
        return 0


@pytest.fixture
def refused():
    """Return a check that an image is refused on opening, or (`reading`) on reading it whole."""

    def check(path, *, reading=False, says=""):
        before, start = peak_memory(reset=True), time.process_time()
        with pytest.raises(ImageError) as caught:
            image = open_image(path)
            if reading:
                image.read(Box.of_shape(image.box_shape))
        message = str(caught.value)
        assert "\n" not in message
        assert os.fspath(path) in message
        assert says in message
        assert message.count(". ") >= 1, "no way out is named"
        assert time.process_time() - start < 10
        assert peak_memory() - before < 512 * 1024
        return message

    return check


@pytest.fixture(params=["by its event loop", "in this thread"])
def zarr_reads(request):
    """Let zarr read in its usual way, and in that which it has since 3.4 and takes if it is told to."""
    if request.param == "by its event loop":
        yield
    elif not hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
        pytest.skip("zarr before 3.4 always reads by its event loop")
    else:
        with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}):
            yield


@pytest.fixture(scope="session")
def network():
    """Return a small network, which no test may change."""
    from oracles import random_network

    return random_network(depth=3, wf=2)


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """Return what runs the command in processes that can be killed; one server for all tests."""
    from faults import Commands

    commands = Commands(tmp_path_factory.mktemp("prints"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """Return the slide of which the tests of faults and of shares make masks."""
    from faults import write_image

    return write_image(tmp_path_factory.mktemp("image") / "slide.tif")


@pytest.fixture(scope="session")
def uninterrupted(commands, image, tmp_path_factory):
    """Return its mask, by a run that nothing happens to."""
    from faults import ENTRIES, STUB, entries, stray

    out = tmp_path_factory.mktemp("uninterrupted") / "m.zarr"
    assert commands.run("segment", image, "-o", out, *STUB, stub={"sleep": 0}) == (0, "")
    assert 0.05 < np.asarray(open_mask(out)).mean() < 0.95
    assert (entries(out), stray(out)) == (ENTRIES, [])
    return out


@pytest.fixture(scope="session")
def whole(uninterrupted):
    """Return the hash of this mask."""
    return tree_hash(uninterrupted)


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts, or mounts anew, a file system; options and flags as mount(2)."""
    libc, mounted = ctypes.CDLL(None, use_errno=True), set()

    def mount(data, flags=0, *, name="disk"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", flags, data.encode()):
            pytest.skip(f"a small file system cannot be mounted here: {os.strerror(ctypes.get_errno())}")
        mounted.add(folder)
        return folder

    yield mount
    for folder in mounted:
        libc.umount2(bytes(folder), 2)


@pytest.fixture
def tilenet_command(monkeypatch, capsys):
    """Run the command in this process, which is faster: (exit code, stdout, stderr)."""

    def command(*args):
        monkeypatch.setattr(sys, "argv", ["tilenet", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return command
