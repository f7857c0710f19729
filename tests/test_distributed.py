"""Blocks go to Dask workers, and the mask is the one that a single process writes."""

import json
import logging
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakSet

import dask
import numpy as np
import pytest
import tifffile
import zarr
from distributed.utils import get_mp_context
from oracles import random_network
from serving import serving
from store_helpers import INFO, LAYOUTS, make, tree, tree_hash, truth_of, write_all_blocks
from stub import BAD, DEADLY, Bright
from workers import BLOCKS, TILES, Cluster, an_image, listening, opened, small_network, spoil, write_image  # noqa: F401

import tilenet
from tilenet.errors import BlocksFailed, EnvironmentFault, ImageError, SettingsError
from tilenet.store import CoarserBlock, Store
from tilenet.store.blocks import Blocks
from tilenet.workers import clusters, flights
from tilenet.workers.distributed import check_sendable, map_in_order

PIPELINES = Path(__file__).parent.parent / "pipelines"


@pytest.fixture(scope="module")
def client():
    """Return the client of two worker processes, for all tests of this module.

    They are forks of a process that has loaded the libraries, and so are those that replace them: how long a worker
    takes to load them is no matter here, and several die.
    """
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(["distributed", "torch", "tifffile", "zarr", "tilenet.workers.worker"])
        with clusters.local_cluster(2) as client:
            yield client


def test_workers_open_an_address_by_themselves(client, network, tmp_path):
    pytest.importorskip("obstore", reason='needs what reads remote images: pip install "tilenet[remote]"')
    pixels = tifffile.imread(write_image(tmp_path / "slide.tif", sides=(1024, 1536)))
    zarr.create_array(tmp_path / "image.zarr", data=pixels, chunks=(256, 256))
    with serving(tmp_path) as server:
        url = f"{server.url}/image.zarr?signature"
        tilenet.segment(url, tmp_path / "shared.zarr", model=network, client=client, **TILES)
        assert all(asked.endswith("?signature") for asked, _ in server.seen)
    tilenet.segment(tmp_path / "image.zarr", tmp_path / "alone.zarr", model=network, **TILES)
    assert tree(tmp_path / "alone.zarr" / "0") == tree(tmp_path / "shared.zarr" / "0")


def test_workers_call_a_function_of_a_module_for_the_model(client, tmp_path):
    image = write_image(tmp_path / "slide.tif", sides=(1024, 1536))
    tilenet.segment(image, tmp_path / "shared.zarr", model="stub:bright", client=client, **TILES)
    tilenet.segment(image, tmp_path / "alone.zarr", model=Bright(), **TILES)
    assert tree(tmp_path / "alone.zarr" / "0") == tree(tmp_path / "shared.zarr" / "0")


@pytest.mark.parametrize("failing", [0, 2])
def test_workers_make_coarser_levels_and_what_they_fail_to_make_is_made_here(client, tmp_path, failing):
    class Failing:
        """A client whose workers fail at some of the blocks they are sent."""

        made = 0
        nthreads = client.nthreads

        def submit(self, shard, block, *, key, pure):
            self.made += 1
            fails = failing and self.made % failing == 0
            return client.submit(int if fails else shard, block, key=key, pure=pure)

    layout, workers = LAYOUTS["odd blocks"], Failing()
    make(tmp_path / "alone.zarr", layout)
    store = Store.create(tmp_path / "shared.zarr", layout, INFO)
    write_all_blocks(store, truth_of(layout))
    store.build_pyramid(make_shards=partial(map_in_order, workers, CoarserBlock.shard))
    store.finish()
    assert tree_hash(tmp_path / "shared.zarr") == tree_hash(tmp_path / "alone.zarr")
    assert workers.made == sum(layout.n_blocks(level) for level in range(1, len(layout.levels)))


