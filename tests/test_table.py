"""Tables of a mask: what scikit-image measures of its labels, whatever the strips."""

import json

import numpy as np
import pytest
import tifffile
from contents import lines_of
from pyramids import write_pyramid
from scipy import ndimage as ndi
from skimage.measure import label, regionprops
from stub import Bright, Bright3D, shades

import tilenet
from tilenet.errors import BlocksFailed, OutputExists, OutputMismatch, SettingsError
from tilenet.export import shapes
from tilenet.export.areas import parse_area, pixels_of_area
from tilenet.export.table import COLUMNS, read_table, write_table
from tilenet.export.totals_table import write_counts

RANDOM = np.random.default_rng(0)
# Blobs with holes, of two classes, at every border.
PIXELS = (np.kron(RANDOM.integers(0, 3, (13, 17)), np.ones((9, 7))) * 100).astype(np.uint8)


def write_slide(path, pixels):
    size = {"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}  # 0.5 um along x, 1 along y
    tifffile.imwrite(path, pixels, tile=(32, 32), **size)
    return path


@pytest.mark.parametrize("strip", [1, 500, 2**24])
def test_lines_are_what_scikit_image_measures(tmp_path, monkeypatch, strip):
    monkeypatch.setattr(shapes, "STRIP", strip)
    mask = tilenet.segment(write_slide(tmp_path / "s.tif", PIXELS), tmp_path / "m.zarr", model=shades)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    expected = set()
    for value, name in ((1, "grey"), (2, "bright")):
        for region in regionprops(label(np.asarray(mask) == value, connectivity=1)):
            y, x = (round(float(at) + 0.5, 3) for at in region.centroid)
            top, left, bottom, right = region.bbox
            expected.add((name, x, y, int(region.area), region.area * 0.5, left, top, right, bottom))
    lines = lines_of(tmp_path / "m.csv")
    assert tuple(lines[0]) == COLUMNS
    numbers = (*("x", "y", "area_px", "area_um2"), *("left", "top", "right", "bottom"))
    assert {(line["class"], *(float(line[name]) for name in numbers)) for line in lines} == expected
    assert len(expected) == len(lines) == sum(found.counts.values()) > 40
    assert found.area_px == {name: int((np.asarray(mask) == k).sum()) for k, name in ((1, "grey"), (2, "bright"))}
    assert found.per_mm2["grey"] == pytest.approx(found.counts["grey"] / (PIXELS.size * 0.5e-6))


def test_an_object_is_one_line_however_many_regions_it_has(tmp_path):
    slide = write_slide(tmp_path / "s.tif", PIXELS)
    mask = tilenet.segment(slide, tmp_path / "m.zarr", model=Bright(), objects=True)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    lines = lines_of(tmp_path / "m.csv")
    labels = np.asarray(mask)
    assert found.objects and {int(line["object"]) for line in lines} == set(np.unique(labels)) - {0}
    for line in lines:
        _, x = np.nonzero(labels == int(line["object"]))
        assert (int(line["area_px"]), float(line["x"])) == (len(x), round(x.mean() + 0.5, 3))
    polygons = tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson")
    assert polygons.features == found.counts
    text = (tmp_path / "m.geojson").read_text()
    assert all(f'"id":"{line["id"]}"' in text for line in lines)


def test_an_object_of_a_volume_is_one_line_of_voxels(tmp_path, tilenet_command):
    volume = np.zeros((8, 60, 70), np.uint8)
    volume[1:6, 5:25, 10:40] = 200
    volume[3, 20:50, 45:60] = 200
    volume[6:8, 30:58, 5:30] = 200
    mask = tilenet.segment(volume, tmp_path / "m.zarr", axes="zyx", model=Bright3D(), objects=True)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    expected = set()
    for region in regionprops(np.asarray(mask)):
        z, y, x = (round(float(at) + 0.5, 3) for at in region.centroid)
        front, top, left, back, bottom, right = region.bbox
        expected.add((region.label, z, y, x, int(region.area), left, top, right, bottom, front, back))
    lines = lines_of(tmp_path / "m.csv")
    names = ("object", *"zyx", "volume_px", "left", "top", "right", "bottom", "front", "back")
    assert {tuple(float(line[name]) for name in names) for line in lines} == expected
    assert found.volumes and len(lines) == sum(found.counts.values()) == 3
    assert found.area_px == {"foreground": (np.asarray(mask) > 0).sum()}
    assert {line["area_px"] for line in lines} == {""}
    code, out, _ = tilenet_command("export", tmp_path / "m.zarr", "--geojson", tmp_path / "m.geojson")
    assert code == 0
    assert "8 foreground outlines in planes" in out


def test_a_volume_of_known_voxels_has_objects_for_each_mm3(tmp_path):
    volume = np.zeros((4, 30, 40), np.uint8)
    volume[1:3, 5:20, 10:30] = 200
    path, size = tmp_path / "v.ome.tif", {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2}
    tifffile.imwrite(path, volume, metadata={"axes": "ZYX"} | size, ome=True)
    tilenet.segment(path, tmp_path / "m.zarr", model=Bright3D(), objects=True)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    (line,) = lines_of(tmp_path / "m.csv")
    assert (float(line["volume_px"]), float(line["volume_um3"])) == (600, 300)
    assert found.per_mm2 == {} and found.per_mm3 == {"foreground": pytest.approx(1e9 / (4 * 30 * 40 * 0.5))}
    assert (found.mm2, found.mm3) == (None, pytest.approx(4 * 30 * 40 * 0.5 / 1e9))
    write_counts(tmp_path / "c.csv", {"m": found})
    (line,) = lines_of(tmp_path / "c.csv")
    assert (line["mm2"], line["mm3"], line["per_mm3"]) == ("", "2.4e-06", str(round(1e9 / (4 * 30 * 40 * 0.5), 3)))


def test_what_a_part_holds_is_placed_in_the_whole_plane_by_plane(tmp_path):
    stack = np.stack([PIXELS, PIXELS[::-1]])
    part = {"axes": "zyx", "model": shades}
    tilenet.segment(stack, tmp_path / "m.zarr", roi=np.s_[1:, 20:60, 30:90], **part)
    write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    lines = lines_of(tmp_path / "m.csv")
    assert {line["z"] for line in lines} == {"1"} and {line["area_um2"] for line in lines} == {""}
    for line in lines:
        left, top, right, bottom = (int(line[side]) for side in ("left", "top", "right", "bottom"))
        assert 30 <= left < right <= 90 and 20 <= top < bottom <= 60
        value = {"grey": 100, "bright": 200}[line["class"]]
        assert (stack[1, top:bottom, left:right] == value).sum() >= int(line["area_px"]) > 0


@pytest.mark.parametrize("said", ["20um2", "20 um2", "20 UM2", "20um²", "20 µm²", " 20 µm^2", "20 μm2"])
def test_an_area_may_be_written_as_people_write_it(said):
    assert parse_area(said) == (20, "um2")


@pytest.mark.parametrize("said", ["20um", "20,5um2", "um2", "-20um2", "20mm2", "2²um2^"])
def test_what_is_no_area_is_refused(said):
    with pytest.raises(SettingsError, match="give pixels of the mask, such as 80px, or an area, such as 20um2"):
        parse_area(said)


@pytest.mark.parametrize(
    ("area", "volumes", "sizes", "pixels"),
    [
        ("20um2", False, (0.5, 0.25), 160),
        ("20um2", False, (3.0, 0.5, 0.25), 160),  # of the planes of a stack
        ("20um2", False, (1.0, None, 0.5, 0.25), 160),
        ("20um3", True, (1.0, 2.0, 0.5, 0.25), 80),
        ("20px", True, (None, None, None), 20),
        (20, False, (None, None), 20),
    ],
)
def test_an_area_is_as_many_pixels_as_fill_it_in_a_plane_and_a_volume_as_many_voxels(area, volumes, sizes, pixels):
    assert pixels_of_area(area, "m.zarr", sizes, volumes=volumes) == pixels


@pytest.mark.parametrize("unknown", [(0.5, None), (None, 0.5), (2.0, None, 0.5)])
def test_an_area_of_pixels_of_unknown_size_is_refused(unknown):
    with pytest.raises(SettingsError, match=r"m\.zarr: the size of its pixels is unknown\. Give the area in them"):
        pixels_of_area("20um2", "m.zarr", unknown, volumes=False)


def test_with_a_map_of_tissue_there_is_a_density_of_what_lies_in_it(tmp_path, tilenet_command):
    pixels = np.zeros((128, 200), np.uint8)
    # The third lies outside of the tissue, in the block that is computed for the others; the fourth only its left half.
    pixels[20:30, 20:30] = pixels[60:70, 50:60] = pixels[40:50, 140:150] = pixels[80:90, 75:87] = 255
    tifffile.imwrite(tmp_path / "i.tif", pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER")  # 0.5 um
    tissue = np.zeros((128, 200), np.uint8)
    tissue[:, :80] = 1  # of cells of 16 px
    out = tmp_path / "m.zarr"
    tilenet.segment(tmp_path / "i.tif", out, model=Bright(), tissue=tissue, roi="0:96,16:176", threads=1)
    code, said, err = tilenet_command("export", out, "--csv", tmp_path / "m.csv", "--json")
    assert code == 0, err
    facts = json.loads(said)["csv"]
    (name,) = facts["counts"]
    share = tissue[0:96, 16:176].mean()
    assert share == 0.4
    assert (facts["counts"], facts["in_tissue"]) == ({name: 4}, {name: 2})
    assert facts["per_mm2"][name] == pytest.approx(4 / (96 * 160 * 0.25e-6), abs=0.01)
    assert facts["per_mm2_of_tissue"][name] == pytest.approx(2 / (96 * 160 * 0.25e-6 * share), abs=0.01)
    _, said, _ = tilenet_command("export", out, "--csv", tmp_path / "m.csv", "--overwrite")
    assert " per mm2 of tissue, 0.001536 mm2)" in said and facts["tissue_mm2"] == pytest.approx(0.001536)
    assert read_table(out, tmp_path / "m.csv") == write_table(out, tmp_path / "m.csv", overwrite=True)
    assert read_table(out, tmp_path / "m.csv", min_area="31um2").in_tissue == {name: 0}


@pytest.mark.parametrize("how", [{"level": 1}, {"mpp": 1.5}, {"mpp": 1.5, "roi": "5:40,10:"}])
def test_what_lies_in_tissue_is_the_same_at_any_resolution(tmp_path, how):
    random = np.random.default_rng(3)
    pixels = np.kron(random.integers(0, 2, (10, 15), np.uint8) * 255, np.ones((16, 16), np.uint8)).astype(np.uint8)
    write_pyramid(tmp_path / "s.tif", pixels, um=(0.5, 0.5), tile=32)
    tissue = np.kron(random.integers(0, 2, (5, 5)), np.ones((32, 48), np.uint8)).astype(np.uint8)
    tilenet.segment(tmp_path / "s.tif", tmp_path / "m.zarr", model=shades, tissue=tissue, **how)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    places = [(float(line["x"]), float(line["y"])) for line in lines_of(tmp_path / "m.csv")]
    inside = sum(int(tissue[int(y), int(x)]) for x, y in places)
    assert sum(found.in_tissue.values()) == inside and 0 < inside < len(places)
    assert read_table(tmp_path / "m.zarr", tmp_path / "m.csv") == found


def test_only_a_table_of_tilenet_s_is_replaced(tmp_path):
    tilenet.segment(PIXELS, tmp_path / "m.zarr", model=shades)
    (tmp_path / "mine.csv").write_text("x,y\n1,2\n")
    with pytest.raises(OutputExists, match="not a table that tilenet wrote"):
        write_table(tmp_path / "m.zarr", tmp_path / "mine.csv", overwrite=True)
    write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    with pytest.raises(OutputExists, match="exists already"):
        write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    before = (tmp_path / "m.csv").read_bytes()
    write_table(tmp_path / "m.zarr", tmp_path / "m.csv", overwrite=True)
    assert (tmp_path / "m.csv").read_bytes() == before
    assert (tmp_path / "mine.csv").read_text() == "x,y\n1,2\n"


def test_the_command_says_how_many_there_are_and_that_regions_are_no_objects(tmp_path, tilenet_command):
    slide = write_slide(tmp_path / "s.tif", PIXELS)
    tilenet.segment(slide, tmp_path / "m.zarr", model=shades)
    code, out, _ = tilenet_command("export", tmp_path / "m.zarr", "--csv", tmp_path / "m.csv")
    assert code == 0 and " grey regions, " in out and "per mm2" in out and "segment --objects" in out
    command = ("export", tmp_path / "m.zarr", "--csv", tmp_path / "m.csv", "--overwrite", "--min-area", "32um2")
    code, out, _ = tilenet_command(*command)
    assert code == 0 and " smaller than 32um2 left out" in out
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), objects=True)
    code, out, _ = tilenet_command("export", tmp_path / "o.zarr", "--csv", tmp_path / "o.csv")
    found = write_table(tmp_path / "o.zarr", tmp_path / "again.csv")
    ((name, count),) = found.counts.items()
    assert out == f"{tmp_path / 'o.csv'}: {count} {name} objects, {found.per_mm2[name]:,.0f} {name} objects per mm2\n"
    code, out, _ = tilenet_command("export", tmp_path / "o.zarr", "--geojson", tmp_path / "o.json")
    assert code == 0 and f": {count} {name} objects, " in out


