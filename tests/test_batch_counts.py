"""Batches that count: the objects of each image, in regions too, and one table of all."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from contents import lines_of
from counted_slides import COUNTING, SIZE, three_slides  # noqa: F401
from drawn_regions import feature, rectangle, square, write_regions
from store_helpers import tree, tree_hash
from stub import Bright
from workers import Cluster

import tilenet
from tilenet.errors import SettingsError
from tilenet.export.totals import Measured
from tilenet.export.totals_table import write_counts


def test_objects_and_tables_are_those_of_single_runs_and_a_bad_image_stops_no_other(slides, tmp_path):
    results = tilenet.batch(slides, tmp_path / "masks", **COUNTING)
    assert [(r.slide, r.status) for r in results] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert "the lamp went out" in results[1].error and not (tmp_path / "masks" / "b.csv").exists()
    for slide in slides[::2]:
        tilenet.segment(slide, tmp_path / "one.zarr", model=Bright(), objects=True, threads=1, overwrite=True)
        tilenet.write_table(tmp_path / "one.zarr", tmp_path / "one.csv", overwrite=True)
        assert tree(tmp_path / "masks" / f"{slide.stem}.zarr") == tree(tmp_path / "one.zarr")
        assert (tmp_path / "masks" / f"{slide.stem}.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    first, second = lines_of(tmp_path / "masks" / "counts.csv")
    assert (first["slide"], first["class"], first["kind"], first["count"]) == ("a", "class 1", "object", "3")
    pixels = (np.asarray(tilenet.open_mask(tmp_path / "masks" / "a.zarr")) > 0).sum()
    assert (int(first["covered_px"]), float(first["covered_um2"])) == (pixels, pixels / 4) and pixels > 880
    assert float(first["covered_share"]) == pytest.approx(pixels / 13200, abs=1e-6)
    assert (float(first["mm2"]), first["mm3"], first["covered_um3"]) == (13200 * 0.25e-6, "", "")
    assert float(first["per_mm2"]) == pytest.approx(3 / (13200 * 0.25e-6), abs=1e-3)
    assert (second["slide"], second["count"]) == ("c", "2")
    summary = lines_of(tmp_path / "masks" / "summary.csv")
    assert [line["counts"] for line in summary] == ["3 class 1", "", "2 class 1"]


def test_the_next_call_counts_what_is_complete_and_an_image_of_nothing_counts_0(slides, tmp_path):
    tilenet.batch(slides, tmp_path / "masks", **COUNTING)
    before = tree(tmp_path / "masks" / "a.zarr"), (tmp_path / "masks" / "a.csv").stat().st_mtime_ns
    tifffile.imwrite(slides[1], np.zeros((120, 110), np.uint8), tile=(32, 32), **SIZE)
    results = tilenet.batch(slides, tmp_path / "masks", **COUNTING)
    assert [(r.status, r.counts["class 1"]) for r in results] == [("skipped", 3), ("done", 0), ("skipped", 2)]
    assert before == (tree(tmp_path / "masks" / "a.zarr"), (tmp_path / "masks" / "a.csv").stat().st_mtime_ns)
    assert [line["count"] for line in lines_of(tmp_path / "masks" / "counts.csv")] == ["3", "0", "2"]


@pytest.mark.parametrize(
    "mistake", ["other options", "an image is gone", "a table is gone, too", "a table of another", "a table is damaged"]
)
def test_a_mistake_takes_no_complete_mask_out_of_the_counts(slides, tmp_path, mistake):
    masks, images = tmp_path / "masks", slides[::2]
    done = tilenet.batch(images, masks, **COUNTING)
    counted, options, named = lines_of(masks / "counts.csv"), {}, [str(path) for path in images]
    if mistake == "other options":
        options["mpp"] = 1.0
    elif mistake != "a table is damaged":
        slides[0].unlink()
    if mistake == "a table is damaged":
        with (masks / "a.csv").open("a") as table:
            table.write("1,nucleus\n")
    elif "table" in mistake:
        (masks / "a.csv").unlink()
    if mistake == "a table of another":
        (masks / "a.csv").write_text("mine")
    failed = tilenet.batch(named, masks, **COUNTING | options)
    assert failed[0].status == "failed" and failed[1].status == ("failed" if options else "skipped")
    assert [result.counts for result in failed][1:] == [result.counts for result in done][1:]
    if mistake == "a table is damaged":
        assert "a.csv: is no whole table of its mask (TypeError: " in failed[0].error and "Delete it" in failed[0].error
    if "table" in mistake:
        assert failed[0].counts is None and lines_of(masks / "counts.csv") == counted[1:]
    else:
        assert failed[0].counts == done[0].counts and failed[0].pixels == done[0].pixels
        assert lines_of(masks / "counts.csv") == counted
    assert [line["status"] for line in lines_of(masks / "summary.csv")] == [result.status for result in failed]


def test_what_is_in_another_image_of_that_name_is_not_counted(slides, tmp_path):
    masks, images = tmp_path / "masks", slides[::2]
    tilenet.batch(images, masks, **COUNTING)
    tifffile.imwrite(slides[0], np.full((130, 110), 200, np.uint8), tile=(32, 32), **SIZE)
    another, _ = tilenet.batch(images, masks, **COUNTING)
    assert another.status == "failed" and another.counts is None and "Give the image that" in another.error
    assert {line["slide"] for line in lines_of(masks / "counts.csv")} == {"c"}


def test_counts_stay_where_nothing_can_be_counted(slides, tmp_path, caplog):
    tilenet.batch(slides[:1], tmp_path / "masks", **COUNTING)
    before = (tmp_path / "masks" / "counts.csv").read_bytes()
    (tmp_path / "masks" / "a.csv").unlink()
    slides[0].unlink()
    (result,) = tilenet.batch([str(slides[0])], tmp_path / "masks", **COUNTING)
    assert result.status == "failed" and (tmp_path / "masks" / "counts.csv").read_bytes() == before
    assert "counts.csv: stays as it was, as nothing could be counted" in caplog.text


@pytest.mark.parametrize("side", [0.2, 2.0])
def test_the_size_of_a_small_volume_keeps_its_digits(tmp_path, side):
    found = Measured(Path("a.csv"), Counter({"cell": 5}), area_px=Counter({"cell": 70}), voxel_um3=side**3)
    found.mask_px, found.objects, found.volumes = 100_003, True, True
    write_counts(tmp_path / "counts.csv", {"a": found})
    (line,) = lines_of(tmp_path / "counts.csv")
    assert float(line["mm3"]) == pytest.approx(100_003 * side**3 / 1e9, rel=1e-5)
    assert int(line["count"]) / float(line["mm3"]) == pytest.approx(float(line["per_mm3"]), rel=1e-5)


def test_regions_of_plain_masks_are_counted_by_several_workers_too(slides, tmp_path):
    tilenet.batch(slides[::2], tmp_path / "masks", model=Bright(), table=True, client=Cluster(workers=2), threads=1)
    lines = lines_of(tmp_path / "masks" / "counts.csv")
    assert [(line["slide"], line["kind"], line["count"]) for line in lines] == [
        ("a", "region", "3"),
        ("c", "region", "2"),
    ]


def test_objects_that_were_killed_while_they_were_written_are_found_again(slides, tmp_path, monkeypatch):
    from tilenet.runs import numbering

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(numbering, "_write_numbers", killed)
    with pytest.raises(KeyboardInterrupt):
        tilenet.batch(slides[:1], tmp_path / "masks", **COUNTING)
    assert (tmp_path / "masks" / "a.zarr").exists()
    monkeypatch.undo()
    (result,) = tilenet.batch(slides[:1], tmp_path / "masks", **COUNTING)
    assert (result.status, result.counts) == ("done", {"class 1": 3})


def test_regions_of_a_list_are_counted_in_and_others_need_no_new_mask_or_table(slides, tmp_path):
    write_regions(tmp_path / "a.geojson", [feature([rectangle(0, 0, 50, 70)], name="half")])
    (tmp_path / "list.csv").write_text("image,within\na.tif,a.geojson\nc.tif,\n")
    masks = tmp_path / "masks"
    assert [result.status for result in tilenet.batch(tmp_path / "list.csv", masks, **COUNTING)] == ["done", "done"]
    lines = lines_of(masks / "counts.csv")
    assert [(line["slide"], line["region"], line["count"]) for line in lines] == [
        *(("a", "", "3"), ("a", "half", "1"), ("c", "", "2"))
    ]
    assert (float(lines[1]["mm2"]), float(lines[1]["per_mm2"])) == (0.000875, pytest.approx(1 / 0.000875, abs=1e-3))
    assert lines[1]["covered_px"] == lines[1]["mm3"] == ""
    one = tilenet.write_table(masks / "a.zarr", tmp_path / "one.csv", within=tmp_path / "a.geojson")
    assert one.regions[0].counts == {"class 1": 1}
    written = (masks / "a.csv").stat().st_mtime_ns
    write_regions(tmp_path / "a.geojson", [feature([rectangle(0, 0, 110, 70)], name="wide")])
    assert [result.status for result in tilenet.batch(tmp_path / "list.csv", masks, **COUNTING)] == ["skipped"] * 2
    assert [(line["region"], line["count"]) for line in lines_of(masks / "counts.csv")][1] == ("wide", "2")
    assert (masks / "a.csv").stat().st_mtime_ns == written


def test_regions_that_cannot_be_counted_in_are_refused_before_work(slides, tmp_path):
    (tmp_path / "list.csv").write_text("image,within\na.tif,a.geojson\n")
    with pytest.raises(SettingsError, match=r"a\.geojson: does not exist"):
        tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", **COUNTING)
    write_regions(tmp_path / "a.geojson", [feature([square(0, 0, 9)])])
    with pytest.raises(SettingsError, match=r"a\.geojson: is for what is counted: ask for tables, too"):
        tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", model=Bright())
    assert not (tmp_path / "masks").exists()


def test_objects_are_counted_by_several_workers_too(slides, tmp_path):
    alone = tilenet.batch(slides, tmp_path / "alone", **COUNTING)
    shared = tilenet.batch(slides, tmp_path / "shared", **COUNTING, client=Cluster(workers=2))
    assert [result.counts for result in shared] == [result.counts for result in alone]
    for name in ("a.zarr", "c.zarr"):
        assert tree_hash(tmp_path / "shared" / name) == tree_hash(tmp_path / "alone" / name)


def test_the_command_counts_nuclei_of_real_images(shared_data, tilenet_command, tmp_path):
    image = shared_data("small_fluo/mitocheck_t1_image.tif")
    code, out, _ = tilenet_command("batch", image, "-o", tmp_path / "masks", "--objects", "--csv", "--threads", 1)
    found = tilenet.segment(image, objects=True).max()
    assert code == 0 and f"  {found} nucleus  " in out and found > 3
    assert len(lines_of(tmp_path / "masks" / f"{image.name.partition('.')[0]}.csv")) == found


def test_masks_of_different_pixel_sizes_are_not_compared_without_a_word(tmp_path, tilenet_command):
    pixels = np.random.default_rng(0).integers(0, 200, (90, 100), np.uint8)
    for name, um in (("fine", 0.25), ("coarse", 0.5)):
        about = {"axes": "YX", "PhysicalSizeX": um, "PhysicalSizeY": um}
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", pixels, metadata=about, tile=(32, 32))
    images = [str(tmp_path / f"{name}.ome.tif") for name in ("fine", "coarse")]
    results = tilenet.batch(images, tmp_path / "masks", model=Bright(), threads=1)
    assert [(result.level, result.um_per_px) for result in results] == [(0, 0.25), (0, 0.5)]
    code, out, err = tilenet_command("batch", *images, "-o", tmp_path / "nuclei", "--threads", 1, "--json")
    assert code == 0 and err == ""
    (said,) = [line for line in json.loads(out)["remarks"] if "pixels of 0.25 to 0.5 um" in line]
    assert "--mpp" in said
    code, _, err = tilenet_command("batch", *images, "-o", tmp_path / "same", "--threads", 1, "--mpp", 0.5)
    assert code == 0 and "cannot be compared" not in err and "resampled" in err
