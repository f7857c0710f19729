"""Polygons of a mask: the mask again when they are filled, in pixels of the slide, in the form that QuPath reads."""

import json
import shutil
from uuid import UUID

import numpy as np
import pytest
import shapely
import tifffile
from ome_images import write_placed
from oracles import filled
from pyramids import write_pyramid
from stub import Bright, shades

import tilenet
from tilenet.errors import BlocksFailed, EnvironmentFault, OutputExists, OutputIncomplete, OutputMismatch, SettingsError
from tilenet.export import shapes
from tilenet.export.geojson import write_geojson
from tilenet.store import Layout, Store

RECTANGLES = [(40, 120, 60, 300), (40, 90, 500, 760), (200, 420, 100, 160), (260, 400, 360, 640), (500, 561, 33, 777)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pyramidal slide of rectangles, and its mask."""
    folder = tmp_path_factory.mktemp("geojson")
    pixels = np.zeros((600, 800), np.uint8)
    for k, (y0, y1, x0, x1) in enumerate(RECTANGLES):
        pixels[y0:y1, x0:x1] = 100 + 100 * (k % 2)
    write_pyramid(folder / "slide.tif", pixels, um=(0.5, 0.5))
    tilenet.segment(folder / "slide.tif", folder / "mask.zarr", model=shades, tile=128)
    return folder


def features_of(path):
    """Return the features after the checks that each of them must pass."""
    collection = json.loads(path.read_bytes())
    assert collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        UUID(feature["id"])
        assert feature["properties"]["objectType"] == "detection"
        assert len(feature["properties"]["classification"]["color"]) == 3
        shape = shapely.from_geojson(json.dumps(feature))
        assert shape.is_valid, shapely.is_valid_reason(shape)
        for polygon in polygons_of(feature):
            assert all(ring[0] == ring[-1] for ring in polygon)
            assert [shapely.LinearRing(ring).is_ccw for ring in polygon] == [True] + [False] * (len(polygon) - 1)
    assert len({feature["id"] for feature in collection["features"]}) == len(collection["features"])
    return collection["features"]


def polygons_of(feature):
    geometry = feature["geometry"]
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]


def test_a_mask_made_again_with_other_libraries_has_the_same_ids_and_another_mask_others(folder, tmp_path, monkeypatch):
    def ids_of(out):
        write_geojson(out, tmp_path / "ids.geojson", overwrite=True)
        return [feature["id"] for feature in features_of(tmp_path / "ids.geojson")]

    how = {"model": shades, "tile": 128}
    monkeypatch.setattr("tilenet.jobs.job.numerics_of", lambda *_: {"torch": "9.9", "processor": "NONE"})
    mask = tilenet.segment(folder / "slide.tif", tmp_path / "elsewhere.zarr", **how)
    assert mask.info["computed"] != tilenet.open_mask(folder / "mask.zarr").info["computed"]
    tilenet.segment(folder / "slide.tif", tmp_path / "other.zarr", roi="0:600,0:790", **how)
    ids = ids_of(folder / "mask.zarr")
    assert ids == ids_of(tmp_path / "elsewhere.zarr") and not {*ids} & {*ids_of(tmp_path / "other.zarr")}


def values_of(features, names):
    """Return (value, rings as y and x) of each polygon."""
    found = []
    for feature in features:
        value = names[feature["properties"]["classification"]["name"]]
        found += [(value, [np.array(ring)[:, ::-1] for ring in polygon]) for polygon in polygons_of(feature)]
    return found


def boxes_of(features):
    return sorted(shapely.from_geojson(json.dumps(f)).bounds for f in features)


def test_filled_again_they_are_the_mask_whatever_the_strips(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 3, (100, 110), dtype=np.uint8) * 100
    mask = tilenet.segment(noise, tmp_path / "m.zarr", model=shades, tile=64)
    said = write_geojson(tmp_path / "m.zarr", tmp_path / "whole.geojson")
    features = features_of(tmp_path / "whole.geojson")
    found = values_of(features, {"grey": 1, "bright": 2})
    assert np.array_equal(filled(found, mask.shape), mask)
    assert set(np.unique(mask)) == {0, 1, 2}
    assert sum(said.features.values()) == len(features) > 100
    assert said.vertices == sum(len(ring) for _, rings in found for ring in rings) - sum(
        len(rings) for _, rings in found
    )
    whole = (tmp_path / "whole.geojson").read_bytes()
    for band, strip in ((1000, 500), (110, 110), (2**20, 110 * 7)):
        monkeypatch.setattr(shapes, "BAND", band)
        monkeypatch.setattr(shapes, "STRIP", strip)
        write_geojson(tmp_path / "m.zarr", tmp_path / "strips.geojson", overwrite=True)
        assert (tmp_path / "strips.geojson").read_bytes() == whole


def test_regions_have_the_names_and_colours_of_the_card(folder, tmp_path):
    said = write_geojson(folder / "mask.zarr", tmp_path / "m.geojson")
    assert dict(said.features) == {"grey": 3, "bright": 2}
    classes = [f["properties"]["classification"] for f in features_of(tmp_path / "m.geojson")]
    assert {c["name"]: c["color"] for c in classes} == {"grey": [230, 159, 0], "bright": [230, 30, 60]}


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 0), ({"level": 1}, 1), ({"mpp": 0.75}, 1.5), ({"roi": np.s_[30:580, 20:790]}, 0), ({"mpp": 1.7}, 3.4)],
    ids=["whole", "level", "resampled", "part", "coarse"],
)
def test_coordinates_are_pixels_of_the_slide_at_full_resolution(folder, tmp_path, options, tolerance):
    tilenet.segment(folder / "slide.tif", tmp_path / "m.zarr", model=shades, tile=128, **options)
    write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    expected = sorted((x0, y0, x1, y1) for y0, y1, x0, x1 in RECTANGLES)
    features = features_of(tmp_path / "m.geojson")
    if "mpp" in options:  # averages of bright and dark pixels are grey: rims of their own
        shapes = [(f, shapely.from_geojson(json.dumps(f)).buffer(-2)) for f in features]
        features = [f for f, shape in shapes if shape.area > max(1000, shape.envelope.area / 2)]
    np.testing.assert_allclose(boxes_of(features), expected, atol=tolerance)


def test_a_mask_of_a_coarser_level_asks_for_its_image(folder, tmp_path):
    shutil.copy(folder / "slide.tif", tmp_path / "slide.tif")
    tilenet.segment(tmp_path / "slide.tif", tmp_path / "m.zarr", model=shades, level=1)
    (tmp_path / "slide.tif").unlink()
    with pytest.raises(OutputMismatch, match="--image"):
        write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    tifffile.imwrite(tmp_path / "other.tif", np.zeros((90, 90), np.uint8))
    with pytest.raises(OutputMismatch, match="no level 1 .* Give the image that was segmented"):
        write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson", image=tmp_path / "other.tif")
    write_pyramid(tmp_path / "smaller.tif", np.zeros((500, 800), np.uint8))
    with pytest.raises(OutputMismatch, match="bytes: .* there, .* here"):
        write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson", image=tmp_path / "smaller.tif")
    assert not (tmp_path / "m.geojson").exists()
    assert write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson", image=folder / "slide.tif").vertices == 20


def test_each_plane_of_a_stack_is_named_as_qupath_names_it(tmp_path):
    stack = np.zeros((2, 3, 40, 50), np.uint8)
    for t in range(2):
        for z in range(3):
            stack[t, z, 5:15, 5 + z : 20 + z + t] = 200
    tilenet.segment(stack, tmp_path / "m.zarr", axes="tzyx", model=shades, roi=np.s_[:, 1:, :, :])
    write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    features = features_of(tmp_path / "m.geojson")
    assert [f["geometry"]["plane"] for f in features] == [{"c": -1, "z": z, "t": t} for t in range(2) for z in (1, 2)]
    bounds = [shapely.from_geojson(json.dumps(f)).bounds for f in features]
    assert bounds == [(5 + z, 5, 20 + z + t, 15) for t in range(2) for z in (1, 2)]
    tilenet.segment(stack[0, :1], tmp_path / "one.zarr", axes="zyx", model=shades)
    write_geojson(tmp_path / "one.zarr", tmp_path / "one.geojson")
    assert "plane" not in features_of(tmp_path / "one.geojson")[0]["geometry"]
    tilenet.segment(stack[0], tmp_path / "third.zarr", axes="zyx", model=shades, roi=np.s_[2:3, :, :])
    write_geojson(tmp_path / "third.zarr", tmp_path / "third.geojson")
    assert features_of(tmp_path / "third.geojson")[0]["geometry"]["plane"] == {"c": -1, "z": 2, "t": 0}


def write_objects(path, labels, folder):
    """Write a mask of numbered objects, as `segment --objects` does."""
    info = tilenet.open_mask(folder / "mask.zarr").info
    info["record"] |= {"output": "objects"}
    info["card"] |= {"labels": {"1": "nucleus"}, "colors": {"1": [1, 2, 3, 255]}}
    layout = Layout("yx", labels.shape, (64, 64), (None, None), "m", largest=2**16)
    store = Store.create(path, layout, info)
    for index in store.pending():
        store.write(index, {"mask": labels[layout.box(0, index).slices]})
    store.build_pyramid()
    store.finish()


def test_an_object_is_one_feature_however_many_pieces_it_has(folder, tmp_path, monkeypatch):
    labels = np.zeros((130, 90), np.uint32)
    labels[3:20, 4:30] = 70000
    labels[10:12, 8:12] = 0
    labels[10, 9] = 5
    labels[20:25, 30:40] = 70000  # touches at a corner
    labels[100:110, 50:60] = 70000  # far away
    labels[100:110, 60:70] = 6  # side by side
    write_objects(tmp_path / "m.zarr", labels, folder)
    said = write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    assert (dict(said.features), said.vertices) == ({"nucleus": 3}, 4 + 4 + (4 + 4) + 4 + 4)
    features = features_of(tmp_path / "m.geojson")
    assert [f["properties"]["name"] for f in features] == ["5", "6", "70000"]
    assert [f["geometry"]["type"] for f in features] == ["Polygon", "Polygon", "MultiPolygon"]
    assert features[0]["properties"]["classification"] == {"name": "nucleus", "color": [1, 2, 3]}
    named = [
        (int(f["properties"]["name"]), [np.array(r)[:, ::-1] for r in p]) for f in features for p in polygons_of(f)
    ]
    assert np.array_equal(filled(named, labels.shape), labels)
    whole = (tmp_path / "m.geojson").read_bytes()
    monkeypatch.setattr(shapes, "STRIP", 90)
    write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson", overwrite=True)
    assert (tmp_path / "m.geojson").read_bytes() == whole


def test_real_nuclei_are_the_same_from_zarr_and_tiff(shared_data, tmp_path):
    slide = shared_data("slides/CMU-1-Small-Region.svs")
    part = {"roi": np.s_[1200:1500, 900:1300], "tile": 256}
    mask = tilenet.segment(slide, tmp_path / "m.zarr", **part)
    tilenet.write_tiff(tmp_path / "m.zarr", tmp_path / "m.ome.tif").close()
    for name in ("m.zarr", "m.ome.tif"):
        said = write_geojson(tmp_path / name, tmp_path / f"{name}.geojson")
        assert said.features["nucleus"] > 10
    assert (tmp_path / "m.zarr.geojson").read_bytes() == (tmp_path / "m.ome.tif.geojson").read_bytes()
    found = values_of(features_of(tmp_path / "m.zarr.geojson"), {"nucleus": 1})
    moved = [(value, [ring - (1200, 900) for ring in rings]) for value, rings in found]
    assert np.array_equal(filled(moved, mask.shape), mask)


def test_labels_in_an_image_are_exported_as_any_mask(tmp_path):
    image = write_placed(tmp_path / "image.zarr", "0.4")
    mask = tilenet.segment(image, into=image, name="m", model=Bright(), channels=[0], tile=64, level=1)
    write_geojson(mask.path, tmp_path / "m.geojson")
    found = values_of(features_of(tmp_path / "m.geojson"), {"class 1": 1})
    assert np.array_equal(filled(found, (90, 300)), np.kron(mask, np.ones((2, 2), int)))


def test_what_is_not_whole_is_not_exported(folder, tmp_path):
    shutil.copytree(folder / "mask.zarr", tmp_path / "m.zarr")
    shard = next(p for p in sorted((tmp_path / "m.zarr" / "0" / "c").rglob("*")) if p.is_file())
    shard.unlink()
    with pytest.raises(BlocksFailed, match="--resume"):
        write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    store = Store.create(tmp_path / "half.zarr", Layout("yx", (9, 9), (9, 9), (None, None), "m"), {})
    store.close()
    with pytest.raises(OutputIncomplete):
        write_geojson(tmp_path / "half.zarr", tmp_path / "m.geojson")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.zarr", "m.zarr"]


@pytest.mark.parametrize("how", ["replaced", "lost"])
def test_a_mask_that_changes_while_it_is_exported_is_an_error_with_a_way_out(folder, tmp_path, how):
    shutil.copytree(folder / "mask.zarr", tmp_path / "m.zarr")

    def change(done, total):
        if how == "replaced":
            (tmp_path / "m.zarr" / "zarr.json").touch()
        else:
            shutil.rmtree(tmp_path / "m.zarr" / "0" / "c")

    with pytest.raises(BlocksFailed, match=r"Open it again|--resume"):
        write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson", progress=change)
    assert not (tmp_path / "m.geojson").exists()


def test_a_file_is_whole_or_not_there_and_is_replaced_only_if_asked(folder, tmp_path, monkeypatch):
    out = tmp_path / "m.geojson"
    write_geojson(folder / "mask.zarr", out)
    whole = out.read_bytes()
    with pytest.raises(OutputExists, match="--overwrite"):
        write_geojson(folder / "mask.zarr", out)
    taken = tmp_path / "folder.geojson"
    taken.mkdir()
    with pytest.raises(OutputExists, match="another path"):
        write_geojson(folder / "mask.zarr", taken, overwrite=True)
    taken.rmdir()
    with pytest.raises(SettingsError, match=r"m\.csv: a GeoJSON is written as \.geojson or \.json"):
        write_geojson(folder / "mask.zarr", tmp_path / "m.csv")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(shapes, "regions", full)
        with pytest.raises(EnvironmentFault, match="Make room"):
            write_geojson(folder / "mask.zarr", out, overwrite=True)
    assert (out.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (whole, ["m.geojson"])
    write_geojson(folder / "mask.zarr", out, overwrite=True)
    assert out.read_bytes() == whole


def test_the_command_writes_either_or_both_and_says_how_many(folder, tmp_path, tilenet_command):
    mask, out, tiff = folder / "mask.zarr", tmp_path / "m.geojson", tmp_path / "m.ome.tif"
    code, text, _ = tilenet_command("export", mask, "--geojson", out)
    assert (code, text.splitlines()[0]) == (0, f"{out}: 2 bright regions, 3 grey regions, 20 vertices")
    code, text, _ = tilenet_command("export", mask, "--geojson", out, "--tiff", tiff, "--overwrite", "--json")
    assert json.loads(text) == {
        "geojson": {"out": str(out), "features": {"grey": 3, "bright": 2}, "vertices": 20, "left_out": 0},
        "tiff": {"out": str(tiff), "axes": "yx", "shape": [600, 800]},
        "remarks": [],
    }
    assert np.array_equal(tilenet.open_mask(tiff), tilenet.open_mask(mask))
    assert tilenet_command("export", mask, "--geojson", out, "--as", "annotation", "--overwrite")[0] == 0
    assert {f["properties"]["objectType"] for f in json.loads(out.read_bytes())["features"]} == {"annotation"}
    for options, message in {
        (): "--geojson out.geojson, --csv",
        ("--geojson", out): "--overwrite",
        ("--tiff", tmp_path / "m.png"): "ends in .ome.tif",
    }.items():
        code, _, error = tilenet_command("export", mask, *options)
        assert (code, message in error) == (2, True)
    code, _, error = tilenet_command("export", tiff, "--tiff", tmp_path / "again.ome.tif")
    assert (code, "is a TIFF already" in error) == (2, True)


def test_other_kinds_of_features_are_refused(folder, tmp_path):
    with pytest.raises(SettingsError, match="annotation"):
        write_geojson(folder / "mask.zarr", tmp_path / "m.geojson", kind="cell")


def test_progress_ends_at_its_total(folder, tmp_path):
    seen = []
    write_geojson(folder / "mask.zarr", tmp_path / "m.geojson", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (600, 600)
