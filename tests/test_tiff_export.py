"""A mask as a TIFF: what goes in comes out, whole or not at all."""

import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from killing import meanwhile
from store_helpers import LAYOUTS, make
from tiff_masks import a_slide, both_masks, names, segment  # noqa: F401

import tilenet
from tilenet.errors import BlocksFailed
from tilenet.geometry import Box
from tilenet.masks import tiff_export, tiff_mask
from tilenet.masks.tiff_export import write_tiff


def positions_in(path):
    """Return the position of each plane as OME-XML says it."""
    with tifffile.TiffFile(path) as tiff:
        planes = [e.attrib for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.endswith("}Plane")]
    for plane in planes:
        assert {plane.get("PositionYUnit"), plane.get("PositionXUnit")} == {"µm"}
    return [(float(plane["PositionY"]), float(plane["PositionX"])) for plane in planes]


def test_a_part_says_in_ome_xml_where_it_begins_and_a_whole_does_not(slide, whole, tmp_path):
    segment(slide, tmp_path / "part.ome.tif", roi=np.s_[100:200, 64:600])
    assert positions_in(tmp_path / "part.ome.tif") == [(25.0, 16.0)]
    with tilenet.open_mask(tmp_path / "part.ome.tif") as part:
        layer = part.layer()
        assert (layer["scale"], layer["translate"]) == ([0.25, 0.25], [25.0, 16.0])
        sizes = [(level.ndim, level.size) for level in layer["data"]]  # napari asks for them
        assert sizes == [(2, 100 * 536), (2, 50 * 268), (2, 25 * 134)]
    assert tilenet.open_mask(tmp_path / "part.ome.tif").origin == (100, 64)
    assert positions_in(whole[1]) == []


def test_every_plane_of_a_part_has_its_position_but_none_without_a_pixel_size(slide, tmp_path):
    stack = np.random.default_rng(0).integers(0, 200, (5, 70, 90), dtype=np.uint8)
    about = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "stack.ome.tif", stack, metadata=about, ome=True)
    options = {"model": slide / "tiny.safetensors", "roi": np.s_[1:4, 8:40, :]}
    tilenet.segment(tmp_path / "stack.ome.tif", tmp_path / "m.ome.tif", **options)
    assert positions_in(tmp_path / "m.ome.tif") == [(2.0, 0.0)] * 3
    tilenet.segment(stack, tmp_path / "n.ome.tif", axes="zyx", **options)
    assert positions_in(tmp_path / "n.ome.tif") == []


@pytest.mark.parametrize("name", ["plane", "one pixel", "one row", "volume", "series", "all axes", "many labels"])
def test_every_level_of_a_tiff_is_that_of_the_zarr(tmp_path, name):
    layout = LAYOUTS[name]
    truth = make(tmp_path / "m.zarr", layout)["mask"]
    mask = write_tiff(tmp_path / "m.zarr", tmp_path / "m.ome.tif")
    assert np.array_equal(mask, truth)
    assert (mask.axes, mask.shape, mask.dtype, mask.pixel_size) == (
        layout.axes,
        layout.shape,
        truth.dtype,
        layout.pixel_size,
    )
    stored = tilenet.open_mask(tmp_path / "m.zarr")
    assert mask.info == stored.info
    for mine, theirs in zip(mask.levels, stored.levels, strict=True):
        assert np.array_equal(mine[...], theirs[...])
    with tilenet.open_image(tmp_path / "m.ome.tif") as image, tilenet.open_image(tmp_path / "m.zarr") as other:
        kept = [i for i, axis in enumerate(other.axes) if axis in image.axes]
        sizes = tuple(None if axis == "t" else size for axis, size in zip(image.axes, image.pixel_size, strict=True))
        assert sizes == tuple(None if other.axes[i] == "t" else other.pixel_size[i] for i in kept)
        assert len(image.levels) == len(other.levels)
    with tifffile.TiffFile(tmp_path / "m.ome.tif") as tiff:  # a second opinion, of the library itself
        assert np.array_equal(tiff.series[0].asarray().reshape(truth.shape), truth)
        page = tiff.pages.first
        assert (page.is_tiled, page.compression, page.predictor, page.photometric) == (True, 8, 1, 1)
        assert len(page.pages or ()) == len(layout.levels) - 1
        assert "DateTime" not in page.tags


def test_the_same_mask_gives_the_same_file(tmp_path):
    make(tmp_path / "m.zarr", LAYOUTS["tiny"])
    first, second = (tmp_path / f"{name}.tif" for name in "ab")
    write_tiff(tmp_path / "m.zarr", first)
    write_tiff(tmp_path / "m.zarr", second)
    assert first.read_bytes() == second.read_bytes()


def test_a_large_mask_is_a_bigtiff_and_reads_back(tmp_path, monkeypatch):
    truth = make(tmp_path / "m.zarr", LAYOUTS["plane"])["mask"]
    monkeypatch.setattr(tiff_export, "MOST_CLASSIC", 1000)
    mask = write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert (tmp_path / "m.tif").read_bytes()[:4] == b"II+\0"
    assert np.array_equal(mask, truth)


def test_a_damaged_mask_is_not_exported(tmp_path):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    shard = next(
        path for path in sorted((tmp_path / "m.zarr" / "0").rglob("*")) if path.is_file() and path.name != "zarr.json"
    )
    shard.unlink()
    with pytest.raises(BlocksFailed, match="--resume"):
        write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert names(tmp_path) == ["m.zarr"]


@pytest.mark.parametrize(
    ("befall", "says"),
    [
        (lambda path: make(path, LAYOUTS["plane"], seed=1, overwrite=True), "was written anew since it was opened"),
        (lambda path: shutil.rmtree(path / "0" / "c"), "is missing"),
    ],
)
def test_a_mask_that_is_replaced_or_lost_while_it_is_exported_is_noticed(tmp_path, monkeypatch, befall, says):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    meanwhile(monkeypatch, tiff_export, "_write", lambda: befall(tmp_path / "m.zarr"))
    with pytest.raises(BlocksFailed, match=says):
        write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert names(tmp_path) == ["m.zarr"]


def test_a_tile_that_reads_back_differently_is_noticed(tmp_path, monkeypatch):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    padded = tiff_export._padded
    monkeypatch.setattr(tiff_export, "_padded", lambda pixels: padded(pixels) ^ 1)
    with pytest.raises(BlocksFailed, match="reads back differently"):
        write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif")
    assert names(tmp_path) == ["m.zarr"]


def test_tiles_cover_every_level_once():
    shape = (3, 1030, 513)
    seen = np.zeros(shape, int)
    for box in tiff_mask.tile_boxes(shape):
        seen[box.slices] += 1
    assert (seen == 1).all()
    assert [str(b) for b in tiff_mask.tile_boxes((1, 1))] == [str(Box((0, 0), (1, 1)))]
