"""Sizes and places where the last pixels of a coarser mask reach beyond its image."""

import json
from dataclasses import replace

import numpy as np
import pytest
import shapely
import zarr
from contents import lines_of
from drawn_regions import feature, rectangle, write_regions
from pyramids import write_pyramid
from scipy import ndimage as ndi
from skimage.measure import regionprops
from stub import Bright3D, Threshold

import tilenet
from tilenet.export.areas import MinimumSize, cut_size, um_of
from tilenet.export.table import read_table, write_table
from tilenet.export.totals_table import write_counts

UM = 0.5
WAYS = [{"level": 1}, {"mpp": 0.8}, {"mpp": 3.0}, {"mpp": 1.7, "roi": "5:,:40"}, {"level": 1, "roi": "10:,20:"}]


@pytest.fixture
def slide(tmp_path):
    """Return a slide whose sides are no multiples of 4, with a coarser level that has the rest, and blobs."""
    noise = ndi.gaussian_filter(np.random.default_rng(5).normal(size=(141, 187)), 3)
    pixels = np.where(noise > 0, 200, 0).astype(np.uint8)
    pixels[60:90, 170:], pixels[120:, 100:140], pixels[139:, 185:] = 200, 200, 200
    return write_pyramid(tmp_path / "s.tif", pixels, step=4, um=(UM, UM), tile=32)


def polygons_of(path):
    """Return the polygons of a GeoJSON file by their ids, in pixels of the image."""
    features = json.loads(path.read_text())["features"]
    return {feature["id"]: shapely.geometry.shape(feature["geometry"]) for feature in features}


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_areas_and_centroids_of_a_coarser_mask_are_those_of_its_polygons_which_the_image_cuts(
    slide, tmp_path, how, objects
):
    mask = tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), objects=objects, **how)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    polygons, lines = polygons_of(tmp_path / "m.geojson"), lines_of(tmp_path / "m.csv")
    assert len(lines) == len(polygons) > 2
    for line in lines:
        polygon = polygons[line["id"]]
        assert float(line["area_um2"]) == pytest.approx(polygon.area * UM**2, abs=0.01)
        centre = polygon.centroid if polygon.area else polygon.envelope
        assert (float(line["x"]), float(line["y"])) == pytest.approx(centre.coords[0], abs=0.002)
    assert sum(int(line["area_px"]) for line in lines) == (np.asarray(mask) > 0).sum()
    covered = sum(polygon.area for polygon in polygons.values()) * UM**2
    (name,) = found.counts
    assert found.covered_um(name) == pytest.approx(covered, rel=1e-4)
    assert found.covered_um(name) < found.area_px[name] * found.pixel_um2 - 1 or "40" in how.get("roi", "")


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_region_around_the_whole_of_a_coarser_mask_is_as_large_as_what_was_segmented(slide, tmp_path, how):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), objects=True, **how)
    around = write_regions(tmp_path / "r.geojson", [feature([rectangle(0, 0, 187, 141)])])
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", within=around)
    if "roi" not in how:
        assert found.mm2 == pytest.approx(141 * 187 * UM**2 / 1e6, rel=1e-12)
    assert found.regions[0].mm2 == pytest.approx(found.mm2, rel=1e-9)
    assert found.regions[0].per_mm2 == pytest.approx(found.per_mm2)
    write_counts(tmp_path / "c.csv", {"m": found})
    whole, region = lines_of(tmp_path / "c.csv")
    assert (whole["mm2"], whole["per_mm2"]) == (region["mm2"], region["per_mm2"])
    assert float(whole["covered_share"]) == pytest.approx(
        float(whole["covered_um2"]) / float(whole["mm2"]) / 1e6, abs=2e-6
    )


def test_the_pixels_of_a_coarser_mask_that_lie_on_the_image_are_those_that_count(slide, tmp_path):
    mask = tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), level=1, objects=True)
    write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    lines = {int(line["object"]): line for line in lines_of(tmp_path / "m.csv")}
    fine = np.kron(np.asarray(mask), np.ones((4, 4), np.int64))[:141, :187]
    for region in regionprops(fine):
        line, (y, x) = lines.pop(region.label), region.centroid
        assert float(line["area_um2"]) == region.area * UM**2
        assert (float(line["x"]), float(line["y"])) == pytest.approx((x + 0.5, y + 0.5), abs=6e-4)
    assert not lines


@pytest.mark.parametrize("um", [2.502, 2.503, "2.503", 2.6, 2.501, "2.501", 0.0, ""])
def test_a_shape_is_cut_where_the_table_says_less_than_its_pixels_to_the_digits_of_a_table(um):
    whole = um_of(10, 0.25025)
    assert whole == 2.502 and um_of(10, None) == ""
    assert cut_size(10, 0.25025, um) == (float(um) if um != "" and float(um) < whole else None)
    assert cut_size(10, None, um) is None


