"""Objects that are found in several processes of one machine."""

import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import tifffile
from blobs import blobs
from killing import dies_once
from store_helpers import tree_hash
from stub import Bright

from tilenet import machine
from tilenet.cli.cluster import cluster_of
from tilenet.instances.components import WINDOWS, beside, left_for
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering, object_places
from tilenet.runs.object_places import EACH, WORTH, n_processes
from tilenet.store import open_mask
from tilenet.store.lease_holder import is_running, started
from tilenet.workers import processes
from tilenet.workers.processes import map_in_processes, most_processes, several_processes

NOBODY = dict.fromkeys(("workers", "scheduler", "cluster", "tls_ca_file", "tls_cert", "tls_key"))


def fails(item):
    raise AssertionError(f"{item} was not to be done here")


def test_processes_return_what_this_one_would_in_order():
    items = [-3, 2.5, -1, 0, 4, -9]
    assert list(map_in_processes(abs, items, 2, otherwise=fails)) == [3, 2.5, 1, 0, 4, 9]


def test_what_fails_in_a_process_is_done_here():
    assert list(map_in_processes(int, ["1", "two", "3"], 2, otherwise=len)) == [1, 3, 3]


def test_if_processes_are_killed_again_and_again_fewer_begin_and_at_last_all_is_done_here(caplog):
    found = list(map_in_processes(os._exit, [1, 2, 3, 4, 5, 6, 7], 4, otherwise=str))
    assert found == ["1", "2", "3", "4", "5", "6", "7"]
    said = ["2 of 4 begin again", "1 of 2 begin again", "this one does what is left"]
    assert [message.split(": ")[1].split(". ")[0] for message in caplog.messages] == said


@pytest.mark.parametrize("count", [2, 5])
def test_if_a_process_is_killed_once_fewer_do_what_is_left(count, tmp_path, caplog):
    deadly = partial(dies_once, tmp_path / "file", -9, abs)
    assert list(map_in_processes(deadly, range(0, -19, -1), count, otherwise=fails)) == list(range(19))
    assert [f"{count // 2} of {count} begin again" in message for message in caplog.messages] == [True]


def test_where_no_process_can_begin_all_is_done_here(monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(processes.ProcessPoolExecutor, "submit", refuse)
    assert list(map_in_processes(fails, [1, 2, 3], 2, otherwise=str)) == ["1", "2", "3"]
    assert ["killed, or cannot begin" in message for message in caplog.messages] == [True, True]


def test_an_error_that_happens_here_too_is_raised():
    with pytest.raises(ValueError, match="two"):
        list(map_in_processes(int, ["1", "two"], 2, otherwise=int))


def test_work_that_is_not_wanted_any_more_is_stopped():
    made = map_in_processes(time.sleep, [0] + [600] * 9, 1, otherwise=fails)
    next(made)
    begun = time.monotonic()
    made.close()
    assert time.monotonic() - begun < 300


ENDLESS = """
import os, sys, time
from tilenet.workers.processes import map_in_processes
if __name__ == "__main__":
    items = ["__import__('os').getpid()"] + ["__import__('time').sleep(600)"] * 9
    made = map_in_processes(eval, items, 1, otherwise=abs)
    print(next(made), flush=True)
    next(made)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_one_that_began_them(number):
    parent = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    began = started(child)
    assert is_running(child, began)
    parent.send_signal(number)
    parent.wait(60)
    parent.stdout.close()
    begun = time.monotonic()
    # Not whether it is listed: where nobody reaps the orphans of a container, it is listed for ever.
    while is_running(child, began) and time.monotonic() < begun + 60:
        time.sleep(0.02)
    assert not is_running(child, began)


@pytest.mark.parametrize(
    ("pixels", "blocks", "left", "count"),
    [
        (WORTH, 9, 8 * EACH, 3),
        (WORTH, 2, 8 * EACH, 2),
        (WORTH, 9, 2 * EACH, 2),
        (WORTH, 9, 2 * EACH - 1, 1),
        (WORTH - 1, 9, 8 * EACH, 1),
    ],
)
def test_processes_are_as_many_as_allowed_as_blocks_and_as_memory_is_for_if_it_is_worth_it(pixels, blocks, left, count):
    memory = beside() + left * WINDOWS[1] // WINDOWS[0]
    assert left - 1 <= left_for(memory) <= left
    assert n_processes(pixels, blocks, memory) == 1
    with several_processes(3):
        assert n_processes(pixels, blocks, memory) == count
    assert n_processes(pixels, blocks, memory) == 1


def test_a_command_allows_as_many_processes_as_threads_unless_it_has_workers():
    with machine.threads(5):
        for given, allowed in ((None, 5), (3, 3), (7, 5)):
            with cluster_of({"threads": given, **NOBODY}) as client:
                assert client is None and most_processes() == allowed
    assert most_processes() == 1


@pytest.fixture(name="wanted")
def a_wish(tmp_path, monkeypatch):
    """Return what is wanted of a slide of many blocks, one of whose components extends over most of them."""
    slide = blobs((300, 350), seed=3, coarse=3)
    slide[150:155] = slide[:, 150:155] = slide.max()
    tifffile.imwrite(tmp_path / "slide.tif", slide, tile=(64, 64))
    monkeypatch.setattr(object_places, "PIECES", {2: (128**2, 64)})
    monkeypatch.setattr(object_places, "WORTH", 0)
    return Request(tmp_path / "slide.tif", Bright(), Options(tile=64, block=64, output="objects"))


@pytest.mark.parametrize("share", [10**9, 110 * 200**2])
def test_several_processes_find_the_objects_that_one_finds(wanted, tmp_path, monkeypatch, share):
    # With the smaller share, only this process has the memory for the component that extends over many blocks.
    numbering.store_objects(tmp_path / "one.zarr", wanted)
    monkeypatch.setattr(object_places, "_share", lambda *_: share)
    here, found_in = [], object_places.PlacesTask.places
    monkeypatch.setattr(object_places.PlacesTask, "places", lambda task: here.append(task.box) or found_in(task))
    with several_processes(2):
        numbering.store_objects(tmp_path / "two.zarr", wanted)
    one, two = (open_mask(tmp_path / name) for name in ("one.zarr", "two.zarr"))
    assert one[...].max() > 30 and np.array_equal(one[...], two[...])
    assert one.info == two.info
    assert bool(here) == (share < 10**9)


def test_the_objects_are_the_same_if_a_process_is_killed(wanted, tmp_path, monkeypatch, caplog):
    numbering.store_objects(tmp_path / "one.zarr", wanted)

    def deadly(function, tasks, count, **how):
        return map_in_processes(partial(dies_once, tmp_path / "file", tasks[1], function), tasks, count, **how)

    monkeypatch.setattr(object_places, "map_in_processes", deadly)
    with several_processes(2):
        numbering.store_objects(tmp_path / "two.zarr", wanted)
    assert "1 of 2 begin again" in caplog.text and (tmp_path / "file").exists()
    assert tree_hash(tmp_path / "one.zarr") == tree_hash(tmp_path / "two.zarr")
