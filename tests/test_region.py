"""A part of an image: the crop of the whole image's mask."""

import json

import numpy as np
import pytest
import zarr
from oracles import integer_network, whole_image_logits

import tilenet
from tilenet.errors import SettingsError
from tilenet.footprint import Footprint
from tilenet.geometry import Box
from tilenet.plan import tile_of
from tilenet.region import find_roi, parse_roi
from tilenet.sizes import plan_tiles

IMAGE = np.random.default_rng(0).integers(0, 9, (150, 211), dtype=np.uint8)
# Off every grid, at a corner, one pixel, the far edges.
PARTS = [(37, 101, 53, 118), (0, 9, 0, 30), (149, 150, 210, 211), (90, 150, 131, 211)]


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("up_mode", ["upconv", "upsample"])
def test_a_part_has_exactly_the_logits_of_the_whole(padding, up_mode):
    network = integer_network(depth=3, wf=1, padding=padding, up_mode=up_mode)
    whole = whole_image_logits(network, IMAGE[None])
    assert len(np.unique(whole)) > 20
    for y0, y1, x0, x1 in PARTS:
        part = tilenet.segment(IMAGE, model=network, roi=[(y0, y1), (x0, x1)], tile=32, output="logits")
        assert np.array_equal(part, whole[:, y0:y1, x0:x1])


def test_an_image_cut_before_it_is_segmented_is_not_the_part():
    network = integer_network(depth=3, wf=1)
    y0, y1, x0, x1 = PARTS[0]
    whole = whole_image_logits(network, IMAGE[None])[:, y0:y1, x0:x1]
    assert not np.array_equal(tilenet.segment(IMAGE[y0:y1, x0:x1], model=network, output="logits"), whole)


def test_in_float32_tiles_of_the_same_borders_give_the_same_bits(network):
    whole = tilenet.segment(IMAGE, model=network, tile=32, batch=1, output="logits")
    part = tilenet.segment(IMAGE, model=network, tile=32, batch=1, output="logits", roi=np.s_[32:96, 64:192])
    assert np.array_equal(part, whole[:, 32:96, 64:192])


def test_a_volume_is_cut_along_every_axis_and_planes_that_are_not_named_are_whole():
    volume = np.random.default_rng(1).integers(0, 9, (9, 30, 41), dtype=np.uint8)
    network = integer_network(depth=2, wf=1, ndim=3, pool_size=(1, 2, 2))
    whole = whole_image_logits(network, volume[None])
    part = tilenet.segment(volume, axes="zyx", model=network, roi=np.s_[2:5, 3:, :17], output="logits")
    assert np.array_equal(part, whole[:, 2:5, 3:, :17])
    planes = tilenet.segment(volume, axes="zyx", model=integer_network(depth=2, wf=1), roi="3:9,:17")
    assert planes.shape == (9, 6, 17)


@pytest.mark.parametrize("roi", [np.s_[2:4], np.s_[2:4, :5], [slice(2, 4), (0, 5)]])
def test_fewer_slices_than_axes_are_refused_since_numpy_and_the_command_line_mean_other_axes(roi, network):
    volume = np.zeros((9, 30, 41), np.uint8)
    assert find_roi("2:4", volume.shape, name="v").shape == (9, 30, 2) != volume[2:4].shape
    with pytest.raises(
        SettingsError, match=r"numpy array: roi has . of 3 slices. Write \.\.\. for the others, such as"
    ):
        tilenet.segment(volume, axes="zyx", model=network, roi=roi)
    for whole in (np.s_[2:4, ...], np.s_[..., 2:4], np.s_[2:4, ..., 5:], ...):
        assert find_roi(whole, volume.shape, name="v").shape == volume[whole].shape


def test_a_part_reads_no_more_than_its_own_context():
    plan = plan_tiles((64, 64), Footprint.valid(2, lost=20, step=4), tile=32, origin=(1002, 0))
    reads = [tile.read for block in plan for tile in block.tiles]
    assert min(r.start for r in reads) == (980, -20)
    assert max(r.stop for r in reads) == (1088, 84)
    assert plan.pixels_read == sum(r.size for r in reads)
    assert plan.largest_read == max(r.shape for r in reads)


def test_tiles_of_a_part_lie_on_the_grid_of_the_image():
    footprint = Footprint.valid(1, lost=20, step=16)
    part, whole = tile_of(footprint, Box((0,), (5,)), (37,)), tile_of(footprint, Box((37,), (42,)))
    assert (part.read, part.crop) == (whole.read, whole.crop)
    assert (part.read.start[0] + 20) % 16 == 0


