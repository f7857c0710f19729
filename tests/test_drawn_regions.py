"""Objects in regions that a user drew: what scikit-image and shapely find one by one, whatever the strips and tiles."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import shapely
from contents import lines_of
from drawn_regions import BAD, OLD, feature, square, write_regions
from pyramids import write_pyramid
from scipy import ndimage as ndi
from skimage.measure import label, regionprops
from stub import Bright

import tilenet
from tilenet.drawn_regions import outlines, read_regions
from tilenet.errors import SettingsError
from tilenet.export import shapes
from tilenet.export.descriptors import COLUMNS as FORMS
from tilenet.export.in_regions import BAND, Within
from tilenet.export.table import COLUMNS, read_table, write_table

BLOBS = ndi.gaussian_filter(np.random.default_rng(5).normal(size=(260, 340)), 3)
PIXELS = np.where(BLOBS > np.quantile(BLOBS, 0.75), 255, 0).astype(np.uint8)
ANGLES = np.linspace(0, 2 * np.pi, 90)
STAR = np.round(np.stack([150 + 90 * np.cos(ANGLES) * (1 + 0.3 * np.sin(5 * ANGLES)), 120 + 80 * np.sin(ANGLES)], 1), 2)
STAR[-1] = STAR[0]


TUMOUR = {"name": "Tumor", "color": [200, 0, 0]}
FEATURES = [
    feature([STAR.tolist(), square(120, 90, 50)], classification=TUMOUR),
    feature([[square(10, 180, 60)], [square(200, 150, 90), square(220, 170, 20)]], "MultiPolygon", name="Front"),
    feature([square(100, 60, 120)], name="Front, too", classification=TUMOUR),
    feature([square(250, 10, 40)], classification=TUMOUR),
]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Return a slide of two levels, of pixels of 0.5 x 0.25 um."""
    return write_pyramid(tmp_path_factory.mktemp("within") / "slide.tif", PIXELS, um=(0.5, 0.25))


@pytest.fixture(scope="module")
def mask(slide):
    """Return the path of its mask of objects."""
    tilenet.segment(slide, slide.parent / "mask.zarr", model=Bright(), objects=True)
    return slide.parent / "mask.zarr"


def truth_of(features, labels, step=1, origin=(0, 0), spacing=(0.5, 0.25)):
    """Return the number of objects of each feature, and its area in mm2 within the labels: point by point."""
    points = [(np.array(o.centroid) + 0.5 + origin) * step for o in regionprops(labels)]
    (y0, x0), (y1, x1) = np.array(origin) * step, (np.array(origin) + labels.shape) * step
    frame, found = shapely.box(x0, y0, x1, y1), []
    for drawn in features:
        shape = shapely.geometry.shape(drawn["geometry"])
        inside = sum(shape.intersects(shapely.Point(x, y)) for y, x in np.round(points, 3))
        found.append((inside, shape.intersection(frame).area * np.prod(spacing) / 1e6))
    return found


@pytest.mark.parametrize("collection", [True, False])
@pytest.mark.parametrize("strip", [1, 500, 2**24])
def test_counts_and_areas_are_those_found_point_by_point(mask, tmp_path, monkeypatch, strip, collection):
    monkeypatch.setattr(shapes, "STRIP", strip)
    drawn = write_regions(tmp_path / "regions.geojson", FEATURES, collection=collection)
    found = write_table(mask, tmp_path / "m.csv", within=drawn)
    truth = truth_of(FEATURES, tilenet.open_mask(mask)[...])
    assert [region.name for region in found.regions] == ["Tumor (1)", "Front", "Front, too", "Tumor (2)"]
    for region, (inside, mm2) in zip(found.regions, truth, strict=True):
        assert inside > 2 and region.counts == {"class 1": inside}
        assert region.mm2 == pytest.approx(mm2) and region.per_mm2 == {"class 1": pytest.approx(inside / mm2)}
    named = Counter(name for line in lines_of(tmp_path / "m.csv") for name in line["region"].split("; "))
    assert named.pop("") > 2, "some lie in none"
    assert named == {region.name: region.counts["class 1"] for region in found.regions}
    assert max(line["region"].count("; ") for line in lines_of(tmp_path / "m.csv")) == 1, "some lie in two"


