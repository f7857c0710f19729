"""Settings of a process, which other threads of it have, too: precision, threads, freed memory."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from oracles import random_network

from tilenet import machine
from tilenet.byte_counts import gigabytes
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job


def test_a_gpu_computes_by_cudnn_without_tf32_or_tuning_and_leaves_what_the_caller_had():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def flags():
        return cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32

    before = flags()
    with machine.exact(torch.device("cuda")):
        assert flags() == (True, True, False, False, False)
    assert flags() == before


def entered_by_another_thread(context, then=lambda: None):
    """Have a thread enter a context; return what has it leave this, do something then, and end."""
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with context:
            entered.set()
            leave.wait()
        then()

    thread = threading.Thread(target=stay)
    thread.start()
    entered.wait()
    return lambda: (leave.set(), thread.join())


def test_while_another_thread_computes_on_a_gpu_tf32_stays_off():
    def flags():
        return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic

    before = flags()
    end_other = entered_by_another_thread(machine.exact(torch.device("cuda")))
    with machine.exact(torch.device("cuda")):
        end_other()
        assert flags() == (False, True)
    assert flags() == before


KINDS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def precisions():
    return [kind.fp32_precision for kind in KINDS]


@pytest.fixture
def newer_settings():
    """Set the precision of each kind of operation, as PyTorch advises since 2.9."""
    before, chosen = precisions(), ["tf32", "tf32", "ieee"]
    for kind, precision in zip(KINDS, chosen, strict=True):
        kind.fp32_precision = precision
    yield chosen
    for kind, precision in zip(KINDS, before, strict=True):
        kind.fp32_precision = precision


def test_a_gpu_computes_without_tf32_where_the_caller_has_set_it_for_each_operation(newer_settings):
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        _ = torch.backends.cuda.matmul.allow_tf32
    with machine.exact(torch.device("cuda")):
        assert precisions() == ["ieee"] * 3 and torch.backends.cudnn.deterministic
    assert precisions() == newer_settings


def test_threads_that_overlap_leave_the_number_that_was_there_before():
    before = torch.get_num_threads()
    end_other = entered_by_another_thread(machine.threads(before + 1))
    with machine.threads(before + 2):
        end_other()
        with machine.threads(before + 3):
            assert torch.get_num_threads() == before + 3
        assert torch.get_num_threads() == before + 2
    assert _in_a_new_thread() == torch.get_num_threads() == before


def test_the_first_of_two_overlapping_contexts_to_end_leaves_the_number_of_the_other_in_force():
    before, numbers = torch.get_num_threads(), []
    end_other = entered_by_another_thread(
        machine.threads(before + 1), then=lambda: numbers.append(torch.get_num_threads())
    )
    with machine.threads(before + 3):
        end_other()
        numbers += [torch.get_num_threads(), _in_a_new_thread()]
    assert numbers == [before, before + 3, before + 3]
    assert _in_a_new_thread() == before


def _in_a_new_thread():
    seen = []
    new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    new.start()
    new.join()
    return seen[0]


FREED = """
import numpy as np
from tilenet import machine
from tilenet.byte_counts import gigabytes
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

machine.keep_freed_memory()
some = [np.ones(2**20) for _ in range(32)]
kept = some[1::2]
full = resident()
del some
freed = resident()
machine.give_back_freed_memory()
print(full - freed, full - resident(), len(kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_is_kept_for_the_next_pass_is_given_back_when_there_is_none():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    kept, given_back, _ = map(int, done.stdout.split())
    assert kept < 16 and given_back > 100  # of 128 MB that are free, in pieces between others


def limited(root, groups, files):
    """Write what Linux says of a process's control groups, and of their limits; return the folder."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "12:memory:/docker/7a\n4:cpu,cpuacct:/docker/7a\n1:name=systemd:/docker/7a\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", [("cpu.max", "250000 100000\n")], 2.5),
        ("0::/\n", [("cpu.max", "max 100000\n")], None),
        ("0::/a/b\n", [("cpu.max", "max 100000\n"), ("a/cpu.max", "300000 100000\n"), ("a/b/cpu.max", "8 1\n")], 3),
        ("0::/../7a\n", [("cpu.max", "50000 100000\n")], 0.5),
        (V1, [("cpu,cpuacct/cpu.cfs_quota_us", "200000\n"), ("cpu,cpuacct/cpu.cfs_period_us", "100000\n")], 2),
        (V1, [("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"), ("cpu,cpuacct/cpu.cfs_period_us", "100000\n")], None),
        (V1, [("memory/cpu.max", "1 1\n")], None),
        ("0::/\n", [], None),
    ],
)
def test_the_cores_of_a_container_are_those_that_its_groups_may_use(tmp_path, groups, files, cores):
    assert machine.container_cores(limited(tmp_path, groups, files)) == cores
    assert machine.container_cores(tmp_path / "proc") is None, "as where there is no Linux"


@pytest.mark.parametrize(("cores", "threads"), [(None, 5), (9.0, 5), (2.9, 2), (0.5, 1)])
def test_a_run_has_no_more_threads_than_the_container_has_cores(monkeypatch, cores, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "container_cores", lambda: cores)
    with machine.threads(5):
        assert machine.current_threads() == threads
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert machine.current_threads() == 5, "as the user has said"


PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("groups", "files", "memory"),
    [
        ("0::/a\n", [("memory.max", "90000000\n"), ("a/memory.max", "50000000\n")], 50_000_000),
        ("0::/a\n", [("memory.max", "90000000\n"), ("a/memory.max", "max\n")], 90_000_000),
        (V1, [("memory/memory.limit_in_bytes", "70000000\n")], 70_000_000),
        (V1, [("memory/memory.limit_in_bytes", "9223372036854771712\n")], PHYSICAL),
        ("0::/\n", [], PHYSICAL),
    ],
)
def test_the_memory_is_that_of_the_machine_or_of_a_smaller_container(tmp_path, groups, files, memory):
    assert machine.total_memory(limited(tmp_path, groups, files)) == memory


@pytest.mark.parametrize("short", [1, -1])
def test_a_run_that_takes_more_memory_than_there_is_says_so_before_it_begins(monkeypatch, caplog, short):
    image, network = np.zeros((64, 64), np.uint8), random_network(depth=2, wf=2)
    needs = make_job(image, network, Options()).needs()["host_bytes"]
    monkeypatch.setattr(machine, "total_memory", lambda: needs - short)
    make_job(image, network, Options())
    assert (f"or this container, has {gigabytes(needs - 1)}" in caplog.text) == (short > 0)
