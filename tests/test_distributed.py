"""Blocks go to Dask workers, and the mask is the one that a single process writes."""

import asyncio
import logging
import threading
from concurrent.futures import CancelledError
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from oracles import random_network
from store_helpers import tree
from stub import BAD, DEADLY, Bright

import tilenet
from tilenet import clusters, distributed, worker
from tilenet.api import open_store
from tilenet.distributed import TRIES, Slide, check_sendable, task_of, work_off
from tilenet.errors import BlocksFailed, EnvironmentFault, ImageError, OutputLocked, SettingsError
from tilenet.job import Options
from tilenet.worker import Outcome, Task, compute_block

SIDES, BLOCKS = (1536, 2048), 12
TILES = {"tile": 512, "threads": 1}


@pytest.fixture(scope="module")
def client():
    """Return the client of two worker processes, for all tests of this module."""
    with clusters.local_cluster(2) as client:
        yield client


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return the file of a small network."""
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    return tilenet.save_model(random_network(in_channels=1, n_classes=2, depth=2, wf=2), path)


def write_image(path, *, seed=0, sides=SIDES):
    pixels = np.random.default_rng(seed).integers(0, 240, sides, dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256))
    return path


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "slide.tif")


def written_blocks(out):
    return [path for path in (out / "0").rglob("*") if path.is_file() and path.name != "zarr.json"]


def spoil(image, value, at):
    pixels = tifffile.imread(image)
    pixels[at] = value
    tifffile.imwrite(image, pixels, tile=(256, 256))


def opened(image, out, **options):
    """Return a slide as a run has it before its first block."""
    store, job, _ = open_store(
        out, image, Bright(), Options(**TILES, **options), footprint=None, resume=True, overwrite=False
    )
    return Slide(task_of(store, image, Bright()), store, job)


# Real workers.


def test_workers_write_the_bytes_that_one_process_writes(client, image, network, tmp_path):
    alone = tilenet.segment(image, tmp_path / "alone.zarr", model=network, output="both", **TILES)
    progress = []
    tilenet.segment(
        image,
        tmp_path / "shared.zarr",
        model=network,
        output="both",
        client=client,
        progress=lambda done, total: progress.append((done, total)),
        **TILES,
    )
    assert tree(tmp_path / "shared.zarr") == tree(tmp_path / "alone.zarr")
    assert len(np.unique(alone[...])) == 2
    assert len(progress) == BLOCKS and progress[-1] == (1536 * 2048, 1536 * 2048)


def test_a_bad_block_is_named_and_the_others_are_done(client, image, tmp_path):
    spoil(image, BAD, (600, 600))
    with pytest.raises(BlocksFailed, match=r"1 of 12 blocks failed; block 5 at .*the lamp went out"):
        tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client=client, **TILES)
    spoil(image, 7, (600, 600))
    slide = opened(image, tmp_path / "m.zarr")
    assert list(slide.store.pending()) == [5]
    slide.store.close()
    tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client=client, resume=True)
    tilenet.segment(image, tmp_path / "alone.zarr", model=Bright(), **TILES)
    assert tree(tmp_path / "m.zarr") == tree(tmp_path / "alone.zarr")


def test_a_block_that_kills_its_workers_is_named_and_the_others_are_done(client, image, tmp_path):
    before, client.cluster.scheduler.allowed_failures = client.cluster.scheduler.allowed_failures, 1
    assert before + 1 == TRIES
    spoil(image, DEADLY, (20, 20))
    try:
        with pytest.raises(BlocksFailed, match=r"1 of 12 blocks failed; block 0 at .*2 workers died of it"):
            tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client=client, **TILES)
    finally:
        client.cluster.scheduler.allowed_failures = before
    slide = opened(image, tmp_path / "m.zarr")
    assert list(slide.store.pending()) == [0]
    slide.store.close()


def test_a_complete_mask_is_left_alone(client, image, tmp_path):
    tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), **TILES)
    before = tree(tmp_path / "m.zarr")
    tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client=client, resume=True)
    assert tree(tmp_path / "m.zarr") == before


def test_everything_listens_on_loopback_alone(client):
    import psutil

    here = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in [here, *here.children(recursive=True)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening and set(listening) == {"127.0.0.1"}


def test_the_cores_are_shared_out(client):
    import torch

    assert torch.get_num_threads() == 1  # of this process's one, which two workers share


# One worker, in this process.


def test_a_worker_whose_run_is_gone_writes_nothing(image, tmp_path):
    slide = opened(image, tmp_path / "m.zarr")
    assert compute_block(slide.task, 0).line
    slide.store.close()
    again = opened(image, tmp_path / "m.zarr")
    outcome = compute_block(slide.task, 1)
    assert isinstance(outcome.fault, OutputLocked)
    assert 1 in set(again.store.pending()) and 0 not in set(again.store.pending())
    again.store.close()
    worker.close_all()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("device", "cuda:7", "device cuda:7: this machine has"),
        ("engine", "winograd", "engine winograd: not for this network"),
        ("threads", "many", "worker on"),
        ("device", "meta", "has record device = cpu"),
    ],
)
def test_a_worker_that_cannot_honour_the_record_refuses(image, network, tmp_path, monkeypatch, field, value, reason):
    """The worker's machine is another: what the record asks for is not there."""
    out = tmp_path / "m.zarr"
    store, job, _ = open_store(out, image, network, Options(**TILES), footprint=None, resume=False, overwrite=False)
    real = Options.or_recorded
    monkeypatch.setattr(Options, "or_recorded", lambda self, record: real(self, {**record, field: value}))
    if field == "engine":
        monkeypatch.setattr("tilenet.predict.accelerate", lambda network: None)
    outcome = compute_block(task_of(store, image, network), 0)
    store.close()
    job.image.close()
    assert reason in outcome.refusal and not outcome.line
    assert written_blocks(out) == []