@pytest.mark.parametrize("how", [{"level": 1}, {"roi": "20:201,70:300"}, {"mpp": 1.0, "roi": "4:60,:"}])
def test_regions_are_in_pixels_of_the_slide_at_full_resolution_whatever_the_mask_is_of(slide, tmp_path, how):
    mask = tilenet.segment(slide, tmp_path / "m.zarr", model=Bright(), objects=True, **how)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=write_regions(tmp_path / "r.geojson", FEATURES))
    step = {"level": (2, 2), "roi": (1, 1), "mpp": (2, 4)}[min(how, key=["level", "mpp", "roi"].index)]
    truth = truth_of(FEATURES, mask[...], step=step, origin=mask.origin)
    assert [region.counts["class 1"] for region in found.regions] == [inside for inside, _ in truth]
    assert [region.mm2 for region in found.regions] == [pytest.approx(mm2) for _, mm2 in truth]
    assert sum(inside for inside, _ in truth) > 10


def test_neither_tiles_nor_order_of_work_change_what_a_region_holds(slide, tmp_path):
    tables = []
    for tile in (32, 128):
        out = tmp_path / f"{tile}.zarr"
        tilenet.segment(slide, out, model=Bright(), objects=True, tile=tile)
        found = write_table(out, tmp_path / f"{tile}.csv", within=write_regions(tmp_path / "r.geojson", FEATURES))
        lines = [{**line, "id": ""} for line in lines_of(found.path)]
        tables.append((found.regions, lines))
    assert tables[0] == tables[1]


def test_a_centroid_on_the_border_of_two_regions_lies_in_both_as_in_qupath(tmp_path):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[10:20, 20:30] = 255  # centroid 25, 15
    tilenet.segment(pixels, tmp_path / "m.zarr", model=Bright(bright=1), objects=True)
    twins = [feature([square(x, 5, 20)], name=f"{x}") for x in (5, 25)]
    far = feature([square(25.01, 5, 20)], name="far")
    found = write_table(
        tmp_path / "m.zarr", tmp_path / "m.csv", within=write_regions(tmp_path / "r.geojson", [*twins, far])
    )
    assert [sum(region.counts.values()) for region in found.regions] == [1, 1, 0]
    assert [region.mm2 for region in found.regions] == [None] * 3 and found.regions[0].per_mm2 == {}
    assert lines_of(tmp_path / "m.csv")[0]["region"] == "5; 25"


def test_regions_of_classes_are_counted_by_class_and_small_ones_not_at_all(slide, tmp_path):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Bright())
    drawn = write_regions(tmp_path / "r.geojson", FEATURES)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=drawn, min_area="40px")
    labels = label(np.asarray(tilenet.open_mask(tmp_path / "m.zarr")), connectivity=1)
    large = np.isin(labels, np.flatnonzero(np.bincount(labels.ravel()) >= 40)) * labels
    assert [r.counts["class 1"] for r in found.regions] == [inside for inside, _ in truth_of(FEATURES, large)]
    assert found.left_out


