"""Workers, clients and schedulers that die, and the mask that has the same bytes all the same.

Minutes, so only with ``pytest -m slow``; the counts in docs/faults.md are of these.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from faults import stray
from faults import wait_until as wait_until_soon
from oracles import random_network
from serving import certificate, nobody_at
from store_helpers import journal_lines, tree
from stub import SLEEP, Bright
from workers import write_image

import tilenet
from tilenet.workers import clusters

pytestmark = pytest.mark.slow
SIDES, BLOCKS = (2048, 2560), 20
TILES = {"tile": 512, "threads": 1}
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1", SLEEP: "0.5"}
RUNS = 20
# Seconds for what takes a few on a machine that does nothing else.
PATIENCE = 300


def wait_until(true):
    wait_until_soon(true, PATIENCE)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("image") / "slide.tif", sides=SIDES)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    return tilenet.save_model(random_network(in_channels=1, depth=3, wf=4), path)


@pytest.fixture(scope="module")
def alone(image, network, tmp_path_factory):
    """Return what a run that nothing happens to leaves."""
    out = tmp_path_factory.mktemp("alone") / "m.zarr"
    tilenet.segment(image, out, model=network, **TILES)
    return tree(out)


class Dask:
    """A scheduler and workers in processes of their own, as somebody else would have started them."""

    def __init__(self, folder, *, workers=2, options=()):
        self.file = folder / "scheduler.json"
        common = ["--host", "127.0.0.1", "--no-dashboard", *options]
        begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"]
        self.log = (folder / "dask.log").open("w")
        self.processes = [self._start(*begin, "--dashboard-address", ":0", "--scheduler-file", self.file, *common)]
        wait_until(lambda: self.file.exists() and self.file.stat().st_size)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", self.file, "--nthreads", "1"]
        self.processes += [self._start(*worker, "--no-nanny", *common) for _ in range(workers)]

    def _start(self, *command):
        return subprocess.Popen([*map(str, command)], env=ENVIRON, stdout=self.log, stderr=self.log)

    @property
    def address(self):
        return json.loads(self.file.read_text())["address"]

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.log.close()


@pytest.fixture
def dask(tmp_path):
    dask = Dask(tmp_path)
    yield dask
    dask.close()


def start(folder, *args):
    """Start the command; what it says goes into a file."""
    with (folder / "said").open("w") as said:
        command = [sys.executable, "-m", "tilenet", "segment", *map(str, args), "--tile", "512", "--threads", "1"]
        return subprocess.Popen(command, env=ENVIRON, stdout=said, stderr=said)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Return an image of many blocks, and what a run that nothing happens to leaves of it."""
    folder = tmp_path_factory.mktemp("long")
    image = write_image(folder / "slide.tif", sides=(3072, 5120))
    tilenet.segment(image, folder / "alone.zarr", model=Bright(), **TILES)
    return image, tree(folder / "alone.zarr")


@pytest.mark.parametrize("number", range(RUNS))
def test_workers_are_killed_every_few_seconds(long, tmp_path, number):
    """Of 60 blocks that take a little less than a second: kills fall on the first of a flight, and on the second."""
    (image, alone), dice, ended, kills = long, random.Random(number), threading.Event(), 0
    with clusters.local_cluster(4) as client:

        def kill():
            nonlocal kills
            while not ended.wait(dice.uniform(5, 10)):
                worker = dice.choice(list(client.cluster.workers.values()) or [None])
                if worker and worker.process and worker.process.pid:  # one that is starting may be hit, too
                    os.kill(worker.process.pid, signal.SIGKILL)
                    kills += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            tilenet.segment(image, tmp_path / "m.zarr", model=Bright(sleep=0.9), client=client, **TILES)
        finally:
            ended.set()
            killer.join()
    assert tree(tmp_path / "m.zarr") == alone and stray(tmp_path / "m.zarr") == []
    assert kills
    print(f"\nrun {number} of 4 workers identical after {kills} kills")