def test_a_worker_that_finds_another_image_refuses(image, tmp_path):
    slide = opened(image, tmp_path / "m.zarr")
    write_image(image, sides=(1536, 2304))
    outcome = compute_block(slide.task, 0)
    slide.store.close()
    assert "has image" in outcome.refusal and "That is another image" in outcome.refusal
    assert written_blocks(tmp_path / "m.zarr") == []


def test_a_process_keeps_few_images_open(tmp_path):
    slides = [opened(write_image(tmp_path / f"{i}.tif", seed=i), tmp_path / f"{i}.zarr") for i in range(5)]
    for slide in slides:
        assert compute_block(slide.task, 0).line
    assert len(worker._opened) == worker.OPEN
    worker.close_all()
    for slide in slides:
        slide.store.close()


# The queue, without Dask.


class Cluster:
    """Stands for a client: each block is answered as `answers` says, or computed here."""

    def __init__(self, *, workers=2, answers=None):
        self.addresses = [f"tcp://worker:{i}" for i in range(workers)]
        self.answers, self.cluster = answers or (lambda index, worker: None), None
        self.scheduler = SimpleNamespace(address="tcp://scheduler:1")
        self.asked, self.most = [], 0
        self.loop = SimpleNamespace(add_callback=self._call)

    def nthreads(self):
        return dict.fromkeys(self.addresses, 1)

    def submit(self, function, task, index, *, key, pure, workers=None, allow_other_workers=False):
        assert key.startswith("tilenet-") and not pure
        where = (workers or self.addresses)[0]
        self.asked.append((index, where))
        return self._answer(task, index, where)

    async def _answer(self, task, index, where):
        found = self.answers(index, where)
        if isinstance(found, Exception):
            raise found
        return where, found or compute_block(task, index)

    def _call(self, function, *args):
        self.most = max(self.most, len(function.__self__._futures))
        threading.Thread(target=lambda: asyncio.run(function(*args))).start()


@pytest.fixture
def slide(image, tmp_path):
    slide = opened(image, tmp_path / "m.zarr")
    yield slide
    slide.store.close()
    worker.close_all()


def test_no_more_blocks_are_in_flight_than_there_are_workers(slide):
    cluster = Cluster(workers=3)
    (done,) = work_off(cluster, [slide])
    assert done is slide and slide.report.blocks == BLOCKS and not list(slide.store.pending())
    assert 1 < cluster.most <= 3


def test_a_block_that_is_refused_goes_to_other_workers(slide):
    bad = "tcp://worker:0"
    cluster = Cluster(workers=3, answers=lambda index, where: Outcome(refusal="no GPU") if where == bad else None)
    list(work_off(cluster, [slide]))
    slide.raise_if_failed()
    assert slide.report.blocks == BLOCKS
    per_block = [[where for index, where in cluster.asked if index == block] for block in range(BLOCKS)]
    assert all(len(where) == len(set(where)) for where in per_block)


