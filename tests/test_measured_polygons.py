"""The measurements of polygons: what the table says of each, number by number, for QuPath."""

import json

import numpy as np
import pytest
import tifffile
from contents import lines_of
from measured import MANY_FORMS, write_named_channels
from pyramids import write_pyramid
from stub import Bright, Threshold

import tilenet
from tilenet.errors import EnvironmentFault, OutputExists
from tilenet.export import measuring, shapes, table_lines
from tilenet.export.edges import Edges
from tilenet.export.intensities import Intensities

# What a table says of the place of an object and of its class, which a polygon says by itself.
NOT_MEASURED = {"id", "class", "object", "t", "z", "x", "y", "left", "top", "right", "bottom", "front", "back"}
NOT_MEASURED |= {"region", "positive"}
OS_2, DAPI = "slides/OS-2-vsi_Ki67.ome.tif", "slides/hamamatsu_test3_DAPI.ndpi"


def features_of(path):
    return json.loads(path.read_bytes(), parse_constant=pytest.fail)["features"]


def assert_same_numbers(polygons, table):
    """Compare all that a table measures with the measurements of polygons, and return these by id."""
    lines = {line["id"]: line for line in lines_of(table)}
    found = {feature["id"]: feature["properties"]["measurements"] for feature in features_of(polygons)}
    assert found == {
        id_: {name: float(text) for name, text in line.items() if name not in NOT_MEASURED and text}
        for id_, line in lines.items()
    }
    order = [name for name in next(iter(lines.values())) if name in next(iter(found.values()))]
    assert len(found) > 5 and list(next(iter(found.values()))) == order
    return found


@pytest.mark.parametrize(
    ("name", "how", "options", "expected"),
    [
        (OS_2, {"roi": "200:500,100:400"}, ("--shapes", "--stains", "--positive", "dab>0.2"), "solidity max_dab"),
        (OS_2, {"roi": "200:500,100:400"}, ("--positive", "dab>0.2"), "area_um2 mean_dab"),
        (DAPI, {"level": 1, "roi": "600:900,500:800"}, ("--shapes", "--intensities"), "perimeter_um sd_blue"),
    ],
)
def test_polygons_of_a_real_slide_have_the_numbers_of_the_table(
    shared_data, tmp_path, tilenet_command, name, how, options, expected
):
    tilenet.segment(shared_data(name), tmp_path / "m.zarr", objects=True, **how)
    outs = ("--geojson", tmp_path / "m.geojson", "--csv", tmp_path / "m.csv", "--min-area", "12um2")
    code, _, err = tilenet_command("export", tmp_path / "m.zarr", *outs, *options)
    assert code == 0, err
    found = assert_same_numbers(tmp_path / "m.geojson", tmp_path / "m.csv")
    assert {*expected.split()} <= {*next(iter(found.values()))}
    assert min(said["area_um2"] for said in found.values()) >= 12


@pytest.mark.parametrize("how", [{"level": 1}, {"mpp": 0.75}, {"mpp": 1.1, "roi": ":100,20:"}])
def test_polygons_have_the_numbers_of_the_table_at_any_resolution(tmp_path, how):
    slide = write_named_channels(tmp_path / "s.ome.tif")
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), channels="DAPI", objects=True, **how)
    options = {"shapes": True, "intensities": True}
    tilenet.write_geojson(tmp_path / "o.zarr", tmp_path / "o.geojson", **options)
    tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", **options)
    assert_same_numbers(tmp_path / "o.geojson", tmp_path / "o.csv")


def test_what_reaches_beyond_the_image_is_not_area(tmp_path):
    slide = write_pyramid(tmp_path / "s.tif", np.full((101, 67), 200, np.uint8), um=(0.5, 0.5), tile=32)
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), mpp=1.0, objects=True)
    tilenet.write_geojson(tmp_path / "o.zarr", tmp_path / "o.geojson", shapes=True)
    (feature,) = features_of(tmp_path / "o.geojson")
    measurements = feature["properties"]["measurements"]
    assert measurements["area_um2"] == 101 * 67 / 4 < measurements["area_px"] == 51 * 34


@pytest.mark.parametrize(
    ("um", "left_out"),
    [
        ((), {"area_um2", "perimeter_um", "axis_major_um", "axis_minor_um"}),
        ((1.0, 0.5), {"perimeter_px", "axis_major_px", "axis_minor_px"}),
    ],
)
def test_regions_have_the_shapes_of_the_table_and_none_that_is_empty_there(tmp_path, um, left_out):
    slide = write_pyramid(tmp_path / "s.tif", MANY_FORMS, um=um, tile=32)
    tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold())
    tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson", shapes=True)
    tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", shapes=True)
    found = assert_same_numbers(tmp_path / "m.geojson", tmp_path / "m.csv")
    assert not left_out & {*next(iter(found.values()))}


