"""Runs whose mask is a TIFF: begun, killed, resumed, replaced and verified."""

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import tifffile
from store_helpers import tree_hash
from tiff_masks import a_slide, both_masks, names, segment  # noqa: F401

import tilenet
from tilenet.errors import OutputError, OutputExists, OutputMismatch, SettingsError, VerifyFailed


def test_segment_writes_the_tiff_and_leaves_no_store(slide, whole):
    zarr, tiff = whole
    assert np.array_equal(tilenet.open_mask(tiff), tilenet.open_mask(zarr))
    assert 0.01 < np.mean(tilenet.open_mask(tiff)) < 0.99
    assert not (slide / "whole.ome.tif.zarr").exists()
    with tilenet.open_image(tiff) as image:
        assert image.pixel_size == (0.25, 0.25)
    record = {**tilenet.open_mask(tiff).info["record"]}
    assert record == tilenet.open_mask(zarr).info["record"]


def test_a_complete_tiff_is_refused_resumed_and_replaced(slide, whole, tmp_path):
    out = tmp_path / "m.tif"
    shutil.copyfile(whole[1], out)
    os.utime(out, (1_700_000_000, 1_700_000_000))
    with pytest.raises(OutputExists, match="--overwrite"):
        segment(slide, out)
    before = out.read_bytes(), out.stat().st_mtime_ns
    reports = []
    assert np.array_equal(segment(slide, out, resume=True, report=reports.append), tilenet.open_mask(out))
    assert [report.blocks for report in reports] == [0]
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before
    with pytest.raises(OutputMismatch, match="tile"):
        tilenet.segment(slide / "slide.tif", out, model=slide / "tiny.safetensors", tile=32, resume=True)
    segment(slide, out, overwrite=True)
    assert out.read_bytes() == before[0]
    assert out.stat().st_mtime_ns != before[1]


@pytest.mark.parametrize("content", [b"text", b"II*\0 and nothing more", None])
def test_what_tilenet_did_not_write_is_never_replaced(slide, tmp_path, content):
    out = tmp_path / "m.tif"
    if content is None:
        tifffile.imwrite(out, np.zeros((30, 30), np.uint8), description='{"tilenet": {}}')
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputExists, match="not a mask that tilenet wrote"):
            segment(slide, out, **options)
    assert (out.read_bytes(), names(tmp_path)) == (before, ["m.tif"])


def test_probabilities_do_not_fit_in_a_tiff(slide, tmp_path):
    with pytest.raises(SettingsError, match="mask alone"):
        segment(slide, tmp_path / "m.tif", output="both")
    assert names(tmp_path) == []


@pytest.mark.parametrize("objects", [False, True])
def test_a_mask_with_the_name_of_the_store_of_a_tiff_is_neither_replaced_nor_removed(slide, tmp_path, caplog, objects):
    own = segment(slide, tmp_path / "m.tif.zarr", objects=objects, output=None if objects else "both")
    before = tree_hash(own.path)
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match=r"m\.tif\.zarr: exists, .* made for m\.tif\. Make that of it"):
            segment(slide, tmp_path / "m.tif", objects=objects, overwrite=overwrite)
    caplog.set_level("INFO", "tilenet")
    assert np.array_equal(segment(slide, tmp_path / "m.tif", objects=objects, resume=True), own)
    assert caplog.messages[-1].endswith("m.tif.zarr: stays, because its log does not say that it was made for m.tif")
    assert (tree_hash(own.path), names(tmp_path)) == (before, ["m.tif", "m.tif.zarr"])


