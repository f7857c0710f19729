"""A mask as a TIFF: what goes in comes out, whole or not at all."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from oracles import random_network
from store_helpers import LAYOUTS, make

import tilenet
from tilenet import tiff_export, tiff_mask
from tilenet.errors import BlocksFailed, OutputError, OutputExists, OutputMismatch, SettingsError, VerifyFailed
from tilenet.geometry import Box
from tilenet.tiff_export import write_tiff


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A folder with an image of known pixel size and a tiny model; killed runs leave nothing else in it."""
    folder = tmp_path_factory.mktemp("slide")
    pixels = np.random.default_rng(0).integers(0, 200, (300, 700), dtype=np.uint8)
    tifffile.imwrite(folder / "slide.tif", pixels, resolution=(40000, 40000), resolutionunit="CENTIMETER")
    tilenet.save_model(random_network(depth=2, wf=1, seed=3), folder / "tiny.safetensors")
    return folder


def segment(slide, out, **options):
    return tilenet.segment(slide / "slide.tif", out, model=slide / "tiny.safetensors", tile=64, threads=1, **options)


@pytest.fixture(scope="module")
def whole(slide):
    """An uninterrupted zarr mask and an uninterrupted TIFF of it."""
    segment(slide, slide / "whole.zarr")
    segment(slide, slide / "whole.ome.tif")
    return slide / "whole.zarr", slide / "whole.ome.tif"


def positions_in(path):
    """Return the position of each plane as OME-XML says it."""
    with tifffile.TiffFile(path) as tiff:
        planes = [e.attrib for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.endswith("}Plane")]
    for plane in planes:
        assert {plane.get("PositionYUnit"), plane.get("PositionXUnit")} == {"µm"}
    return [(float(plane["PositionY"]), float(plane["PositionX"])) for plane in planes]


def test_a_part_says_in_ome_xml_where_it_begins_and_a_whole_does_not(slide, whole, tmp_path):
    segment(slide, tmp_path / "part.ome.tif", roi=np.s_[100:200, 64:600])
    assert positions_in(tmp_path / "part.ome.tif") == [(25.0, 16.0)]
    with tilenet.open_mask(tmp_path / "part.ome.tif") as part:
        layer = part.layer()
        assert (layer["scale"], layer["translate"]) == ([0.25, 0.25], [25.0, 16.0])
        sizes = [(level.ndim, level.size) for level in layer["data"]]  # napari asks for them
        assert sizes == [(2, 100 * 536), (2, 50 * 268), (2, 25 * 134)]
    assert tilenet.open_mask(tmp_path / "part.ome.tif").origin == (100, 64)
    assert positions_in(whole[1]) == []


def test_every_plane_of_a_part_has_its_position_but_none_without_a_pixel_size(slide, tmp_path):
    stack = np.random.default_rng(0).integers(0, 200, (5, 70, 90), dtype=np.uint8)
    about = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "stack.ome.tif", stack, metadata=about, ome=True)
    options = {"model": slide / "tiny.safetensors", "roi": np.s_[1:4, 8:40, :]}
    tilenet.segment(tmp_path / "stack.ome.tif", tmp_path / "m.ome.tif", **options)
    assert positions_in(tmp_path / "m.ome.tif") == [(2.0, 0.0)] * 3
    tilenet.segment(stack, tmp_path / "n.ome.tif", axes="zyx", **options)
    assert positions_in(tmp_path / "n.ome.tif") == []