def test_a_job_that_every_worker_refuses_ends_after_a_few_tries(slide):
    cluster = Cluster(answers=lambda index, where: Outcome(refusal="no GPU here"))
    list(work_off(cluster, [slide]))
    with pytest.raises(BlocksFailed, match=r"was refused 4 times: no GPU here"):
        slide.raise_if_failed()
    assert len(cluster.asked) < 4 * BLOCKS


def test_a_block_that_is_refused_late_is_its_own_fault(slide):
    cluster = Cluster(answers=lambda index, where: Outcome(refusal="out of memory") if index == 7 else None)
    list(work_off(cluster, [slide]))
    assert slide.report.failures == {7: "out of memory"} and slide.report.blocks == BLOCKS - 1


def test_a_job_that_another_run_took_over_ends_and_the_next_goes_on(slide, tmp_path):
    other = opened(write_image(tmp_path / "other.tif", seed=1), tmp_path / "other.zarr")
    taken = OutputLocked("taken over")
    cluster = Cluster()
    cluster.answers = lambda index, where: Outcome(fault=taken) if len(cluster.asked) <= 2 else None
    ended = list(work_off(cluster, [slide, other]))
    assert set(map(id, ended)) == {id(slide), id(other)} and slide.error is taken
    assert other.error is None and other.report.blocks == BLOCKS
    other.store.close()


def test_the_queue_knows_no_end_of_a_slide(image, tmp_path):
    slides = [opened(write_image(tmp_path / f"{i}.tif", seed=i), tmp_path / f"{i}.zarr") for i in range(3)]
    cluster = Cluster(workers=5)
    assert {id(slide) for slide in work_off(cluster, iter(slides))} == set(map(id, slides))
    assert sum(slide.report.blocks for slide in slides) == 3 * BLOCKS
    # Twelve blocks a slide and five workers: some moment saw blocks of two slides in flight.
    assert cluster.most == 5
    for slide in slides:
        slide.store.close()
    worker.close_all()


def test_a_lost_scheduler_ends_the_run(slide):
    cluster = Cluster(answers=lambda index, where: CancelledError("scheduler-connection-lost"))
    with pytest.raises(EnvironmentFault, match="tcp://scheduler:1: the scheduler is lost"):
        list(work_off(cluster, [slide]))


# What is refused.


def test_what_a_worker_cannot_open_is_refused(image, tmp_path):
    network = random_network(in_channels=1, n_classes=2, depth=2, wf=1)
    with pytest.raises(ImageError, match="ndarray: workers open images by themselves"):
        tilenet.segment(np.zeros((64, 64), np.uint8), tmp_path / "m.zarr", client=object())
    with pytest.raises(SettingsError, match=r"UNet: workers load models.*save_model"):
        tilenet.segment(image, tmp_path / "m.zarr", model=network, client=object())
    with pytest.raises(SettingsError, match="give out"):
        tilenet.segment(image, model=Bright(), client=object())
    with pytest.raises(SettingsError, match="objects"):
        tilenet.segment(image, tmp_path / "m.zarr", objects=True, client=object())
    assert not (tmp_path / "m.zarr").exists()


def test_a_callable_is_sent_if_it_is_little_more_than_a_name():
    check_sendable("image.tif", Bright())
    large = Bright(bright=np.zeros(10_000))
    with pytest.raises(SettingsError, match=r"Bright: has 8\d{4} bytes pickled"):
        check_sendable("image.tif", large)


def test_a_task_is_coordinates_alone(slide):
    import pickle

    assert isinstance(slide.task, Task)
    assert len(pickle.dumps(slide.task)) < 2000
    assert len(pickle.dumps(distributed.answer)) < 100


def test_nothing_of_dask_is_said_to_the_user():
    loggers = [logging.getLogger(f"distributed{part}") for part in ("", ".client", ".scheduler", ".nanny")]
    before = [logger.level for logger in loggers]
    with clusters._quiet():
        assert not any(logger.isEnabledFor(logging.ERROR) for logger in loggers)
    assert [logger.level for logger in loggers] == before