def test_without_workers_or_a_scheduler_coarser_levels_are_made_here(tmp_path):
    class Nobody:
        """A client whose scheduler has no workers any more, or is lost."""

        def __init__(self, *, lost):
            self.lost = lost

        def nthreads(self):
            if self.lost:
                raise OSError("no scheduler")
            return {}

        def submit(self, *_, **__):
            if self.lost:
                raise OSError("no scheduler")
            return SimpleNamespace(result=self.wait, done=lambda: False)

        def wait(self, timeout):
            raise TimeoutError

    layout = LAYOUTS["odd blocks"]
    make(tmp_path / "alone.zarr", layout)
    for lost in (False, True):
        store = Store.create(tmp_path / f"{lost}.zarr", layout, INFO)
        write_all_blocks(store, truth_of(layout))
        store.build_pyramid(make_shards=partial(map_in_order, Nobody(lost=lost), CoarserBlock.shard))
        store.finish()
        assert tree_hash(tmp_path / f"{lost}.zarr") == tree_hash(tmp_path / "alone.zarr")


def test_workers_are_asked_for_no_more_when_what_they_made_cannot_be_written(tmp_path, monkeypatch):
    asked, layout = WeakSet(), LAYOUTS["odd blocks"]

    class Answer:
        """A future, which Dask cancels when nobody has it any more."""

        def __init__(self, block):
            self.result = lambda timeout: block.shard()
            asked.add(self)

    workers = SimpleNamespace(nthreads=lambda: {"a": 1}, submit=lambda function, block, **_: Answer(block))
    store = Store.create(tmp_path / "m.zarr", layout, INFO)
    write_all_blocks(store, truth_of(layout))

    def full(*_):
        assert len(asked) > 1
        raise EnvironmentFault("no space left on device")

    monkeypatch.setattr(Blocks, "put_all", full)
    with pytest.raises(EnvironmentFault) as caught:
        store.build_pyramid(make_shards=partial(map_in_order, workers, CoarserBlock.shard))
    assert caught.value.__traceback__ and not asked


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


@pytest.fixture
def asked(client, monkeypatch):
    """Have `local_cluster` give the workers of these tests; return the list of how many were asked for."""
    counts = []
    monkeypatch.setattr(clusters, "local_cluster", lambda n, **_: (counts.append(n), nullcontext(client))[1])
    return counts


@pytest.mark.parametrize("command", ["segment", "batch"])
def test_what_is_said_while_workers_start_and_stop_is_a_remark(
    image, network, tmp_path, tilenet_command, monkeypatch, command
):
    @contextmanager
    def local_cluster(*_, **__):
        logging.getLogger("tilenet").warning("starting")
        yield
        logging.getLogger("tilenet").warning("stopping")

    monkeypatch.setattr(clusters, "local_cluster", local_cluster)
    options = ("--out", tmp_path / "out", "--model", network, "--tile", 512, "--threads", 1, "--workers", 2)
    code, _, err = tilenet_command(command, image, *options)
    assert code == 0 and {"tilenet: starting", "tilenet: stopping"} <= set(err.splitlines())
    code, out, err = tilenet_command(command, image, *options, "--json", *(["--resume"] * (command == "segment")))
    assert (code, err) == (0, "") and {"starting", "stopping"} <= set(json.loads(out)["remarks"])


@pytest.mark.parametrize("command", ["segment", "batch"])
def test_the_option_workers_starts_workers_which_compute_the_blocks(
    asked, image, network, tmp_path, tilenet_command, command
):
    options = ("--out", tmp_path / "out", "--model", network, "--tile", 512, "--threads", 1)
    code, _, err = tilenet_command(command, image, *options, "--workers", 2)
    assert (code, asked) == (0, [2]), err
    tilenet.segment(image, tmp_path / "alone.zarr", model=network, **TILES)
    shared = tmp_path / "out" / ("slide.zarr" if command == "batch" else ".")
    assert tree(shared) == tree(tmp_path / "alone.zarr")


