"""How runs that find objects begin: anew, after a kill, over another mask, and to repair one."""

import os
import shutil
import socket
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from blobs import blobs, write_slide
from killing import kill, lose_a_file
from ome_images import write_ome_zarr
from stub import BAD, Bright

import tilenet
from tilenet.describe import describe
from tilenet.errors import BlocksFailed, OutputError, OutputExists, OutputLocked, OutputMismatch, OutputNotFound
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering, object_places
from tilenet.runs.object_outputs import DEPTHS, PLACES, making_of
from tilenet.store import destination, open_mask


def interrupt(monkeypatch, where, *args, **options):
    """Run `segment` up to a function of `numbering`."""
    kill(monkeypatch, numbering, where, tilenet.segment, *args, **options)


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path, sides=(150, 210))


def test_what_was_begun_is_named_as_the_user_named_it(slide, tmp_path, monkeypatch):
    for out in (tmp_path / "o.zarr", tmp_path / "o.ome.tif"):
        interrupt(monkeypatch, "_fill_places", slide, out, model=Bright(), objects=True)
        with pytest.raises(tilenet.OutputExists, match=rf"^{out}.*: was begun.*--resume"):
            tilenet.segment(slide, out, model=Bright(), objects=True)
        with pytest.raises(tilenet.OutputError, match=rf"^{out}.*--resume"):
            tilenet.verify(out)


@pytest.fixture
def begun(slide, tmp_path, monkeypatch):
    """Return the place of a mask of which the second step was interrupted."""
    out = tmp_path / "o.zarr"
    kill(monkeypatch, object_places.PlacesTask, "places", tilenet.segment, slide, out, model=Bright(), objects=True)
    return out


