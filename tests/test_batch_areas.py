"""Batches that leave out what is small, by areas of objects and by volumes."""

import numpy as np
import pytest
import tifffile
from contents import lines_of
from counted_slides import COUNTING, SIZE, three_slides  # noqa: F401
from oracles import random_network
from stub import Bright, Bright3D

import tilenet
from tilenet.errors import SettingsError


def test_smaller_ones_are_not_counted_but_listed_and_another_area_needs_no_new_table(slides, tmp_path):
    pixels = tifffile.imread(slides[0])
    pixels[100:106, 90:95] = 200  # a speck
    tifffile.imwrite(slides[0], pixels, tile=(32, 32), **SIZE)
    masks = tmp_path / "masks"
    (first,) = tilenet.batch(slides[:1], masks, min_area="50um2", **COUNTING)
    written = (masks / "a.csv").stat().st_mtime_ns
    assert first.counts == {"class 1": 3} and len(lines_of(masks / "a.csv")) == 4
    (line,) = lines_of(masks / "counts.csv")
    assert (line["count"], line["left_out"]) == ("3", "1")
    (again,) = tilenet.batch(slides[:1], masks, min_area=5, **COUNTING)
    assert again.counts == {"class 1": 4} and (masks / "a.csv").stat().st_mtime_ns == written
    with pytest.raises(SettingsError, match="min area '20foo'"):
        tilenet.batch(slides[:1], masks, min_area="20foo", **COUNTING)
    with pytest.raises(SettingsError, match="Ask for tables or polygons, too"):
        tilenet.batch(slides[:1], masks, min_area=5, model=Bright())


def test_an_area_that_has_no_meaning_in_a_mask_is_refused_before_the_mask_is_computed(slides, tmp_path):
    tifffile.imwrite(tmp_path / "plain.tif", tifffile.imread(slides[0]), tile=(32, 32))
    (result,) = tilenet.batch([tmp_path / "plain.tif"], tmp_path / "masks", min_area="20um2", **COUNTING)
    assert result.status == "failed" and "plain.tif: the size of its pixels is unknown" in result.error
    assert not (tmp_path / "masks" / "plain.zarr").exists()
    (result,) = tilenet.batch([tmp_path / "plain.tif"], tmp_path / "masks", min_area="20px", **COUNTING)
    assert result.status == "done"


def test_an_area_of_objects_of_a_volume_is_refused_before_they_are_computed_and_a_volume_is_not(tmp_path):
    volume = np.full((4, 9, 9), 200, np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", volume, photometric="minisblack")
    counting = COUNTING | {"model": Bright3D()}
    (tmp_path / "list.csv").write_text("image,axes\nv.tif,zyx\n")
    for area, said in (("5um2", "v.tif: its objects have volumes. Give um3"), ("5um3", "its pixels is unknown")):
        (result,) = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", min_area=area, **counting)
        assert result.status == "failed" and said in result.error
        assert list((tmp_path / "masks").glob("*.zarr")) == []
    (result,) = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", min_area="324px", **counting)
    assert (result.status, result.counts) == ("done", {"foreground": 1})
    (result,) = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", min_area=325, **counting)
    assert result.counts == {"foreground": 0}


@pytest.mark.parametrize("model", [Bright(), "flat.safetensors"], ids=["a callable", "a file"])
def test_objects_of_a_stack_that_a_network_of_two_axes_finds_have_areas(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    tilenet.save_model(random_network(depth=2, wf=1), "flat.safetensors")
    tifffile.imwrite("v.tif", np.full((4, 9, 9), 200, np.uint8), photometric="minisblack")
    counting = COUNTING | {"model": model, "axes": "zyx"}
    (result,) = tilenet.batch(tmp_path / "v.tif", tmp_path / "masks", min_area=5, **counting)
    assert (result.status, result.error) == ("done", "")
    if model == Bright():
        assert result.counts == {"class 1": 4}


def test_an_image_that_cannot_be_opened_is_said_to_be_that_whatever_the_area(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"no TIFF")
    (result,) = tilenet.batch([tmp_path / "a.tif"], tmp_path / "masks", min_area="20um2", **COUNTING)
    assert result.status == "failed" and "the size of its pixels" not in result.error
