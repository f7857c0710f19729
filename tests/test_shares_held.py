"""Who holds the shares of a mask, and so may write it: against the dead, the sleeping and other arrays."""

import json
import os
import time
from dataclasses import asdict

import numpy as np
import pytest
from small_shares import a_folder, fill, small_image  # noqa: F401
from store_helpers import beating

import tilenet
from tilenet.errors import OutputLocked
from tilenet.store import Store
from tilenet.store import lease as leases
from tilenet.store import lease_holder as holders
from tilenet.store.lease_holder import Holder


@pytest.fixture
def shares(small, tmp_path):
    """Return a store and two of its three shares, held."""
    out = tmp_path / "m.zarr"
    fill(small, out, [(1, 3)])
    held = [Store.take_share(out, (i, 3)) for i in (2, 3)]
    yield out, *held
    for store in held:
        store.close()


def a_block(store):
    return {"mask": np.zeros(store.layout.box(0, 3).shape, np.uint8)}


def test_only_the_dead_holder_of_a_share_is_replaced_and_writes_no_more(shares, monkeypatch):
    out, second, third = shares
    with pytest.raises(OutputLocked, match="share 2/3"):
        Store.take_share(out, (2, 3))
    monkeypatch.setattr(Holder, "alive", property(lambda holder: holder.run != second._lease.holder.run))
    again = Store.take_share(out, (2, 3))
    with pytest.raises(OutputLocked, match=rf"taken over by share 2/3 \(process {os.getpid()}"):
        second.write(3, a_block(second))
    third.write(3, a_block(third))
    again.write(3, a_block(again))
    again.close()


def test_a_share_asleep_whose_store_a_whole_run_took_over_writes_no_more(shares, monkeypatch):
    out, second, third = shares
    monkeypatch.setattr(Holder, "alive", property(lambda holder: False))
    taker = Store.resume(out)
    monkeypatch.undo()
    assert [lock.kind for lock in leases.locks(out / ".tilenet")] == ["lock"]
    for store in (second, third):
        with pytest.raises(OutputLocked, match=rf"taken over by process {os.getpid()} on"):
            store.write(3, a_block(store))
    with pytest.raises(OutputLocked):
        Store.take_share(out, (1, 3))
    taker.close()


def test_all_shares_join_the_run_that_the_first_began_and_write_no_more_when_that_is_over(shares, monkeypatch):
    out, second, third = shares
    first = Store.take_share(out, (1, 3))
    assert first.run == second.run == third.run
    first.close()
    monkeypatch.setattr(Holder, "alive", property(lambda holder: False))
    Store.resume(out).close()
    monkeypatch.undo()
    new = [Store.take_share(out, (i, 3)) for i in (1, 2)]
    assert new[0].run == new[1].run != second.run
    # The second's own lease may even look as it left it, number and holder; the run tells it from its successor.
    new[1].close()
    second._lease.path.write_text(json.dumps(asdict(second._lease.holder)))
    for stale in (second, third):
        with pytest.raises(OutputLocked, match="taken over by"):
            stale.write(3, a_block(stale))
    new[0].write(3, a_block(new[0]))
    new[0].close()
    second._lease.path.unlink()


def test_arrays_of_another_number_have_a_run_of_their_own(small, tmp_path):
    out = tmp_path / "m.zarr"
    fill(small, out, [(1, 4)])
    runs = []
    for share in ((2, 4), (3, 4), (1, 2)):
        store = Store.take_share(out, share)
        runs.append(store.run)
        store.close()
    assert runs[0] == runs[1] != runs[2]


def test_a_share_cannot_finish_the_store(shares):
    for act in (shares[1].finish, shares[1].build_pyramid, lambda: shares[1].adopt(b"")):
        with pytest.raises(tilenet.errors.OutputError, match="holds the whole"):
            act()


@pytest.mark.parametrize(("ages", "taken"), [((0, 0), False), ((0, 90), False), ((90, 90), True)])
def test_on_another_machine_a_share_holds_while_its_heart_beats(shares, monkeypatch, ages, taken):
    out = shares[0]
    held = leases.locks(out / ".tilenet")
    for lock, age in zip(held, ages, strict=True):
        lock.path.write_text(lock.path.read_text().replace(holders.this_machine(), "far"))
        os.utime(lock.path, (time.time() - age,) * 2)
    if taken:
        Store.resume(out).close()
    else:
        alive = [lock.path for lock, age in zip(held, ages, strict=True) if not age]
        with beating(*alive), pytest.raises(OutputLocked, match=r"by share \d/3"):
            Store.resume(out)
