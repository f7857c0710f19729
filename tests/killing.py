"""Runs that end, in this process, where others would be killed, what happens to their files meanwhile, and kills."""

import os
import signal
from pathlib import Path

import pytest


class Killed(BaseException):
    """Ends a run, as a signal would."""


def killed(*_, **__):
    raise Killed


def kill(monkeypatch, where, name, run, /, *args, **options):
    """Run something up to a function of a module."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(where, name, killed)
        run(*args, **options)


def meanwhile(monkeypatch, where, name, do):
    """Have something done when a function is called the first time."""
    real = getattr(where, name)

    def first(*args, **options):
        monkeypatch.setattr(where, name, real)
        do()
        return real(*args, **options)

    monkeypatch.setattr(where, name, first)


def lose_a_file(out):
    """Remove a file of the pixels of a mask."""
    next(path for path in (out / "0" / "c").rglob("*") if path.is_file()).unlink()


def dies_once(file, at, function, item):
    """Kill this process at the item `at`, if it is the first to make a file there; else call a function."""
    if item == at and not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return function(item)
