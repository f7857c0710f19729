"""Which blocks go together, and what follows from each result: a queue, without workers."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilenet.errors import BlocksFailed, DeviceLost, EnvironmentFault, OutputLocked
from tilenet.runner import Report
from tilenet.workers.flights import MOST, ROUNDS, TRIES, PendingOutput, Queue, blocks_per_flight, seconds_per_flight
from tilenet.workers.worker import BlockResult, FlightResult, Task


class Store:
    """Stands for one: knows which blocks it lacks, and what it was told."""

    def __init__(self, blocks, name="m"):
        self.path, self.blocks = Path(f"{name}.zarr"), list(blocks)
        self.looked, self.adopted, self.forgotten = 0, [], []

    def pending(self):
        for index in self.blocks:
            self.looked += 1
            yield index

    def adopt(self, line):
        self.adopted.append(int(line))

    def forget(self, flight):
        self.forgotten.append(flight)


class Job:
    """Stands for one, as far as an error names it."""

    def __init__(self):
        self.image = SimpleNamespace(name="slide.tif")
        self.plan = [SimpleNamespace(box=f"[{i}]") for i in range(1000)]


def output_of(blocks, name="m"):
    blocks = range(blocks) if isinstance(blocks, int) else blocks
    return PendingOutput(
        Task(f"{name}.zarr", f"run-of-{name}-and-more", "slide.tif", "nuclei"), Store(blocks, name), Job()
    )


def done(*blocks, **why):
    return FlightResult({i: BlockResult(b"%d" % i, Report(blocks=1, pixels=10)) for i in blocks}, **why)


def work_off(queue, answers, *, workers=2):
    """Answer flight after flight, as many at a time as there are workers; return the flights."""
    flights, in_flight = [], []
    while True:
        while len(in_flight) < workers and (flight := queue.take(workers)):
            in_flight.append(flight)
            flights.append(flight)
        if not in_flight:
            return flights
        flight = in_flight.pop(0)
        queue.conclude(flight, answers(flight))


def all_done(flight):
    return done(*flight.blocks)


# How many go together.


@given(left=st.integers(0, 10**9), workers=st.integers(0, 10**5))
def test_a_flight_is_never_empty_never_large_and_leaves_some_for_all_others(left, workers):
    together = blocks_per_flight(left, workers)
    assert 1 <= together <= MOST
    assert together == 1 or together * ROUNDS * workers <= left


def test_large_runs_have_few_flights_and_the_last_blocks_go_alone():
    queue = Queue([output_of(10_000)])
    flights = work_off(queue, all_done, workers=4)
    assert sum(len(flight.blocks) for flight in flights) == 10_000
    assert len(flights) < 10_000 / 30
    assert len(flights[0].blocks) == MOST and [len(flight.blocks) for flight in flights[-ROUNDS * 4 :]] == [1] * 16


def test_where_there_are_more_workers_than_blocks_each_block_goes_alone():
    flights = work_off(Queue([output_of(100)]), all_done, workers=200)
    assert [flight.blocks for flight in flights] == [(i,) for i in range(100)]


def test_a_few_blocks_that_a_large_run_lacks_are_shared_out_too():
    flights = work_off(Queue([output_of(range(0, 10_000, 1000))]), all_done, workers=4)
    assert len(flights) == 10


def test_a_flight_lasts_a_second_or_longer_where_many_workers_ask():
    assert seconds_per_flight(2) == 1.0
    assert 1000 / seconds_per_flight(1000) <= 50


def test_a_million_blocks_are_looked_at_only_as_they_are_needed():
    output = output_of(10**6)
    queue = Queue([output])
    queue.take(3)
    assert output.store.looked <= MOST * ROUNDS * 3


@given(blocks=st.integers(0, 300), workers=st.integers(1, 9), choices=st.lists(st.integers(0, 9), max_size=40))
def test_whatever_comes_back_every_block_comes_to_one_end(blocks, workers, choices):
    """Answers of every kind in any order; then all is well."""
    output, left = output_of(blocks), list(choices)

    def answers(flight):
        kind = left.pop() if left else 9
        some = flight.blocks[: len(flight.blocks) // 2]
        if kind == 0:
            return done(*some, death=True)
        if kind == 1:
            return done(*some, refusal="no GPU", worker="w")
        if kind == 2:
            return done(*some)  # its time was over
        if kind == 3:
            return FlightResult({i: BlockResult(failure="bad") for i in flight.blocks})
        return done(*flight.blocks)

    queue = Queue([output])
    work_off(queue, answers, workers=workers)
    assert list(queue.ended) == [output] and output.in_flight == 0
    failed = set(output.report.failures)
    assert output.error or sorted([*output.store.adopted, *failed]) == list(range(blocks))
    assert output.report.blocks == len(output.store.adopted) == len(set(output.store.adopted))


# Its time was over.


def test_blocks_for_which_there_was_no_time_wait_again_before_the_others():
    output = output_of(100)
    queue = Queue([output])
    first, second = queue.take(2), queue.take(2)
    queue.conclude(first, done(first.blocks[0]))
    assert queue.take(2).blocks[0] == first.blocks[1]
    assert second.blocks[0] == first.blocks[-1] + 1


def test_at_the_end_the_blocks_of_slow_flights_are_shared_out_anew():
    output = output_of(64)
    flights = work_off(Queue([output]), lambda flight: done(flight.blocks[0]), workers=2)
    assert len(flights) == 64 and output.report.blocks == 64
    assert [len(flight.blocks) for flight in flights[-8:]] == [1] * 8


# A worker died.


def test_when_a_worker_dies_its_blocks_go_on_alone_and_only_the_guilty_one_is_named():
    output = output_of(200)

    def answers(flight):
        if 5 not in flight.blocks:
            return done(*flight.blocks)
        return done(*(i for i in flight.blocks if i < 5), death=True)

    flights = work_off(Queue([output]), answers)
    with_it = [flight.blocks for flight in flights if 5 in flight.blocks]
    assert len(with_it[0]) > 6 and with_it[1:] == [(5,)] * (TRIES - 1)
    assert output.report.failures == {5: "4 workers died of it"}
    assert sorted(output.store.adopted) == [i for i in range(200) if i != 5]
    neighbours = [flight.blocks for flight in flights if set(with_it[0]) & set(flight.blocks)][1:]
    assert all(len(blocks) == 1 for blocks in neighbours)
    assert not any(block < 5 for (block,) in neighbours), "what the dead worker had written is not computed again"
    with pytest.raises(BlocksFailed, match=r"1 of 1000 blocks failed; block 5 at \[5\]: 4 workers died of it"):
        output.raise_if_failed()


def test_deaths_of_many_workers_at_random_blame_nobody():
    output, dies = output_of(300), iter([1, 0, 0, 1, 1] * 20)
    work_off(
        Queue([output]), lambda flight: done(*flight.blocks[1:], death=True) if next(dies, 0) else all_done(flight)
    )
    assert output.report.failures == {} and output.report.blocks == 300


def test_a_death_of_a_flight_of_several_blames_none_of_them():
    output = output_of(64)
    work_off(Queue([output]), lambda f: FlightResult(death=True) if len(f.blocks) > 1 else all_done(f), workers=1)
    assert output.report.failures == {} and output.report.blocks == 64


# A worker refused.


def test_a_worker_that_refuses_everything_is_only_a_detour():
    output, seen = output_of(1000), set()

    def answers(flight):
        if flight.blocks in seen:
            return done(*flight.blocks)
        seen.add(flight.blocks)
        return FlightResult(refusal="no GPU", worker="bad")

    flights = work_off(Queue([output]), answers)
    assert output.report.blocks == 1000 and not output.report.failures
    assert [f.refused_by for f in flights if f.refused_by] == [("bad",)] * (len(flights) // 2)


def test_a_run_that_nobody_can_begin_ends_after_a_few_tries():
    output = output_of(1000)
    flights = work_off(Queue([output]), lambda flight: FlightResult(refusal="no GPU here"))
    with pytest.raises(BlocksFailed, match=r"m\.zarr: block \d+ at .* was refused 4 times: no GPU here"):
        output.raise_if_failed()
    assert len(flights) <= 2 * TRIES


def test_a_block_that_is_refused_late_is_its_own_fault_and_not_its_neighbours():
    output = output_of(500)

    def answers(flight):
        if 7 not in flight.blocks:
            return done(*flight.blocks)
        return done(*(i for i in flight.blocks if i < 7), refusal="out of memory", worker="w")

    work_off(Queue([output]), answers)
    assert output.report.failures == {7: "out of memory"} and output.report.blocks == 499


def test_a_gpu_that_fails_spoils_no_block_if_others_compute_them():
    output, lost = output_of(1000), DeviceLost("the GPU failed")

    def answers(flight):
        on_the_lost = "bad" not in flight.refused_by and flight.number % 2
        return FlightResult(refusal="it failed", fault=lost, worker="bad") if on_the_lost else done(*flight.blocks)

    work_off(Queue([output]), answers)
    assert output.report.blocks == 1000 and not output.report.failures and output.error is None


@pytest.mark.parametrize("last", ["it failed", "out of memory"])
@pytest.mark.parametrize("first", [0, 1])
def test_if_none_other_does_it_ends_the_output_and_no_block_is_at_fault(first, last):
    output, lost = output_of(1000), DeviceLost("the GPU failed")

    def answers(flight):
        if output.report.blocks < first:
            return done(flight.blocks[0])
        if len(flight.refused_by) == TRIES - 1 and last != "it failed":
            return FlightResult(refusal=last, worker="another")
        return FlightResult(refusal="it failed", fault=lost, worker="bad")

    flights = work_off(Queue([output]), answers)
    assert output.error is lost and not output.report.failures and output.in_flight == 0
    assert len(flights) <= 3 * TRIES


# The run, and many outputs.


def test_a_fault_ends_an_output_and_the_next_goes_on():
    taken, outputs = OutputLocked("taken over"), [output_of(500, "a"), output_of(50, "b")]

    def answers(flight):
        return done(flight.blocks[0], fault=taken) if flight.output is outputs[0] else all_done(flight)

    queue = Queue(outputs)
    flights = work_off(queue, answers)
    assert outputs[0].error is taken and len([f for f in flights if f.output is outputs[0]]) == 2
    assert set(queue.ended) == set(outputs)
    assert outputs[1].error is None and outputs[1].report.blocks == 50


def test_an_output_that_cannot_be_written_ends_alone():
    def stale(line):
        raise EnvironmentFault("stale mount")

    outputs = [output_of(500, "a"), output_of(50, "b")]
    outputs[0].store.adopt = stale
    queue = Queue(outputs)
    work_off(queue, all_done)
    assert str(outputs[0].error) == "stale mount" and outputs[0].in_flight == 0
    assert set(queue.ended) == set(outputs) and outputs[1].report.blocks == 50


def test_what_a_fault_overtakes_is_not_tried_again():
    output = output_of(64)
    queue = Queue([output])
    first, second = queue.take(1), queue.take(1)
    queue.conclude(first, FlightResult(refusal="no GPU", worker="w"))
    queue.conclude(second, FlightResult(fault=OutputLocked("gone")))
    assert queue.take(1) is None
    assert list(queue.ended) == [output] and output.in_flight == 0


def test_outputs_are_opened_only_when_those_before_have_no_blocks_left():
    opened = []

    def outputs():
        for name in "abc":
            opened.append(name)
            yield output_of(3, name)

    queue = Queue(outputs())
    flights = [queue.take(2) for _ in range(4)]
    assert opened == ["a", "b"] and flights[3].output.name == "b"


def test_outputs_with_nothing_to_do_end_at_once():
    outputs = [output_of(0, "a"), output_of(2, "b"), output_of(0, "c")]
    queue = Queue(outputs)
    work_off(queue, all_done)
    assert set(queue.ended) == set(outputs)


def test_a_flight_has_a_readable_name_and_an_id_of_its_own():
    outputs = [output_of(300, "a"), output_of(300, "b")]
    flights = work_off(Queue(outputs), all_done)
    assert flights[0].name == "tilenet-a-0..36-run-of-a-and-0"
    assert re.fullmatch(r"tilenet-b-299-run-of-b-and-\d+", flights[-1].name)
    assert len({flight.id for flight in flights}) == len(flights)
    assert sorted(outputs[0].store.forgotten) == sorted(f.id for f in flights if f.output is outputs[0])
