"""Tissue in regions that a user drew: its area, and what lies in it, pixel by pixel."""

import json

import numpy as np
import pytest
import shapely
from contents import lines_of
from drawn_regions import feature, square, write_regions
from pyramids import write_pyramid
from scipy import ndimage as ndi
from stub import Bright

import tilenet
from tilenet.export.table import read_table, write_table

RANDOM = np.random.default_rng(5)
BLOBS = ndi.gaussian_filter(RANDOM.normal(size=(261, 343)), 3)
PIXELS = np.where(BLOBS > np.quantile(BLOBS, 0.75), 255, 0).astype(np.uint8)
# A map of tissue of one's own, whose cells are no whole pixels.
TISSUE = (ndi.gaussian_filter(RANDOM.normal(size=(23, 31)), 1) > 0).astype(np.uint8)
ANGLES = np.linspace(0, 2 * np.pi, 90)
STAR = np.stack([150 + 90 * np.cos(ANGLES) * (1 + 0.3 * np.sin(5 * ANGLES)), 120 + 80 * np.sin(ANGLES)], axis=1)
STAR[-1] = STAR[0]
FEATURES = [
    feature([STAR.tolist(), square(120, 90, 50)], name="star"),
    feature([[square(10, 180, 60)], [square(200, 150, 90), square(220, 170, 20)]], "MultiPolygon", name="two"),
    feature([square(300, 220, 80)], name="leaving"),
    feature([square(-10, -10, 400)], name="all"),
]
UM = (0.5, 0.5)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("slides") / "slide.tif", PIXELS, um=UM, tile=32)


@pytest.mark.parametrize("how", [{}, {"level": 1}, {"roi": "20:,70:"}, {"mpp": 1.1}, {"mpp": 1.1, "roi": "9:,:"}])
def test_areas_and_counts_are_those_found_pixel_by_pixel(slide, tmp_path, how):
    out = tmp_path / "m.zarr"
    mask = tilenet.segment(slide, out, model=Bright(), objects=True, tissue=TISSUE, **how)
    found = write_table(out, tmp_path / "m.csv", within=write_regions(tmp_path / "r.geojson", FEATURES))
    # The pixels of the mask, where they lie in the slide.
    step, origin = np.array(mask.pixel_size) / UM, np.array(mask.origin)
    rows, columns = (
        np.minimum(np.arange(first, first + n + 1) * by, end)
        for first, n, by, end in zip(origin, mask.shape, step, PIXELS.shape, strict=True)
    )
    tissue = mask.tissue.at(*(np.arange(first, first + n) for first, n in zip(origin, mask.shape, strict=True)))
    assert 0.2 < tissue.mean() < 0.8
    boxes = shapely.box(*np.meshgrid(columns[:-1], rows[:-1]), *np.meshgrid(columns[1:], rows[1:]))
    lines = lines_of(tmp_path / "m.csv")
    for region, drawn in zip(found.regions, FEATURES, strict=True):
        area = shapely.geometry.shape(drawn["geometry"])
        mm2 = shapely.area(shapely.intersection(area, boxes))[tissue].sum() * np.prod(UM) / 1e6
        assert region.tissue_mm2 == pytest.approx(mm2, rel=1e-9) and 0 < mm2 < region.mm2
        inside = 0
        for x, y in ((float(line["x"]), float(line["y"])) for line in lines):
            at = np.minimum(np.array([y, x]) / step - origin, np.array(mask.shape) - 1).astype(int)
            inside += bool(tissue[tuple(at)]) and area.intersects(shapely.Point(x, y))
        assert region.in_tissue["class 1"] == inside <= region.counts["class 1"]
        assert region.per_mm2_of_tissue == {"class 1": pytest.approx(inside / mm2)}
    whole = found.regions[-1]
    assert (whole.counts, whole.in_tissue) == (found.counts, found.in_tissue)
    assert (whole.mm2, whole.tissue_mm2) == pytest.approx((found.mm2, found.tissue_mm2))
    assert sum(region.in_tissue != region.counts for region in found.regions) > 2


def test_the_command_prints_and_writes_the_density_of_tissue_of_each_region(slide, tmp_path, tilenet_command):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Bright(), objects=True, tissue=TISSUE)
    drawn = write_regions(tmp_path / "r.geojson", [FEATURES[0], feature([square(0, 0, 4)], name="glass")])
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=drawn)
    star, glass = found.regions
    assert glass.tissue_mm2 == 0 and glass.per_mm2_of_tissue == {} and glass.mm2
    command = ("export", tmp_path / "m.zarr", "--csv", tmp_path / "m.csv", "--within", drawn, "--overwrite")
    code, out, err = tilenet_command(*command, "--counts", tmp_path / "c.csv")
    assert code == 0, err
    per, of_tissue = star.per_mm2["class 1"], star.per_mm2_of_tissue["class 1"]
    assert f"\n  star, {star.mm2:.4g} mm2 ({star.tissue_mm2:.4g} mm2 of tissue): " in out
    assert f" class 1 objects ({per:,.0f} per mm2, {of_tissue:,.0f} per mm2 of tissue)\n" in out
    assert out.endswith("(0 mm2 of tissue): 0 class 1 objects (0 per mm2)\n")
    _, first, second = lines_of(tmp_path / "c.csv")
    assert float(first["tissue_mm2"]) == pytest.approx(star.tissue_mm2, rel=1e-5)
    assert (int(first["in_tissue"]), float(first["per_mm2_of_tissue"])) == (
        *(star.in_tissue["class 1"], pytest.approx(of_tissue, abs=1e-3)),
    )
    assert (second["tissue_mm2"], second["in_tissue"], second["per_mm2_of_tissue"]) == ("0.0", "0", "")
    region = json.loads(tilenet_command(*command, "--json")[1])["csv"]["regions"][0]
    assert (region["in_tissue"], region["tissue_mm2"]) == (star.in_tissue, star.tissue_mm2)
    assert region["per_mm2_of_tissue"]["class 1"] == pytest.approx(of_tissue, abs=0.01)


def test_regions_of_a_mask_without_a_map_have_no_tissue(slide, tmp_path, tilenet_command):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Bright(), objects=True)
    drawn = write_regions(tmp_path / "r.geojson", FEATURES[:1])
    command = ("export", tmp_path / "m.zarr", "--csv", tmp_path / "m.csv", "--within", drawn)
    code, out, _ = tilenet_command(*command, "--counts", tmp_path / "c.csv", "--json")
    assert code == 0 and "tissue" not in out
    assert {line["tissue_mm2"] + line["in_tissue"] for line in lines_of(tmp_path / "c.csv")} == {""}


def test_a_batch_has_the_tissue_of_its_regions(slide, tmp_path):
    write_regions(tmp_path / "r.geojson", FEATURES[:2])
    (tmp_path / "list.csv").write_text(f"image,within\n{slide},r.geojson\n")
    how = {"model": Bright(), "objects": True, "table": True, "tissue": TISSUE}
    (result,) = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", **how)
    assert result.status == "done", result.error
    mask = tmp_path / "masks" / "slide.zarr"
    alone = write_table(mask, tmp_path / "m.csv", within=tmp_path / "r.geojson")
    lines = lines_of(tmp_path / "masks" / "counts.csv")[1:]
    said = [(line["region"], int(line["in_tissue"]), float(line["tissue_mm2"])) for line in lines]
    assert said == [
        (region.name, region.in_tissue["class 1"], pytest.approx(region.tissue_mm2, rel=1e-5))
        for region in alone.regions
    ]
    assert read_table(mask, tmp_path / "m.csv").regions == []
