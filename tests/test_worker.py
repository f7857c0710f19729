"""One worker, in this process: what it opens, what it refuses, and what it knows of one that died."""

import pickle
from pathlib import Path

import pytest
import torch
from stub import BAD
from workers import (  # noqa: F401
    BLOCKS,
    TILES,
    an_image,
    an_output,
    notes_of,
    opened,
    small_network,
    spoil,
    write_image,
    written_blocks,
)

import tilenet
from tilenet import machine
from tilenet.errors import DeviceLost, EnvironmentFault, OutputLocked
from tilenet.jobs import request
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs.outputs import open_store
from tilenet.workers import distributed, worker
from tilenet.workers.distributed import task_of
from tilenet.workers.worker import OpenTask, Task, compute_blocks


def compute(output, *blocks, flight="a", seconds=60.0):
    return compute_blocks(output.task, blocks, flight=flight, seconds=seconds)


def test_blocks_are_computed_one_after_the_other_and_all_lines_come_back(output):
    result = compute(output, 3, 1, 7)
    assert list(result.done) == [3, 1, 7] and not (result.refusal or result.fault or result.death)
    for block in result.done.values():
        output.store.adopt(block.line)
        assert (block.report.blocks, block.report.pixels) == (1, 512 * 512)
    assert sorted(set(range(BLOCKS)) - set(output.store.pending())) == [1, 3, 7]


def test_no_block_is_begun_when_the_time_is_over(output):
    assert list(compute(output, 0, 1, 2, seconds=0.0).done) == [0]


def test_a_bad_block_among_others_is_the_only_one_that_fails(image, output):
    spoil(image, BAD, (600, 600))
    result = compute(output, 4, 5, 6)
    assert {index for index, block in result.done.items() if block.line} == {4, 6}
    assert result.done[5].failure == "the lamp went out"


def test_who_is_sent_a_flight_that_another_began_computes_nothing_and_says_what_that_one_wrote(output, monkeypatch):
    def dies(self, index):
        if index == 2:
            raise KeyboardInterrupt  # as abrupt as a kill: nothing is said, nothing tidied
        return real(self, index)

    real = OpenTask.compute
    monkeypatch.setattr(OpenTask, "compute", dies)
    with pytest.raises(KeyboardInterrupt):
        compute(output, 0, 1, 2, 3, flight="b")
    worker.close_all()
    monkeypatch.setattr(OpenTask, "compute", lambda self, index: 1 / 0)
    result = compute(output, 0, 1, 2, 3, flight="b")
    assert (result.death, result.worker, sorted(result.done)) == (True, "", [0, 1])
    for block in result.done.values():
        output.store.adopt(block.line)
        assert (block.report.blocks, block.report.pixels) == (1, 512 * 512)
    assert list(output.store.pending()) == list(range(2, BLOCKS))
    assert "division by zero" in compute(output, 2, flight="c").refusal, "another flight is not begun yet"


@pytest.mark.parametrize("left", ["", "no such writer", "../../../*"])
def test_a_note_that_does_not_say_by_whom_costs_only_time(output, left):
    compute(output, 5, flight="b")
    (note,) = notes_of(output.store.path)
    note.write_text(left)
    assert compute(output, 5, 6, flight="b").done == {}


def test_the_leader_forgets_a_flight_that_is_back(output):
    compute(output, 0, flight="b")
    assert len(notes_of(output.store.path)) == 1
    output.store.forget("b")
    output.store.forget("b")
    assert notes_of(output.store.path) == []


def test_a_worker_whose_run_is_gone_writes_nothing(image, output, tmp_path):
    assert compute(output, 0, flight="b").done[0].line
    output.store.close()
    again = opened(image, tmp_path / "m.zarr")
    result = compute(output, 1, flight="c")
    assert isinstance(result.fault, OutputLocked) and not result.done
    assert 1 in set(again.store.pending()) and 0 not in set(again.store.pending())
    assert len(notes_of(tmp_path / "m.zarr")) == 1, "not even a note"
    again.store.close()


def test_a_full_disk_ends_the_run_and_what_was_written_before_is_not_lost(output, monkeypatch):
    def full(self, index):
        if index == 1:
            raise EnvironmentFault("disk full")
        return real(self, index)

    real = OpenTask.compute
    monkeypatch.setattr(OpenTask, "compute", full)
    result = compute(output, 0, 1, 2)
    assert str(result.fault) == "disk full" and list(result.done) == [0]


