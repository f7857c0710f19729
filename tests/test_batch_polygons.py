"""Polygons that a batch writes beside masks: those of single exports, made anew only where that changes them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from contents import lines_of
from counted_slides import COUNTING, three_slides  # noqa: F401
from drawn_regions import feature, rectangle, write_regions
from stub import Bright, Bright3D

import tilenet
from tilenet.errors import SettingsError
from tilenet.export import shapes
from tilenet.export.table import write_table

POLYGONS = {"model": Bright(), "objects": True, "polygons": True, "threads": 1}


def features_of(path):
    return json.loads(path.read_bytes())["features"]


@pytest.mark.parametrize("objects", [True, False], ids=["objects", "classes"])
def test_polygons_are_those_of_single_exports_and_are_made_once(slides, tmp_path, objects):
    masks, how = tmp_path / "masks", POLYGONS | {"objects": objects}
    results = tilenet.batch(slides, masks, **how)
    assert [result.status for result in results] == ["done", "failed", "done"]
    assert {path.name for path in masks.iterdir() if path.is_file()} == {
        *("a.geojson", "c.geojson", "summary.csv", "summary.json")
    }
    written = {}
    for name in "ac":
        tilenet.write_geojson(masks / f"{name}.zarr", tmp_path / f"{name}.geojson")
        assert (masks / f"{name}.geojson").read_bytes() == (tmp_path / f"{name}.geojson").read_bytes()
        written[name] = (masks / f"{name}.geojson").stat().st_mtime_ns
    (masks / "c.geojson").unlink()
    tilenet.batch(slides, masks, **how)
    assert (masks / "a.geojson").stat().st_mtime_ns == written["a"]
    assert (masks / "c.geojson").read_bytes() == (tmp_path / "c.geojson").read_bytes()
    os.utime(masks / "a.geojson", (1, 1))  # older than its mask
    tilenet.batch(slides, masks, **how)
    assert (masks / "a.geojson").stat().st_mtime > 1


def test_polygons_are_of_what_is_counted_and_others_are_written_anew_without_new_tables(slides, tmp_path):
    pixels = tifffile.imread(slides[0])
    pixels[10:14, 60:66] = 200  # 24 px, 6 um2
    pixels[80:100, 20:35] = 150
    tifffile.imwrite(slides[0], pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    masks, how = tmp_path / "masks", POLYGONS | {"table": True}

    def made(**more):
        (result,) = tilenet.batch(slides[0], masks, **how, **more)
        found = features_of(masks / "a.geojson")
        assert len(found) == sum(result.counts.values()), result.error
        (line,) = lines_of(masks / "counts.csv")
        assert int(line["count"]) == len(found)
        return found, (masks / "a.geojson").stat().st_mtime_ns

    every, first = made()
    table = (masks / "a.csv").stat().st_mtime_ns
    large, _ = made(min_area="7um2")
    assert [said["id"] for said in large] == [said["id"] for said in every if said["id"] != every[0]["id"]]
    assert made(min_area="7um2")[1] == made(min_area="7um2")[1]
    again, last = made()
    assert again == every and last > first and (masks / "a.csv").stat().st_mtime_ns == table
    judged, _ = made(positive="0>160", shapes=True)
    tilenet.write_geojson(masks / "a.zarr", tmp_path / "one.geojson", positive="0>160", shapes=True)
    assert judged == features_of(tmp_path / "one.geojson")
    names = [said["properties"]["classification"]["name"] for said in judged]
    assert sorted(names) == ["Negative", "Positive", "Positive", "Positive"]
    other, _ = made(positive="0>190", shapes=True)
    assert other == judged  # by another rule, with the same answers


def test_a_table_and_polygons_are_measured_once(slides, tmp_path, monkeypatch):
    calls, real = [], shapes.regions
    monkeypatch.setattr(shapes, "regions", lambda strips: calls.append(1) or real(strips))
    tilenet.batch(slides[::2], tmp_path / "masks", polygons=True, **COUNTING)
    assert len(calls) == 2
    tilenet.batch(slides[::2], tmp_path / "masks", polygons=True, **COUNTING)
    assert len(calls) == 2


def test_polygons_replace_no_file_of_somebody_else_and_no_regions_of_the_batch(slides, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    drawn = write_regions(masks / "a.geojson", [feature([rectangle(0, 0, 50, 50)], name="drawn")])
    mine = drawn.read_bytes()
    (result,) = tilenet.batch(slides[0], masks, **POLYGONS)
    assert result.status == "failed" and "a.geojson: exists, and is not a GeoJSON that tilenet wrote" in result.error
    drawn.write_bytes(b'{"type":"FeatureCollection","tilenet":"0",' + mine.partition(b",")[2])
    ours = drawn.read_bytes()
    (tmp_path / "within.csv").write_text("image,within\na.tif,masks/a.geojson\n")
    (tmp_path / "tissue.csv").write_text("image,tissue\na.tif,masks/a.geojson\n")
    for listed, said in (("within", "is the regions "), ("tissue", "is the tissue ")):
        (result,) = tilenet.batch(tmp_path / f"{listed}.csv", masks, table=True, **POLYGONS)
        assert result.status == "failed" and f"a.geojson: {said}" in result.error
    assert drawn.read_bytes() == ours and not (masks / "a.zarr").exists()


def test_what_a_killed_batch_left_beside_whole_files_is_removed_by_the_next(slides, tmp_path):
    masks, how = tmp_path / "masks", POLYGONS | {"table": True, "overview": True}
    tilenet.batch(slides[0], masks, **how)
    whole = {path: path.stat().st_mtime_ns for path in masks.iterdir()}
    makes = "import sys; from pathlib import Path; from tilenet.store.leftovers import temporary_place as place; "
    makes += "[place(Path(name)).mkdir() for name in sys.argv[1:]]"
    names = [masks / name for name in ("a.csv", "a.geojson", "a.overview.png", "summary.csv", "summary.json")]
    subprocess.run([sys.executable, "-c", makes, *names], check=True)
    mine = masks / ".a.csv.mine"
    mine.mkdir()
    assert len({*masks.iterdir()} - {*whole}) == len(names) + 1
    tilenet.batch(slides[0], masks, **how)
    assert {*masks.iterdir()} == {*whole, mine}
    assert all((masks / name).stat().st_mtime_ns == whole[masks / name] for name in names[:3])


@pytest.mark.parametrize(
    "other", [{"min_area": "30px"}, {"shapes": True}, {"kind": "annotation"}, {"positive": "0>150"}], ids=str
)
@pytest.mark.parametrize("beside_table", [False, True])
def test_polygons_that_an_export_wrote_with_other_options_are_written_anew(slides, tmp_path, other, beside_table):
    masks = tmp_path / "masks"
    tilenet.batch(slides[0], masks, **POLYGONS)
    own = (masks / "a.geojson").read_bytes()
    if beside_table and "kind" not in other:
        write_table(masks / "a.zarr", tmp_path / "t.csv", geojson=masks / "a.geojson", overwrite=True, **other)
    else:
        tilenet.write_geojson(masks / "a.zarr", masks / "a.geojson", overwrite=True, **other)
    assert (masks / "a.geojson").read_bytes() != own
    tilenet.batch(slides[0], masks, **POLYGONS)
    assert (masks / "a.geojson").read_bytes() == own


def test_polygons_take_a_least_area_that_is_a_number_of_numpy(slides, tmp_path):
    tilenet.batch(slides[0], tmp_path, **POLYGONS)
    made = []
    for least in (30, np.int64(30)):
        tilenet.write_geojson(tmp_path / "a.zarr", tmp_path / "m.geojson", min_area=least, overwrite=True)
        made.append((tmp_path / "m.geojson").read_bytes())
    assert made[0] == made[1]


def test_what_polygons_of_volumes_cannot_have_is_refused_before_work(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", np.full((4, 30, 30), 200, np.uint8), photometric="minisblack")
    how = {"model": Bright3D(), "axes": "zyx", "objects": True, "pixel_size": "2,0.5,0.5"}
    (result,) = tilenet.batch(tmp_path / "v.tif", tmp_path / "m", polygons=True, min_area="20um3", **how)
    assert "polygons of volumes are outlines in planes, which have no volume" in result.error
    assert not (tmp_path / "m" / "v.zarr").exists()
    (result,) = tilenet.batch(tmp_path / "v.tif", tmp_path / "m", polygons=True, table=True, shapes=True, **how)
    assert result.status == "done" and len(features_of(tmp_path / "m" / "v.geojson")) == 4


def test_the_command_writes_polygons_and_measures_only_if_there_is_a_place_for_numbers(
    slides, tmp_path, tilenet_command
):
    command = ("batch", slides[0], "--out", tmp_path / "masks", "--model", "stub:bright", "--objects")
    code, _, err = tilenet_command(*command, "--geojson", "--shapes", "--min-area", "20um2")
    assert code == 0, err
    assert all(said["properties"]["measurements"]["solidity"] for said in features_of(tmp_path / "masks" / "a.geojson"))
    with pytest.raises(SettingsError, match="shapes are columns of tables, and measurements of polygons. Ask for"):
        tilenet.batch(slides[0], tmp_path / "masks", shapes=True)
