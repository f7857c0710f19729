"""Tables, polygons, pictures and scores of volumes that became of objects of planes; commands that make them."""

import csv
import json

import numpy as np
import pytest
import tifffile
from contents import lines_of
from linked_stacks import HOW, UM, a_stack, a_volume, true_volumes  # noqa: F401
from measured import ALL
from skimage.measure import regionprops

import tilenet
from tilenet.errors import SettingsError
from tilenet.export import intensities
from tilenet.store import open_mask


@pytest.fixture
def mask(stack, tmp_path):
    return tilenet.segment(stack, tmp_path / "o.zarr", link=0.25, **HOW)


def test_a_table_has_one_line_for_each_volume(mask, stack, volume, truth, tmp_path):
    found = tilenet.write_table(mask.path, tmp_path / "t.csv", shapes=True, intensities=True)
    with (tmp_path / "t.csv").open() as file:
        lines = {int(line["object"]): line for line in csv.DictReader(file)}
    assert found.volumes and found.counts["class 1"] == len(lines) == truth.max()
    assert found.per_mm3["class 1"] == pytest.approx(truth.max() / (truth.size * np.prod(UM) / 1e9))
    for solid in regionprops(truth, intensity_image=volume, spacing=UM):
        line, pixels = lines[solid.label], np.count_nonzero(truth == solid.label)
        assert (int(line["volume_px"]), line["area_px"]) == (pixels, "")
        assert float(line["volume_um3"]) == pytest.approx(pixels * np.prod(UM))
        z, y, x = np.argwhere(truth == solid.label).mean(axis=0) + 0.5
        assert [float(line[a]) for a in "zyx"] == pytest.approx([z, y, x], abs=1e-3)
        assert [int(line["front"]), int(line["back"])] == [solid.bbox[0], solid.bbox[3]]
        assert float(line["mean_0"]) == pytest.approx(solid.intensity_mean)
        if solid.bbox[3] - solid.bbox[0] > 2:
            assert float(line["axis_major_um"]) == pytest.approx(solid.axis_major_length, rel=1e-5)


@pytest.mark.parametrize(("numbers", "few"), [([5, 5, 9000, 7, 9000], [5, 7, 9000]), ([5, 7, 7], [5, 6, 7])])
def test_numbers_that_are_far_apart_cost_no_more_than_others(numbers, few):
    here, places = intensities._few(np.array(numbers))
    assert (here.tolist(), here[places].tolist()) == (few, numbers)


def test_polygons_of_a_volume_have_its_number_in_each_plane(mask, truth, tmp_path):
    found = tilenet.write_geojson(mask.path, tmp_path / "g.geojson")
    features = json.loads((tmp_path / "g.geojson").read_text())["features"]
    seen = {(int(f["properties"]["name"]), f["geometry"].get("plane", {"z": 0})["z"]) for f in features}
    expected = {(int(n), z) for z, labels in enumerate(truth) for n in np.unique(labels[labels > 0])}
    assert found.volumes and seen == expected and len(features) == len(expected)


def test_each_outline_of_a_volume_has_the_intensities_of_the_whole_and_no_area_or_shape(
    mask, tmp_path, tilenet_command
):
    outs = ("--geojson", tmp_path / "g.geojson", "--csv", tmp_path / "t.csv")
    code, _, err = tilenet_command("export", mask.path, *outs[:2], "--shapes")
    assert code == 2 and "and shapes are of whole objects. Add --csv: the table has them" in err
    assert not any(path.exists() for path in outs[1::2])
    assert tilenet_command("export", mask.path, *outs, "--intensities")[0] == 0
    lines = {line["object"]: line for line in lines_of(tmp_path / "t.csv")}
    features = json.loads((tmp_path / "g.geojson").read_text())["features"]
    assert len(features) > len(lines) > 1
    for said in (feature["properties"] for feature in features):
        names = [f"{which}_0" for which in ALL]
        assert said["measurements"] == {name: float(lines[said["name"]][name]) for name in names}