def test_where_a_gpu_fails_other_workers_are_asked_before_the_run_ends(output, monkeypatch):
    def fails(self, index):
        raise DeviceLost("the GPU failed")

    monkeypatch.setattr(OpenTask, "compute", fails)
    result = compute(output, 0, 1)
    assert "the GPU failed" in result.refusal and isinstance(result.fault, DeviceLost) and not result.done


def test_memory_that_does_not_suffice_is_this_worker_s_refusal(output, monkeypatch):
    def settle(*args, **options):
        raise MemoryError

    monkeypatch.setattr(request, "make_job", settle)
    result = compute(output, 0, 1)
    assert "out of memory. Give workers more, or use a smaller --tile" in result.refusal and not result.done


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("device", "cuda:7", "device cuda:7: this machine has"),
        ("engine", "fast", "engine fast: not for this network"),
        ("threads", "many", "worker on"),
        ("device", "meta", "was begun with device = cpu"),
    ],
)
def test_a_worker_that_cannot_honour_the_record_refuses(image, network, tmp_path, monkeypatch, field, value, reason):
    """The worker's machine is another: what the record asks for is not there."""
    out = tmp_path / "m.zarr"
    wanted = Request(image, network, Options(**TILES))
    store, job = open_store(out, wanted)
    real = Options.filled_from
    monkeypatch.setattr(Options, "filled_from", lambda self, record: real(self, {**record, field: value}))
    if value == "meta":
        monkeypatch.setattr(machine, "find_device", torch.device)
    if field == "engine":
        monkeypatch.setattr("tilenet.predict.predictors.accelerate", lambda network: None)
    result = compute_blocks(task_of(store, job, wanted), (0, 1), flight="a", seconds=60)
    store.close()
    job.image.close()
    assert reason in result.refusal and not result.done
    assert written_blocks(out) == []
    worker.close_all()


@pytest.mark.parametrize(("device", "name"), [("cuda:1", "cuda"), ("cpu", "cpu"), (None, "auto")])
def test_the_device_that_a_worker_sees_is_initialised(monkeypatch, device, name):
    found = []
    monkeypatch.setattr(machine, "find_device", lambda name: found.append(name) or torch.device("cpu"))
    worker.load(device)
    assert found == [name]


def test_a_worker_that_finds_another_image_refuses(image, output):
    write_image(image, sides=(1536, 2304))
    result = compute(output, 0)
    assert "was begun with image" in result.refusal and "Give the image that" in result.refusal
    assert written_blocks(output.store.path) == []


def test_a_process_keeps_few_images_open(tmp_path):
    outputs = [opened(write_image(tmp_path / f"{i}.tif", seed=i), tmp_path / f"{i}.zarr") for i in range(5)]
    for output in outputs:
        assert compute(output, 0).done[0].line
    assert len(worker._opened) == worker.OPEN
    worker.close_all()
    for output in outputs:
        output.store.close()


def test_a_packaged_model_is_meant_also_beside_a_folder_of_its_name(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nuclei").mkdir()
    output = opened(image, tmp_path / "n.zarr", "nuclei")
    assert output.task.model == "nuclei"
    output.store.close()


def test_weights_of_any_name_are_known_by_their_path(image, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tilenet.load_model(network).state_dict(), "weights")
    output = opened(image, tmp_path / "n.zarr", "weights")
    assert (output.task.model, output.store.info["model"]["source"]) == (str(tmp_path / "weights"),) * 2
    output.store.close()


def test_a_refusal_without_words_names_the_kind_of_error(output, monkeypatch):
    def fails(self, index):
        raise ValueError if index == 0 else ValueError("odd\n  more")

    monkeypatch.setattr(OpenTask, "compute", fails)
    for index, said in enumerate(("ValueError", "odd")):
        assert compute(output, index, flight=said).refusal.endswith(f": {said}")


def test_a_task_is_coordinates_alone(output):
    assert isinstance(output.task, Task)
    assert len(pickle.dumps((output.task, tuple(range(64))))) < 2000
    assert len(pickle.dumps(distributed.compute_flight)) < 100
    assert Path(output.task.image).is_absolute()
