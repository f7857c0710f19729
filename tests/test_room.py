"""The room on disk that `tilenet plan` tells, against what runs have on disk after each step."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from blobs import blobs
from linked_stacks import moving
from oracles import random_network
from store_helpers import replace_step
from stub import Bright, Bright3D, Deep

import tilenet
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs.numbering import store_objects
from tilenet.runs.outputs import fill_output
from tilenet.runs.room import TEMPORARY_FILES, room_of
from tilenet.store import file_system, metadata


@pytest.fixture
def uncompressed(monkeypatch):
    """Write shards with a checksum of 4 bytes for each chunk in place of compression."""
    metadata.array_document.cache_clear()
    monkeypatch.setattr(zarr.codecs, "ZstdCodec", lambda **_: zarr.codecs.Crc32cCodec())
    yield
    metadata.array_document.cache_clear()


def on_disk(folder):
    """Return how many bytes and files there are below a folder."""
    sizes = [Path(where, name).stat().st_size for where, _, names in os.walk(folder) for name in names]
    return sum(sizes), len(sizes)


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Return what was on disk after each step in which a file grows."""
    found, step = [], file_system.step

    def counted(name, do, *args, **kwargs):
        result = step(name, do, *args, **kwargs)
        if name in ("write", "journal", "lock"):
            found.append(on_disk(tmp_path))
        return result

    replace_step(counted, monkeypatch.setattr)
    return found


STACK, TISSUE = moving((256, 256), planes=8), np.ones((8, 8), np.uint8)
RUNS = {
    "mask": (Bright(), blobs((512, 512), seed=1), {"tile": 128, "block": 256}),
    "probabilities": (Bright(), blobs((512, 512), seed=1), {"tile": 128, "block": 256, "output": "both"}),
    "objects": (Bright(), blobs((512, 512), seed=1), {"tile": 128, "block": 256, "output": "objects"}),
    "objects in many pieces": (
        *(Deep(), blobs((256, 384), seed=1, share=0.25)),
        {"tile": 64, "block": 128, "output": "objects", "memory": 12_000_000},
    ),
    "tissue": (Bright(), blobs((512, 512), seed=1), {"tile": 128, "block": 256, "tissue": TISSUE}),
    "objects in tissue": (
        *(Bright(), blobs((512, 512), seed=1)),
        {"tile": 128, "block": 256, "tissue": TISSUE, "output": "objects"},
    ),
    "volumes of planes": (Deep(), STACK, {"axes": "zyx", "tile": 128, "block": 128, "output": "objects", "link": 0.2}),
    "volumes": (Bright3D(), STACK, {"axes": "zyx", "tile": (8, 64, 64), "block": (8, 64, 64), "output": "objects"}),
}
# Most bytes of documents, journals and checksums, which the plan leaves out.
SMALL = 60_000


@pytest.mark.parametrize("run", RUNS)
def test_a_run_takes_the_room_that_is_planned_if_nothing_can_be_compressed(run, uncompressed, seen, tmp_path):
    network, image, options = RUNS[run]
    request, out = Request(image, network, Options(**options)), tmp_path / "o.zarr"
    with request.new_job() as job:
        room = room_of(job, options.get("memory"))
    if options.get("output") == "objects":
        store_objects(out, request)
    else:
        fill_output(out, request)
    size, files = on_disk(tmp_path)
    assert 0 < size - room["disk_bytes"] < SMALL < room["disk_bytes"] / 4
    assert 0 < max(size for size, _ in seen) - room["working_bytes"] < 2 * SMALL
    assert files == room["files"]
    assert 0 <= room["working_files"] - max(files for _, files in seen) <= 3 * (TEMPORARY_FILES + 1)


@pytest.mark.parametrize("objects", [(), ("--objects",)])
def test_the_plan_of_a_batch_is_that_of_its_images_and_names_those_that_would_fail(
    tmp_path, monkeypatch, tilenet_command, objects
):
    tilenet.save_model(random_network(depth=2, wf=1), tmp_path / "m.safetensors")
    for name, side in (("a", 100), ("b", 300)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((side, 200), np.uint8))
    cut = tmp_path / "cut.tif"
    cut.write_bytes((tmp_path / "b.tif").read_bytes()[:100])
    (tmp_path / "list.csv").write_text("image,name,tile\nb.tif,c,32\n")
    model = ("-m", tmp_path / "m.safetensors", *objects)
    a, b, c = (
        json.loads(tilenet_command("plan", tmp_path / name, *model, *more, "--json")[1])
        for name, more in (("a.tif", ()), ("b.tif", ()), ("b.tif", ("--tile", 32)))
    )
    code, out, err = tilenet_command("plan", tmp_path / "[ab].tif", cut, tmp_path / "list.csv", *model, "--json")
    assert (code, json.loads(out)["failed"]) == (2, 1) and f"1 of 4 images would fail, the first one {cut}: " in err
    found = {Path(of["image"]).name + str(i): of for i, of in enumerate(json.loads(out)["images"])}
    for one, name in ((a, "a.tif0"), (b, "b.tif1"), (c, "b.tif3")):
        same = found[name].keys() & one.keys()
        assert len(same) == 8 and {key: one[key] for key in same} == {key: found[name][key] for key in same}
    assert found["cut.tif2"].keys() == {"image", "error"}
    for key in ("blocks", "disk_bytes", "files"):
        assert json.loads(out)[key] == a[key] + b[key] + c[key]
    for key in ("host_bytes", "working_bytes", "working_files"):
        assert json.loads(out)[key] == max(a[key], b[key], c[key])
    code, out, err = tilenet_command("plan", tmp_path / "[ab].tif", cut, *model)
    lines = out.splitlines()
    assert code == 2 and re.fullmatch(rf"{tmp_path}/a\.tif  100 x 200 px, 0\.\d MB, {a['files']} files", lines[0])
    assert lines[2].startswith(f"{cut}  fails: is ") and lines[3] == "2 images: 80000 px, 2 blocks"
    assert bool(objects) == ("while the largest runs" in lines[-1])
    monkeypatch.chdir(tmp_path)
    lines = tilenet_command("plan", "a.tif", "cut.tif", *model)[1].splitlines()
    assert lines[1].startswith("cut.tif  fails: is cut off")


def test_a_real_slide_takes_no_more_than_the_command_tells(seen, shared_data, tmp_path, tilenet_command):
    arguments = (shared_data("slides/CMU-1-Small-Region.svs"), "--roi", "900:1500,900:1600", "--objects")
    room = json.loads(tilenet_command("plan", *arguments, "--json")[1])
    told = tilenet_command("plan", *arguments)[1]
    assert "disk        at most 2.2 MB before compression; 4.6 MB while it runs" in told
    assert f"files       at most {room['files']}; {room['working_files']} while it runs" in told
    assert tilenet_command("segment", *arguments, "--out", tmp_path / "o.zarr")[0] == 0
    (size, files), largest = on_disk(tmp_path), max(size for size, _ in seen)
    assert (files, size < room["disk_bytes"]) == (room["files"], True)
    assert 3 * size < largest < room["working_bytes"]