def test_the_command_prints_what_each_region_holds(mask, tmp_path, tilenet_command):
    leaving = feature([square(300, 200, 80)])
    drawn = write_regions(tmp_path / "r.geojson", [FEATURES[1], leaving])
    command = ("export", mask, "--csv", tmp_path / "m.csv", "--within", drawn, "--overwrite")
    code, out, err = tilenet_command(*command)
    (front, _), (corner, mm2) = truth_of([FEATURES[1], leaving], tilenet.open_mask(mask)[...])
    assert code == 0 and f"\n  Front, 0.001412 mm2: {front} class 1 objects (" in out
    assert out.endswith(f"\n  region 2, {mm2:.4g} mm2: {corner} class 1 objects ({corner / mm2:,.0f} per mm2)\n")
    one, two = err.splitlines()
    assert one.endswith("r.geojson: 1 of 2 regions without name and class, called by their place in the file: region 2")
    assert two.endswith("r.geojson: 62.5 % of region 2 lies outside of what was segmented")
    code, out, err = tilenet_command(*command, "--json")
    facts = json.loads(out)
    region = facts["csv"]["regions"][0]
    assert (code, err, region["name"], region["counts"]) == (0, "", "Front", {"class 1": front})
    assert region["per_mm2"]["class 1"] == pytest.approx(front / region["mm2"], abs=0.01)
    assert len(facts["remarks"]) == 2
    code, _, err = tilenet_command("export", mask, "--geojson", tmp_path / "m.geojson", "--within", drawn)
    assert code == 2 and "say --csv" in err and not (tmp_path / "m.geojson").exists()


def test_a_region_is_called_by_its_name_or_its_class_or_its_place_and_no_two_alike(tmp_path):
    names = [{"name": "A"}, {"name": "A"}, {}, {"name": "A (2)"}, {"classification": {"names": ["Tumor", "Positive"]}}]
    features = [feature([square(0, 0, 9)], **name) for name in (*names, {"classification": "Stroma"}, {"name": " "})]
    features[2]["properties"] = None
    found = [region.name for region in read_regions(write_regions(tmp_path / "r.geojson", features))]
    assert found == ["A (1)", "A (3)", "region 3", "A (2)", "Tumor: Positive", "Stroma", "region 7"]


def test_only_names_that_were_not_given_are_told(tmp_path, caplog):
    nameless = write_regions(tmp_path / "r.geojson", [feature([square(0, 0, 9)]), FEATURES[1]])
    read_regions(write_regions(tmp_path / "all.geojson", FEATURES))
    read_regions(nameless, named=False)
    assert caplog.text == ""
    read_regions(nameless)
    assert "1 of 2 regions without name and class, called by their place in the file: region 1" in caplog.text
    read_regions(write_regions(tmp_path / "one.geojson", [feature([square(0, 0, 9)])]))
    assert "1 of 1 region without name and class, called by its place in the file: region 1" in caplog.text


@pytest.mark.parametrize(("x", "y"), [(2, 12), (20, 12), (12, 2), (12, 20), (13, 13)])
def test_an_outline_that_only_touches_a_frame_lies_on_it_and_one_far_away_does_not(tmp_path, x, y):
    path = write_regions(tmp_path / "r.geojson", [feature([square(x, y, 8)]), feature([square(x + 99, y, 8)])])
    regions = read_regions(path, named=False)
    near, far = outlines(regions, (10, 10, 20, 20))
    touching = shapely.intersection(regions[0].area.boundary, shapely.box(10, 10, 20, 20))
    assert touching.length >= 7 and not far
    assert shapely.MultiLineString(near).buffer(1e-9).contains(touching)
    assert all(points.min() >= 9 and points.max() <= 21 for points in near)


def test_a_file_of_one_annotation_alone_is_that_region(tmp_path):
    # PathIO.exportObjectsAsGeoJSON of QuPath writes no list around a single object.
    (tmp_path / "r.geojson").write_text(json.dumps(FEATURES[0]))
    (region,) = read_regions(tmp_path / "r.geojson")
    assert region.name == "Tumor" and region.area.equals(shapely.geometry.shape(FEATURES[0]["geometry"]))


def test_of_points_with_a_height_only_the_place_is_taken(tmp_path):
    high = [[*point, 7] for point in square(0, 0, 9)]
    (region,) = read_regions(write_regions(tmp_path / "r.geojson", [feature([high])]))
    assert region.area.equals(shapely.box(0, 0, 9, 9)) and not region.area.has_z


def test_annotations_of_older_versions_of_qupath_are_regions(tmp_path):
    kinds = ({"object_type": "annotation"}, {"type": "annotation"}, {"objectType": "annotation", "type": "cell"})
    features = [OLD | {"id": "PathAnnotationObject"}, *(OLD | {"properties": kind} for kind in kinds)]
    assert len(read_regions(write_regions(tmp_path / "r.geojson", features))) == 4