def test_the_table_of_volumes_has_shapes_that_polygons_beside_it_lack_with_a_word(mask, tmp_path, tilenet_command):
    outs = ("--geojson", tmp_path / "g.geojson", "--csv", tmp_path / "t.csv")
    code, _, err = tilenet_command("export", mask.path, *outs, "--shapes")
    assert code == 0 and "outlines in planes, and shapes are of whole objects: only the table has them" in err
    tilenet.write_table(mask.path, tmp_path / "alone.csv", shapes=True)
    tilenet.write_geojson(mask.path, tmp_path / "alone.geojson")
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    beside, alone = (json.loads((tmp_path / name).read_text()) for name in ("g.geojson", "alone.geojson"))
    assert beside == {**alone, "rule": beside["rule"]} and "shapes" in beside["rule"]
    code, _, err = tilenet_command("export", mask.path, *outs, "--overwrite", "--min-area", "50um3")
    assert code == 2 and "which have no volume. Leave smaller objects out of the table alone (--csv)" in err


def test_small_volumes_are_left_out_of_a_table(mask, truth, tmp_path):
    with pytest.raises(SettingsError, match="its objects have volumes. Give um3"):
        tilenet.write_table(mask.path, tmp_path / "t.csv", min_area="50um2")
    found = tilenet.write_table(mask.path, tmp_path / "t.csv", min_area="50um3")
    kept = np.count_nonzero(np.bincount(truth[truth > 0])[1:] * np.prod(UM) >= 50)
    assert 0 < found.left_out == truth.max() - kept and found.counts["class 1"] == kept


def test_a_picture_draws_the_volumes_that_a_table_lists(mask, stack, tmp_path):
    tilenet.write_table(mask.path, tmp_path / "t.csv")
    whole = tilenet.overlay(stack, mask.path, table=tmp_path / "t.csv", plane=4)
    assert np.array_equal(whole, tilenet.overlay(stack, mask.path, plane=4))
    lines = (tmp_path / "t.csv").read_text().splitlines(keepends=True)
    (tmp_path / "t.csv").write_text("".join(lines[:6]))
    assert not np.array_equal(whole, tilenet.overlay(stack, mask.path, table=tmp_path / "t.csv", plane=4))


def test_volumes_are_scored_against_volumes(mask, stack, truth, tmp_path):
    tifffile.imwrite(tmp_path / "truth.tif", truth.astype(np.uint16), metadata={"axes": "ZYX"})
    scores = tilenet.evaluate(mask.path, tmp_path / "truth.tif")
    assert (scores["images"], scores["objects"]["0.9"]["f1"]) == (1, 1)
    tilenet.segment(stack, tmp_path / "p.zarr", link=0.9, **HOW)
    scores = tilenet.evaluate(tmp_path / "p.zarr", tmp_path / "truth.tif")
    assert scores["images"] == 1 and scores["objects"]["0.5"]["f1"] < 0.5
    tilenet.segment(stack, tmp_path / "q.zarr", **HOW)
    assert tilenet.evaluate(tmp_path / "q.zarr", tmp_path / "truth.tif")["images"] == len(truth)


def test_the_command_and_a_batch_link(stack, truth, tmp_path, tilenet_command):
    how = ("--model", "stub:bright", "--objects", "--link", "0.25")
    code, out, _ = tilenet_command("segment", stack, "--out", tmp_path / "c.zarr", *how, "--json")
    assert (code, json.loads(out)["objects"]) == (0, truth.max())
    assert np.array_equal(open_mask(tmp_path / "c.zarr")[...], truth)
    code, out, err = tilenet_command("batch", stack, "--out", tmp_path / "b", *how, "--csv", "--json")
    assert code == 0, err
    assert json.loads(out)["slides"][0]["counts"] == {"class 1": truth.max()}
    code, out, err = tilenet_command("batch", stack, "--out", tmp_path / "a", *how, "--csv", "--min-area", "5um2")
    assert code == 3 and "its objects have volumes" in out + err and not (tmp_path / "a" / "s.zarr").exists()
    (tmp_path / "list.csv").write_text(f"image,link\n{stack},0.9\n")
    code, _, err = tilenet_command("batch", tmp_path / "list.csv", "--out", tmp_path / "l", *how)
    assert code == 0, err
    assert open_mask(tmp_path / "l" / "s.zarr").info["record"]["link"] == 0.9
    code, _, err = tilenet_command("segment", stack, "--out", tmp_path / "x.zarr", *how[:2], "--link", "0.25")
    assert code == 2 and "link 0.25 is for objects" in err