def test_measurements_are_all_that_these_options_add(tmp_path, tilenet_command):
    slide = write_named_channels(tmp_path / "s.ome.tif")
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), channels="DAPI", objects=True)
    for name, options in (("plain", ()), ("measured", ("--shapes", "--intensities"))):
        assert (
            tilenet_command("export", tmp_path / "o.zarr", "--geojson", tmp_path / f"{name}.geojson", *options)[0] == 0
        )
    plain, measured = (features_of(tmp_path / f"{name}.geojson") for name in ("plain", "measured"))
    assert not any("measurements" in feature["properties"] for feature in plain)
    assert all(feature["properties"].pop("measurements") for feature in measured) and measured == plain
    tilenet.write_geojson(tmp_path / "o.zarr", tmp_path / "python.geojson", shapes=True, intensities=True)
    assert (tmp_path / "python.geojson").read_bytes() == (tmp_path / "measured.geojson").read_bytes()


def test_the_planes_of_a_stack_that_are_not_linked_are_measured_one_by_one(tmp_path):
    stack = np.zeros((3, 60, 70), np.uint8)
    for z, y, x in np.ndindex(3, 3, 3):
        stack[z, 20 * y : 20 * y + 9 + z, 20 * x : 20 * x + 12] = 200 + 10 * z + y
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    tilenet.segment(tmp_path / "s.tif", tmp_path / "o.zarr", axes="zyx", model=Threshold(), objects=True)
    tilenet.write_geojson(tmp_path / "o.zarr", tmp_path / "o.geojson", shapes=True, intensities=True)
    tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", shapes=True, intensities=True)
    found = assert_same_numbers(tmp_path / "o.geojson", tmp_path / "o.csv")
    assert {said["area_px"] for said in found.values()} == {12 * 9, 12 * 10, 12 * 11}


@pytest.fixture
def mask(tmp_path):
    slide = write_named_channels(tmp_path / "s.ome.tif")
    return tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), channels="DAPI", objects=True).path


def test_polygons_and_a_table_of_one_command_are_those_of_two_and_each_object_is_measured_once(
    mask, tmp_path, tilenet_command, monkeypatch
):
    options = {"shapes": True, "intensities": True, "min_area": "40px"}
    polygons = tilenet.write_geojson(mask, tmp_path / "alone.geojson", **options)
    table = tilenet.write_table(mask, tmp_path / "alone.csv", **options)
    monkeypatch.setattr(measuring, "CORNERS", 500)
    calls, objects = [], []

    def count(place, name):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, **more: calls.append((name, *args)) or real(*args, **more))

    count(shapes, "regions")
    count(Intensities, "measure")
    count(Edges, "moments")
    real = Edges.__init__
    monkeypatch.setattr(Edges, "__init__", lambda self, some: objects.extend(some) or real(self, some))
    outs = ("--geojson", tmp_path / "m.geojson", "--csv", tmp_path / "m.csv")
    asked = ("--shapes", "--intensities", "--min-area", "40px")
    code, out, err = tilenet_command("export", mask, *outs, *asked, "--json")
    assert code == 0, err
    assert sorted(name for name, *_ in calls if name != "moments") == ["measure", "regions"]
    measured = [of for name, *of in calls if name == "moments"]
    assert len({*map(id, measured)}) == len(measured) > 1
    assert len({shape.id for shape in objects}) == len(objects) == table.counts.total() + table.left_out
    assert (tmp_path / "m.geojson").read_bytes() == (tmp_path / "alone.geojson").read_bytes()
    assert (tmp_path / "m.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    facts = json.loads(out)
    assert (facts["geojson"]["features"], facts["geojson"]["left_out"]) == (polygons.features, polygons.left_out)
    assert (facts["csv"]["counts"], facts["csv"]["left_out"]) == (table.counts, polygons.left_out)
    found = tilenet.write_table(mask, tmp_path / "m.csv", geojson=tmp_path / "p.json", overwrite=True, **options)
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "alone.geojson").read_bytes()
    assert found.outlined.features == polygons.features and found.outlined.vertices == polygons.vertices


def test_neither_file_is_written_if_one_of_them_cannot_be(mask, tmp_path, monkeypatch):
    (tmp_path / "mine.geojson").write_text("mine")
    with pytest.raises(OutputExists, match="not a GeoJSON that tilenet wrote"):
        tilenet.write_table(mask, tmp_path / "m.csv", geojson=tmp_path / "mine.geojson", overwrite=True)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_lines, "_line", full)
    with pytest.raises(EnvironmentFault, match="Make room"):
        tilenet.write_table(mask, tmp_path / "m.csv", geojson=tmp_path / "m.geojson")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.geojson", "o.zarr", "s.ome.tif"}