def test_the_image_is_named_alike_in_all_lines_of_a_run(slide, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(slide.parent)
    with caplog.at_level("INFO", "tilenet"):
        tilenet.segment(slide.name, tmp_path / "o.zarr", model=Bright(), objects=True, mpp=0.6, pixel_size=0.5)
    assert len(caplog.messages) > 1 and all(line.startswith(f"{slide}: ") for line in caplog.messages)


def test_the_folder_of_a_run_that_has_not_ended_is_said_to_be_that(begun, tilenet_command):
    making = making_of(begun, None)
    for args in (("export", making, "--csv", begun.with_name("x.csv")), ("verify", making), ("overlay", "x", making)):
        more = ("--out", begun.with_name("x.png")) if args[0] == "overlay" else ()
        code, _, err = tilenet_command(*args, *more)
        assert code == 2 and "o.zarr.making: belongs to a run with --objects, and is no mask yet. Run it" in err
    said = tilenet_command("info", begun, "--json")
    assert said[0] == 0 and tilenet_command("info", making, "--json") == said
    assert tilenet_command("info", f"{making}/", "--json") == said and "--resume" in said[1]


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize("out", ["o.zarr", "o.tif", "image.zarr/labels/o", "image.zarr/labels/o.tif"])
def test_info_tells_how_far_a_run_is_wherever_its_mask_goes(tmp_path, out, objects):
    image, (into, _, name) = tmp_path / "image.zarr", out.rpartition("/labels/")
    pixels = blobs((600, 600), seed=2)
    pixels[5, 590] = BAD
    write_ome_zarr(image, [(pixels, [1, 1])], chunks=(64, 64))
    where = {"into": image, "name": name} if into else {"out": tmp_path / out}
    with pytest.raises(
        BlocksFailed, match=r"1 of 4 .*What is done is kept\. Fix the cause, then run again with --resume$"
    ):
        tilenet.segment(image, model=Bright(), tile=256, objects=objects, **where)
    told = describe(str(tmp_path / out))
    blocks = "the network has run on 3 of 4 blocks" if objects else "3 of 4 are written"
    assert told["blocks"] == blocks and told["segment"] == "Run the same command with --resume"
    with pytest.raises(OutputError, match=r"is not complete|not exist yet: (image\.zarr\.)?o.*\.making belongs"):
        tilenet.open_mask(tmp_path / out)


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize("clock", ["of the file server", "of this machine"])
def test_info_names_who_is_writing_a_mask(tmp_path, objects, clock, monkeypatch, tilenet_command):
    if clock == "of this machine":
        monkeypatch.setattr(destination, "_clock_of", Mock(side_effect=PermissionError))
    told, out = [], tmp_path / "o.zarr"
    how = {"model": Bright(), "tile": 256, "batch": 1, "objects": objects}
    tilenet.segment(blobs((600, 600), seed=2), out, **how, progress=lambda *_: told.append(describe(str(out))))
    assert {at["running"] for at in told} == {True}
    assert {at["segment"] for at in told} == {f"Is being written by process {os.getpid()} on {socket.gethostname()}"}
    # Of four blocks at most one waits to be written when the next is computed, of which the last progress tells.
    written = [at["written"] for at in told]
    assert written[:4] == [0] * 4 and max(written) >= 2 and {at["total"] for at in told[:4]} == {4}
    assert told[0]["blocks"] == ("the network has run on 0 of 4 blocks" if objects else "0 of 4 are written")


def test_info_names_the_shares_at_work_and_those_that_lack_blocks(tmp_path, tilenet_command):
    told, out = [], tmp_path / "o.zarr"

    def look(*_):
        told.append(tilenet_command("info", out)[1])

    image = blobs((600, 600), seed=2)
    tilenet.segment(image, out, model=Bright(), tile=256, batch=1, shard=(2, 3), progress=look)
    at_work = f"share 2/3 (process {os.getpid()} on {socket.gethostname()})"
    assert told[0].splitlines() == [
        "kind     mask, not complete",
        "blocks   0 of 4 are written",
        f"segment  Is being written by {at_work}. Run the shares 1/3, 2/3, 3/3, unless they are at work",
    ]
    assert not describe(str(out))["running"]


def test_what_was_begun_with_objects_goes_on_with_them(slide, begun, monkeypatch):
    with pytest.raises(OutputExists, match=r"o\.zarr: was begun.*--resume"):
        tilenet.segment(slide, begun, model=Bright(), objects=True)
    with pytest.raises(OutputMismatch, match="begun with model answer"):
        tilenet.segment(slide, begun, model=Bright(bright=500), resume=True)
    with pytest.raises(OutputNotFound, match=r"does not exist yet: o\.zarr\.making belongs to a run.*--resume"):
        open_mask(begun)
    truth = tilenet.segment(slide, model=Bright(), objects=True)

    def computed(*_):
        raise AssertionError("the network has nothing left to do")

    monkeypatch.setattr("tilenet.runner.run", computed)
    assert np.array_equal(tilenet.segment(slide, begun, model=Bright(), resume=True)[...], truth)
    again = tilenet.segment(slide, begun, model=Bright(), objects=True, resume=True)
    assert np.array_equal(again[...], truth)


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_not_said_again_is_as_it_was_begun(tmp_path, monkeypatch, inside):
    image = tmp_path / "image.zarr"
    pixels = blobs((300, 400), seed=2)
    levels = [pixels, pixels[::2, ::2]]
    write_ome_zarr(image, [(level, [k, k]) for level, k in zip(levels, (0.5, 1), strict=True)], chunks=(64, 64))
    where = {"into": image, "name": "nuclei"} if inside else {"out": tmp_path / "o.zarr"}
    options = {"model": Bright(), "objects": True, "level": 1, "roi": "10:140,20:190"}
    truth = tilenet.segment(image, **options)
    interrupt(monkeypatch, "_first_places", image, **where, **options)
    mask = tilenet.segment(image, **where, model=Bright(), resume=True)
    assert truth.shape == (130, 170) and truth.max() > 5 and np.array_equal(mask[...], truth)
    assert not list(tmp_path.glob("*.making"))


@pytest.mark.parametrize("where", ["_fill_places", "_write_numbers"])
@pytest.mark.parametrize(("name", "objects"), [("o.zarr", False), ("o.zarr", True), ("o.ome.tif", True)])
def test_a_run_killed_while_it_replaces_a_mask_goes_on(slide, tmp_path, monkeypatch, name, objects, where):
    out, model = tmp_path / name, Bright(bright=500)
    tilenet.segment(slide, out, model=Bright(), objects=objects, roi="0:100,0:100")
    interrupt(monkeypatch, where, slide, out, model=model, objects=True, overwrite=True)
    if where == "_fill_places":
        assert tilenet.open_mask(out).shape == (100, 100)  # until there is another
    mask = tilenet.segment(slide, out, model=model, resume=True)
    assert np.array_equal(mask[...], tilenet.segment(slide, model=model, objects=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "slide.tif"]


class Cut:
    """Tells what is brighter than something, however that answers what is asked before a run."""

    footprint = tilenet.Footprint.same(2, reach=0)

    def __init__(self, cut):
        self.cut = cut

    def __call__(self, batch):
        cut = self.cut if batch.max() == 200 else 100
        return np.concatenate([np.full_like(batch, cut), batch], axis=1)


def test_what_another_run_has_found_is_not_taken_for_its_own(slide, tmp_path, monkeypatch):
    out = tmp_path / "o.zarr"
    interrupt(monkeypatch, "_first_places", slide, out, model=Cut(100), objects=True)
    found = making_of(out, None) / PLACES
    kept = shutil.copytree(found, tmp_path / "kept.zarr")
    interrupt(monkeypatch, "_fill_places", slide, out, model=Cut(250), objects=True, overwrite=True)
    shutil.copytree(kept, found)
    assert tilenet.segment(slide, out, model=Cut(250), resume=True)[...].max() == 0


def test_a_mask_is_not_repaired_with_the_numbers_of_other_objects(slide, tmp_path):
    out = tmp_path / "o.zarr"
    wanted = Request(slide, Cut(100), Options(block=256, tile=64, output="objects"))
    numbering.store_objects(out, wanted)
    lose_a_file(out)
    with pytest.raises(OutputMismatch, match=r"found now are not those of this mask.*--overwrite"):
        numbering.store_objects(out, replace(wanted, model=Cut(250)), resume=True)


def test_other_runs_are_refused_where_objects_were_begun(slide, begun):
    for how in ({}, {"shard": (1, 2)}, {"shard": (1, 2), "resume": True}):
        with pytest.raises(OutputExists, match=r"o\.zarr\.making: belongs to a run with --objects"):
            tilenet.segment(slide, begun, model=Bright(), **how)
    (result,) = tilenet.batch(slide, begun.parent / "masks", model=Bright(), threads=1)
    assert result.status == "done"
    tilenet.segment(slide, begun, model=Bright(), overwrite=True)
    assert not making_of(begun, None).exists()


def test_a_link_is_not_written_through(slide, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "o.zarr.making").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputExists, match="is a symbolic link"):
        tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_another_run_over_a_begun_one_leaves_nothing_of_it(slide, begun):
    mask = tilenet.segment(slide, begun, model=Bright(bright=500), objects=True, overwrite=True)
    assert np.array_equal(mask[...], tilenet.segment(slide, model=Bright(bright=500), objects=True))
    assert not making_of(begun, None).exists()


def test_what_others_keep_in_the_folder_of_a_run_stays(slide, tmp_path):
    making = tmp_path / "o.zarr.making"
    making.mkdir()
    (making / "notes.txt").write_text("mine")
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True)
    assert [path.name for path in making.iterdir()] == ["notes.txt"]


