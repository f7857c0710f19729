"""Masks of classes as regions to count in: one region for each class, as pixel by pixel."""

import json
from collections import Counter

import numpy as np
import pytest
from contents import lines_of
from pyramids import write_pyramid
from scipy import ndimage as ndi
from skimage.measure import label, regionprops
from skimage.segmentation import find_boundaries
from stub import Bright, shades

import tilenet
from tilenet.drawn_regions import read_regions
from tilenet.errors import SettingsError
from tilenet.footprint import Footprint
from tilenet.pictures.drawing import REGION

NAMES = {1: "grey", 2: "bright"}
RANDOM = np.random.default_rng(4)
# Parts of two classes with holes, which touch each other, also at corners only, and the border.
CLASSES = RANDOM.integers(0, 3, (19, 24))
PIXELS = np.kron(CLASSES * 100, np.ones((16, 16))).astype(np.uint8)
# Nuclei are a little brighter than what they lie in, and lie across borders, too.
NUCLEI = ndi.gaussian_filter(RANDOM.normal(size=PIXELS.shape), 3)
NUCLEI = NUCLEI > np.quantile(NUCLEI, 0.8)
UM = (0.5, 0.5)


def nuclei(batch):
    return np.asarray(batch, np.float32) % 100 - 20


nuclei.footprint = Footprint.same(2, reach=0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_pyramid(
        tmp_path_factory.mktemp("classes") / "s.tif", (PIXELS + 30 * NUCLEI).astype(np.uint8), um=UM, tile=64
    )


@pytest.fixture(scope="module")
def mask(slide):
    """Return the path of a mask of nuclei."""
    return tilenet.segment(slide, slide.parent / "nuclei.zarr", model=nuclei, objects=True).path


def class_of(classes, line, step=1):
    """Return the name of the class of the pixel of a mask in which a centroid lies."""
    return NAMES.get(int(classes[int(float(line["y"]) / step), int(float(line["x"]) / step)]), "")


@pytest.mark.parametrize(("how", "step"), [({}, 1), ({"level": 1}, 2), ({"mpp": 2.0}, 4)])
def test_each_class_is_one_region_by_its_name_and_the_counts_are_those_of_single_pixels(
    slide, mask, tmp_path, tilenet_command, how, step
):
    classes = tilenet.segment(slide, tmp_path / "classes.zarr", model=shades, **how)
    polygons = tmp_path / "classes.geojson"
    assert tilenet_command("export", classes.path, "--geojson", polygons)[0] == 0
    command = ("export", mask, "--csv", tmp_path / "n.csv", "--within", polygons, "--counts", tmp_path / "c.csv")
    code, out, err = tilenet_command(*command)
    assert code == 0 and not err
    features = json.loads(polygons.read_text())["features"]
    assert Counter(said["properties"]["classification"]["name"] for said in features)["grey"] > 20
    on_border, lines = 0, lines_of(tmp_path / "n.csv")
    for line in lines:
        if any(float(line[axis]) % step == 0 for axis in "xy"):
            on_border += 1
            assert class_of(classes, line, step) in line["region"].split("; ")
        else:
            assert line["region"] == class_of(classes, line, step)
    assert len(lines) > 150 and on_border < 20
    counts = {line["region"]: line for line in lines_of(tmp_path / "c.csv")}
    assert set(counts) == {"", "grey", "bright"}
    for value, name in NAMES.items():
        inside = sum(name in line["region"].split("; ") for line in lines)
        mm2 = np.count_nonzero(np.asarray(classes) == value) * (0.5 * step) ** 2 / 1e6
        assert int(counts[name]["count"]) == inside > 20
        assert float(counts[name]["mm2"]) == pytest.approx(mm2, rel=1e-5)
        assert f"\n  {name}, {mm2:.4g} mm2: {inside} foreground objects (" in out


def test_all_polygons_of_a_class_are_one_valid_area_and_classes_do_not_overlap(slide, tmp_path):
    classes = tilenet.segment(slide, tmp_path / "classes.zarr", model=shades)
    tilenet.write_geojson(tmp_path / "classes.zarr", tmp_path / "c.geojson")
    regions = {region.name: region.area for region in read_regions(tmp_path / "c.geojson")}
    assert all(area.is_valid for area in regions.values()) and regions["grey"].intersection(regions["bright"]).area == 0
    for value, name in NAMES.items():
        assert regions[name].area == np.count_nonzero(np.asarray(classes) == value)


def test_small_parts_that_were_left_out_of_the_polygons_hold_nothing(slide, mask, tmp_path):
    classes = tilenet.segment(slide, tmp_path / "classes.zarr", model=shades)
    tilenet.write_geojson(tmp_path / "classes.zarr", tmp_path / "c.geojson", min_area="2000px")
    region = tilenet.write_table(mask, tmp_path / "n.csv", within=tmp_path / "c.geojson").regions[0]
    value = {name: value for value, name in NAMES.items()}[region.name]
    parts = label(np.asarray(classes) == value, connectivity=1)
    large = sum(part.area for part in regionprops(parts) if part.area >= 2000)
    assert region.mm2 == pytest.approx(large * 0.25e-6) and 0 < large < np.count_nonzero(parts)


@pytest.mark.parametrize("tissue", [False, True])
def test_a_class_without_polygons_is_counted_as_one_that_holds_nothing(tmp_path, tissue, tilenet_command):
    pixels, drawn = np.zeros((600, 900), np.uint8), tmp_path / "c.geojson"
    pixels[50:250, 60:200], pixels[300:305, 300:305] = 130, 230
    slide = write_pyramid(tmp_path / "s.tif", pixels, um=UM, tile=64)
    tilenet.segment(slide, tmp_path / "classes.zarr", model=shades)
    said = tilenet.write_geojson(tmp_path / "classes.zarr", drawn, min_area="30px")
    assert (said.features, said.left_out) == ({"grey": 1}, 1)
    how = {"tissue": drawn} if tissue else {}
    mask = tilenet.segment(slide, tmp_path / "n.zarr", model=nuclei, objects=True, tile=64, **how)
    assert not tissue or mask.info["tissue"]["regions"] == 1
    command = ("export", mask.path, "--csv", tmp_path / "n.csv", "--within", drawn, "--counts", tmp_path / "all.csv")
    code, out, err = tilenet_command(*command)
    assert (code, err) == (0, "") and "\n  bright, 0 mm2" in out
    _, grey, bright = lines_of(tmp_path / "all.csv")
    assert (grey["region"], grey["count"], bright["region"], bright["count"]) == ("grey", "1", "bright", "0")
    assert (float(bright["mm2"]), bright["per_mm2"]) == (0, "")
    assert tilenet.overlay(slide, mask, within=drawn).any()


def test_polygons_that_are_all_too_small_are_no_regions(slide, mask, tmp_path):
    tilenet.segment(slide, tmp_path / "classes.zarr", model=shades)
    tilenet.write_geojson(tmp_path / "classes.zarr", tmp_path / "c.geojson", min_area="99999px")
    with pytest.raises(SettingsError, match="Its mask is all background or too small parts: leave it out"):
        tilenet.write_table(mask, tmp_path / "n.csv", within=tmp_path / "c.geojson")


def test_annotations_of_classes_are_regions_one_by_one(slide, mask, tmp_path):
    tilenet.segment(slide, tmp_path / "classes.zarr", model=shades)
    said = tilenet.write_geojson(tmp_path / "classes.zarr", tmp_path / "c.geojson", kind="annotation")
    found = tilenet.write_table(mask, tmp_path / "n.csv", within=tmp_path / "c.geojson").regions
    assert len(found) == said.features.total() and {"grey (1)", "bright (20)"} <= {region.name for region in found}


def test_polygons_of_objects_or_of_nothing_are_no_regions(mask, tmp_path):
    tilenet.write_geojson(mask, tmp_path / "n.geojson")
    said = r"feature 1 \(\d+\) is an object, not a region. Give polygons of classes, or write these with --as"
    with pytest.raises(SettingsError, match=said):
        tilenet.write_table(mask, tmp_path / "n.csv", within=tmp_path / "n.geojson")
    tilenet.segment(np.zeros((40, 50), np.uint8), tmp_path / "e.zarr", model=Bright())
    tilenet.write_geojson(tmp_path / "e.zarr", tmp_path / "e.geojson")
    with pytest.raises(SettingsError, match=r"e.geojson: has no regions. Its mask is all background: leave it out"):
        tilenet.write_table(mask, tmp_path / "n.csv", within=tmp_path / "e.geojson")
    assert not (tmp_path / "n.csv").exists()


def test_polygons_of_several_planes_are_no_regions_and_those_of_one_are(slide, mask, tmp_path):
    stack = np.stack([PIXELS, PIXELS[::-1]])
    for name, more in (("all", {}), ("one", {"roi": np.s_[1:2, ...]})):
        tilenet.segment(stack, tmp_path / f"{name}.zarr", model=shades, axes="zyx", **more)
        tilenet.write_geojson(tmp_path / f"{name}.zarr", tmp_path / f"{name}.geojson", image=stack)
    with pytest.raises(SettingsError, match=r"all.geojson: has polygons of several planes, and regions lie in one"):
        tilenet.write_table(mask, tmp_path / "n.csv", within=tmp_path / "all.geojson")
    found = tilenet.write_table(mask, tmp_path / "n.csv", within=tmp_path / "one.geojson").regions
    assert sorted(region.name for region in found) == ["bright", "grey"]


def test_polygons_of_classes_say_what_is_computed_and_a_batch_counts_in_them(slide, tmp_path):
    pixels = np.zeros((600, 900), np.uint8)
    pixels[50:250, 60:200] = 130
    write_pyramid(tmp_path / "a.tif", pixels, um=UM, tile=64)
    tilenet.batch(tmp_path / "a.tif", tmp_path / "classes", model=shades, polygons=True)
    (tmp_path / "list.csv").write_text("image,within,tissue\na.tif,classes/a.geojson,classes/a.geojson\n")
    how = {"model": Bright(), "objects": True, "table": True, "tile": 64}
    (result,) = tilenet.batch(tmp_path / "list.csv", tmp_path / "nuclei", **how)
    assert result.status == "done" and result.tissue < 0.5, result.error
    _, line, none = lines_of(tmp_path / "nuclei" / "counts.csv")
    assert (line["region"], line["count"], none["region"], none["count"]) == ("grey", "1", "bright", "0")
    assert float(line["mm2"]) == pytest.approx(200 * 140 * 0.25e-6)


def test_a_picture_draws_each_class_in_its_colour_and_its_name_in_a_frame_of_it(slide, mask, tmp_path):
    classes = tilenet.segment(slide, tmp_path / "classes.zarr", model=shades)
    tilenet.write_geojson(tmp_path / "classes.zarr", tmp_path / "c.geojson")
    grey, bright = sorted(read_regions(tmp_path / "c.geojson"), key=lambda region: -region.area.area)
    assert bright.color != grey.color
    features = json.loads((tmp_path / "c.geojson").read_text())["features"]
    kinds = {said["properties"]["classification"]["name"]: said["properties"]["classification"] for said in features}
    assert all(kinds[region.name]["color"] == list(region.color) for region in (grey, bright))
    picture = tilenet.overlay(slide, mask, within=tmp_path / "c.geojson")
    values = {name: value for value, name in NAMES.items()}
    for region, others in ((bright, ()), (grey, (bright,))):
        borders = find_boundaries(np.asarray(classes) == values[region.name])
        for other in others:  # which is drawn over it where they touch
            borders &= ~ndi.binary_dilation(np.asarray(classes) == values[other.name], iterations=4)
        assert (picture[borders] == region.color).all(axis=-1).mean() > 0.8 and borders.sum() > 300
    assert not (picture == REGION).all(axis=-1).any()


def test_polygons_do_not_take_the_place_of_the_regions_that_are_counted_in(slide, mask, tmp_path, tilenet_command):
    tilenet.segment(slide, tmp_path / "classes.zarr", model=shades)
    tilenet.write_geojson(tmp_path / "classes.zarr", tmp_path / "c.geojson")
    before = (tmp_path / "c.geojson").read_bytes()
    outs = ("--csv", tmp_path / "n.csv", "--geojson", tmp_path / "c.geojson", "--overwrite")
    code, _, err = tilenet_command("export", mask, *outs, "--within", tmp_path / "c.geojson")
    assert code == 2 and "c.geojson: is the regions " in err and "Choose another path" in err
    assert (tmp_path / "c.geojson").read_bytes() == before and not (tmp_path / "n.csv").exists()
