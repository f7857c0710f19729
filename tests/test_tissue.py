"""Where there is tissue: how it is found, what a map of it says, and masks of one's own."""

import json
import logging

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from hypothesis import given
from hypothesis import strategies as st
from ome_zarr_models import v05
from skimage.color import rgb2hsv
from skimage.morphology import remove_small_holes
from tissue_images import BLOCK, OPTIONS, SIDES, a_mask_of_ones_own, a_slide, blocks_of, glass, write  # noqa: F401

import tilenet
from tilenet.errors import ImageError, SettingsError
from tilenet.geometry import Box
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.store import TissueMap
from tilenet.store.layout import Layout
from tilenet.tissue import detection

# The map.


@given(st.data())
def test_a_box_meets_tissue_if_a_cell_does_that_it_touches(data):
    covers = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    sides = [data.draw(st.integers(1, min(n, 9))) for n in covers]
    cells = np.random.default_rng(data.draw(st.integers(0, 99))).random(sides) < 0.2
    found = TissueMap(cells, covers)
    y, x = (sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in covers)
    touched = [
        cells[i, j]
        for i in range(sides[0])
        for j in range(sides[1])
        if y[0] * sides[0] < (i + 1) * covers[0]
        and y[1] * sides[0] > i * covers[0]
        and x[0] * sides[1] < (j + 1) * covers[1]
        and x[1] * sides[1] > j * covers[1]
    ]
    assert found.meets(Box((y[0], x[0]), (y[1], x[1]))) == any(touched)
    whole = [[found.holds(row, column) for column in range(covers[1])] for row in range(covers[0])]
    assert np.array_equal(found.at(np.arange(covers[0]), np.arange(covers[1])), whole)
    again = TissueMap.from_json(json.loads(json.dumps(found.to_json())))
    assert np.array_equal(again.cells, cells) and again.sha256 == found.sha256 and again.own is None


@given(st.data())
def test_context_of_tissue_is_computed_but_is_no_tissue(data):
    covers = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    sides = [data.draw(st.integers(1, min(n, 9))) for n in covers]
    cells, own = (np.random.default_rng(data.draw(st.integers(0, 99))).random(sides) < p for p in (0.6, 0.4))
    widened = TissueMap(cells, covers, cells & own)
    found = TissueMap.from_json(json.loads(json.dumps(widened.to_json())))
    blocks, whole = Layout("yx", covers, (7, 8), (None, None), "a", {}), Box.of_shape(covers)
    assert np.array_equal(found.blocks_with_tissue(blocks), TissueMap(cells, covers).blocks_with_tissue(blocks))
    assert found.meets(whole) == cells.any() and found.sha256 == TissueMap(cells, covers).sha256
    there = TissueMap(cells & own, covers)
    rows, columns = map(np.arange, covers)
    assert np.array_equal(found.at(rows, columns), there.at(rows, columns))
    assert found.holds(0, 0) == there.at(rows, columns)[0, 0]
    assert found.tissue_fraction(whole) == pytest.approx(there.at(rows, columns).mean())
    assert found.fraction == (cells & own).mean()


@pytest.mark.parametrize(
    "change",
    [
        *({"cells": [9, 9]}, {"cells": [10**9, 10**9]}, {"cells": 3}, {"covers": [1, 1]}),
        *({"bits": "eA=="}, {"bits": "?"}, {"own": "eA=="}),
    ],
    ids=str,
)
def test_a_map_that_cannot_be_is_refused(change):
    values = TissueMap(np.eye(5, dtype=bool), (50, 50)).to_json()
    with pytest.raises((ValueError, TypeError)):
        TissueMap.from_json(values | change)


