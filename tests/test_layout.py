"""The layout of a mask: what may be one, its blocks and their files."""

import json

import numpy as np
import pytest
from store_helpers import LABELS, LAYOUTS

from tilenet.errors import SettingsError
from tilenet.store import Layout, TissueMap


def test_the_chunks_are_divisors_of_a_useful_size():
    cases = {
        ("yx", (4096, 4096)): (512, 512),
        ("yx", (768, 1072)): (384, 536),
        ("yx", (97, 1031)): (97, 1031),
        ("zyx", (128, 512, 512)): (64, 64, 64),
        ("zyx", (8, 512, 512)): (8, 128, 128),
        ("tzyx", (4, 1, 512, 512)): (1, 1, 512, 512),
    }
    found = {(axes, block): Layout(axes, block, block, (None,) * len(axes), "").chunk for axes, block in cases}
    assert found == {**cases, ("zyx", (8, 512, 512)): found["zyx", (8, 512, 512)]}
    assert found["zyx", (8, 512, 512)][0] == 8
    assert found["zyx", (8, 512, 512)][1] in (128, 256)


def test_a_layout_survives_json():
    for layout in LAYOUTS.values():
        assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    assert LAYOUTS["plane"].to_json().keys().isdisjoint(["zarr_format", "source", "frame", "n_levels", "tissue"])


def tissue_of(*covers):
    return TissueMap(np.ones((1, 1), bool), covers).to_json()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"axes": "xy"}, "a mask has the axes yx"),
        ({"axes": "cyx"}, "a mask has the axes yx"),
        ({"shape": (0, 3)}, "must be positive"),
        ({"block": (3, 0)}, "must be positive"),
        ({"block": (3,)}, "axes yx do not fit"),
        ({"shape": (3, 3, 3)}, "axes yx do not fit"),
        ({"pixel_size": (None,)}, "axes yx do not fit"),
        ({"origin": (1,)}, r"origin \(1,\) does not fit the axes yx"),
        ({"shift": (0.5,) * 3}, r"shift \(0.5, 0.5, 0.5\) does not fit the axes yx"),
        ({"labels": {-1: ("", None)}}, "are not negative"),
        ({"classes": -1}, "are not negative"),
        ({"probability_dtype": "int8"}, "probabilities are float16, float32 or float64, not int8"),
        ({"zarr_format": 4}, "a mask is written in zarr format 2 or 3, not 4"),
        ({"tissue": tissue_of(3, 2)}, "does not cover"),
        ({"tissue": tissue_of(3, 4), "origin": (1, 1)}, "does not cover"),
    ],
    ids=str,
)
def test_a_layout_that_is_no_mask_is_refused(options, said):
    usual = {"axes": "yx", "shape": (3, 3), "block": (3, 3), "pixel_size": (None, None), "name": ""}
    Layout(**usual, tissue=tissue_of(3, 3))
    Layout(**usual, tissue=tissue_of(4, 4), origin=(1, 1))
    with pytest.raises(SettingsError, match=said):
        Layout(**(usual | options))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_mask_values_have_the_smallest_type_that_holds_them(bits):
    for largest, expected in ((2**bits - 1, f"uint{bits}"), (2**bits, f"uint{2 * bits}")):
        for values in ({"labels": {largest: ("far", None)}}, {"largest": largest, "labels": LABELS}):
            assert Layout("yx", (9, 9), (9, 9), (None, None), "", **values).mask_dtype == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_are_found_by_their_files_and_none_beyond_the_grid(name):
    layout = LAYOUTS[name]
    for level, shape in enumerate(layout.levels):
        count = np.zeros(shape, int)
        for index in range(layout.n_blocks(level)):
            count[layout.box(level, index).slices] += 1
            for file in layout.files(level, index):
                array = layout.array_of(file)
                place = tuple(map(int, file.removeprefix(layout.folder(array)).strip("/").split("/")))
                assert layout.block_of_file(array, place) == index
                size = layout.arrays[array]
                for axis, (n, block) in enumerate(zip(size.shape, size.block, strict=True)):
                    beyond = (*place[:axis], -(-n // block), *place[axis + 1 :])
                    assert layout.block_of_file(array, beyond) is None
                assert layout.block_of_file(array, place[:1]) is layout.block_of_file(array, (*place, 0)) is None
            assert len(layout.files(level, index)) == layout.n_files(level)
        assert (count == 1).all()


@pytest.mark.parametrize("name", ["part with tissue", "plane"])
def test_pixels_have_tissue_if_their_block_has(name):
    layout = LAYOUTS[name]
    there = layout.tissue_map.blocks_with_tissue(layout) if layout.tissue else np.ones(layout.grid(0)[-2:], bool)
    assert layout.tissue_map is None or 0 < there.mean() < 1
    expected = np.kron(there, np.ones(layout.block[-2:], bool))[: layout.shape[-2], : layout.shape[-1]]
    assert np.array_equal(layout.block_has_tissue_at(*map(np.arange, layout.shape[-2:])), expected)
