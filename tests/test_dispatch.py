"""Flights are sent to workers, which refuse them, die or are lost: the dispatch, without Dask."""

import threading
from concurrent.futures import CancelledError
from itertools import count

import pytest
from faults import wait_until
from workers import BLOCKS, Cluster, an_image, an_output, notes_of, opened, write_image  # noqa: F401

from tilenet.errors import EnvironmentFault
from tilenet.workers import distributed, worker
from tilenet.workers.distributed import work_off
from tilenet.workers.flights import Queue
from tilenet.workers.worker import FlightResult


def test_no_more_flights_are_on_their_way_than_there_are_workers(output):
    cluster = Cluster(workers=3)
    (done,) = work_off(cluster, [output])
    assert done is output and output.report.blocks == BLOCKS and not list(output.store.pending())
    assert 1 < cluster.most <= 3
    assert notes_of(output.store.path) == []


def test_what_is_refused_goes_to_other_workers(output):
    bad = "tcp://worker:0"
    cluster = Cluster(workers=3, answers=lambda blocks, where: FlightResult(refusal="no GPU") if where == bad else None)
    list(work_off(cluster, [output]))
    output.raise_if_failed()
    assert output.report.blocks == BLOCKS
    per_block = [[where for blocks, where in cluster.asked if index in blocks] for index in range(BLOCKS)]
    assert all(len(where) == len(set(where)) for where in per_block)


class KilledWorker(Exception):
    """Known by its name, as Dask is not imported to tell."""


def test_what_dask_raises_for_a_flight_is_a_refusal_or_a_death(output, monkeypatch):
    raised = {9: ModuleNotFoundError("No module named 'stub'"), 10: KilledWorker(), 11: KilledWorker()}
    cluster = Cluster(workers=5, answers=lambda blocks, where: raised.get(blocks[0]))

    def is_begun(self, flight):
        return any(name.endswith(f"-10-{flight}") for name in cluster.names)

    monkeypatch.setattr(type(output.store), "is_begun", is_begun)
    list(work_off(cluster, [output]))
    assert output.report.failures == {
        9: "ModuleNotFoundError: No module named 'stub'",
        10: "4 workers died of it",
        11: "workers die before they begin it",
    }
    assert output.report.blocks == BLOCKS - 3
    asked = [blocks for blocks, _ in cluster.asked]
    assert asked.count((10,)) == asked.count((11,)) == 4


def test_deaths_before_a_block_is_begun_blame_nobody(output):
    """Four workers died of a flight, says Dask; each was killed while it started."""
    storm = iter([KilledWorker()] * 3 + [None] + [KilledWorker()] * 3)
    list(work_off(Cluster(answers=lambda blocks, where: next(storm, None) if 7 in blocks else None), [output]))
    assert output.report.failures == {} and output.report.blocks == BLOCKS


def test_the_queue_knows_no_end_of_an_output(image, tmp_path):
    outputs = [opened(write_image(tmp_path / f"{i}.tif", seed=i), tmp_path / f"{i}.zarr") for i in range(3)]
    cluster = Cluster(workers=5)
    assert {id(output) for output in work_off(cluster, iter(outputs))} == set(map(id, outputs))
    assert sum(output.report.blocks for output in outputs) == 3 * BLOCKS
    # Twelve blocks an output and five workers: some moment saw blocks of two outputs in flight.
    assert cluster.most == 5
    for output in outputs:
        output.store.close()
    worker.close_all()


def test_it_is_said_more_and_more_rarely_that_no_worker_comes_and_anew_that_none_is_left(output, monkeypatch, caplog):
    monkeypatch.setattr(distributed, "WAKE", 0.02)
    monkeypatch.setattr(distributed, "monotonic", count(0, 5.0).__next__)  # five seconds from one look to the next
    present, counted = threading.Event(), threading.Event()

    def answers(blocks, where):
        if 0 in blocks:
            wait_until(lambda: len(caplog.messages) == 3)
            present.set()
        if BLOCKS - 1 in blocks:
            counted.wait()
            present.clear()
            wait_until(lambda: len(caplog.messages) == 4)

    def nthreads():
        here = present.is_set()  # asked once: the answer that is counted is the one that is given
        if here:
            counted.set()
        return {"tcp://worker:0": 1} if here else {}

    cluster = Cluster(workers=1, answers=answers)
    cluster.nthreads = nthreads
    list(work_off(cluster, [output]))
    yet, left = "no worker yet, for {} min: 12 blocks wait", "no worker any more, for 1 min: 1 block waits"
    assert caplog.messages == [yet.format(1), yet.format(2), yet.format(4), left]
    assert output.report.blocks == BLOCKS


def test_at_last_it_is_said_each_hour_that_no_worker_comes(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(distributed, "monotonic", lambda: now[0])
    dispatch = distributed._Dispatch(Cluster(workers=0), Queue([]))
    for minute in range(250):
        now[0] = 60.0 * minute
        dispatch._say_if_alone()
    assert [int(text.split()[4]) for text in caplog.messages] == [1, 2, 4, 8, 16, 32, 64, 124, 184, 244]


def test_a_lost_scheduler_ends_the_run(output):
    cluster = Cluster(answers=lambda blocks, where: CancelledError("scheduler-connection-lost"))
    with pytest.raises(EnvironmentFault, match="tcp://scheduler:1: the scheduler is lost"):
        list(work_off(cluster, [output]))
