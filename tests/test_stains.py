"""Optical densities of stains over objects, against scikit-image; and objects told apart by a mean."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from contents import lines_of
from drawn_regions import feature, rectangle, write_regions
from measured import assert_measured, measured
from scipy import ndimage as ndi
from skimage.color import rgb2hed
from stub import Bright, Dark

import tilenet
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.export.intensities import MOST, Intensities
from tilenet.export.positive_rules import STAINS, is_judged_by
from tilenet.export.table import read_table
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering

RANDOM = np.random.default_rng(1)
BLOBS = ndi.gaussian_filter(RANDOM.normal(size=(300, 260)), 5)
NUCLEI = np.quantile(BLOBS, 0.6) < BLOBS
BROWN = ndi.gaussian_filter(RANDOM.normal(size=(300, 260)), 25) > 0
NOISE = RANDOM.integers(-30, 30, (300, 260, 3))
COLOURS = np.where(BROWN[..., None], [130, 90, 60], [90, 100, 150])
PIXELS = np.where(NUCLEI[..., None], COLOURS + NOISE, 240 + NOISE // 2).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("stains") / "slide.tif"
    size = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, PIXELS, tile=(64, 64), photometric="rgb", **size)
    tilenet.segment(path, path.with_name("o.zarr"), model=Dark(), objects=True, scaling="none")
    return path


def truth_of(labels, pixels):
    """Return what is measured of optical densities (3): of -log10 of the part of white that is left."""
    # rgb2hed takes 0 for a millionth, whose logarithm says nothing of a camera: here it counts as 1 of 255.
    return measured(labels, np.moveaxis(6 * rgb2hed(np.maximum(pixels, 1)), -1, 0))


def test_densities_are_six_times_those_of_scikit_image_and_vary_only_where_they_are_asked_for(slide, tmp_path):
    mask, table = slide.with_name("o.zarr"), tmp_path / "o.csv"
    tilenet.write_table(mask, table, stains=True, positive="red>110")
    lines, truth = lines_of(table), truth_of(tilenet.open_mask(mask)[...], PIXELS)
    assert_measured(lines, truth, STAINS, abs=2e-6)
    dab = [stains[2][0] for stains in truth.values()]
    assert len(truth) > 20 and min(dab) < 0.1 < 0.3 < max(dab)
    assert [name for name in lines[0] if "_red" in name] == ["mean_red"]
    # As tables were before.
    with (tmp_path / "old.csv").open("w", newline="") as file:
        means = [name for name in lines[0] if not name.startswith(("sd_", "min_", "max_"))]
        old = csv.DictWriter(file, means, extrasaction="ignore")
        old.writeheader()
        old.writerows(lines)
    assert is_judged_by(table, "red>110") and is_judged_by(tmp_path / "old.csv", "red>110")
    first, second = (read_table(mask, tmp_path / name) for name in ("o.csv", "old.csv"))
    assert replace(first, path=second.path) == second and 0 < second.positive.total() < len(lines)
    tilenet.write_table(mask, table, positive="dab>0.2", overwrite=True)
    columns = [*(f"mean_{stain}" for stain in STAINS), "positive"]
    assert list(lines_of(table)[0])[-4:] == columns and is_judged_by(table, "dab>0.2")


def test_neither_blocks_nor_their_order_change_a_digit(slide, tmp_path):
    tables = []
    for block in (64, 128, 256):
        out = tmp_path / f"{block}.zarr"
        options = Options(block=block, tile=64, output="objects", scaling="none")
        numbering.store_objects(out, Request(slide, Dark(), options))
        tilenet.write_table(out, tmp_path / "o.csv", stains=True, positive="dab>0.2", overwrite=True)
        tables.append([{**line, "id": ""} for line in lines_of(tmp_path / "o.csv")])
    assert tables[0] == tables[1] == tables[2] != []


def said_of(positive, count):
    return f"{positive} of {count} positive ({100 * positive / count:.1f} %)"


def test_objects_are_told_apart_in_tables_regions_and_polygons(slide, tmp_path, tilenet_command):
    write_regions(tmp_path / "r.geojson", [feature([rectangle(0, 0, 130, 300)], name="left")])
    outputs = ("--csv", tmp_path / "o.csv", "--geojson", tmp_path / "o.geojson")
    command = ("export", slide.with_name("o.zarr"), *outputs, "--positive", "dab > 0.2", "--overwrite")
    code, out, err = tilenet_command(*command, "--within", tmp_path / "r.geojson")
    assert code == 0, err
    lines = lines_of(tmp_path / "o.csv")
    truth = truth_of(tilenet.open_mask(slide.with_name("o.zarr"))[...], PIXELS)
    expected = {number: stains[2][0] > 0.2 for number, stains in truth.items()}
    assert {int(line["object"]): line["positive"] == "1" for line in lines} == expected
    positive, left = sum(expected.values()), [line for line in lines if line["region"]]
    assert 5 < positive < len(lines) - 5 and out.count(f", {said_of(positive, len(lines))}\n") == 1
    both = sum(line["positive"] == "1" for line in left)
    assert 0 < both < len(left) and out.endswith(f", {said_of(both, len(left))}\n")
    classes = {
        f["id"]: f["properties"]["classification"] for f in json.loads((tmp_path / "o.geojson").read_text())["features"]
    }
    names = {"1": "Positive", "0": "Negative"}
    assert {id_: said["name"] for id_, said in classes.items()} == {
        line["id"]: names[line["positive"]] for line in lines
    }
    assert {tuple(said["color"]) for said in classes.values()} == {(250, 62, 62), (112, 112, 225)}
    facts = json.loads(tilenet_command(*command, "--within", tmp_path / "r.geojson", "--json")[1])
    assert (facts["csv"]["positive"], facts["csv"]["regions"][0]["positive"]) == (
        {"class 1": positive},
        {"class 1": both},
    )
    assert facts["geojson"]["features"] == {"Positive": positive, "Negative": len(lines) - positive}


def test_what_is_printed_is_written_as_a_table_too(slide, tmp_path, tilenet_command):
    boxes = {"left": (0, 0, 130, 300), "none": (0, 0, 1, 1)}
    write_regions(tmp_path / "r.geojson", [feature([rectangle(*box)], name=name) for name, box in boxes.items()])
    mask, counts = slide.with_name("o.zarr"), tmp_path / "r.csv"
    command = ("export", mask, "--csv", tmp_path / "o.csv", "--counts", counts)
    more = ("--within", tmp_path / "r.geojson", "--positive", "dab>0.2", "--min-area", "50px")
    assert tilenet_command(*command, *more)[0] == 0
    found = tilenet.write_table(
        mask, tmp_path / "p.csv", within=tmp_path / "r.geojson", positive="dab>0.2", min_area="50px"
    )
    (name,), all_ = found.counts, lines_of(counts)
    assert [(line["slide"], line["region"], line["class"]) for line in all_] == [
        ("o", region, name) for region in ("", *boxes)
    ]
    for line, of in zip(all_, (found, *found.regions), strict=True):
        assert (int(line["count"]), int(line["positive"])) == (of.counts[name], of.positive[name])
    tilenet.write_table(
        str(mask),
        tmp_path / "q.csv",
        within=tmp_path / "r.geojson",
        positive="dab>0.2",
        min_area="50px",
        counts=str(tmp_path / "s.csv"),
    )
    assert (tmp_path / "s.csv").read_bytes() == counts.read_bytes()
    share = found.positive[name] / found.counts[name]
    assert float(all_[0]["positive_share"]) == pytest.approx(share, abs=1e-6) and 0 < share < 1
    assert (all_[0]["left_out"], all_[2]["count"], all_[2]["positive_share"]) == (str(found.left_out), "0", "")
    code, _, err = tilenet_command(*command, "--overwrite")
    assert code == 0 and [line["positive"] for line in lines_of(counts)] == [""], err
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "o.csv").unlink()
    for wrong, said in (
        (("--csv", tmp_path / "o.csv", "--counts", counts), "r.csv: exists already"),
        (("--csv", tmp_path / "o.csv", "--counts", tmp_path / "mine.csv", "--overwrite"), "not a table of counts"),
        (("--csv", tmp_path / "o.csv", "--counts", tmp_path / "r.txt"), "a table of counts is written as .csv"),
        (("--csv", tmp_path / "o.csv", "--counts", tmp_path / "o.csv"), "is to be the table of all objects, too"),
        (("--geojson", tmp_path / "o.geojson", "--counts", counts), "--counts is for a table: say --csv"),
    ):
        code, _, err = tilenet_command("export", mask, *wrong)
        assert code == 2 and said in err and not (tmp_path / "o.csv").exists()


def test_a_channel_tells_objects_apart_too_and_stains_need_8_bit_colour(tmp_path, tilenet_command):
    pixels = np.stack([np.where(NUCLEI, 1000, 0), np.where(BROWN, 700, 100)]).astype(np.uint16)
    about = {"axes": "CYX", "Channel": {"Name": ["DAPI", "Ki-67"]}}
    tifffile.imwrite(tmp_path / "i.ome.tif", pixels, metadata=about, photometric="minisblack")
    mask = tmp_path / "o.zarr"
    tilenet.segment(tmp_path / "i.ome.tif", mask, model=Bright(), channels="DAPI", objects=True)
    found = tilenet.write_table(mask, tmp_path / "o.csv", positive="Ki-67>400")
    lines = lines_of(tmp_path / "o.csv")
    assert [line["positive"] for line in lines] == [str(int(float(line["mean_Ki-67"]) > 400)) for line in lines]
    assert 0 < found.positive["class 1"] < found.counts["class 1"]
    for option, said in (
        (("--stains",), "i.ome.tif: stains are told apart in red, green and blue of 8 bits, which it has not"),
        (("--positive", "dab>0.2"), "has no channel 'dab' (DAPI, Ki-67)"),
        (("--positive", "GFP>3"), "or another name; pictures in 8-bit colour have the stains haematoxylin, eosin, dab"),
        (("--positive", "2>400"), "i.ome.tif: has channels 0 to 1, not 2. Choose another"),
        (("--positive", "dab>nan"), "give a stain or channel, >, and a number"),
        (
            ("--positive", "dab<3"),
            "positive 'dab<3': give a stain or channel, >, and a number with a point, in quotes, as 'dab>0.2'",
        ),
    ):
        code, _, err = tilenet_command("export", mask, "--csv", tmp_path / "x.csv", *option)
        assert code == 2 and said in err and len(err.splitlines()) == 1 and not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("rule", "same"),
    [
        ("DAB>.2", "dab>0.2"),
        ("Hematoxylin > 2E-1", "haematoxylin>0.2"),
        ("HAEMATOXYLIN>0.2", "haematoxylin>0.2"),
        ("RED>100", "red>100"),
        ("1>1e2", "green>100"),
    ],
)
def test_a_rule_may_be_spelled_as_in_qupath_or_name_a_channel_by_its_number(slide, tmp_path, rule, same):
    mask, tables = slide.with_name("o.zarr"), []
    for said in (rule, same):
        found = tilenet.write_table(mask, tmp_path / "o.csv", positive=said, overwrite=True)
        tables.append((found.positive, lines_of(tmp_path / "o.csv")))
    assert tables[0] == tables[1] and 0 < found.positive["class 1"] < found.counts["class 1"]


def test_a_rule_measures_what_it_names_beside_what_else_was_asked_for(slide, tmp_path):
    mask, tables = slide.with_name("o.zarr"), []
    for more in ({}, {"intensities": True}, {"stains": True}):
        for rule in ("dab>0.2", "green>100"):
            tilenet.write_table(mask, tmp_path / "o.csv", positive=rule, overwrite=True, **more)
            tables.append(lines_of(tmp_path / "o.csv"))
    for dab, green in zip(tables[::2], tables[1::2], strict=True):
        assert [line["positive"] for line in dab] == [str(int(float(line["mean_dab"]) > 0.2)) for line in dab]
        assert [line["positive"] for line in green] == [str(int(float(line["mean_green"]) > 100)) for line in green]
    assert [set(STAINS) <= {name.removeprefix("mean_") for name in lines[0]} for lines in tables] == [
        *(True, False),
        *(True, False),
        *(True, True),
    ]


def test_a_channel_that_is_called_by_a_number_is_named_by_it(tmp_path):
    pixels = np.stack([np.where(NUCLEI, 1000, 0), np.where(BROWN, 700, 100), BROWN]).astype(np.uint16)
    about = {"axes": "CYX", "Channel": {"Name": ["405", "488", "1"]}}
    tifffile.imwrite(tmp_path / "i.ome.tif", pixels, metadata=about, photometric="minisblack")
    mask = tmp_path / "o.zarr"
    tilenet.segment(tmp_path / "i.ome.tif", mask, model=Bright(), channels=0, objects=True)
    for rule, name, least in (("488>400", "488", 400), ("1>0.5", "1", 0.5), ("0>99", "405", 99)):
        found = tilenet.write_table(mask, tmp_path / "o.csv", positive=rule, overwrite=True)
        told = [(line["positive"], str(int(float(line[f"mean_{name}"]) > least))) for line in lines_of(found.path)]
        assert [said for said, _ in told] == [truth for _, truth in told]
        assert found.positive["class 1"] > 0 and is_judged_by(found.path, rule), rule


def test_a_channel_may_have_the_name_of_a_stain(tmp_path):
    pixels = np.stack([np.where(NUCLEI, 1000, 0), np.where(BROWN, 700, 100)]).astype(np.uint16)
    about = {"axes": "CYX", "Channel": {"Name": ["Hematoxylin", "DAB"]}}
    tifffile.imwrite(tmp_path / "i.ome.tif", pixels, metadata=about, photometric="minisblack")
    tilenet.segment(tmp_path / "i.ome.tif", tmp_path / "o.zarr", model=Bright(), channels=0, objects=True)
    found = tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", positive="dab>400")
    assert [line["positive"] for line in lines_of(found.path)] == [
        str(int(float(line["mean_DAB"]) > 400)) for line in lines_of(found.path)
    ]
    assert 0 < found.positive["class 1"] < found.counts["class 1"]


def test_where_nothing_is_positive_the_count_is_0(slide, tmp_path, tilenet_command):
    empty = [[500, 500], [510, 500], [510, 510], [500, 500]]
    corner = [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0]]
    write_regions(tmp_path / "r.geojson", [feature([empty], name="outside"), feature([corner], name="corner")])
    options = ("--csv", tmp_path / "o.csv", "--positive", "dab>3", "--within", tmp_path / "r.geojson", "--json")
    code, out, err = tilenet_command("export", slide.with_name("o.zarr"), *options)
    table = json.loads(out)["csv"]
    assert (code, table["positive"]) == (0, {"class 1": 0}), err
    assert [(r["counts"], r["positive"]) for r in table["regions"]] == [({"class 1": 0}, {"class 1": 0})] * 2
    found = tilenet.write_table(slide.with_name("o.zarr"), tmp_path / "o.csv", positive="dab>0.2", overwrite=True)
    assert read_table(slide.with_name("o.zarr"), tmp_path / "o.csv") == found
    assert tilenet.write_table(slide.with_name("o.zarr"), tmp_path / "n.csv").positive == {}


def test_what_cannot_be_told_apart_is_refused_before_work(slide, tmp_path, tilenet_command):
    mask = slide.with_name("o.zarr")
    code, _, err = tilenet_command("export", mask, "--tiff", tmp_path / "x.tif", "--positive", "dab>1")
    assert code == 2 and "--positive dab>1 is for --geojson and --csv" in err
    code, _, err = tilenet_command("export", mask, "--tiff", tmp_path / "x.tif", "--stains")
    assert code == 2 and "--stains is for --geojson and --csv" in err
    tilenet.segment(slide, tmp_path / "m.zarr", model=Dark(), scaling="none")
    with pytest.raises(SettingsError, match=r"m\.zarr: is a plain mask, and intensities are measured for objects"):
        tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "x.geojson", positive="dab>0.2")
    with pytest.raises(SettingsError, match=r"m\.zarr: is a plain mask, and intensities are measured for objects"):
        tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "x.geojson", shapes=True, stains=True)
    assert not list(tmp_path.glob("x.*"))


def test_a_mean_that_no_pixel_can_have_is_refused(slide, tmp_path):
    mask = slide.with_name("o.zarr")
    with pytest.raises(SettingsError, match=r"positive: channel red of .*slide\.tif is at most 255\. Give less"):
        tilenet.write_table(mask, tmp_path / "x.csv", positive="red>255")
    assert tilenet.write_table(mask, tmp_path / "y.csv", positive="red>254.9").positive == {"class 1": 0}
    with pytest.raises(SettingsError, match=r"the density of dab is at most 3\.8\. Give less, such as 0\.2"):
        tilenet.write_table(mask, tmp_path / "x.csv", positive="dab>30")
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).astype(np.uint8)
    densities = 6 * rgb2hed(np.maximum(colours, 1)).reshape(-1, 3)
    assert densities.max(axis=0) == pytest.approx(MOST)


def test_stains_of_fluorescence_are_given_with_one_warning(slide, tmp_path, caplog, tilenet_command):
    tifffile.imwrite(tmp_path / "dark.tif", 255 - PIXELS, tile=(64, 64), photometric="rgb")
    tilenet.segment(tmp_path / "dark.tif", tmp_path / "d.zarr", model=Dark(), objects=True, scaling="none")
    with caplog.at_level("WARNING", "tilenet"):
        tilenet.write_table(slide.with_name("o.zarr"), tmp_path / "o.csv", stains=True)
        tilenet.write_table(tmp_path / "d.zarr", tmp_path / "d.csv", positive="green>100")
        assert caplog.text == ""
        tilenet.write_table(tmp_path / "d.zarr", tmp_path / "s.csv", positive="dab>0.2")
    said = "dark.tif: is dark, as in fluorescence, and densities of stains are those of bright field"
    assert said in caplog.text
    outs = ("--csv", tmp_path / "t.csv", "--geojson", tmp_path / "t.geojson")
    code, _, err = tilenet_command("export", tmp_path / "d.zarr", *outs, "--positive", "dab>0.2")
    assert code == 0 and err.count(said) == len(err.splitlines()) == 1


@pytest.mark.parametrize(("colour", "brown"), [([130, 90, 60], True), ([70, 30, 90], False)])
def test_positive_objects_that_are_not_brown_are_told(tmp_path, caplog, colour, brown):
    pixels = np.where(NUCLEI[..., None], np.array(colour) + NOISE // 3, 240 + NOISE // 2).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", pixels, tile=(64, 64), photometric="rgb")
    tilenet.segment(tmp_path / "s.tif", tmp_path / "m.zarr", model=Dark(), objects=True, scaling="none")
    tilenet.write_table(tmp_path / "m.zarr", tmp_path / "h.csv", positive="haematoxylin>0.001")
    assert caplog.messages == []
    found = tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", positive="dab>0.01").positive["class 1"]
    mean = [pixels[tilenet.open_mask(tmp_path / "m.zarr")[...] == n + 1].mean(axis=0) for n in range(found)]
    assert found > 5 and all((red > blue) == (colour[0] > colour[2]) for red, _, blue in mean)
    said = f"s.tif: of {found} positive objects, 0 are brown, so most may have no DAB"
    assert [said in line for line in caplog.messages] == ([] if brown else [True])


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("OS-2-vsi_Ki67.ome.tif", "300:600,200:500", False),
        ("CMU-1-Small-Region.svs", "900:1200,700:1000", True),
    ],
)
def test_positive_nuclei_of_real_slides_are_brown_on_that_with_dab_alone(
    shared_data, tmp_path, caplog, name, part, said
):
    tilenet.segment(shared_data(f"slides/{name}"), tmp_path / "m.zarr", objects=True, roi=part)
    caplog.clear()
    assert tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", positive="dab>0.2").positive["nucleus"] > 5
    assert (" are brown, so most may have no DAB" in caplog.text) == said


def test_a_rule_is_accepted_or_refused_before_any_pixel_is_read(slide, monkeypatch):
    monkeypatch.setattr(tilenet.readers.tiff.TiffImage, "read_inside", lambda image, box: pytest.fail("was read"))
    mask = tilenet.open_mask(slide.with_name("o.zarr"))
    for rule in ("dab>0.2", "red>100"):
        Intensities(stains=True, positive=rule).check(mask, None)
    with pytest.raises(SettingsError, match=r"channel red of .*slide\.tif is at most 255"):
        Intensities(positive="red>255").check(mask, None)


def test_an_image_that_has_moved_is_asked_for(slide, tmp_path):
    image = tmp_path / "s.tif"
    image.write_bytes(slide.read_bytes())
    tilenet.segment(image, tmp_path / "m.zarr", model=Dark(), objects=True, scaling="none")
    image.rename(tmp_path / "moved.tif")
    with pytest.raises(OutputMismatch, match=r"m\.zarr: its image is needed \(.*s\.tif: does not exist.*by --image"):
        tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", stains=True)
    assert tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", stains=True, image=tmp_path / "moved.tif")


def test_ki67_of_a_real_slide_is_that_of_scikit_image(shared_data, tmp_path):
    image = shared_data("slides/OS-2-vsi_Ki67.ome.tif")
    mask = tilenet.segment(image, tmp_path / "m.zarr", objects=True, roi="200:500,100:400", threads=1)
    found = tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", positive="dab>0.2")
    truth = truth_of(mask[...], tifffile.imread(image)[200:500, 100:400])
    assert_measured(lines_of(tmp_path / "m.csv"), truth, STAINS, which=("mean",), abs=2e-6)
    assert found.positive["nucleus"] == sum(stains[2][0] > 0.2 for stains in truth.values()) > 5