def test_the_store_of_a_part_says_where_it_lies(tmp_path, shared_data, network):
    slide = shared_data("slides/CMU-1-Small-Region.svs")
    out, roi = tmp_path / "m.zarr", np.s_[1001:1650, 303:904]
    mask = tilenet.segment(slide, out, model=network, channels=[1], roi=roi, tile=256, output="both")
    assert (mask.shape, mask.origin) == ((649, 601), (1001, 303))
    assert np.array_equal(mask[...], tilenet.segment(slide, model=network, channels=[1], roi=roi, tile=256))
    size = mask.pixel_size[0]
    for folder in (out, out / "probabilities"):
        levels = zarr.open(folder).attrs["ome"]["multiscales"][0]["datasets"]
        for level in levels:
            moved = next(t for t in level["coordinateTransformations"] if t["type"] == "translation")
            assert moved["translation"][-2:] == [1001 * size, 303 * size]
    assert len(zarr.open(out).attrs["ome"]["multiscales"][0]["datasets"]) == 3
    assert tilenet.verify(out, model=network, windows=3).ok


def test_a_whole_image_has_no_translation(tmp_path, network):
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network)
    assert "translation" not in (tmp_path / "m.zarr" / "zarr.json").read_text()


def test_verify_looks_for_a_part_where_it_lies(tmp_path, network, monkeypatch):
    out = tmp_path / "m.zarr"
    tilenet.segment(IMAGE, out, model=network, roi=np.s_[5:140, 7:200], tile=32)
    assert tilenet.verify(out, IMAGE, model=network).ok
    monkeypatch.setattr("tilenet.verification.tile_of", lambda footprint, write, origin: tile_of(footprint, write))
    assert not tilenet.verify(out, IMAGE, model=network).ok


@pytest.mark.parametrize(
    ("roi", "why"),
    [
        ([(0, 10), (5, 5)], r"\[0:10, 5:5\] is empty; the image has 150 x 211 px"),
        ([(0, 151), (0, 5)], r"leaves the image, which has 150 x 211 px"),
        ([(-200, 10), (0, 5)], "leaves the image"),
        ([(0, 1)] * 3, "3 axes, the image 2"),
        (np.s_[0:10:2, :], "step"),
        ([5, 7], "neither a slice nor"),
        (7, "roi 7 is no part"),
    ],
)
def test_a_part_that_is_not_one_is_refused(roi, why, network):
    with pytest.raises(SettingsError, match=why):
        tilenet.segment(IMAGE, model=network, roi=roi)


def test_a_part_may_be_said_in_python_as_it_is_typed(network):
    expected = tilenet.segment(IMAGE, model=network, roi=np.s_[5:140, 7:])
    np.testing.assert_array_equal(tilenet.segment(IMAGE, model=network, roi="5:140,7:"), expected)
    with pytest.raises(SettingsError, match="roi '5-140' is not start:stop"):
        tilenet.segment(IMAGE, model=network, roi="5-140")


def test_a_part_is_typed_as_starts_and_stops():
    assert find_roi(parse_roi("3:,:9"), (20, 30), name="x") == Box((3, 0), (20, 9))
    assert find_roi(parse_roi("-3:,:-9"), (20, 30), name="x") == Box((17, 0), (20, 21))
    for wrong in ("", "3", "3:4:5", "a:b", "--3:5", "3:4,5"):
        with pytest.raises(SettingsError, match="start:stop"):
            parse_roi(wrong)


def test_the_command_takes_a_part(tilenet_command, tmp_path):
    image, out = tmp_path / "image.zarr", tmp_path / "m.zarr"
    zarr.save(str(image), IMAGE)
    code, printed, _ = tilenet_command("plan", image, "--roi", "10:60,:100", "--json")
    assert (code, json.loads(printed)["shape"]) == (0, [50, 100])
    assert "part [10:60, 0:100]" in tilenet_command("plan", image, "--roi", "10:60,:100")[1]
    code, _, said = tilenet_command("segment", image, "--out", out, "--roi", "10:60,:999")
    assert (code, "150 x 211 px" in said, out.exists()) == (2, True, False)
    assert tilenet_command("segment", image, "--out", out, "--roi", "10-60")[0] == 2