@pytest.mark.parametrize("name", ["plane", "one pixel", "one row", "volume", "series", "all axes", "many labels"])
def test_every_level_of_a_tiff_is_that_of_the_zarr(tmp_path, name):
    layout = LAYOUTS[name]
    truth = make(tmp_path / "m.zarr", layout)["mask"]
    mask = write_tiff(tmp_path / "m.zarr", tmp_path / "m.ome.tif")
    assert np.array_equal(mask, truth)
    assert (mask.axes, mask.shape, mask.dtype, mask.pixel_size) == (
        layout.axes,
        layout.shape,
        truth.dtype,
        layout.pixel_size,
    )
    stored = tilenet.open_mask(tmp_path / "m.zarr")
    assert mask.info == stored.info
    for mine, theirs in zip(mask.levels, stored.levels, strict=True):
        assert np.array_equal(mine[...], theirs[...])
    with tilenet.open_image(tmp_path / "m.ome.tif") as image, tilenet.open_image(tmp_path / "m.zarr") as other:
        kept = [i for i, axis in enumerate(other.axes) if axis in image.axes]
        sizes = tuple(None if axis == "t" else size for axis, size in zip(image.axes, image.pixel_size, strict=True))
        assert sizes == tuple(None if other.axes[i] == "t" else other.pixel_size[i] for i in kept)
        assert len(image.levels) == len(other.levels)
    with tifffile.TiffFile(tmp_path / "m.ome.tif") as tiff:  # a second opinion, of the library itself
        assert np.array_equal(tiff.series[0].asarray().reshape(truth.shape), truth)
        page = tiff.pages.first
        assert (page.is_tiled, page.compression, page.predictor, page.photometric) == (True, 8, 1, 1)
        assert len(page.pages or ()) == len(layout.levels) - 1
        assert "DateTime" not in page.tags


def test_the_same_mask_gives_the_same_file(tmp_path):
    make(tmp_path / "m.zarr", LAYOUTS["tiny"])
    first, second = (tmp_path / f"{name}.tif" for name in "ab")
    write_tiff(tmp_path / "m.zarr", first)
    write_tiff(tmp_path / "m.zarr", second)
    assert first.read_bytes() == second.read_bytes()


def test_a_large_mask_is_a_bigtiff_and_reads_back(tmp_path, monkeypatch):
    truth = make(tmp_path / "m.zarr", LAYOUTS["plane"])["mask"]
    monkeypatch.setattr(tiff_export, "MOST_CLASSIC", 1000)
    mask = write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert (tmp_path / "m.tif").read_bytes()[:4] == b"II+\0"
    assert np.array_equal(mask, truth)


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
    shutil.copy(whole[1], out)
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


def test_a_link_to_a_tiff_is_not_replaced(whole, tmp_path):
    (tmp_path / "m.tif").symlink_to(whole[1])
    with pytest.raises(
        OutputExists, match=r"is a symbolic link, which is not replaced\. Give .*whole\.ome\.tif instead"
    ):
        tilenet.write_tiff(whole[0], tmp_path / "m.tif", overwrite=True)
    assert (tmp_path / "m.tif").is_symlink()


def test_a_tiff_of_a_newer_version_is_not_called_another_s(whole, tmp_path):
    newer = whole[1].read_bytes().replace(b"probability_dtype", b"probability_dtypo")  # of the same length
    (tmp_path / "m.ome.tif").write_bytes(newer)
    with pytest.raises(OutputError, match=r"m\.ome\.tif: was written by tilenet .*, which stores 'probability_dtypo'"):
        tilenet.open_mask(tmp_path / "m.ome.tif")


def test_a_tiff_that_is_refused_is_closed(whole, monkeypatch):
    opened, closed, open_image = [], [], tiff_mask.open_image

    def watched(path):
        image = open_image(path)
        opened.append(path)
        close = image.close
        image.close = lambda: closed.append(path) or close()
        return image

    monkeypatch.setattr(tiff_mask, "open_image", watched)
    monkeypatch.setattr(tiff_mask.TiffMask, "dtype", np.dtype(np.uint16))
    with pytest.raises(OutputError, match="its pages are not what its description says"):
        tilenet.open_mask(whole[1])
    assert opened == closed


def test_a_tiff_mask_that_is_taken_for_an_image_is_said_to_be_one(slide, whole, caplog):
    with caplog.at_level("WARNING", "tilenet"):
        segment(slide, None)
        assert caplog.text == ""
        tilenet.segment(whole[1], model=slide / "tiny.safetensors", tile=64, threads=1)
    assert f"{whole[1]}: is a mask that tilenet wrote, and is segmented like any image" in caplog.text


def test_probabilities_do_not_fit_in_a_tiff(slide, tmp_path):
    with pytest.raises(SettingsError, match="mask alone"):
        segment(slide, tmp_path / "m.tif", output="both")
    assert names(tmp_path) == []


