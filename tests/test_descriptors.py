"""The form of regions and objects: what scikit-image measures of the whole label image, whatever the strips."""

from math import atan2, hypot, pi

import numpy as np
import pytest
import tifffile
from contents import lines_of
from measured import MANY_FORMS
from pyramids import write_pyramid
from skimage.draw import ellipse
from skimage.measure import label, regionprops_table
from stub import Bright, Bright3D, Threshold

import tilenet
from tilenet.export import edges, measuring, shapes
from tilenet.export.descriptors import COLUMNS, perimeter
from tilenet.export.edges import Edges
from tilenet.export.outlines import Region, regions
from tilenet.export.table import read_table, write_table
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering

RANDOM = np.random.default_rng(1)
OF_SCIKIT_IMAGE = {
    "perimeter": "perimeter_crofton",
    "axis_major": "axis_major_length",
    "axis_minor": "axis_minor_length",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
}


def truth_of(labels, spacing):
    """Return what scikit-image measures, by number of the object and the names of `OF_SCIKIT_IMAGE`."""
    names = [name for name in OF_SCIKIT_IMAGE.values() if len(set(spacing)) == 1 or name != "perimeter_crofton"]
    found = regionprops_table(labels, properties=("label", "area", *names), spacing=spacing)
    return {
        int(number): {name: float(found[name][k]) for name in ("area", *names)}
        for k, number in enumerate(found["label"])
    }


def assert_forms(lines, truth, unit):
    assert len(lines) == len(truth)
    for line in lines:
        expected = truth[int(line["object"])]
        for ours, theirs in OF_SCIKIT_IMAGE.items():
            name = ours if ours in line else f"{ours}_{unit}"
            assert float(line[name]) == pytest.approx(expected[theirs], rel=1e-6, abs=1e-5), (name, line)
        circularity = 4 * pi * expected["area"] / expected["perimeter_crofton"] ** 2
        assert float(line["circularity"]) == pytest.approx(circularity, rel=1e-6)


@pytest.mark.parametrize(("strip", "block"), [(1, 64), (5000, 64), (2**24, 256)])
def test_forms_of_objects_are_those_of_scikit_image(tmp_path, monkeypatch, strip, block):
    monkeypatch.setattr(shapes, "STRIP", strip)
    monkeypatch.setattr(edges, "AT_ONCE", 7 if strip == 1 else 2**18)
    monkeypatch.setattr(measuring, "CORNERS", 40 if strip == 1 else 2**15)
    slide = write_pyramid(tmp_path / "s.tif", MANY_FORMS, um=(0.5, 0.5), tile=32)
    numbering.store_objects(
        tmp_path / "o.zarr", Request(slide, Bright(), Options(block=block, tile=64, output="objects"))
    )
    found = write_table(tmp_path / "o.zarr", tmp_path / "o.csv", shapes=True)
    labels, lines = tilenet.open_mask(tmp_path / "o.zarr")[...], lines_of(tmp_path / "o.csv")
    assert tuple(lines[0])[-len(COLUMNS) :] == COLUMNS and len(lines) > 50
    truth = truth_of(labels, (0.5, 0.5))
    assert_forms(lines, truth, "um")
    assert_forms(lines, truth_of(labels, (1, 1)), "px")
    spans = regionprops_table(labels, properties=("bbox", "euler_number"))
    assert (spans["bbox-0"] // 64 != (spans["bbox-2"] - 1) // 64).any() and spans["euler_number"].min() < 0
    assert read_table(tmp_path / "o.zarr", tmp_path / "o.csv") == found


@pytest.mark.parametrize("how", [{"level": 1}, {"mpp": 0.75}, {"mpp": 1.3, "roi": "20:70,15:"}, {"roi": "37:190,1:"}])
def test_forms_are_those_of_the_pixels_of_the_mask_at_any_resolution(tmp_path, how):
    slide = write_pyramid(tmp_path / "s.tif", MANY_FORMS, um=(0.5, 0.5), tile=32)
    mask = tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True, **how)
    write_table(tmp_path / "o.zarr", tmp_path / "o.csv", shapes=True)
    um = mask.pixel_size[-1]
    assert um == pytest.approx(how.get("mpp", 1.0 if "level" in how else 0.5), rel=0.1)
    assert_forms(lines_of(tmp_path / "o.csv"), truth_of(mask[...], (um, um)), "um")