@pytest.mark.parametrize(("least", "pixels"), [(100, 100), ("100px", 100), ("63 um2", 126), ("0.5um2", 1), ("0px", 0)])
def test_what_is_smaller_than_asked_is_left_out_of_tables_and_polygons_and_counted(tmp_path, least, pixels):
    tilenet.segment(write_slide(tmp_path / "s.tif", PIXELS), tmp_path / "m.zarr", model=shades)
    every = write_table(tmp_path / "m.zarr", tmp_path / "all.csv")
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", min_area=least)
    expected = [line for line in lines_of(tmp_path / "all.csv") if int(line["area_px"]) >= pixels]
    assert lines_of(tmp_path / "m.csv") == expected and len(expected) == sum(found.counts.values()) > 10
    assert found.left_out == sum(every.counts.values()) - len(expected)
    polygons = tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "m.geojson", min_area=least)
    assert (polygons.features, polygons.left_out) == (found.counts, found.left_out)
    text = (tmp_path / "m.geojson").read_text()
    assert text.count('"Feature"') == len(expected) and all(line["id"] in text for line in expected)


def test_a_least_area_that_cannot_be_said_of_a_mask_is_refused(tmp_path, tilenet_command):
    tilenet.segment(PIXELS, tmp_path / "m.zarr", model=shades)
    tilenet.segment(np.full((4, 9, 9), 200, np.uint8), tmp_path / "v.zarr", axes="zyx", model=Bright3D(), objects=True)
    for mask, area, said in (
        ("m.zarr", "20um2", "the size of its pixels is unknown. Give the area in them"),
        ("m.zarr", "20mm", "min area '20mm': give pixels"),
        ("m.zarr", "20", "min area '20' has no unit. Give 20px, pixels of the mask, or 20um2"),
        ("m.zarr", "-3", "min area '-3': give pixels"),
        ("m.zarr", "20um3", "m.zarr: its objects have areas. Give um2, such as 20um2"),
        ("v.zarr", "20um2", ""),
    ):
        volumes = {"--csv": "its objects have volumes. Give um3", "--geojson": "are outlines in planes, which have no"}
        for kind, name in (("--csv", "x.csv"), ("--geojson", "x.geojson")):
            code, _, err = tilenet_command("export", tmp_path / mask, kind, tmp_path / name, f"--min-area={area}")
            assert (
                code == 2
                and (said or volumes[kind]) in err
                and len(err.splitlines()) == 1
                and not (tmp_path / name).exists()
            )
    code, _, err = tilenet_command("export", tmp_path / "m.zarr", "--tiff", tmp_path / "x.tif", "--min-area", 3)
    assert code == 2 and "is for --geojson and --csv" in err and not (tmp_path / "x.tif").exists()