def test_the_store_of_a_tiff_is_replaced_and_removed_as_asked(slide, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("tilenet.runs.writing.deliver", interrupted)
        segment(slide, tmp_path / "whole.ome.tif")
    assert names(tmp_path) == ["whole.ome.tif.zarr"]
    with pytest.raises(OutputExists, match=r"zarr: exists already\. Go on with it \(--resume\), replace it"):
        segment(slide, tmp_path / "whole.ome.tif")
    segment(slide, tmp_path / "whole.ome.tif", overwrite=True)
    assert names(tmp_path) == ["whole.ome.tif"]
    assert (tmp_path / "whole.ome.tif").read_bytes() == whole[1].read_bytes()


def test_the_store_of_a_tiff_that_is_then_asked_for_as_a_mask_is_one(slide, tmp_path, monkeypatch):
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("tilenet.runs.writing.deliver", interrupted)
        segment(slide, tmp_path / "m.tif")
    own = segment(slide, tmp_path / "m.tif.zarr", resume=True)
    assert np.array_equal(segment(slide, tmp_path / "m.tif", resume=True), own)
    assert names(tmp_path) == ["m.tif", "m.tif.zarr"]


def damaged(path):
    """Return the bytes of a TIFF with one changed in the middle of a tile."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        data[page.dataoffsets[0] + page.databytecounts[0] // 2] ^= 8
    return data


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_objects_go_into_a_tiff(slide, tmp_path):
    mask = segment(slide, tmp_path / "m.tif", objects=True)
    assert mask.dtype == np.uint32
    assert mask[...].max() > 1


# One process loads all once and forks a run for each kill: it runs nothing itself, so no thread is lost.
KILLS = """
import hashlib, json, os, signal, sys
from pathlib import Path
import imagecodecs, tifffile, torch, yaozarrs.v05, zarr, zarr.codecs
import tilenet, tilenet.runs.writing
from tilenet.store import file_system
torch.set_num_threads(1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
def run(kill, said, late):
    count, deliver = 0, tilenet.runs.writing.deliver
    def step(name, do, *args, **kwargs):
        nonlocal count
        count += 1
        if count == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(*args, **kwargs)
    def deliver_counted(*args):
        nonlocal count
        count = 0
        return deliver(*args)
    if late:
        count, tilenet.runs.writing.deliver = -10**6, deliver_counted
    for name, module in list(sys.modules.items()):
        if name.startswith("tilenet") and hasattr(module, "step"):
            module.step = step
    tilenet.segment(folder / "slide.tif", out, model=folder / "tiny.safetensors", tile=64, threads=1, resume=True)
    os.write(said, str(count).encode())
    os._exit(0)
def forked(kill, late):
    source, said = os.pipe()
    pid = os.fork()
    if not pid:
        run(kill, said, late)
    os.close(said)
    status, steps = os.waitpid(pid, 0)[1], os.read(source, 99)
    there = hashlib.sha256(out.read_bytes()).hexdigest() if out.exists() else None
    return {"killed": os.WIFSIGNALED(status), "steps": int(steps or 0), "there": there}
runs = [forked(30, False)]
# Then each step of the TIFF and of tidying up, until one run gets through.
while runs[-1]["killed"]:
    runs.append(forked(len(runs), True))
print(json.dumps(runs))
"""


def test_a_run_killed_anywhere_leaves_no_half_of_a_tiff_and_goes_on_to_the_same_bytes(slide, whole, tmp_path):
    out, right = tmp_path / "whole.ome.tif", sha256(whole[1].read_bytes()).hexdigest()
    done = subprocess.run([sys.executable, "-c", KILLS, slide, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *killed, last = json.loads(done.stdout)
    assert len(killed) > 8
    assert {run["there"] for run in killed} == {None, right}
    assert (last["killed"], last["there"]) == (False, right)
    assert names(tmp_path) == [out.name]


def test_a_tiff_that_is_not_complete_is_said_to_be_that(slide, tmp_path, tilenet_command, monkeypatch):
    from tilenet.jobs import compute

    with monkeypatch.context() as broken:
        broken.setattr(compute, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            segment(slide, tmp_path / "m.ome.tif")
    for command in ("verify", "finish"):
        code, _, err = tilenet_command(command, tmp_path / "m.ome.tif")
        assert code == 2 and "m.ome.tif: is not complete, and is made in m.ome.tif.zarr" in err


def test_a_whole_tiff_is_finished(whole, tilenet_command, tmp_path):
    assert tilenet_command("finish", whole[1]) == (0, f"{whole[1]}: complete, every file verified\n", "")
    (tmp_path / "m.tif").write_bytes(damaged(whole[1]))
    code, _, err = tilenet_command("finish", tmp_path / "m.tif")
    assert code == 3 and "m.tif" in err


def test_verify_recomputes_windows_of_a_tiff_and_finds_damage(slide, whole, tmp_path):
    found = tilenet.verify(whole[1], windows=2)
    assert (found.ok, found.windows, found.not_recomputed) == (True, 2, "")
    out = tmp_path / "m.tif"
    out.write_bytes(damaged(whole[1]))
    with pytest.raises(VerifyFailed, match=r"\. Start again with --overwrite \("):
        tilenet.verify(out).raise_if_failed(out)
    with pytest.raises(OutputError, match="--overwrite"):
        segment(slide, out, resume=True)
