"""Settings of a process, which other threads of it have, too: precision, threads, freed memory."""

import subprocess
import sys
import threading

import pytest
import torch

from tilenet import machine


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
