"""Benchmarks that the pages name can be started, and measure processes of their own."""

import runpy
import sys
from pathlib import Path

import pytest

from tilenet.cli.output import profile_of
from tilenet.runner import Report

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(set(FOLDER.glob("*.py")) - {FOLDER / "child.py"})


@pytest.fixture(autouse=True)
def beside_them(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_imports_what_there_is_and_has_a_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_every_benchmark_is_in_the_table():
    page = (FOLDER / "README.md").read_text()
    assert [script.name for script in SCRIPTS if f"| `{script.name}` |" not in page] == []


def test_the_benchmark_of_a_gpu_prints_the_stages_of_a_run(capsys):
    import gpu

    numbers = ("matrix_flops", "plain_px_per_s", "network_px_per_s", "efficiency", "bytes_per_px", "difference")
    command = {"workers": 8, "command_px_per_s": 1e6, "run_px_per_s": 2e6, **profile_of(Report())["seconds"]}
    gpu.tell({"precision": "bf16", **dict.fromkeys(numbers, 1.0), "commands": [command | {"total": 2.5}]})
    assert "2.5 s, of them 0.0 to finish" in capsys.readouterr().out


def test_a_child_has_a_memory_of_its_own():
    import child

    assert 0 < child.run(child.memory) < child.memory()