def test_the_map_is_a_label_image_that_lies_where_the_slide_does(slide, tmp_path):
    mask = tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, **OPTIONS, roi=[(200, 1000), (300, 1400)])
    yaozarrs.validate_zarr_store(tmp_path / "mask.zarr" / "tissue")
    v05.ImageLabel.from_zarr(zarr.open_group(tmp_path / "mask.zarr" / "tissue", mode="r"))
    group = zarr.open_group(tmp_path / "mask.zarr" / "tissue", mode="r")
    assert np.array_equal(group["0"][...], mask.tissue.cells)
    scale, move = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    cells = mask.tissue.cells.shape
    # Cell edges, in um from the slide's first pixel's edge: 0.5 um a pixel.
    for n, side, first, pixels in zip(cells, scale["scale"], move["translation"], SIDES, strict=True):
        assert first - side / 2 == pytest.approx(-0.25)
        assert first + (n - 0.5) * side == pytest.approx(pixels * 0.5 - 0.25)


# Where there is tissue.


def colours(sides=SIDES):
    """Return bright field: grey glass with a little noise, and pink tissue in (300:600, 500:900)."""
    pixels = np.random.default_rng(0).integers(236, 244, (*sides, 3), dtype=np.uint8)
    pixels[300:600, 500:900] = np.random.default_rng(1).integers((150, 60, 110), (220, 130, 180), (300, 400, 3))
    return pixels


def found_in(image, **options):
    job = make_job(image, OPTIONS["model"], Options(tissue=True, tile=BLOCK, **options))
    return job.tissue


def test_in_bright_field_tissue_is_what_has_colour():
    found = found_in(colours(), axes="yxc")
    assert found.facts["method"] == "saturation" and 0.03 <= found.facts["threshold"][0] <= 0.1
    y, x = np.arange(1100), np.arange(1500)
    there = found.map.at(y, x)
    # Up to a cell of 16 px; the one around it is context alone.
    assert there[316:584, 516:884].all()
    assert not there[:284].any() and not there[616:].any() and not there[:, :484].any() and not there[:, 916:].any()
    assert found.map.meets(Box((284, 600), (285, 601))) and not found.map.meets(Box((0, 0), (260, 1500)))


def test_fluorescence_stored_as_colour_is_told_by_its_brightness():
    pixels = np.zeros((*SIDES, 3), np.uint8)
    pixels[..., 2] = glass()
    pixels[300:600, 500:900, 2] = 180
    found = found_in(pixels, axes="yxc")
    assert found.facts["method"] == "intensity" and 0.05 < found.map.fraction < 0.15


def test_tissue_in_any_channel_that_was_chosen_counts():
    pixels = np.stack([glass(), glass(seed=1)]).astype(np.uint16)
    pixels[1, 300:600, 500:900] = 3000
    assert found_in(pixels, axes="cyx", channels=(0, 1)).map.meets(Box((400, 600), (401, 601)))
    assert len(found_in(pixels, axes="cyx", channels=(1, 1, 1)).facts["threshold"]) == 1


def test_small_holes_are_closed():
    pixels = glass()
    pixels[300:700, 500:1000] = 200
    pixels[480:512, 640:672] = 10
    assert found_in(pixels).map.cells[30, 41]


def test_a_background_that_is_bright_is_not_guessed_at():
    with pytest.raises(ImageError, match=r"most of it is bright .*--tissue mask\.png"):
        found_in(255 - glass())


def test_what_is_no_number_is_computed_as_without_a_map():
    pixels = glass().astype(np.float32)
    pixels[300:600, 500:900] = 200
    pixels[1000, 100] = np.nan
    assert found_in(pixels).map.meets(Box((1000, 100), (1001, 101)))


@pytest.mark.parametrize(
    "pixels", [np.full(SIDES, 7, np.uint8), np.full((*SIDES, 3), 240, np.uint8)], ids=["grey", "colour"]
)
def test_no_tissue_is_said_in_a_line_and_all_is_background(tmp_path, tilenet_command, caplog, pixels):
    with caplog.at_level(logging.WARNING, "tilenet"):
        mask = tilenet.segment(pixels, tmp_path / "m.zarr", axes="yxc"[: pixels.ndim], tissue=True, **OPTIONS)
    assert not mask[...].any() and mask.info["tissue"]["skipped"] == 1
    assert "there is none in what is segmented, so that all of the mask is background" in caplog.text


