"""Tables that a batch writes beside masks: their columns, positive objects, and tables that are old or damaged."""

import os

import pytest
import tifffile
from contents import lines_of
from counted_slides import COUNTING, SIZE, three_slides  # noqa: F401
from drawn_regions import feature, rectangle, write_regions
from store_helpers import tree
from stub import Bright

import tilenet
from tilenet.errors import SettingsError
from tilenet.export.descriptors import COLUMNS as FORMS
from tilenet.export.table import COLUMNS


def test_a_table_older_than_its_mask_is_made_anew(slides, tmp_path):
    masks = tmp_path / "masks"
    tilenet.batch(slides[:1], masks, overview=True, **COUNTING)
    drawn = (masks / "a.overview.png").read_bytes()
    # As if there had been another mask of that name before.
    tilenet.segment(slides[2], tmp_path / "c.zarr", model=Bright(), objects=True, threads=1)
    tilenet.write_table(tmp_path / "c.zarr", masks / "a.csv", overwrite=True)
    for name in ("a.csv", "a.overview.png"):
        os.utime(masks / name, (1, 1))
    (result,) = tilenet.batch(slides[:1], masks, overview=True, **COUNTING)
    assert (result.status, result.counts) == ("skipped", {"class 1": 3})
    assert len(lines_of(masks / "a.csv")) == 3 and (masks / "a.overview.png").stat().st_mtime > 1
    assert (masks / "a.overview.png").read_bytes() == drawn


def test_a_damaged_table_in_which_positive_ones_are_asked_for_fails_its_image_alone(slides, tmp_path):
    masks, counting = tmp_path / "masks", COUNTING | {"positive": "0>100"}
    tilenet.batch(slides[::2], masks, **counting)
    with (masks / "a.csv").open("ab") as table:
        table.write(b"1,\xff\n")
    first, second = tilenet.batch(slides[::2], masks, **counting)
    assert (first.status, second.status) == ("failed", "skipped")
    assert "a.csv: is no whole table of its mask (" in first.error and "Delete it" in first.error
    (masks / "a.csv").unlink()
    assert [result.status for result in tilenet.batch(slides[::2], masks, **counting)] == ["skipped", "skipped"]


def test_what_is_positive_is_counted_by_the_rule_of_each_image_and_another_rule_needs_no_new_mask(slides, tmp_path):
    pixels = tifffile.imread(slides[0])
    pixels[10:30, 10:25] = 150
    tifffile.imwrite(slides[0], pixels, tile=(32, 32), **SIZE)
    masks = tmp_path / "masks"
    write_regions(tmp_path / "a.geojson", [feature([rectangle(0, 0, 50, 70)], name="l")])
    (tmp_path / "list.csv").write_text("Image;POSITIVE;within\na.tif;0>160;a.geojson\nc.tif;;\n")
    results = tilenet.batch(tmp_path / "list.csv", masks, **COUNTING)
    assert [(r.status, r.counts, r.positive) for r in results] == [
        ("done", {"class 1": 3}, {"class 1": 2}),
        ("done", {"class 1": 2}, None),
    ]
    counted = [(n["slide"], n["region"], n["positive"], n["positive_share"]) for n in lines_of(masks / "counts.csv")]
    assert counted == [("a", "", "2", "0.666667"), ("a", "l", "0", "0.0"), ("c", "", "", "")]
    tilenet.write_table(masks / "a.zarr", tmp_path / "one.csv", positive="0>160")
    assert (masks / "a.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    written, made = (masks / "a.csv").stat().st_mtime_ns, tree(masks / "a.zarr")
    tilenet.batch(tmp_path / "list.csv", masks, **COUNTING)
    assert (masks / "a.csv").stat().st_mtime_ns == written
    # Of all images, unless the list says something else.
    results = tilenet.batch(slides[::2], masks, positive="0 > 100", **COUNTING)
    assert [(r.status, r.positive) for r in results] == [("skipped", {"class 1": 3}), ("skipped", {"class 1": 2})]
    assert [line["positive"] for line in lines_of(masks / "a.csv")] == ["1"] * 3 and tree(masks / "a.zarr") == made
    assert [r.positive for r in tilenet.batch(slides[::2], masks, **COUNTING)] == [None, None]
    slides[0].unlink()
    (gone,) = tilenet.batch([str(slides[0])], masks, positive="0>100", **COUNTING)
    assert (gone.status, gone.positive) == ("failed", {"class 1": 3})
    (gone,) = tilenet.batch([str(slides[0])], masks, positive="0>160", **COUNTING)
    assert (gone.status, gone.positive, gone.counts) == ("failed", None, None)


def test_a_rule_that_cannot_be_followed_is_refused_before_work(slides, tmp_path):
    masks = tmp_path / "masks"
    with pytest.raises(SettingsError, match="positive 'dab': give a stain or channel"):
        tilenet.batch(slides, masks, positive="dab", **COUNTING)
    with pytest.raises(SettingsError, match="positive 1: give a stain or channel"):
        tilenet.batch(slides, masks, positive=1, **COUNTING)
    for plain, said in (
        ({"objects": True}, r"for tables and polygons\. Ask for tables or polygons, too"),
        ({"table": True}, "for objects: ask for them, too"),
    ):
        with pytest.raises(SettingsError, match=f"positive 0>180 is {said}"):
            tilenet.batch(slides, masks, positive="0>180", model=Bright(), **plain)
    (tmp_path / "list.csv").write_text("image,positive\na.tif,dab\n")
    with pytest.raises(SettingsError, match=r"list\.csv: line 2: positive 'dab': give a stain or channel"):
        tilenet.batch(tmp_path / "list.csv", masks, **COUNTING)
    assert not masks.exists()
    (result,) = tilenet.batch(slides[:1], masks, positive="dab>0.2", **COUNTING)
    assert result.status == "failed" and "have the stains haematoxylin, eosin, dab" in result.error
    assert not (masks / "a.zarr").exists()


def test_a_plan_refuses_the_rules_of_a_list_that_the_batch_would_refuse(slides, tmp_path, tilenet_command):
    (tmp_path / "list.csv").write_text("image,positive\na.tif,0>100\nb.tif,dab>0.2\n")
    code, out, err = tilenet_command("plan", tmp_path / "list.csv", "--objects")
    assert (code, "a.tif  fails" in out, "b.tif  fails" in out) == (2, False, True)
    assert "1 of 2 images would fail" in err and "have the stains haematoxylin, eosin, dab" in err
    code, out, err = tilenet_command("plan", tmp_path / "list.csv")
    assert (code, out) == (2, "") and "positive 0>100 is for objects: ask for them, too (--objects" in err


def test_no_table_takes_the_place_of_that_of_all_or_of_somebody_else_s(slides, tmp_path):
    twin = slides[0].rename(tmp_path / "Counts.tif")
    with pytest.raises(SettingsError, match=r"its table would be Counts\.csv, which is that of the whole batch"):
        tilenet.batch(twin, tmp_path / "masks", **COUNTING)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "c.csv").write_text("mine")
    (result,) = tilenet.batch(slides[2], tmp_path / "masks", **COUNTING)
    assert result.status == "failed" and "not a table that tilenet wrote" in result.error
    assert not (tmp_path / "masks" / "c.zarr").exists() and (tmp_path / "masks" / "c.csv").read_text() == "mine"


