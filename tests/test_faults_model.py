"""Runs killed, failed, damaged, resumed and verified in any order: whatever came before, the end is the same."""

import json
import re
import shutil
import signal
from contextlib import nullcontext, suppress
from itertools import count

import pytest
from faults import is_complete, stray, tree, tree_hash, write_image
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tilenet.errors import BlocksFailed, OutputError
from tilenet.store import open_mask

STUB = ("--model", "stub", "--tile", "512")
KILLED = -signal.SIGKILL


class Faults(RuleBasedStateMachine):
    """A run of six blocks and a pyramid of three, and everything that can befall it."""

    commands = image = folder = expected = machine = None
    numbers = count()

    def __init__(self):
        super().__init__()
        self.home = self.folder / f"state{next(self.numbers)}"
        self.home.mkdir()
        self.out = self.home / "m.zarr"
        self.hurt = set()

    def teardown(self):
        self.mended()
        shutil.rmtree(self.home)

    def run(self, *options, stub=None, **request):
        stub = {"sleep": 0, **(stub or {})}
        return self.commands.run("segment", self.image, "-o", self.out, *STUB, *options, stub=stub, **request)

    @rule(call=st.integers(0, 6))
    def killed_in_the_network(self, call):
        was_complete = self.is_complete and not self.hurt
        code, _ = self.run("--resume", stub={"fault": "die", "at": [call]})
        # With damage that only reading shows, the run ends before the call, or fails its last check.
        assert code == 0 if was_complete else code in (0, 3, KILLED)
        self.settle(code)

    @rule(number=st.integers(1, 120), when=st.sampled_from(["before", "torn", "after"]))
    def killed_in_the_store(self, number, when):
        code, said = self.run("--resume", kill=[number, when])
        assert code in (0, 3, KILLED), said
        self.settle(code)

    @rule(calls=st.sets(st.integers(0, 5), min_size=1))
    def failed_in_the_network(self, calls):
        code, said = self.run("--resume", stub={"fault": "nan", "at": sorted(calls)})
        assert code in (0, 3), said
        self.settle(code)

    @rule()
    def resumed(self):
        code, said = self.run("--resume")
        assert code == 0 or (code == 3 and self.hurt), said
        self.settle(code)

    @rule()
    def started_over(self):
        code, said = self.run("--overwrite")
        assert code == 0, said
        self.settle(code)

    @precondition(lambda self: self.out.exists())
    @rule(option=st.sampled_from([("--tile", "256"), ("--threads", "3"), ("--scaling", "linear:0,2"), ()]))
    def run_otherwise(self, option):
        before, mended = self.content(), self.is_complete and (self.hurt or self.left)
        code, said = self.run(*option, *["--resume"] * bool(option))
        assert (code, said.count("\n")) == (2, 1), said
        if not mended:  # what is damaged or left in a complete mask is found, and removed, first
            assert self.content() == before

    @precondition(lambda self: self.out.exists())
    @rule(kind=st.sampled_from(["cut", "emptied", "flipped", "deleted"]), pick=st.integers(0, 1000))
    def damaged(self, kind, pick):
        journals = [*self.out.glob(".tilenet/journal/*"), *self.out.glob(".tilenet/journal.jsonl")]
        files = sorted([*(p for p in self.out.rglob("c/*/*") if p.is_file()), *journals])
        if files:
            self.hurt.add(hurt(files[pick % len(files)], kind))

    @precondition(lambda self: self.out.exists())
    @rule(name=st.sampled_from([".tilenet/0123.part", ".tilenet/lock.7"]))
    def left_behind(self, name):
        dead = {"host": "here", "pid": 2**22 + 1, "run": "0", "machine": self.machine, "started": "0"}
        (self.out / name).write_text(json.dumps(dead))

    @rule()
    def verified(self):
        code, said = self.commands.run("verify", self.out, "--windows", "1", stub={})
        expected = 2 if not self.is_complete else 3 if self.hurt else 0
        assert code == expected, said

    @property
    def is_complete(self):
        return self.out.exists() and is_complete(self.out)

    @property
    def left(self):
        """Return what a run killed in its last steps leaves."""
        return [*stray(self.out), *self.out.glob(".tilenet/journal"), *self.out.glob(".tilenet/replaced")]

    def content(self):
        """Return all files but those that any run sweeps away."""
        return {name: data for name, data in tree(self.out).items() if not re.search(r"\.part$|/lock\.\d+$", name)}

    def settle(self, code):
        if code == 0:
            self.hurt.clear()
            assert tree_hash(self.out) == self.expected
            assert stray(self.out) == []

    @invariant()
    def it_is_complete_only_when_it_is_right(self):
        if self.is_complete:
            # Not where files are lost; what they hold is read by nobody here.
            with suppress(BlocksFailed) if self.hurt else nullcontext():
                open_mask(self.out)
            left = stray(self.out) or list(self.out.glob(".tilenet/journal/*")) + list(
                self.out.glob(".tilenet/replaced")
            )
            assert self.hurt or left or tree_hash(self.out) == self.expected
        else:
            with pytest.raises(OutputError):
                open_mask(self.out)

    def mended(self):
        """Resume until nothing is wrong: each time at least one damage is found."""
        for _ in range(2 + len(self.hurt)):
            code, said = self.run("--resume")
            assert code == 0 or (code == 3 and self.hurt), said
            if code == 0:
                break
        assert code == 0
        self.settle(code)


def hurt(path, kind):
    """Damage a file in one of four ways; return its name."""
    content = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
    elif kind == "flipped" and content:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-9] if kind == "cut" else b"")
    return path.name


@pytest.fixture(scope="module")
def machine(commands, tmp_path_factory):
    from tilenet.store.lease_holder import this_machine

    folder = tmp_path_factory.mktemp("model")
    Faults.folder, Faults.machine, Faults.commands = folder, this_machine(), commands
    Faults.image = write_image(folder / "slide.tif", sides=(1400, 1000))
    out = folder / "whole.zarr"
    assert Faults.commands.run("segment", Faults.image, "-o", out, *STUB, stub={"sleep": 0}) == (0, "")
    Faults.expected = tree_hash(out)
    return Faults


@pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_whatever_befalls_a_run_it_ends_with_the_same_bytes(machine, examples):
    quick = settings(
        max_examples=examples,
        stateful_step_count=8,
        database=None,
        phases=[Phase.generate],  # each example takes seconds: shrinking one takes minutes
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=quick)
