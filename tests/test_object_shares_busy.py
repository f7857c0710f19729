"""Job arrays of runs with objects: shares, plain runs and other arrays that are at work at the same time."""

from dataclasses import replace

import pytest
from killing import kill, meanwhile
from shared_objects import OTHER, a_hash, a_slide, a_wish, same  # noqa: F401
from stub import Bright

import tilenet
from tilenet.errors import OutputLocked, OutputMismatch
from tilenet.jobs import compute
from tilenet.runs import numbering, object_shares, shares
from tilenet.runs.object_shares import fill_objects


def test_an_old_mask_is_not_returned_while_shares_replace_it(wanted, whole, tmp_path, monkeypatch):
    out, how = tmp_path / "o.zarr", {"model": Bright(), "objects": True}
    numbering.store_objects(out, replace(wanted, model=OTHER))
    with pytest.raises(OutputMismatch, match="begun with model answer"):
        tilenet.segment(wanted.image, out, **how, shard=(1, 2))
    kill(monkeypatch, compute, "run_job", numbering.store_objects, out, wanted, overwrite=True)
    assert [tilenet.segment(wanted.image, out, **how, shard=(which, 2)) for which in (1, 2)] == [None, None]
    assert tilenet.segment(wanted.image, out, **how, shard=(1, 2)).info["record"]["tile"] == [64, 64]
    assert same(out, whole)


@pytest.mark.parametrize("step", [1, 2])
def test_while_shares_are_at_work_who_would_do_the_same_is_refused_by_name(wanted, whole, tmp_path, monkeypatch, step):
    out, refused = tmp_path / "o.zarr", []
    if step == 2:
        for which in (1, 2, 3):
            fill_objects(out, wanted, (which, 3))

    def others():
        for run in (
            lambda: fill_objects(out, wanted, (1, 3)),
            lambda: fill_objects(out, wanted, (1, 4)),
            lambda: numbering.store_objects(out, wanted, resume=True),
            lambda: numbering.store_objects(out, wanted, overwrite=True),
        ):
            with pytest.raises(OutputLocked, match=r"is being written by share 1/3 \(process"):
                run()
            refused.append(run)
        fill_objects(out, wanted, (2, 3))
        assert not out.exists()

    meanwhile(monkeypatch, *((shares, "fill_pending") if step == 1 else (object_shares, "find_places")), others)
    fill_objects(out, wanted, (1, 3))
    assert len(refused) == 4
    for which in (3, 2, 1)[: 3 if step == 1 else 0]:
        fill_objects(out, wanted, (which, 3))
    fill_objects(out, wanted, (3, 3))
    assert same(out, whole)


def test_while_the_last_share_numbers_the_objects_others_leave_it_alone(wanted, whole, tmp_path, monkeypatch):
    out, refused = tmp_path / "o.zarr", []

    def others():
        for which in (1, 2):  # no error: the first array may have done what the second one is to do
            fill_objects(out, wanted, (which, 2))
        for run in (
            lambda: numbering.number_divided(out, wanted),
            lambda: numbering.store_objects(out, wanted, resume=True),
            lambda: numbering.store_objects(out, wanted, overwrite=True),
        ):
            with pytest.raises(OutputLocked, match=r"is being written by process"):
                run()
            refused.append(run)

    for which in (1, 2):
        fill_objects(out, wanted, (which, 2))
    meanwhile(monkeypatch, numbering, "_first_places", others)
    fill_objects(out, wanted, (1, 2))
    assert len(refused) == 3 and same(out, whole)


def test_while_the_last_share_ends_the_mask_others_leave_it_alone(wanted, whole, tmp_path, monkeypatch):
    out, seen, finish = tmp_path / "o.zarr", [], numbering.finish

    def finished(store):
        if store.path == out:
            seen.append(
                [tilenet.segment(wanted.image, out, model=Bright(), objects=True, shard=(1, n)) for n in (1, 2)]
            )
        finish(store)

    monkeypatch.setattr(numbering, "finish", finished)
    fill_objects(out, wanted, (1, 1))
    assert seen == [[None, None]] and same(out, whole)


def test_a_share_begun_anew_while_others_ended_the_run_leaves_nothing(wanted, whole, tmp_path, monkeypatch):
    out = tmp_path / "o.zarr"
    meanwhile(monkeypatch, object_shares, "create_share", lambda: numbering.store_objects(out, wanted))
    assert fill_objects(out, wanted, (1, 50)).blocks == 0 and same(out, whole)


@pytest.mark.parametrize("name", ["_share_of_depths", "_share_of_places", "number_divided"])
def test_a_share_that_comes_late_finds_the_mask(wanted, whole, tmp_path, monkeypatch, name):
    out = tmp_path / "o.zarr"
    for which in (1, 2):
        fill_objects(out, wanted, (which, 2))
    meanwhile(monkeypatch, object_shares, name, lambda: numbering.store_objects(out, wanted, resume=True))
    fill_objects(out, wanted, (1, 2))
    assert same(out, whole)
