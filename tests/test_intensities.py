"""Intensities of objects: mean, standard deviation, least and largest value, against scikit-image."""

import json

import numpy as np
import pytest
import tifffile
from contents import lines_of
from drawn_regions import feature, rectangle, write_regions
from measured import ALL, assert_measured, measured, write_named_channels
from stub import Bright, Bright3D, Threshold

import tilenet
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.export.features import QUPATH
from tilenet.export.positive_rules import is_judged_by
from tilenet.export.table import read_table
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.pictures.drawing import NEITHER
from tilenet.runs import numbering


@pytest.fixture
def slide(tmp_path):
    return write_named_channels(tmp_path / "slide.ome.tif")


@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        *(({}, dtype) for dtype in (np.uint16, np.int16, np.uint32, np.float32)),
        ({"level": 1}, np.uint16),
        ({"mpp": 0.75}, np.uint16),
        ({"roi": "37:170,51:240"}, np.uint16),
        ({"mpp": 1.1, "roi": ":100,20:"}, np.uint16),
    ],
)
def test_what_is_measured_is_what_scikit_image_measures_whatever_the_blocks(tmp_path, how, dtype):
    slide, tables = write_named_channels(tmp_path / "slide.ome.tif", dtype), []
    for block in (64, 256):
        out = tmp_path / f"{block}.zarr"
        options = Options(channels="DAPI", block=block, tile=64, output="objects", **how)
        numbering.store_objects(out, Request(slide, Bright(), options))
        found = tilenet.write_table(out, tmp_path / "o.csv", intensities=True, overwrite=True)
        assert read_table(out, tmp_path / "o.csv") == found
        tables.append([line | {"id": ""} for line in lines_of(tmp_path / "o.csv")])
    assert tables[0] == tables[1]
    channels = ("DAPI", "1_GFP", "2_GFP")
    assert list(tables[0][0])[-12:] == [f"{which}_{name}" for name in channels for which in ALL]
    whole = tilenet.segment(slide, model=Same(), channels="0,1,2", output="logits", scaling="none", **how)
    truth = measured(tilenet.open_mask(out)[...], whole)
    assert len(truth) > 5
    assert_measured(tables[0], truth, channels, rel=1e-6, abs=0.51 if "mpp" in how else 0)


class Same:
    """Gives the pixels that it is given."""

    footprint = tilenet.Footprint.same(2, reach=0)

    def __call__(self, batch):
        return batch.astype(np.float64)


def test_volumes_are_measured_over_all_planes(tmp_path):
    volume = np.random.default_rng(0).integers(0, 90, (9, 60, 70), np.uint8)
    volume[1:6, 5:25, 10:40] += 110
    volume[6:9, 30:58, 5:30] += 120
    tifffile.imwrite(tmp_path / "v.tif", volume, photometric="minisblack")
    mask = tilenet.segment(tmp_path / "v.tif", tmp_path / "v.zarr", axes="zyx", model=Bright3D(), objects=True)
    tilenet.write_table(tmp_path / "v.zarr", tmp_path / "v.csv", intensities=True)
    truth = measured(mask[...], volume[np.newaxis])
    assert len(truth) == 2
    assert_measured(lines_of(tmp_path / "v.csv"), truth, ("0",), rel=1e-6)


def test_a_table_with_means_is_one_that_tilenet_wrote(slide, tmp_path, tilenet_command):
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), channels=0, objects=True)
    export = ("export", tmp_path / "o.zarr", "--csv", tmp_path / "o.csv", "--min-area", "100px", "--intensities")
    assert tilenet_command(*export)[0] == 0
    lines = lines_of(tmp_path / "o.csv")
    assert lines and min(int(line["area_px"]) for line in lines) >= 100
    assert tilenet_command(*export, "--overwrite")[0] == 0
    assert lines_of(tmp_path / "o.csv") == lines
    code, _, err = tilenet_command("export", tmp_path / "o.zarr", "--tiff", tmp_path / "o.ome.tif", "--intensities")
    assert code == 2 and "--intensities is for --geojson and --csv" in err


def test_the_image_of_a_mask_of_an_array_is_asked_for_as_python_says_it(tmp_path):
    pixels = np.kron(np.eye(3, dtype=np.uint8) * 200, np.pad(np.ones((8, 8), np.uint8), 4))
    tilenet.segment(pixels, tmp_path / "o.zarr", model=Threshold(), objects=True)
    for missing in ({"intensities": True}, {"positive": "0>3"}):
        with pytest.raises(
            OutputMismatch, match=r"o\.zarr: its image is needed .*\. An array .* in Python, by image=$"
        ):
            tilenet.write_table(tmp_path / "o.zarr", tmp_path / "x.csv", **missing)
        found = tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", image=pixels, **missing, overwrite=True)
        assert found.counts.total() == 3


def test_means_are_of_objects_and_of_their_own_image(slide, tmp_path):
    tilenet.segment(slide, tmp_path / "m.zarr", model=Bright(), channels=0)
    with pytest.raises(SettingsError, match=r"m\.zarr: is a plain mask, and intensities.*Segment again with --objects"):
        tilenet.write_table(tmp_path / "m.zarr", tmp_path / "m.csv", intensities=True)
    tilenet.segment(slide, tmp_path / "o.zarr", model=Bright(), channels=0, objects=True)
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.zeros((200, 260), np.uint16))
    with pytest.raises(OutputMismatch, match="is not the image"):
        tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", image=other, intensities=True)
    assert not (tmp_path / "m.csv").exists() and not (tmp_path / "o.csv").exists()