@pytest.mark.parametrize("where", ["--workers", "--scheduler"])
def test_a_client_is_killed_and_started_again_at_once(image, network, alone, dask, tmp_path, where):
    args = [image, "--out", tmp_path / "m.zarr", "--model", network]
    args += ["--workers", 2] if where == "--workers" else ["--scheduler", dask.file]
    cycles, killed = 5, 0
    for cycle in range(cycles):
        shutil.rmtree(tmp_path / "m.zarr", ignore_errors=True)
        run = start(tmp_path, *args)
        for lines in (2, 6 + cycle):
            wait_until(
                lambda lines=lines, run=run: run.poll() is not None or journal_lines(tmp_path / "m.zarr") >= lines
            )
            run.kill()
            run.wait()
            killed += run.returncode == -signal.SIGKILL
            run = start(tmp_path, *args, "--resume")
        assert run.wait(PATIENCE) == 0, (tmp_path / "said").read_text()
        assert tree(tmp_path / "m.zarr") == alone and stray(tmp_path / "m.zarr") == []
    assert killed > cycles
    print(f"\n{where}: {cycles} of {cycles} masks identical after {killed} kills of the client")


def test_a_scheduler_that_dies_is_exit_4_and_the_run_goes_on_without(image, dask, tmp_path):
    run = start(tmp_path, image, "--out", tmp_path / "m.zarr", "--model", "stub:bright", "--scheduler", dask.address)
    wait_until(lambda: journal_lines(tmp_path / "m.zarr") >= 4)
    dask.processes[0].kill()
    began = time.monotonic()
    assert run.wait(PATIENCE) == 4
    said = (tmp_path / "said").read_text()
    assert "the scheduler is lost" in said and "--resume" in said and len(said.splitlines()) == 1, said
    tilenet.segment(image, tmp_path / "m.zarr", model="stub:bright", resume=True)
    tilenet.segment(image, tmp_path / "alone.zarr", model="stub:bright", **TILES)
    assert tree(tmp_path / "m.zarr") == tree(tmp_path / "alone.zarr")
    print(f"\nexit 4 after {time.monotonic() - began:.1f} s")


def test_no_scheduler_at_an_address_is_exit_4(image, network, tmp_path):
    with nobody_at() as port:
        address = f"tcp://127.0.0.1:{port}"
        run = start(tmp_path, image, "--out", tmp_path / "m.zarr", "--model", network, "--scheduler", address)
        assert run.wait(PATIENCE) == 4
    said = (tmp_path / "said").read_text()
    assert "no scheduler answers" in said and len(said.splitlines()) == 1, said
    assert not (tmp_path / "m.zarr").exists()


def test_connections_are_encrypted_where_that_is_asked_for(image, network, alone, tmp_path):
    cert, key = certificate(tmp_path)
    tls = ["--tls-ca-file", cert, "--tls-cert", cert, "--tls-key", key]
    dask = Dask(tmp_path, options=["--protocol", "tls", *tls])
    try:
        assert dask.address.startswith("tls://")
        args = [image, "--out", tmp_path / "m.zarr", "--model", network, "--scheduler", dask.address]
        assert start(tmp_path, *args).wait(PATIENCE) != 0, "it connected without a certificate"
        assert start(tmp_path, *args, *tls).wait(PATIENCE) == 0, (tmp_path / "said").read_text()
    finally:
        dask.close()
    assert tree(tmp_path / "m.zarr") == alone


def test_interrupting_a_run_with_workers_ends_it_within_seconds(image, tmp_path):
    run = start(tmp_path, image, "--out", tmp_path / "m.zarr", "--model", "stub:bright", "--workers", 2)
    wait_until(lambda: journal_lines(tmp_path / "m.zarr") >= 2)
    run.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert run.wait(30) == 130
    seconds = time.monotonic() - began
    said = (tmp_path / "said").read_text()
    assert "--resume" in said and len(said.splitlines()) == 1 and seconds < 10, said
    print(f"\nSIGINT: {seconds:.1f} s")
