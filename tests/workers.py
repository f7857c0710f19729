"""What the tests of workers share: an image, a run before its first block, and a stand-in for a Dask client."""

import asyncio
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from oracles import random_network
from stub import Bright

from tilenet.jobs.job import Job
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.models.saved import save_model
from tilenet.runs.outputs import open_store
from tilenet.workers import worker
from tilenet.workers.distributed import task_of
from tilenet.workers.flights import PendingOutput
from tilenet.workers.worker import compute_blocks

SIDES, BLOCKS = (1536, 2048), 12
TILES = {"tile": 512, "threads": 1}


def write_image(path, *, seed=0, sides=SIDES):
    pixels = np.random.default_rng(seed).integers(0, 240, sides, dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256))
    return path


@contextmanager
def recorded_as(**fields):
    """Have runs record that they were made in another way, such as on a device that is not here."""
    real = Job.info

    def info(job, scaling):
        found = real(job, scaling)
        return found | {"record": found["record"] | fields}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "info", info)
        yield


def listening():
    """Return the addresses at which this process and its children listen."""
    import psutil

    here, found = psutil.Process(), set()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile, as one does that its nanny replaces
            found |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found


def spoil(image, value, at):
    pixels = tifffile.imread(image)
    pixels[at] = value
    tifffile.imwrite(image, pixels, tile=(256, 256))


def written_blocks(out):
    return [path for path in (out / "0").rglob("*") if path.is_file() and path.name != "zarr.json"]


def notes_of(out):
    """Return the notes on flights that were begun."""
    return list((out / ".tilenet" / "journal").glob("begun-*"))


def opened(image, out, model=None, **options):
    """Return an output as a run has it before its first block."""
    wanted = Request(image, model or Bright(), Options(**TILES | options))
    store, job = open_store(out, wanted, resume=True)
    return PendingOutput(task_of(store, job, wanted), store, job)


@pytest.fixture(name="image")
def an_image(tmp_path):
    return write_image(tmp_path / "slide.tif")


@pytest.fixture(scope="module", name="network")
def small_network(tmp_path_factory):
    """Return the file of a small network."""
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    return save_model(random_network(in_channels=1, n_classes=2, depth=2, wf=2), path)


@pytest.fixture(name="output")
def an_output(image, tmp_path):
    output = opened(image, tmp_path / "m.zarr")
    yield output
    output.store.close()
    worker.close_all()


class Cluster:
    """Stands for a client: each flight is answered as `answers(blocks, worker)` says, or computed here."""

    def __init__(self, *, workers=2, answers=None):
        self.addresses = [f"tcp://worker:{i}" for i in range(workers)]
        self.answers, self.cluster = answers or (lambda blocks, worker: None), None
        self.scheduler = SimpleNamespace(address="tcp://scheduler:1")
        self.asked, self.most, self.names = [], 0, []
        self.loop = SimpleNamespace(add_callback=self._call)

    def nthreads(self):
        return dict.fromkeys(self.addresses, 1)

    def submit(self, function, task, blocks, flight, seconds, *, key, pure, workers=None, allow_other_workers=False):
        assert not pure and seconds > 0
        where = (workers or self.addresses)[0]
        self.asked.append((blocks, where))
        self.names.append(key)
        return self._answer(task, blocks, flight, seconds, where)

    async def _answer(self, task, blocks, flight, seconds, where):
        found = self.answers(blocks, where)
        if isinstance(found, Exception):
            raise found
        return replace(found or compute_blocks(task, blocks, flight=flight, seconds=seconds), worker=where)

    def _call(self, function, *args):
        self.most = max(self.most, len(function.__self__._futures))
        threading.Thread(target=lambda: asyncio.run(function(*args))).start()
