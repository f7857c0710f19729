"""Write, crash, damage, resume, finish, in any order: a store is complete only when it is right."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_helpers import INFO, LAYOUTS, damage_of, make, part, tree, tree_hash, truth_of

from tilenet.errors import BlocksFailed, OutputIncomplete, OutputLocked
from tilenet.store import Store, open_mask

LAYOUT = LAYOUTS["tiny with classes"]
DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 4])),
    "deleted": lambda file: file.unlink(),
}


class Runs(RuleBasedStateMachine):
    """Runs on one store, of which at most one is alive."""

    def __init__(self):
        super().__init__()
        self.folder, self.truth, self.store = Path(tempfile.mkdtemp()), truth_of(LAYOUT), None
        self.path = self.folder / "m.zarr"
        # Files that were damaged since the last time that all was seen to be right.
        self.damaged = set()

    def teardown(self):
        if self.store:
            self.store.close()
        shutil.rmtree(self.folder)

    @initialize()
    def create(self):
        make(self.folder / "right" / "m.zarr", LAYOUT)
        self.right = tree_hash(self.folder / "right" / "m.zarr")
        self.store = Store.create(self.path, LAYOUT, INFO)

    @precondition(lambda self: self.store and not self.store.complete)
    @rule(data=st.data())
    def write_a_block(self, data):
        index = data.draw(st.integers(0, LAYOUT.n_blocks(0) - 1))
        self.store.write(index, part(LAYOUT, self.truth, index))
        self.damaged -= set(LAYOUT.files(0, index))

    @precondition(lambda self: self.store and not self.store.complete)
    @rule()
    def write_what_is_pending(self):
        for index in self.store.pending():
            self.store.write(index, part(LAYOUT, self.truth, index))
            self.damaged -= set(LAYOUT.files(0, index))

    @precondition(lambda self: self.store and not self.store.complete)
    @rule()
    def finish(self):
        lost = any(self.store.pending())
        try:
            self.store.build_pyramid()
            self.store.finish()
        except OutputIncomplete:
            assert lost or next(self.store.pending(), None) is not None
        except BlocksFailed:
            assert self.damaged
        else:
            assert self.store.complete
            self.damaged.clear()

    @rule(data=st.data())
    def damage_a_shard(self, data):
        shards = [name for name in tree(self.path) if "/c/" in name]
        if shards:
            name = data.draw(st.sampled_from(shards))
            if (self.path / name).stat().st_size:
                DAMAGES[data.draw(st.sampled_from(sorted(DAMAGES)))](self.path / name)
                self.damaged.add(name)

    @precondition(lambda self: self.store)
    @rule(litter=st.booleans())
    def end(self, litter):
        complete = self.store.complete
        self.store.close()
        self.store = None
        if litter and not complete:
            (self.path / ".tilenet" / "abc.part").write_bytes(b"half")
            for journal in (self.path / ".tilenet" / "journal").glob("*"):
                with journal.open("ab") as file:
                    file.write(b'{"level":0,"block":1,"fi')

    @precondition(lambda self: not self.store)
    @rule()
    def resume(self):
        self.store = Store.resume(self.path)

    @precondition(lambda self: self.store and not self.store.complete)
    @rule()
    def another_run_is_refused(self):
        with pytest.raises(OutputLocked):
            Store.resume(self.path)

    @invariant()
    def complete_means_right(self):
        if not self.path.exists() or self.damaged:
            return
        try:
            mask = open_mask(self.path)
        except OutputIncomplete:
            return
        assert np.array_equal(np.asarray(mask), self.truth["mask"])
        assert tree_hash(self.path) == self.right
        assert damage_of(self.path) == []

    @invariant()
    def damage_of_a_complete_store_is_named(self):
        if self.path.exists() and self.damaged and self._complete():
            assert {d.file for d in damage_of(self.path)} <= self.damaged
            assert any(tree(self.path).get(name) != self._right_file(name) for name in self.damaged) == bool(
                damage_of(self.path)
            )

    def _complete(self):
        try:
            open_mask(self.path)
        except OutputIncomplete:
            return False
        except BlocksFailed:  # it was written to the end, and has lost files since
            return True
        return True

    def _right_file(self, name):
        return (self.folder / "right" / "m.zarr" / name).read_bytes()


@pytest.mark.parametrize(("examples", "steps"), [(6, 15), pytest.param(150, 40, marks=pytest.mark.slow)])
def test_in_any_order_a_store_is_complete_only_when_it_is_right(examples, steps):
    run_state_machine_as_test(
        Runs,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )
