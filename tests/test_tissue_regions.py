"""Regions that a user drew, as tissue: which cells they overlap, and where they lie at other resolutions."""

import csv
import json
import re
from fractions import Fraction
from itertools import product
from math import ceil, floor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import shapely
import tifffile
from contents import lines_of
from drawn_regions import BAD, feature, rectangle, square, write_regions
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi
from tissue_images import OPTIONS, SIDES, a_slide, blocks_of, glass  # noqa: F401

import tilenet
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.export.table import write_table
from tilenet.resolution import AS_STORED, Resolution
from tilenet.store import Store
from tilenet.tissue.regions import tissue_in_regions

# The map.


def as_feature(area, **properties):
    said = json.loads(shapely.to_geojson(area))
    return feature(said["coordinates"], said["type"], **properties)


def map_of(features, shape, resolution=Resolution(0)):  # noqa: B008 - frozen
    with TemporaryDirectory() as folder:
        path = write_regions(Path(folder) / "regions.geojson", features)
        return tissue_in_regions(path, tilenet.open_image(np.zeros(shape, np.uint8)), resolution).map


def edges(n, step, pixels):
    """Return the edges in pixels of the image, exactly, of the cells of 16 px of a grid of `n` pixels of a step."""
    cells = -(-n // 16)
    return [min(Fraction(k * n, cells) * step, Fraction(pixels)) for k in range(cells + 1)]


@given(st.data())
def test_a_cell_is_tissue_if_it_has_a_part_of_a_pixel_that_was_drawn(data):
    shape = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    factor = data.draw(st.sampled_from([*"1111", "1/3", "7/8", "3/2", "201/100", "5"]).map(Fraction))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    smooth = ndi.gaussian_filter(random.normal(size=shape), data.draw(st.sampled_from([0.5, 2, 6])))
    drawn = smooth > np.quantile(smooth, data.draw(st.sampled_from([0.3, 0.7, 0.95])))
    drawn.flat[random.integers(drawn.size)] = True  # one pixel at least
    area = shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(drawn)])
    parts = shapely.get_parts(area)
    features = [as_feature(part) for part in parts] if data.draw(st.booleans()) else [as_feature(area)]
    found = map_of(features, shape, Resolution(0, (factor, factor)))
    seen = tuple(ceil(n / factor) for n in shape)
    rows, columns = (edges(n, factor, pixels) for n, pixels in zip(seen, shape, strict=True))
    assert found.covers == seen and found.cells.shape == (len(rows) - 1, len(columns) - 1) and found.own is None
    for i, j in np.ndindex(found.cells.shape):
        touched = drawn[floor(rows[i]) : ceil(rows[i + 1]), floor(columns[j]) : ceil(columns[j + 1])]
        assert found.cells[i, j] == touched.any()


# Many of them on the edges of cells, which they then touch without overlapping.
CORNERS = st.tuples(st.integers(-4, 36), st.integers(-4, 36)).map(lambda at: (at[0] * 4.0, at[1] * 4.0))
# In single precision: of sides of 1e-259 px GEOS divides by zero, and says so.
ANYWHERE = st.tuples(st.floats(-20, 140, width=32), st.floats(-20, 140, width=32))


@given(st.data())
def test_a_cell_is_tissue_if_it_shares_more_than_a_border_with_a_polygon(data):
    points = data.draw(st.sampled_from([CORNERS, ANYWHERE]))
    shell, hole = (
        shapely.MultiPoint(data.draw(st.lists(points, min_size=3, max_size=9))).convex_hull for _ in range(2)
    )
    area = shell.difference(hole) if data.draw(st.booleans()) else shell
    inside = shapely.box(0, 0, 128, 128)
    if area.geom_type not in ("Polygon", "MultiPolygon") or shapely.intersection(area, inside).area < 1e-6:
        return
    found = map_of([as_feature(area)], (128, 128))
    for i, j in product(range(8), range(8)):
        cell = shapely.box(16 * j, 16 * i, 16 * j + 16, 16 * i + 16)
        # Interiors that meet, exactly; what is thinner than the last bit of a coordinate is no matter.
        if shapely.relate_pattern(cell, area, "T********") != found.cells[i, j]:
            assert shapely.intersection(cell, area).area < 1e-9


def test_a_cell_within_a_hole_is_no_tissue_and_one_that_its_rim_crosses_is():
    found = map_of([feature([square(0, 0, 160), square(40, 40, 80)])], (160, 160))
    assert found.cells.sum() == 100 - 16 and not found.cells[3:7, 3:7].any()
    touching = map_of([feature([square(0, 0, 160), square(32, 32, 96)])], (160, 160))
    assert not touching.cells[2:8, 2:8].any() and touching.cells.sum() == 100 - 36
    assert map_of([feature([square(32, 16, 16)])], (160, 160)).cells.sum() == 1


def test_on_a_large_slide_cells_are_larger_and_nothing_drawn_is_lost():
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    far = 30_000 * (1 + 0.3 * np.sin(9 * angles))
    rim = np.stack([50_000 + far * np.cos(angles), 40_000 + far * np.sin(angles)], 1)
    area = shapely.Polygon(rim)
    image = np.broadcast_to(np.zeros((1, 1), np.uint8), (80_000, 100_000))
    with TemporaryDirectory() as folder:
        path = write_regions(Path(folder) / "r.json", [as_feature(area)])
        found = tissue_in_regions(path, tilenet.open_image(image), Resolution(0, AS_STORED)).map
    assert found.cells.shape == (1633, 2041)
    y, x = found.cells.shape[0] / 80_000, found.cells.shape[1] / 100_000
    points = np.concatenate([rim + (area.centroid.coords[0] - rim) * k for k in (1e-9, 0.2, 0.7)])
    assert found.cells[(points[:, 1] * y).astype(int), (points[:, 0] * x).astype(int)].all()
    side = 100_000 / 2041
    assert area.area <= found.cells.sum() * side**2 <= area.area + area.length * 2 * side


# Runs.

STEPS = {(): 1, ("level",): 2, ("mpp",): Fraction(8, 5), ("roi",): 1, ("mpp", "roi"): Fraction(8, 5), ("output",): 1}
PART = "100:1000,40:1400"
RING = feature([rectangle(530, 310, 900, 600), rectangle(600, 350, 880, 560)], name="ring")
SPECK = feature([square(1290, 1001, 3)])


@pytest.fixture(name="drawn")
def drawn_on_the_slide(tmp_path):
    return write_regions(tmp_path / "regions.geojson", [RING, SPECK])


@pytest.mark.parametrize(
    "how",
    [{}, {"level": 1}, {"mpp": 0.8}, {"roi": PART}, {"mpp": 0.8, "roi": "70:600,:"}, {"output": "both"}],
    ids=str,
)
def test_a_block_in_or_near_a_region_is_as_without_regions_and_any_other_is_0(slide, drawn, tmp_path, how):
    options = OPTIONS | {"tile": 128} | how
    plain = tilenet.segment(slide, tmp_path / "plain.zarr", **options)
    mask = tilenet.segment(slide, tmp_path / "mask.zarr", tissue=drawn, **options)
    step = float(STEPS[tuple(how)])
    areas = [shapely.geometry.shape(each["geometry"]) for each in (RING, SPECK)]
    kept, skipped = list(blocks_of(mask, computed=True)), list(blocks_of(mask, computed=False))
    assert kept and skipped
    for box in kept + skipped:
        (y0, y1), (x0, x1) = (
            ((s.start + a) * step, (s.stop + a) * step) for s, a in zip(box, mask.origin, strict=True)
        )
        block = shapely.box(x0, y0, x1, y1)
        # A cell is 16 px at most, and the context of the network another one.
        near = shapely.box(x0 - 32 * step, y0 - 32 * step, x1 + 32 * step, y1 + 32 * step)
        assert box in kept or not any(shapely.intersection(area, block).area for area in areas)
        assert box in skipped or any(area.intersects(near) for area in areas)
        assert np.array_equal(mask[box], plain[box]) if box in kept else plain[box].any() and not mask[box].any()
        if mask.probabilities is not None:
            shown = mask.probabilities[(..., *box)]
            assert np.array_equal(shown, plain.probabilities[(..., *box)] * (box in kept))
    facts = mask.info["tissue"]
    assert (facts["method"], facts["regions"], facts["looked_at"]) == ("given", 2, list(SIDES))
    assert facts["skipped_blocks"] == len(skipped)
    assert mask.info["record"]["tissue"] == {"method": "given", "sha256": mask.tissue.sha256}


def test_context_of_a_region_is_computed_but_is_no_tissue(slide, tmp_path):
    model = tilenet.UNet(depth=3, wf=1, padding=True).eval()
    reach = model.footprint.margin[-1]
    assert reach > 16 + 2
    for gap, computed in ((2, {0, 512}), (reach + 16, {0})):
        drawn = write_regions(tmp_path / f"{gap}.geojson", [feature([rectangle(300, 40, 512 - gap, 90)])])
        mask = tilenet.segment(slide, tmp_path / f"{gap}.zarr", **OPTIONS | {"model": model, "tissue": drawn})
        assert {(box[0].start, box[1].start) for box in blocks_of(mask, computed=True)} == {(0, x) for x in computed}
        assert mask.tissue.tissue.any(axis=0).argmin() == 0 and mask.info["tissue"]["dilated"] == [reach, reach]
        cells = tissue_in_regions(drawn, tilenet.open_image(slide), Resolution(0)).map.cells
        assert np.array_equal(mask.tissue.tissue, cells) and mask.tissue.cells.sum() > cells.sum()
        again = tilenet.segment(slide, tmp_path / f"{gap}.zarr", model=model, tile=512, tissue=drawn, resume=True)
        assert np.array_equal(again.tissue.tissue, cells)


def test_one_map_of_regions_serves_all_planes_of_a_stack(drawn, tmp_path):
    stack = np.stack([glass(seed=k) for k in range(3)])
    plain = tilenet.segment(stack, axes="zyx", **OPTIONS)
    mask = tilenet.segment(stack, tmp_path / "mask.zarr", axes="zyx", tissue=drawn, **OPTIONS)
    computed = np.broadcast_to(mask.layout.block_has_tissue_at(np.arange(SIDES[0]), np.arange(SIDES[1])), stack.shape)
    assert 0 < computed.mean() < 1 and computed[:, 320, 540].all() and computed[:, 1002, 1291].all()
    assert np.array_equal(mask[...], np.where(computed, plain, 0))


def test_resumed_it_takes_the_map_from_its_output_and_a_changed_file_is_told(slide, drawn, tmp_path):
    whole = tilenet.segment(slide, tmp_path / "whole.zarr", tissue=drawn, **OPTIONS)
    before = (tmp_path / "whole.zarr" / "zarr.json").read_bytes()
    begun = tmp_path / "begun.zarr"
    Store.create(begun, whole.layout, whole.info).close()
    write_regions(drawn, [RING])  # without the speck
    with pytest.raises(OutputMismatch, match="was begun with tissue = given .*, and now it is given"):
        tilenet.segment(slide, begun, tissue=drawn, resume=True, **OPTIONS)
    with pytest.raises(OutputMismatch, match="was begun with tissue = given .*, and now it is auto"):
        tilenet.segment(slide, begun, tissue=True, resume=True, **OPTIONS)
    write_regions(drawn, [SPECK, RING], collection=False)  # the same cells
    tilenet.segment(slide, begun, tissue=drawn, resume=True, **OPTIONS)
    drawn.unlink()
    again = tmp_path / "again.zarr"
    Store.create(again, whole.layout, whole.info).close()
    tilenet.segment(slide, again, resume=True, **OPTIONS)
    for mask in (begun, again):
        assert np.array_equal(tilenet.open_mask(mask)[...], whole[...])
        assert (mask / "zarr.json").read_bytes() == before


def test_the_area_of_tissue_is_that_of_the_cells_that_a_region_overlaps(slide, tmp_path):
    drawn = write_regions(tmp_path / "r.geojson", [feature([rectangle(510, 310, 640, 420)])])
    mask = tilenet.segment(slide, tmp_path / "m.zarr", tissue=drawn, objects=True, **OPTIONS)
    found = tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=drawn)
    cells = mask.tissue.cells.shape
    height, width = (0.5 * n / count for n, count in zip(SIDES, cells, strict=True))
    assert found.tissue_mm2 == pytest.approx(mask.tissue.tissue.sum() * height * width / 1e6, rel=0.01)
    (region,) = found.regions
    assert region.mm2 == pytest.approx(130 * 110 * 0.25e-6) and region.mm2 < found.tissue_mm2
    assert sum(region.counts.values()) <= sum(found.in_tissue.values()) < sum(found.counts.values())


# What is wrong with a file, and what is told.


@pytest.mark.parametrize(("held", "said"), BAD[:-1], ids=range(len(BAD) - 1))
def test_a_file_that_holds_anything_but_areas_is_refused_before_anything_is_written(tmp_path, held, said):
    path = tmp_path / "r.geojson"
    path.write_text(held if isinstance(held, str) else json.dumps(held))
    with pytest.raises(SettingsError, match=said):
        tilenet.segment(glass(), tmp_path / "m.zarr", tissue=path, **OPTIONS)
    assert not (tmp_path / "m.zarr").exists()


def test_regions_outside_of_the_image_are_refused_and_of_others_the_part_inside_counts(slide, tmp_path, caplog):
    away = write_regions(tmp_path / "away.geojson", [feature([square(1500, 20, 90)])])
    with pytest.raises(
        SettingsError, match="all of its regions lie outside of the image, x 0 to 1500 and y 0 to 1100. Give the reg"
    ):
        tilenet.segment(slide, tissue=away, **OPTIONS)
    with pytest.raises(SettingsError, match=r"no\.json: does not exist\. Check the path"):
        tilenet.segment(slide, tissue=str(tmp_path / "no.json"), **OPTIONS)
    leaving = feature([rectangle(1460, -30, 1540, 10)], name="edge")
    path = write_regions(tmp_path / "r.geojson", [leaving, feature([square(1500, 20, 90)])])
    mask = tilenet.segment(slide, tmp_path / "m.zarr", tissue=path, **OPTIONS)
    assert [(box[0].start, box[1].start) for box in blocks_of(mask, computed=True)] == [(0, 1024)]
    assert mask.tissue.tissue.sum() == 3
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition("geojson: ")[2] for text in warned] == [
        "87.5 % of edge lies outside of the image",
        "100 % of region 2 lies outside of the image",
    ]


@pytest.mark.parametrize(("rows", "end"), [(25, 100), (26, 103)])
def test_what_no_pixel_of_a_coarser_level_covers_is_outside_and_what_a_part_of_one_covers_is_inside(
    tmp_path, rows, end
):
    pixels = glass((103, 96))
    with tifffile.TiffWriter(tmp_path / "slide.tif") as tiff:
        tiff.write(pixels, tile=(64, 64), subifds=1)
        tiff.write(pixels[: 4 * rows : 4, ::4], tile=(64, 64), subfiletype=1)
    how = {"level": 1, "tissue": write_regions(tmp_path / "r.geojson", [feature([square(5, end - 0.5, 0.5)])])}
    mask = tilenet.segment(tmp_path / "slide.tif", tmp_path / "m.zarr", **OPTIONS | how)
    assert mask.shape == (rows, 24) and np.argwhere(mask.tissue.tissue).tolist() == [[1, 0]]
    write_regions(how["tissue"], [feature([square(5, end, 9)])])
    with pytest.raises(SettingsError, match=f"lie outside of the image, x 0 to 96 and y 0 to {end}"):
        tilenet.segment(tmp_path / "slide.tif", **OPTIONS | how)


def test_a_part_without_any_region_is_all_background_and_says_so(slide, drawn, caplog):
    mask = tilenet.segment(slide, tissue=drawn, roi="700:900,:400", **OPTIONS)
    assert not mask.any()
    assert f"tissue in the 2 regions of {drawn}: there is none in what is segmented, so that all" in caplog.text


def test_the_command_says_how_much_lies_outside_of_the_regions(slide, tmp_path, tilenet_command):
    small = tilenet.save_model(tilenet.UNet(depth=2, wf=1), tmp_path / "small.safetensors")
    unnamed = {"type": "Feature", "geometry": feature([rectangle(600, 310, 900, 600)])["geometry"]}
    path = write_regions(tmp_path / "Regions.GeoJSON", [unnamed])
    how = (slide, "-m", small, "--tile", 256, "--threads", 1, "--tissue", path)
    code, out, _ = tilenet_command("plan", *how)
    blocks = "7 of 9 blocks are skipped, 68% of the pixels"
    assert code == 0 and f"tissue      in the region of {path}: {blocks}" in out
    code, out, err = tilenet_command("segment", *how, "-o", tmp_path / "m.zarr")
    assert code == 0 and ", 68% skipped outside of the regions, " in out
    assert f"{slide}: tissue in the region of {path}: {blocks}" in err and "without name" not in err
    code, out, _ = tilenet_command("segment", *how, "-o", tmp_path / "j.zarr", "--json")
    assert code == 0 and json.loads(out)["tissue"]["regions"] == 1
    code, out, _ = tilenet_command("verify", tmp_path / "m.zarr")
    assert code == 0 and "as the network gives" in out
    picture = ("overlay", slide, tmp_path / "m.zarr", "--tissue", "--within", path, "--out", tmp_path / "o.png")
    assert tilenet_command(*picture)[0] == 0