@pytest.mark.parametrize(
    ("least", "pixels", "cut", "small"),
    [
        (MinimumSize(), 0, None, False),
        (MinimumSize(10), 10, 0.1, False),
        (MinimumSize(10), 9, 99.0, True),
        (MinimumSize(10, 2.5), 10, None, False),
        (MinimumSize(10, 2.5), 9, None, True),
        (MinimumSize(10, 2.5), 11, 2.499, True),
        (MinimumSize(10, 2.5), 9, 2.5, False),
    ],
)
def test_a_least_area_is_compared_with_that_of_a_cut_shape_and_else_with_its_pixels(least, pixels, cut, small):
    assert least.excludes(pixels, cut) == small


def test_a_least_area_compares_the_part_on_the_image_and_a_least_number_of_pixels_the_pixels(slide, tmp_path):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), level=1, objects=True)
    write_table(tmp_path / "m.zarr", tmp_path / "all.csv")
    lines = lines_of(tmp_path / "all.csv")
    cut = [line for line in lines if float(line["area_um2"]) < int(line["area_px"]) * (4 * UM) ** 2]
    assert cut
    for line in cut:
        between = (float(line["area_um2"]) + int(line["area_px"]) * (4 * UM) ** 2) / 2
        for least, kept in (
            (f"{between}um2", [one for one in lines if float(one["area_um2"]) >= between]),
            (f"{line['area_px']}px", [one for one in lines if int(one["area_px"]) >= int(line["area_px"])]),
        ):
            found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", min_area=least, overwrite=True)
            assert lines_of(tmp_path / "m.csv") == kept and found.left_out == len(lines) - len(kept)
            polygons = tilenet.write_geojson(
                tmp_path / "m.zarr", tmp_path / "m.geojson", min_area=least, overwrite=True
            )
            assert (polygons.features, polygons.left_out) == (found.counts, found.left_out)
            again = read_table(tmp_path / "m.zarr", tmp_path / "all.csv", min_area=least)
            assert replace(again, path=found.path) == found


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("tissue", [None, np.ones((3, 3), np.uint8), np.eye(12, 16, dtype=np.uint8)])
def test_a_table_that_is_read_again_says_the_same_of_a_coarser_mask(slide, tmp_path, how, tissue):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), tissue=tissue, objects=True, **how)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    assert read_table(tmp_path / "m.zarr", tmp_path / "m.csv") == found
    if tissue is not None and tissue.all():
        assert found.tissue_mm2 == pytest.approx(found.mm2, rel=1e-12)


def test_the_area_of_tissue_is_that_on_the_image(slide, tmp_path):
    right = np.zeros((1, 2), np.uint8)
    right[:, 1] = 1  # of 47 columns of 4 px the last 23, less 1 px of the last one
    tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), level=1, tissue=right)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    columns = np.repeat(np.arange(47) * 2 // 47 == 1, 4)[:187].sum()
    assert found.tissue_mm2 == pytest.approx(141 * columns * UM**2 / 1e6, rel=1e-12)


def test_a_batch_whose_image_is_gone_counts_whole_pixels_and_warns(slide, tmp_path, caplog):
    counting = {"model": Threshold(), "objects": True, "table": True, "mpp": 1.7}
    tilenet.batch([slide], tmp_path / "masks", **counting)
    (before,) = lines_of(tmp_path / "masks" / "counts.csv")
    assert float(before["mm2"]) == pytest.approx(141 * 187 * UM**2 / 1e6)
    tilenet.batch([slide], tmp_path / "masks", **counting)
    assert lines_of(tmp_path / "masks" / "counts.csv") == [before] and "whole pixels" not in caplog.text
    slide.unlink()
    (result,) = tilenet.batch([str(slide)], tmp_path / "masks", **counting)
    (after,) = lines_of(tmp_path / "masks" / "counts.csv")
    assert result.status == "failed" and after["count"] == before["count"]
    assert float(before["mm2"]) < float(after["mm2"]) < 1.03 * float(before["mm2"])
    assert "s.zarr: areas and densities are those of whole pixels of the mask, the last of which" in caplog.text


@pytest.mark.parametrize("how", [{}, {"objects": True}], ids=str)
def test_what_lies_wholly_beyond_the_image_is_left_out_of_tables_and_polygons_and_said(tmp_path, caplog, how):
    pixels = np.zeros((301, 101), np.uint8)
    pixels[2:290, 97:], pixels[20:90, 20:60] = 200, 200
    # Column 25 of the second level begins at 100, and holds 4; column 17 of the mask begins at 102.
    write_pyramid(tmp_path / "s.tif", pixels, step=4, um=(UM, UM), tile=32)
    mask = tilenet.segment(tmp_path / "s.tif", tmp_path / "m.zarr", model=Threshold(), mpp=3.0, **how)
    assert np.asarray(mask)[:, 17].any() and not np.asarray(mask)[:, 16].any()
    polygons = tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    assert caplog.text.count("m.zarr: 1 of its outlines lie") == 1
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", geojson=tmp_path / "beside.geojson")
    assert caplog.text.count("m.zarr: 1 of its outlines lie") == 2
    assert polygons.features == found.outlined.features == found.counts and found.counts.total() == 1
    assert (tmp_path / "beside.geojson").read_bytes() == (tmp_path / "m.geojson").read_bytes()
    (line,), (polygon,) = lines_of(tmp_path / "m.csv"), polygons_of(tmp_path / "m.geojson").values()
    assert float(line["area_um2"]) == polygon.area * UM**2 > 0
    assert int(line["area_px"]) == found.area_px.total() == (np.asarray(mask)[:, :16] > 0).sum()
    assert read_table(tmp_path / "m.zarr", tmp_path / "m.csv") == replace(found, outlined=None)


def test_volumes_at_a_coarser_pixel_size_are_those_on_the_image(tmp_path):
    volume = np.zeros((4, 61, 73), np.uint8)
    volume[1:3, 40:, 50:], volume[:2, 5:20, 5:20] = 200, 200
    tilenet.segment(
        *(volume, tmp_path / "v.zarr"),
        **{"axes": "zyx", "model": Bright3D(), "objects": True, "pixel_size": (2, UM, UM), "mpp": 0.8},
    )
    found = write_table(tmp_path / "v.zarr", tmp_path / "v.csv", image=volume)
    assert found.mm3 == pytest.approx(volume.size * 2 * UM**2 / 1e9, rel=1e-12)
    inner, cut = lines_of(tmp_path / "v.csv")
    assert float(inner["volume_um3"]) == round(int(inner["volume_px"]) * found.voxel_um3, 3)
    left, top, right, bottom = (float(cut[side]) for side in ("left", "top", "right", "bottom"))
    assert (right, bottom) == (73, 61)
    assert float(cut["volume_um3"]) == pytest.approx((right - left) * (bottom - top) * UM**2 * 2 * 2, abs=0.01)
    assert (float(cut["x"]), float(cut["y"])) == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.001)