def test_objects_of_volumes_below_a_least_volume_are_left_out_of_tables(tmp_path, tilenet_command):
    volume = np.zeros((8, 40, 50), np.uint8)
    volume[1:7, 2:12, 2:12], volume[2:5, 20:30, 2:12], volume[4, 2:30, 20:45] = 200, 200, 200  # 600, 300, 700 voxels
    how = {"axes": "zyx", "model": Bright3D(), "objects": True, "pixel_size": (2, 0.5, 0.5)}
    tilenet.segment(volume, tmp_path / "v.zarr", **how)
    for least, kept in (("150um3", [600, 300, 700]), ("151um3", [600, 700]), ("301px", [600, 700]), (601, [700])):
        found = write_table(tmp_path / "v.zarr", tmp_path / "v.csv", min_area=least, overwrite=True)
        assert sorted(int(line["volume_px"]) for line in lines_of(found.path)) == sorted(kept)
        assert (found.counts.total(), found.left_out) == (len(kept), 3 - len(kept))
    write_table(tmp_path / "v.zarr", tmp_path / "all.csv")
    assert read_table(tmp_path / "v.zarr", tmp_path / "all.csv", min_area="301px").left_out == 1
    command = ("export", tmp_path / "v.zarr", "--csv", tmp_path / "v.csv", "--overwrite", "--min-area", "151um3")
    assert ", 1 smaller than 151um3 left out" in tilenet_command(*command)[1]