def test_what_was_looked_at_only_in_regions_has_no_density_of_the_whole_slide(slide, tmp_path, tilenet_command):
    path = write_regions(tmp_path / "regions.geojson", [feature([rectangle(600, 310, 900, 600)])])
    mask = tilenet.segment(slide, tmp_path / "m.zarr", objects=True, tissue=path, **OPTIONS)
    found = write_table(mask, tmp_path / "m.csv")
    lines = [line for line in lines_of(tmp_path / "m.csv") if line["class"] == "class 1"]
    with_centre = [line for line in lines if mask.tissue.holds(int(float(line["y"])), int(float(line["x"])))]
    assert 0 < len(with_centre) == found.in_tissue["class 1"] < len(lines) == found.counts["class 1"]
    assert found.per_mm2 == {}
    density = len(with_centre) / found.tissue_mm2
    assert found.per_mm2_of_tissue == {"class 1": pytest.approx(density)}
    command = ("export", mask.path, "--csv", tmp_path / "m.csv", "--overwrite")
    code, out, _ = tilenet_command(*command)
    per = f"{density:.3g} per mm2, {found.tissue_mm2:.4g} mm2"
    counted = f"{len(lines)} class 1 objects, {len(with_centre)} class 1 objects in the drawn regions"
    assert code == 0 and out == f"{tmp_path / 'm.csv'}: {counted} ({per})\n"
    code, out, _ = tilenet_command(*command, "--json")
    assert code == 0 and json.loads(out)["csv"]["per_mm2"] == {}


def test_a_list_names_the_regions_of_each_image(slide, tmp_path):
    (tmp_path / "day1").mkdir()
    write_regions(tmp_path / "day1" / "a.geojson", [RING])
    write_regions(tmp_path / "day1" / "b.geojson", [SPECK])
    (tmp_path / "list.csv").write_text(
        "image,name,tissue\nslide.tif,a,day1/a.geojson\nslide.tif,b,day1/b.geojson\nslide.tif,c,day1/c.geojson\n"
    )
    results = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", **OPTIONS)
    assert [r.status for r in results] == ["done", "done", "failed"]
    assert 0 < results[1].tissue < results[0].tissue < 1
    assert "c.geojson: does not exist" in results[2].error
    with (tmp_path / "masks" / "summary.csv").open(newline="") as file:
        assert [row["tissue"] for row in csv.DictReader(file)] == [*(str(r.tissue) for r in results[:2]), ""]


def test_regions_of_one_image_are_not_taken_for_the_tissue_of_several(slide, drawn, tmp_path, tilenet_command):
    other = slide.with_name("other.tif")
    other.write_bytes(slide.read_bytes())
    said = f"{drawn}: holds the regions of one image, and would be the tissue of 2. Name those of each in a .csv list"
    with pytest.raises(SettingsError, match=re.escape(said)):
        tilenet.batch([slide, other], tmp_path / "masks", tissue=drawn, **OPTIONS)
    assert not (tmp_path / "masks").exists()
    code, _, err = tilenet_command("plan", slide, other, "--tissue", drawn)
    assert code == 2 and said in err
    (result,) = tilenet.batch([slide], tmp_path / "masks", tissue=drawn, **OPTIONS)
    assert 0 < result.tissue < 1


def test_regions_drawn_on_a_real_slide_are_segmented_and_the_rest_is_not(shared_data, tmp_path):
    slide = shared_data("slides/CMU-1-Small-Region.svs")
    around = shapely.Point(1500, 700).buffer(330).difference(shapely.Point(1500, 700).buffer(100))
    drawn = [as_feature(around, name="Tumor"), feature([rectangle(2150, 2300, 2400, 2560)], name="Edge")]
    path = write_regions(tmp_path / "regions.geojson", drawn)
    model = tilenet.UNet(depth=2, wf=1, in_channels=3).eval()
    how = {"model": model, "tile": 128, "threads": 1, "mpp": 1.0}
    plain, mask = tilenet.segment(slide, **how), tilenet.segment(slide, tmp_path / "m.zarr", tissue=path, **how)
    computed = mask.layout.block_has_tissue_at(*map(np.arange, mask.shape))
    assert np.array_equal(mask[...], np.where(computed, plain, 0)) and 0.05 < computed.mean() < 0.5
    # Every pixel whose middle was drawn.
    step = 1.0 / 0.499
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] * step + step / 2
    inside = shapely.intersects_xy(shapely.unary_union([shapely.geometry.shape(f["geometry"]) for f in drawn]), x, y)
    assert inside.sum() > 50_000 and computed[inside].all()
    assert mask.tissue.at(*map(np.arange, mask.shape))[inside].all()