def test_a_client_of_a_notebook_serves_segment_and_lazy(client, image, network, tmp_path):
    mask = tilenet.segment(image, tmp_path / "m.zarr", model=network, client=client, **TILES)
    array = tilenet.lazy(image, model=network, tile=512, threads=1)
    lazily = client.compute(array[300:1200, 700:1900]).result()
    assert np.array_equal(lazily, mask[300:1200, 700:1900]) and len(np.unique(lazily)) == 2


def test_a_bad_block_is_named_and_the_others_are_done(client, image, tmp_path):
    spoil(image, BAD, (600, 600))
    with pytest.raises(BlocksFailed, match=r"1 of 12 blocks failed; block 5 at .*the lamp went out"):
        tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client=client, **TILES)
    spoil(image, 7, (600, 600))
    output = opened(image, tmp_path / "m.zarr")
    assert list(output.store.pending()) == [5]
    output.store.close()
    tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client=client, resume=True)
    tilenet.segment(image, tmp_path / "alone.zarr", model=Bright(), **TILES)
    assert tree(tmp_path / "m.zarr") == tree(tmp_path / "alone.zarr")


@pytest.mark.parametrize("tries", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_block_that_kills_its_workers_is_named_and_its_neighbours_are_done(
    client, image, tmp_path, monkeypatch, tries
):
    monkeypatch.setattr(flights, "TRIES", tries)
    deaths, out = tmp_path / "deaths", tmp_path / "m.zarr"
    spoil(image, DEADLY, (20, 520))  # in the middle of a flight: the block before it is written by then
    with pytest.raises(BlocksFailed, match=rf"1 of 12 blocks failed; block 1 at .*: {tries} workers died of it"):
        tilenet.segment(image, out, model=Bright(deaths=str(deaths)), client=client, tile=256, batch=4, threads=1)
    assert len(deaths.read_bytes()) == tries
    output = opened(image, out, tile=256, batch=4)
    assert list(output.store.pending()) == [1]
    output.store.close()


def test_everything_listens_on_loopback_alone(client):
    assert listening() == {"127.0.0.1"}


def test_what_a_worker_cannot_open_is_refused(image, tmp_path):
    network = random_network(in_channels=1, n_classes=2, depth=2, wf=1)
    with pytest.raises(ImageError, match="ndarray: workers open images by themselves"):
        tilenet.segment(np.zeros((64, 64), np.uint8), tmp_path / "m.zarr", client=object())
    with pytest.raises(SettingsError, match=r"UNet: workers load models.*save_model"):
        tilenet.segment(image, tmp_path / "m.zarr", model=network, client=object())
    with pytest.raises(SettingsError, match="give out"):
        tilenet.segment(image, model=Bright(), client=object())
    with pytest.raises(
        SettingsError, match=r"client 'tcp://1\.2\.3\.4' is not a client .*Client\('tcp://1\.2\.3\.4'\)$"
    ):
        tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client="tcp://1.2.3.4")
    asynchronous = Cluster()
    asynchronous.asynchronous = True
    with pytest.raises(SettingsError, match="the client is asynchronous, and this call is not"):
        tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), client=asynchronous)
    assert not (tmp_path / "m.zarr").exists()


def test_a_callable_is_sent_if_it_is_little_more_than_a_name():
    check_sendable("image.tif", Bright())
    large = Bright(bright=np.zeros(10_000))
    with pytest.raises(SettingsError, match=r"Bright: has 8\d{4} bytes pickled"):
        check_sendable("image.tif", large)
    with pytest.raises(SettingsError, match=r"function: cannot be sent to workers \(.*importable module"):
        check_sendable("image.tif", lambda batch: batch)


def test_nothing_of_dask_is_said_to_the_user():
    loggers = [logging.getLogger(f"distributed{part}") for part in ("", ".client", ".scheduler", ".nanny")]
    before = [logger.level for logger in loggers]
    with clusters._quiet():
        assert not any(logger.isEnabledFor(logging.ERROR) for logger in loggers)
    assert [logger.level for logger in loggers] == before