def test_every_level_of_a_tiff_becomes_an_array_as_the_mask_does(whole):
    mask = tilenet.open_mask(whole[1])
    for level in mask.levels:
        assert np.array_equal(np.asarray(level), level[...])
        assert np.asarray(level, np.float32).dtype == np.float32
    assert np.asarray(mask.levels[1]).shape == mask.levels[1].shape
    with pytest.raises(ValueError, match="without copying"):
        np.array(mask.levels[0], copy=False)


def test_objects_go_into_a_tiff(slide, tmp_path):
    mask = segment(slide, tmp_path / "m.tif", objects=True)
    assert mask.dtype == np.uint32
    assert mask[...].max() > 1


# One process loads all once and forks a run for each kill: it runs nothing itself, so no thread is lost.
KILLS = """
import hashlib, json, os, signal, sys
from pathlib import Path
import imagecodecs, tifffile, torch, yaozarrs.v05, zarr, zarr.codecs
import tilenet, tilenet.api
from tilenet.store import files
torch.set_num_threads(1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
def run(kill, said, late):
    count, deliver = 0, tilenet.api.deliver
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
        count, tilenet.api.deliver = -10**6, deliver_counted
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
    done = subprocess.run([sys.executable, "-c", KILLS, slide, out], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    *killed, last = json.loads(done.stdout)
    assert len(killed) > 8
    assert {run["there"] for run in killed} == {None, right}
    assert (last["killed"], last["there"]) == (False, right)
    assert names(tmp_path) == [out.name]


def test_a_damaged_mask_is_not_exported(tmp_path):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    shard = next(
        path for path in sorted((tmp_path / "m.zarr" / "0").rglob("*")) if path.is_file() and path.name != "zarr.json"
    )
    shard.unlink()
    with pytest.raises(BlocksFailed, match="--resume"):
        write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert names(tmp_path) == ["m.zarr"]


def test_a_mask_that_is_replaced_while_it_is_exported_is_noticed(tmp_path, monkeypatch):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    compare = tiff_export._compare

    def compare_and_lose(*args):
        compare(*args)
        shutil.rmtree(tmp_path / "m.zarr" / "0" / "c")

    monkeypatch.setattr(tiff_export, "_compare", compare_and_lose)
    with pytest.raises(BlocksFailed):
        write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert names(tmp_path) == ["m.zarr"]


def test_a_tile_that_reads_back_differently_is_noticed(tmp_path, monkeypatch):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    padded = tiff_export._padded
    monkeypatch.setattr(tiff_export, "_padded", lambda pixels: padded(pixels) ^ 1)
    with pytest.raises(BlocksFailed, match="reads back differently"):
        write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert names(tmp_path) == ["m.zarr"]


def test_verify_recomputes_windows_of_a_tiff_and_finds_damage(slide, whole, tmp_path):
    found = tilenet.verify(whole[1], windows=2)
    assert (found.ok, found.windows, found.not_recomputed) == (True, 2, "")
    out = tmp_path / "m.tif"
    data = bytearray(whole[1].read_bytes())
    with tifffile.TiffFile(whole[1]) as tiff:
        page = tiff.pages.first
        data[page.dataoffsets[0] + page.databytecounts[0] // 2] ^= 8
    out.write_bytes(data)
    with pytest.raises(VerifyFailed, match="Run the same command with --overwrite$"):
        tilenet.verify(out).raise_if_failed(out)
    with pytest.raises(OutputError, match="--overwrite"):
        segment(slide, out, resume=True)


def test_a_wrong_tile_of_a_coarse_level_is_found(tmp_path):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif").close()
    with tifffile.TiffFile(tmp_path / "m.tif") as tiff:
        coarse = tiff.series[0].levels[1].pages[0]
        tiles = tiff.series[0].levels[0].pages[0]
        at, size = tiles.dataoffsets[0], tiles.databytecounts[0]
        tag = {name: coarse.tags[name] for name in ("TileOffsets", "TileByteCounts")}
        assert len(coarse.dataoffsets) == 1
        with (tmp_path / "m.tif").open("r+b") as file:
            for name, value in (("TileOffsets", at), ("TileByteCounts", size)):
                file.seek(tag[name].offset + 8)
                file.write(int(value).to_bytes(4, "little"))
    assert "not every second pixel" in tilenet.verify(tmp_path / "m.tif", windows=0).damage[0]


INDICES = [
    (),
    (2,),
    (Ellipsis, 5),
    (-1, slice(3, 9, 2)),
    (slice(None, None, -3), slice(8, 2, -1)),
    (slice(5, 5), slice(None)),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_a_tiff_mask_is_indexed_as_numpy_is(whole, index):
    mask = tilenet.open_mask(whole[1])
    assert np.array_equal(mask[index], np.asarray(mask)[index])
    assert mask[index].shape == np.asarray(mask)[index].shape


@pytest.mark.parametrize("index", [(0, 0, 0), 300, (0, -701), "x", [1, 2], np.array([1, 2])], ids=str)
def test_an_index_that_is_none_is_refused(whole, index):
    with pytest.raises(IndexError):
        tilenet.open_mask(whole[1])[index]


def test_info_tells_of_a_tiff_what_it_tells_of_the_zarr(whole, tilenet_command):
    told = [json.loads(tilenet_command("info", path, "--json")[1]) for path in whole]
    assert told[0] == told[1]
    assert told[0]["kind"] == "mask"


def test_tiles_cover_every_level_once():
    shape = (3, 1030, 513)
    seen = np.zeros(shape, int)
    for box in tiff_mask.tile_boxes(shape):
        seen[box.slices] += 1
    assert (seen == 1).all()
    assert [str(b) for b in tiff_mask.tile_boxes((1, 1))] == [str(Box((0, 0), (1, 1)))]


def test_a_tiff_that_is_not_complete_is_said_to_be_that(slide, tmp_path, tilenet_command, monkeypatch):
    from tilenet import compute

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(compute, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            segment(slide, tmp_path / "m.ome.tif")
    code, _, err = tilenet_command("verify", tmp_path / "m.ome.tif")
    assert code == 2 and "m.ome.tif: is not complete, and is made in m.ome.tif.zarr" in err


def changed(mask, out, change):
    """Copy a mask, and change what it says of how it was made."""
    if mask.is_dir():
        shutil.copytree(mask, out)
        root = json.loads((out / "zarr.json").read_text())
        change(root["attributes"]["tilenet"])
        (out / "zarr.json").write_text(json.dumps(root))
        return out
    with tifffile.TiffFile(mask) as tiff:
        (text,) = (e.text for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.endswith("}Description"))
    own = json.loads(text)
    change(own["tilenet"])
    before, after = (t.replace('"', "&quot;").encode() for t in (text, json.dumps(own)))
    content = mask.read_bytes()
    if before not in content:
        before, after = text.encode(), json.dumps(own).encode()
    assert content.count(before) == 1
    out.write_bytes(content.replace(before, after.ljust(len(before))))
    return out


@pytest.mark.parametrize("kind", [0, 1], ids=["zarr", "tiff"])
def test_a_mask_that_lacks_how_it_was_made_is_refused_in_a_line(slide, whole, tmp_path, tilenet_command, kind):
    changes = {part: lambda own, part=part: own.pop(part) for part in ("image", "model", "card", "record", "scaling")}
    changes |= {"labels": lambda own: own["card"].pop("labels")}
    suffix = (".zarr", ".ome.tif")[kind]
    for part, change in changes.items():
        out = changed(whole[kind], tmp_path / f"{part}{suffix}", change)
        with pytest.raises(BlocksFailed, match=rf"{part}\S+: was changed: it lacks its {part}\. Copy or make it again"):
            tilenet.open_mask(out)
    cards = changed(whole[kind], tmp_path / f"cards{suffix}", lambda own: own.update(card=[]))
    table, picture = tmp_path / "a.csv", tmp_path / "a.png"
    for command in (
        ("info", cards),
        ("export", cards, "--csv", table),
        ("overlay", slide / "slide.tif", cards, "--out", picture),
        ("verify", cards),
    ):
        code, _, err = tilenet_command(*command)
        assert code == 3 and len(err.splitlines()) == 1 and ("lacks its card" in err or "zarr.json" in err), err
    assert tilenet.open_mask(changed(whole[kind], tmp_path / f"same{suffix}", lambda own: None)).shape == (300, 700)