def test_a_point_lies_in_the_regions_that_shapely_finds_one_by_one(tmp_path):
    random = np.random.default_rng(7)
    drawn = [feature([(STAR * scale + move).tolist()]) for scale in (0.5, 1, 8) for move in random.integers(0, 999, 9)]
    drawn.append(feature([square(0, BAND, 300)]))
    regions = read_regions(write_regions(tmp_path / "r.geojson", drawn))
    found = Within(regions)
    points = [
        *random.uniform(-100, 3000, (500, 2)).tolist(),
        [40, BAND],
        [40, BAND + 300],
        [-0.5, 3],
    ]
    for x, y in points:
        point = shapely.Point(x, y)
        assert found.at(x, y) == [k for k, region in enumerate(regions) if region.area.intersects(point)]
    assert len(regions) - 1 in found.at(40, BAND)


def test_the_bounds_of_regions_are_found_once_and_not_again_in_each_band_of_rows(tmp_path, monkeypatch):
    regions = read_regions(write_regions(tmp_path / "r.geojson", FEATURES))
    found, asked = Within(regions), []
    monkeypatch.setattr(shapely.MultiPolygon, "bounds", property(lambda area: asked.append(area) or (0, 0, 1e9, 1e9)))
    assert [found.at(260, 20 + band * BAND) for band in range(3)] == [[3], [], []] and not asked


def test_an_outline_that_crosses_itself_is_mended_with_a_word(mask, tmp_path, caplog):
    bow = feature([[[20, 20], [220, 220], [220, 20], [20, 220], [20, 20]]], name="bow")
    with caplog.at_level("WARNING", "tilenet"):
        found = write_table(mask, tmp_path / "m.csv", within=write_regions(tmp_path / "r.geojson", [bow]))
    assert "feature 1 (bow) crosses itself (Self-intersection[120 120]), and is mended; holes stay holes" in caplog.text
    halves = [feature([[[x, 20], [120, 120], [x, 220], [x, 20]]]) for x in (20, 220)]
    truth = truth_of(halves, tilenet.open_mask(mask)[...])
    assert found.regions[0].counts["class 1"] == sum(inside for inside, _ in truth) > 2
    assert found.regions[0].mm2 == pytest.approx(sum(mm2 for _, mm2 in truth))


def test_a_hole_that_leaves_its_region_stays_a_hole(tmp_path, caplog):
    (region,) = read_regions(write_regions(tmp_path / "r.geojson", [feature([square(0, 0, 100), square(50, 50, 100)])]))
    assert region.area.area == 100**2 - 50**2 and "is mended; holes stay holes" in caplog.text


def test_what_parts_names_in_a_table_is_replaced_in_a_name_with_a_warning(mask, tmp_path, caplog):
    path = write_regions(
        tmp_path / "r.geojson", [feature([square(0, 0, 300)], name="a; b"), feature([square(0, 0, 9)], name="c;d")]
    )
    write_table(mask, tmp_path / "m.csv", within=path)
    assert [region.name for region in read_regions(path)] == ["a, b", "c;d"]
    assert '(a; b) has "; " in its name, which stands between names in a table: called "a, b"' in caplog.text
    assert {name for line in lines_of(tmp_path / "m.csv") for name in line["region"].split("; ")} <= {"a, b", "c;d", ""}


def test_cores_of_a_tissue_array_that_are_marked_as_missing_are_left_out_with_a_warning(tmp_path, caplog):
    cores = [
        feature([square(100 * k, 0, 90)], objectType="tma_core", name=f"A-{k}", isMissing=k in (1, 3)) for k in range(4)
    ]
    path = write_regions(tmp_path / "r.geojson", cores)
    assert [region.name for region in read_regions(path)] == ["A-0", "A-2"]
    assert f"{path}: 2 cores marked as missing are left out: A-1, A-3" in caplog.text
    with pytest.raises(SettingsError, match="all of its cores are marked as missing. Give other regions"):
        read_regions(write_regions(path, cores[1::2]))