def test_a_mask_is_read_only_when_nothing_else_can_be_refused(tmp_path):
    tifffile.imwrite(tmp_path / "i.tif", PIXELS)
    tifffile.imwrite(tmp_path / "other.tif", PIXELS[1:])
    for name, objects in (("m", False), ("o", True)):
        tilenet.segment(tmp_path / "i.tif", tmp_path / f"{name}.zarr", model=Bright(), objects=objects)
        shard = next(path for path in (tmp_path / f"{name}.zarr" / "0" / "c").rglob("*") if path.is_file())
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    other = {"image": tmp_path / "other.tif", "intensities": True}
    for name, error, options in (
        ("m", SettingsError, {"min_area": "20um2"}),
        ("m", SettingsError, {"intensities": True}),
        ("o", OutputMismatch, other),
        ("m", BlocksFailed, {}),
    ):
        with pytest.raises(error):
            write_table(tmp_path / f"{name}.zarr", tmp_path / "t.csv", **options)
    with pytest.raises(SettingsError):
        tilenet.write_geojson(tmp_path / "m.zarr", tmp_path / "t.geojson", min_area="20um2")


def test_a_table_is_written_as_csv_alone(tmp_path):
    tilenet.segment(PIXELS, tmp_path / "m.zarr", model=shades)
    with pytest.raises(SettingsError, match=r"m\.xlsx: a table is written as \.csv"):
        write_table(tmp_path / "m.zarr", tmp_path / "m.xlsx")