@pytest.mark.parametrize("roi", [None, "1:,:,:", ":2,:,:"])
def test_the_last_plane_of_a_coarser_level_counts_as_far_as_it_lies_in_the_stack(tmp_path, roi):
    volume = np.zeros((5, 40, 50), np.uint8)
    volume[1:, 10:20, 10:20], volume[:2, 30:40, 30:40] = 200, 200
    sizes = [(2, UM, UM), (4, 2 * UM, 2 * UM)]
    group = zarr.create_group(tmp_path / "v.zarr", zarr_format=3)
    for k, pixels in enumerate((volume, volume[::2, ::2, ::2])):
        group.create_array(str(k), data=pixels, chunks=pixels.shape)
    steps = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": list(size)}]}
        for k, size in enumerate(sizes)
    ]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "v", "axes": axes, "datasets": steps}]}
    how = {"model": Bright3D(), "objects": True, "level": 1, "roi": roi}
    mask = tilenet.segment(tmp_path / "v.zarr", tmp_path / "m.zarr", **how)
    found, first = write_table(tmp_path / "m.zarr", tmp_path / "m.csv"), 1 if roi == "1:,:,:" else 0
    # Planes 0, 1 and 2 of the level are 0 to 1, 2 to 3, and 4 of the stack.
    fine = np.kron(np.asarray(mask), np.ones((2, 2, 2), np.int64))[: 5 - 2 * first]
    assert found.mm3 == pytest.approx(fine.size * 2 * UM**2 / 1e9)
    for region, line in zip(regionprops(fine), lines_of(tmp_path / "m.csv"), strict=True):
        assert float(line["volume_um3"]) == region.area * 2 * UM**2
        assert float(line["z"]) == pytest.approx((region.centroid[0] + 0.5) / 2 + first, abs=6e-4)
    assert read_table(tmp_path / "m.zarr", tmp_path / "m.csv") == found


def test_a_real_slide_has_one_area_and_its_regions_those_of_their_polygons(shared_data, tmp_path):
    slide, um2 = shared_data("slides/OS-1-detail_HE.ome.tif"), 0.227102 * 0.227097
    tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), mpp=0.5, channels=[0])
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    assert found.mm2 == pytest.approx(1101 * 1101 * um2 / 1e6, rel=1e-5)
    tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    polygons = polygons_of(tmp_path / "m.geojson")
    lines = lines_of(tmp_path / "m.csv")
    assert sum(float(line["right"]) == 1101 for line in lines) > 3
    for line in lines:
        assert float(line["area_um2"]) == pytest.approx(polygons[line["id"]].area * um2, rel=1e-4, abs=1e-3)