@pytest.mark.parametrize(("held", "said"), BAD, ids=range(len(BAD)))
def test_a_file_that_holds_anything_but_areas_of_the_image_is_refused_in_one_line(mask, tmp_path, held, said):
    path = tmp_path / "r.geojson"
    path.write_text(held if isinstance(held, str) else json.dumps(held))
    with pytest.raises(SettingsError, match=said) as caught:
        write_table(mask, tmp_path / "m.csv", within=path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and ". " in str(caught.value)
    assert not (tmp_path / "m.csv").exists()


def test_regions_that_are_not_there_and_masks_of_several_planes_are_refused(tmp_path):
    stack = np.stack([PIXELS[:200, :120]] * 2)
    tilenet.segment(stack, tmp_path / "m.zarr", axes="zyx", model=Bright(), objects=True)
    with pytest.raises(SettingsError, match=r"no\.geojson: does not exist\. Check the path"):
        write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=tmp_path / "no.geojson")
    with pytest.raises(SettingsError, match="is not a GeoJSON that can be read"):
        write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=tmp_path / f"{'long' * 100}.geojson")
    (tmp_path / "r.geojson").write_bytes(gzip.compress(b"[]"))
    with pytest.raises(SettingsError, match=r"r\.geojson: is no text, but compressed or a picture\. In QuPath"):
        write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=tmp_path / "r.geojson")
    drawn = write_regions(tmp_path / "r.geojson", FEATURES)
    with pytest.raises(SettingsError, match=r"m\.zarr: has several planes, and .* such as --roi 0:1,:,:"):
        write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=drawn)
    tilenet.segment(
        np.stack([stack] * 3), tmp_path / "series.zarr", axes="tzyx", model=Bright(), objects=True, roi="1:,:,:,:"
    )
    with pytest.raises(SettingsError, match=r"several planes, and .* such as --roi 1:2,0:1,:,:"):
        write_table(tmp_path / "series.zarr", tmp_path / "m.csv", within=drawn)
    tilenet.segment(stack, tmp_path / "one.zarr", axes="zyx", model=Bright(), objects=True, roi="1:2,:,:")
    found = write_table(tmp_path / "one.zarr", tmp_path / "m.csv", within=drawn)
    assert [sum(region.counts.values()) > 0 for region in found.regions] == [True, True, True, False]


def test_a_table_with_regions_is_one_that_tilenet_wrote(mask, tmp_path):
    drawn = write_regions(tmp_path / "r.geojson", FEATURES)
    write_table(mask, tmp_path / "m.csv", within=drawn, shapes=True, intensities=True)
    more = ["region", *FORMS, "mean_0", "sd_0", "min_0", "max_0"]
    assert list(lines_of(tmp_path / "m.csv")[0]) == [*COLUMNS, *more]
    found = write_table(mask, tmp_path / "m.csv", within=drawn, overwrite=True)
    assert read_table(mask, tmp_path / "m.csv").counts == found.counts


def test_nuclei_of_a_real_image_in_regions_as_qupath_exports_them(shared_data, tmp_path, tilenet_command):
    image = shared_data("small_fluo/mitocheck_t1_image.tif")
    mask = tilenet.segment(image, tmp_path / "m.zarr", objects=True, threads=1)
    halves = [feature([square(x, -100, 460)], name=name) for x, name in ((-330, "left"), (130, "right"))]
    drawn = write_regions(tmp_path / "r.geojson", halves)
    command = ("export", tmp_path / "m.zarr", "--csv", tmp_path / "m.csv", "--within", drawn, "--json")
    code, out, _ = tilenet_command(*command)
    counts = [region["counts"]["nucleus"] for region in json.loads(out)["csv"]["regions"]]
    assert code == 0 and counts == [inside for inside, _ in truth_of(halves, mask[...])]
    assert sum(counts) == mask[...].max() > 3
