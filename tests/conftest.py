import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tilenet.cli import main
from tilenet.machine import keep_freed_memory

# Small tensors by the thousand: more threads, or memory mapped afresh for each, only cost time.
torch.set_num_threads(1)
keep_freed_memory()
# Read when kernels are first imported: without a GPU they are tested as plain array functions.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# How long an example takes says how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared_data():
    """Return the path of a file of the shared real data, or skip the test where they are not."""
    root = Path(os.environ.get("TILENET_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))

    def find(name):
        if not (root / name).exists():
            pytest.skip(f"{name} is not in {root}: set TILENET_TEST_DATA to the folder of real images")
        return root / name

    return find


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """Return what runs the command in processes that can be killed; one server for all tests."""
    from faults import Commands

    commands = Commands(tmp_path_factory.mktemp("prints"))
    yield commands
    commands.close()


@pytest.fixture
def tilenet_command(monkeypatch, capsys):
    """Run the command in this process, which is faster: (exit code, stdout, stderr)."""

    def command(*args):
        monkeypatch.setattr(sys, "argv", ["tilenet", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return command