def test_tables_get_the_columns_that_are_asked_for_and_old_ones_that_lack_them_are_written_anew(slides, tmp_path):
    masks, images = tmp_path / "masks", [slides[0]]
    tilenet.batch(images, masks, **COUNTING)
    made, table = tree(masks / "a.zarr"), masks / "a.csv"

    def columns_after(**more):
        (result,) = tilenet.batch(images, masks, **COUNTING, **more)
        assert (result.status, result.counts) == ("skipped", {"class 1": 3}) and tree(masks / "a.zarr") == made
        return [name for name in lines_of(table)[0] if name not in COLUMNS]

    assert columns_after() == []
    assert columns_after(shapes=True) == list(FORMS)
    channels = ["mean_0", "sd_0", "min_0", "max_0"]
    assert columns_after(shapes=True, intensities=True, positive="0>160") == [*FORMS, *channels, "positive"]
    tilenet.write_table(masks / "a.zarr", tmp_path / "one.csv", shapes=True, intensities=True, positive="0>160")
    assert table.read_bytes() == (tmp_path / "one.csv").read_bytes()
    written = table.stat().st_mtime_ns
    for less in ({}, {"shapes": True}, {"intensities": True}, {"positive": "0>160", "intensities": True}):
        assert columns_after(**less) == [*FORMS, *channels, "positive"]
    assert table.stat().st_mtime_ns == written
    table.write_text(table.read_text().replace("sd_0", "sum_0"))  # as one of an earlier tilenet, of means alone
    assert columns_after(intensities=True) == channels


def test_columns_that_cannot_be_measured_are_refused_before_work(slides, tmp_path, tilenet_command):
    masks = tmp_path / "masks"
    for options, said in (
        (("--objects", "--shapes"), "shapes are columns of tables, and measurements of polygons. Ask for tables or"),
        (("--csv", "--intensities"), "intensities are measured for objects: ask for them, too (--objects"),
        (("--csv", "--stains"), "stains are measured for objects: ask for them, too (--objects"),
    ):
        code, _, err = tilenet_command("batch", slides[0], "--out", masks, *options)
        assert code == 2 and said in err and not masks.exists()
    (result,) = tilenet.batch(slides[0], masks, stains=True, **COUNTING)
    assert result.status == "failed" and "stains are told apart in red, green and blue of 8 bits" in result.error
    assert not (masks / "a.zarr").exists()