def test_on_real_slides_glass_is_skipped_and_tissue_is_not(shared_data):
    found = found_in(shared_data("slides/CMU-1-Small-Region.svs"))
    assert found.facts["method"] == "saturation" and 0.35 < found.map.fraction < 0.65
    assert not found.map.meets(Box((1600, 0), (2500, 400))) and found.map.meets(Box((600, 2080), (601, 2081)))
    # The area of tissue, as scikit-image has it.
    pixels = tifffile.imread(shared_data("slides/CMU-1-Small-Region.svs"))[:2960, :2208]
    means = pixels.reshape(185, 16, 138, 16, 3).mean(axis=(1, 3)) / 255
    saturated = remove_small_holes(rgb2hsv(means)[..., 1] > found.facts["threshold"][0], max_size=64)
    assert found.map.tissue_fraction(Box((0, 0), (2960, 2208))) == pytest.approx(saturated.mean(), rel=0.01)
    assert found.map.cells.mean() > 1.05 * found.map.fraction
    assert found_in(shared_data("slides/OS-1-detail_HE.ome.tif")).map.cells.all()
    dapi = found_in(shared_data("slides/hamamatsu_test3_DAPI.ndpi"))
    assert dapi.facts["method"] == "intensity" and dapi.facts["looked_at"] == [608, 496]
    with pytest.raises(ImageError, match="cannot be told"):
        found_in(shared_data("isbi2012/image/00.png"))


# A mask of one's own.


@pytest.mark.parametrize("kind", ["array", "png", "colour png", "tif", "zarr"])
def test_a_mask_of_ones_own_is_taken_as_it_is(slide, tmp_path, own, kind):
    given_now = own > 0
    if "png" in kind:
        from PIL import Image as Pillow

        given_now = tmp_path / "mask.png"
        Pillow.fromarray(np.dstack([own] * 3) if kind == "colour png" else own).save(given_now)
    elif kind == "tif":
        tifffile.imwrite(given_now := tmp_path / "own.tif", own)
    elif kind == "zarr":
        zarr.save_array(str(given_now := tmp_path / "own.zarr"), own)
    mask = tilenet.segment(slide, tmp_path / "m.zarr", tissue=given_now, **OPTIONS)
    assert mask.info["tissue"]["method"] == "given"
    assert [[s.start for s in box] for box in blocks_of(mask, computed=True)] == [[0, 512]]


def test_a_mask_finer_than_the_map_loses_no_pixel(tmp_path):
    own = np.zeros((2300, 2300), bool)
    own[2297, 1030] = True
    found = detection.read_mask(own, tilenet.open_image(np.zeros((1150, 1150), np.uint8)))
    assert max(found.map.cells.shape) <= 1150
    assert found.map.meets(Box((1148, 515), (1149, 516)))
    assert not found.map.meets(Box((0, 0), (1140, 1150)))


def test_a_mask_of_other_proportions_or_in_colour_is_refused(slide, own):
    with pytest.raises(SettingsError, match="is 150 x 110 px, and the image 1100 x 1500"):
        tilenet.segment(slide, tissue=own.T, **OPTIONS)
    with pytest.raises(ImageError, match="does not exist"):
        tilenet.segment(slide, tissue="nowhere.png", **OPTIONS)


def test_a_recorded_mask_of_ones_own_is_not_replaced_by_a_search(slide, own):
    with pytest.raises(SettingsError, match=r"slide\.tif: the tissue mask of this run is .* Give it again"):
        tilenet.segment(slide, tissue={"method": "given", "sha256": "0"}, **OPTIONS)