def test_a_run_that_another_one_would_remove_or_join_is_protected(slide, tmp_path, monkeypatch):
    out, firsts, refused = tmp_path / "o.zarr", numbering._first_places, []

    def meanwhile(*stores):
        for how in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(OutputLocked):
                tilenet.segment(slide, out, model=Bright(), objects=True, **how)
            refused.append(how)
        return firsts(*stores)

    with monkeypatch.context() as patch:
        patch.setattr(numbering, "_first_places", meanwhile)
        mask = tilenet.segment(slide, out, model=Bright(), objects=True)
    assert len(refused) == 2 and np.array_equal(mask[...], tilenet.segment(slide, model=Bright(), objects=True))


@pytest.mark.parametrize("name", [DEPTHS, PLACES])
def test_a_damaged_store_on_the_way_is_said_to_be_removed(slide, begun, name):
    (making_of(begun, None) / name / "zarr.json").write_text("{")
    with pytest.raises(OutputExists, match=r"is not a store, or is damaged.*Remove .*o\.zarr\.making"):
        tilenet.segment(slide, begun, model=Bright(), objects=True, overwrite=True)


@pytest.mark.parametrize("where", ["with_recorded_options", "_fill_places"])
def test_a_repair_that_was_killed_goes_on_by_another_version(slide, tmp_path, monkeypatch, where):
    out = tmp_path / "o.zarr"
    before = tilenet.segment(slide, out, model=Bright(), objects=True, roi="0:100,0:100")[...]
    lose_a_file(out)
    monkeypatch.setattr(tilenet, "__version__", "0.0.0")
    interrupt(monkeypatch, where, slide, out, model=Bright(), resume=True)
    again = tilenet.segment(slide, out, model=Bright(), resume=True)  # refused if a lease were left
    assert again.info["version"] != "0.0.0" and np.array_equal(again[...], before)


def test_a_mask_of_classes_is_not_gone_on_with_as_objects(slide, tmp_path):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Bright())
    with pytest.raises(OutputMismatch, match="begun with output = mask, and now it is objects"):
        tilenet.segment(slide, tmp_path / "m.zarr", model=Bright(), objects=True, resume=True)