@pytest.mark.parametrize("model", [Bright(), Bright3D()], ids=["planes", "volumes"])
def test_objects_are_in_the_order_of_their_numbers(tmp_path, model):
    # Wide and long blobs begin above others and end below them.
    stack = np.stack([np.where(ndi.gaussian_filter(RANDOM.normal(size=(150, 170)), 3) > 0.01, 200, 0)] * 3)
    stack[1] = stack[1][::-1]
    mask = tilenet.segment(stack.astype(np.uint8), tmp_path / "o.zarr", axes="zyx", model=model, objects=True)
    write_table(tmp_path / "o.zarr", tmp_path / "o.csv")
    lines = lines_of(tmp_path / "o.csv")
    assert [int(line["object"]) for line in lines] == list(range(1, mask[...].max() + 1)) and len(lines) > 10
    pixels = np.bincount(mask[...].ravel())
    size = "volume_px" if isinstance(model, Bright3D) else "area_px"
    assert [int(line[size]) for line in lines] == pixels[1:].tolist()
    if size == "area_px":
        found = write_table(tmp_path / "o.zarr", tmp_path / "some.csv", min_area=100)
        kept = [line for line in lines if int(line[size]) >= 100]
        assert lines_of(found.path) == kept and found.left_out == len(lines) - len(kept) > 0
    assert {path.name for path in tmp_path.iterdir()} <= {"o.csv", "o.zarr", "some.csv"}


def test_regions_stay_in_the_order_of_their_last_rows(tmp_path):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[2:38, 5:9] = pixels[5:15, 20:30] = pixels[20:24, 30:50] = 255
    tilenet.segment(pixels, tmp_path / "m.zarr", model=shades)
    write_table(tmp_path / "m.zarr", tmp_path / "m.csv")
    assert [float(line["bottom"]) for line in lines_of(tmp_path / "m.csv")] == [15, 24, 38]