def test_forms_of_regions_of_classes_are_those_of_parts_connected_by_edges(tmp_path):
    tilenet.segment(MANY_FORMS, tmp_path / "m.zarr", model=Threshold())
    write_table(tmp_path / "m.zarr", tmp_path / "m.csv", shapes=True)
    labels, lines = label(MANY_FORMS > 0, connectivity=1), lines_of(tmp_path / "m.csv")
    assert labels.max() > label(MANY_FORMS > 0, connectivity=2).max() > 50
    # Regions have no number: they are told apart by their boxes and areas.
    table = regionprops_table(labels, properties=("bbox", "area", "label"))
    numbers = {tuple(map(int, line[:5])): line[5] for line in zip(*table.values(), strict=True)}
    box = ("top", "left", "bottom", "right", "area_px")
    lines = [line | {"object": numbers[tuple(int(line[name]) for name in box)]} for line in lines]
    assert_forms(lines, truth_of(labels, (1, 1)), "px")
    assert {line["perimeter_um"] + line["axis_major_um"] + line["axis_minor_um"] for line in lines} == {""}


def parts_of(labels):
    found = {}
    for region in regions([labels]):
        found.setdefault(region.value, []).append(region)
    return {value: shapes.Shape(value, "", parts, 0, 0, None) for value, parts in found.items()}


def test_parts_that_touch_diagonally_and_parts_far_apart_are_one_object():
    labels = RANDOM.integers(0, 30, (60, 70))
    labels[:4, :4] = [[31, 0, 31, 0], [0, 31, 0, 31], [31, 0, 31, 31], [0, 31, 31, 0]]
    truth = truth_of(labels, (1, 1))
    found = parts_of(labels)
    assert all(len(shape.parts) > 1 for shape in found.values())
    together = Edges(list(found.values()))
    expected = [truth[value]["perimeter_crofton"] for value in found]
    assert perimeter(together.crossings(), 1, 1) == pytest.approx(expected)
    solidity = together.moments()[:, 0, 0] / together.pixels_of_hulls()
    assert solidity.tolist() == [truth[value]["solidity"] for value in found]


def crossings(inside, dy, dx):
    """Return how many pairs of pixels, so far apart, are inside and outside."""
    padded = np.pad(inside, 2)
    return int((padded != np.roll(padded, (dy, dx), (0, 1))).sum())


@pytest.mark.parametrize("um", [(1.0, 0.5), (0.3, 0.4)])
def test_where_pixels_are_not_square_lengths_are_given_in_micrometres_alone(tmp_path, um):
    slide = write_pyramid(tmp_path / "s.tif", MANY_FORMS, um=um, tile=32)
    mask = tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True)
    write_table(tmp_path / "o.zarr", tmp_path / "o.csv", shapes=True)
    labels, truth = mask[...], truth_of(mask[...], um)
    for line in lines_of(tmp_path / "o.csv"):
        inside, expected = labels == int(line["object"]), truth[int(line["object"])]
        assert line["perimeter_px"] == line["axis_major_px"] == line["axis_minor_px"] == ""
        for name in ("axis_major", "axis_minor"):
            assert float(line[f"{name}_um"]) == pytest.approx(expected[f"{name}_length"], rel=1e-6, abs=1e-5)
        for name in ("eccentricity", "solidity"):
            assert float(line[name]) == pytest.approx(expected[name], rel=1e-6, abs=1e-5)
        # The weights of IntrinsicVolumes2D of MorphoLibJ: the sector of each direction, the distance of its lines.
        height, width = um
        angle, area = atan2(height, width), height * width
        along = [(crossings(inside, 0, 1), angle / pi, width), (crossings(inside, 1, 0), 0.5 - angle / pi, height)]
        along += [(crossings(inside, 1, way), 0.25, hypot(height, width)) for way in (1, -1)]
        length = pi * sum(count / 2 * weight * area / step for count, weight, step in along)
        assert float(line["perimeter_um"]) == pytest.approx(length, rel=1e-6)
        assert float(line["circularity"]) == pytest.approx(4 * pi * expected["area"] / length**2, rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 0.5), (0.5, 0.7)])