@pytest.fixture
def ratios(tmp_path):
    """Return the table of a ratio image of which two objects hold a pixel that is not finite, and one no other."""
    labels = np.kron(np.arange(1, 10).reshape(3, 3), np.pad(np.ones((12, 12), int), 4))
    pixels = np.stack([np.where(labels, 200, 20), np.where(labels % 2, 50.0, 10.0)]).astype(np.float32)
    pixels[1][labels == 1] += np.arange(144) / 1000
    pixels[1, 5, 5], pixels[1, 6, 26] = np.nan, np.inf
    pixels[1][labels == 9] = np.nan
    about = {"axes": "CYX", "Channel": {"Name": ["DAPI", "FRET"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "s.ome.tif", pixels, metadata=about, ome=True, photometric="minisblack")
    tilenet.segment(tmp_path / "s.ome.tif", tmp_path / "o.zarr", model=Threshold(), channels=0, objects=True)
    assert np.array_equal(tilenet.open_mask(tmp_path / "o.zarr")[...], labels)
    return labels, pixels


def test_pixels_that_are_not_finite_are_left_out_and_told(ratios, tmp_path, caplog):
    labels, pixels = ratios
    tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", intensities=True)
    kept = np.isfinite(pixels[1])
    for line in lines_of(tmp_path / "o.csv"):
        own = pixels[1].astype(float)[(labels == int(line["object"])) & kept]
        truth = [own.mean(), own.std(), own.min(), own.max()] if len(own) else [np.nan] * 4
        found = [float(line[f"{which}_FRET"]) for which in ALL]
        assert found == pytest.approx(truth, rel=1e-6, abs=1e-6, nan_ok=True)
        assert float(line["mean_DAPI"]) == 200
    assert "s.ome.tif: 3 objects hold pixels that are not finite, which are left out; 1 of them hold" in caplog.text


def test_what_is_not_finite_is_no_measurement_of_a_polygon(ratios, tmp_path):
    tilenet.write_geojson(tmp_path / "o.zarr", tmp_path / "o.geojson", intensities=True)
    features = json.loads((tmp_path / "o.geojson").read_text(), parse_constant=pytest.fail)["features"]
    names = {feature["properties"]["name"]: {*feature["properties"]["measurements"]} for feature in features}
    area, (dapi, fret) = {"area_px", "area_um2"}, ({f"{which}_{name}" for which in ALL} for name in ("DAPI", "FRET"))
    assert names == {str(n): area | dapi | fret for n in range(1, 9)} | {"9": area | dapi}


def test_objects_without_a_finite_pixel_are_neither_positive_nor_negative(ratios, tmp_path, tilenet_command):
    write_regions(tmp_path / "r.geojson", [feature([rectangle(0, 35, 60, 60)])])
    out = ("--csv", tmp_path / "o.csv", "--geojson", tmp_path / "o.geojson", "--counts", tmp_path / "c.csv")
    how = ("--positive", "FRET>30", "--within", tmp_path / "r.geojson")
    code, said, _ = tilenet_command("export", tmp_path / "o.zarr", *out, *how)
    assert code == 0 and ", 4 of 8 positive (50.0 %), 1 neither\n" in said
    assert said.rstrip().endswith(", 1 of 2 positive (50.0 %), 1 neither")
    assert [line["positive"] for line in lines_of(tmp_path / "o.csv")] == ["1", "0", "1", "0", "1", "0", "1", "0", ""]
    assert [line["positive_share"] for line in lines_of(tmp_path / "c.csv")] == ["0.5", "0.5"]
    features = json.loads((tmp_path / "o.geojson").read_text())["features"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert names == ["Positive", "Negative"] * 4 + ["class 1"]
    assert is_judged_by(tmp_path / "o.csv", "FRET>30") and not is_judged_by(tmp_path / "o.csv", "FRET>5")
    found = read_table(tmp_path / "o.zarr", tmp_path / "o.csv")
    assert (found.positive, found.judged) == ({"class 1": 4}, {"class 1": 8})
    picture = tilenet.overlay(tmp_path / "s.ome.tif", tmp_path / "o.zarr", table=tmp_path / "o.csv")
    assert picture[44, 44].tolist() == list(NEITHER) and picture[4, 4].tolist() == QUPATH["Positive"]
    code, said, _ = tilenet_command("export", tmp_path / "o.zarr", *out[:2], *how[:2], "--json", "--overwrite")
    assert json.loads(said)["csv"]["judged"] == {"class 1": 8}


def test_a_table_that_called_them_negative_is_not_taken_for_judged(ratios, tmp_path):
    tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv", positive="FRET>30")
    table = (tmp_path / "o.csv").read_text()
    (tmp_path / "o.csv").write_text(table.replace(",nan,\n", ",nan,0\n"))
    assert (tmp_path / "o.csv").read_text() != table and not is_judged_by(tmp_path / "o.csv", "FRET>30")
