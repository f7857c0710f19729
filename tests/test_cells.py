"""The coarse view is what a slow loop over all pixels gives, and never much of the image is held."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilenet.errors import SettingsError
from tilenet.readers import open_image
from tilenet.readers.image import READERS
from tilenet.tissue import cells

PIXELS = np.random.default_rng(0).integers(0, 255, (2, 3, 37, 53), dtype=np.uint8)


def cell_by_cell(pixels, shape, of):
    """Return (C, *shape) of pixels (C, y, x): each cell by itself, with every pixel that it touches."""
    (h, w), (rows, columns) = pixels.shape[1:], shape
    out = np.empty((len(pixels), *shape))
    for i in range(rows):
        for j in range(columns):
            y, x = (slice(k * n // m, -(-(k + 1) * n // m)) for k, n, m in ((i, h, rows), (j, w, columns)))
            out[:, i, j] = [of(channel[y, x]) for channel in pixels]
    return out


@settings(max_examples=30)
@given(st.integers(1, 37), st.integers(1, 53), st.integers(1, 40))
def test_means_are_those_of_a_loop_over_the_cells_whatever_the_window(rows, columns, window):
    image = open_image(PIXELS[0], axes="cyx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "WINDOW", window)
        found = cells.reduced(image, (rows, columns), cells.mean_of)
    assert np.array_equal(found, cell_by_cell(PIXELS[0], (rows, columns), np.mean).astype(np.float32))


def test_of_a_stack_each_cell_is_the_largest_of_all_planes():
    found = cells.reduced(open_image(PIXELS, axes="zcyx"), (5, 7), cells.mean_of)
    assert np.array_equal(found, np.maximum(*(cell_by_cell(plane, (5, 7), np.mean) for plane in PIXELS)).astype("f4"))


def test_few_windows_are_read_ahead_however_many_there_are(monkeypatch):
    drawn, done, ahead, windows = [], [], [], cells._windows

    def counted(*of):
        for window in windows(*of):
            drawn.append(window)
            ahead.append(len(drawn) - len(done))
            yield window

    def reduce(*pixels):
        done.append(pixels)
        return cells.mean_of(*pixels)

    monkeypatch.setattr(cells, "WINDOW", 1)
    monkeypatch.setattr(cells, "_windows", counted)
    cells.reduced(open_image(PIXELS[0], axes="cyx"), (37, 53), reduce)
    assert len(drawn) == len(done) == 37 * 53 and max(ahead) <= 2 * READERS


def test_one_pixel_is_enough_for_every_cell_that_it_touches():
    mask = np.zeros((10, 9), bool)
    mask[4, 4] = True
    found = cells.reduced(open_image(mask), (4, 4), lambda *given: cells.any_of(*given, name="mask"))
    assert np.argwhere(found[0]).tolist() == [[1, 1], [1, 2]]
    assert np.array_equal(found, cell_by_cell(mask[None].astype(int), (4, 4), np.max))


def test_a_mask_in_colour_is_none_but_three_equal_channels_are():
    grey = np.repeat(PIXELS[0, :1], 3, axis=0)
    assert cells.reduced(open_image(grey, axes="cyx"), (3, 3), lambda *g: cells.any_of(*g, name="m")).all()
    with pytest.raises(SettingsError, match="m: is a picture in colour, not a mask"):
        cells.reduced(open_image(PIXELS[0], axes="cyx"), (3, 3), lambda *g: cells.any_of(*g, name="m"))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_stays_so(value):
    pixels = np.zeros((40, 40))
    pixels[3, 3] = value
    found = cells.reduced(open_image(pixels), (4, 4), cells.mean_of)[0]
    assert not np.isfinite(found[0, 0]) and np.isfinite(found).sum() == 15


def test_the_coarsest_level_that_is_fine_enough_is_read_window_by_window(shared_data, monkeypatch):
    with open_image(shared_data("derived/test3_DAPI_gray_pyramid.ome.tif")) as image:
        wanted = cells.cells_of(image.plane_shape())
        assert cells.coarsest(image, wanted).plane_shape() == (304, 248)
        assert cells.coarsest(image, (1000, 900)).plane_shape() == (1216, 992)
        monkeypatch.setattr(cells, "WINDOW", 256)
        sizes = [box.size for box, *_ in cells._windows(image, wanted)]
        assert max(sizes) <= 256**2 and sum(sizes) >= 4864 * 3968


def test_one_channel_is_no_picture_in_colour_whatever_is_in_it():
    mask = np.zeros((40, 40), np.float32)
    mask[3, 3], mask[30, 30] = np.nan, 1
    found = cells.reduced(open_image(mask), (4, 4), lambda *given: cells.any_of(*given, name="mask"))
    assert np.argwhere(found[0]).tolist() == [[0, 0], [3, 3]]