def test_a_disc_is_as_long_around_as_it_is_in_geometry(height, width):
    labels = np.zeros((230, 230), np.uint8)
    labels[ellipse(115, 115, 50 / height, 50 / width)] = 1
    (shape,) = parts_of(labels).values()
    disc = Edges([shape])
    assert perimeter(disc.crossings(), height, width) == pytest.approx(2 * pi * 50, rel=0.01)
    plain = sum(
        np.abs(np.diff(ring, axis=0, append=ring[:1])).sum(axis=0) @ (height, width) for ring in shape.parts[0].rings
    )
    assert plain / (2 * pi * 50) == pytest.approx(4 / pi, rel=0.02)
    assert labels.sum() / disc.pixels_of_hulls() == pytest.approx(1, abs=0.02)


def test_a_region_as_large_as_a_slide_does_not_overflow():
    side, thin = 150_000, np.array([[7, 3], [7, 200_003], [8, 200_003], [8, 3]], np.int32)
    square = np.array([[9, 5], [9, 5 + side], [9 + side, 5 + side], [9 + side, 5]], np.int32)
    for ring, height, width in ((square, side, side), (thin, 1, 200_000)):
        region = Edges([shapes.Shape(1, "", [Region(1, (ring,))], 0, 0, None)])
        (found,) = region.moments()
        n = height * width
        variance = [float(found[k, k] * n - found[k, 0] ** 2) / n**2 for k in (1, 2)]
        assert found[0, 0] == region.pixels_of_hulls() == n
        assert variance == pytest.approx([(height**2 - 1) / 12, (width**2 - 1) / 12], rel=1e-9)


def test_of_an_object_of_a_volume_only_the_axes_of_its_ellipsoid_are_given(tmp_path, tilenet_command):
    volume = np.zeros((12, 60, 70), np.uint8)
    z, y, x = np.indices(volume.shape)
    volume[((z - 5) / 4) ** 2 + ((y - 20) / 9) ** 2 + ((x + y / 2 - 30) / 16) ** 2 < 1] = 200
    volume[6:8, 40:58, 5:30] = 200
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.4, "PhysicalSizeZ": 2}
    for name, metadata in (("known", size), ("unknown", {})):
        path = tmp_path / f"{name}.ome.tif"
        tifffile.imwrite(path, volume, metadata={"axes": "ZYX"} | metadata, ome=True, photometric="minisblack")
        mask = tilenet.segment(path, tmp_path / f"{name}.zarr", model=Bright3D(), objects=True)
        assert tilenet_command("export", mask.path, "--csv", tmp_path / f"{name}.csv", "--shapes")[0] == 0
    names = ("axis_major_length", "axis_minor_length")
    truth = regionprops_table(mask[...], properties=names, spacing=(2, 0.4, 0.5))
    lines = lines_of(tmp_path / "known.csv")
    assert len(lines) == 2
    for theirs, ours in zip(names, ("axis_major_um", "axis_minor_um"), strict=True):
        assert [float(line[ours]) for line in lines] == pytest.approx(truth[theirs], rel=1e-6)
    rest = [name for name in COLUMNS if name not in ("axis_major_um", "axis_minor_um")]
    assert {line[name] for line in lines for name in rest} == {""}
    assert {line[name] for line in lines_of(tmp_path / "unknown.csv") for name in COLUMNS} == {""}


def test_shapes_are_not_for_a_tiff(tmp_path, tilenet_command):
    tilenet.segment(MANY_FORMS, tmp_path / "m.zarr", model=Threshold())
    out = tmp_path / "m.ome.tif"
    code, _, err = tilenet_command("export", tmp_path / "m.zarr", "--tiff", out, "--shapes")
    assert code == 2 and "--shapes is for --geojson and --csv: a TIFF is the mask as it is" in err and not out.exists()


def test_forms_of_the_nuclei_of_a_real_slide_are_those_of_scikit_image(shared_data, tmp_path):
    image = shared_data("slides/hamamatsu_test3_DAPI.ndpi")
    mask = tilenet.segment(image, tmp_path / "m.zarr", objects=True, level=1, roi="600:1100,500:1000", threads=1)
    write_table(tmp_path / "m.zarr", tmp_path / "m.csv", shapes=True)
    lines = lines_of(tmp_path / "m.csv")
    assert_forms(lines, truth_of(mask[...], mask.pixel_size[-2:]), "um")
    assert len(lines) > 50 and 0.8 < np.median([float(line["circularity"]) for line in lines]) < 1
