"""How much of an area lies in marked cells: what shapely cuts out cell by cell."""

import numpy as np
import pytest
import shapely

from tilenet.export.cell_areas import area_in_cells

COUNT = 40


def star(random):
    angles, far = np.sort(random.uniform(0, 2 * np.pi, 9)), random.uniform(2, 11, 9)
    return shapely.make_valid(shapely.Polygon(12 + np.stack([far * np.cos(angles), far * np.sin(angles)], axis=1)))


def blocks(random):
    """Rectangles along the edges of cells, which may touch at a corner."""
    return shapely.union_all([shapely.box(x, y, x + w, y + h) for x, y, w, h in random.integers(1, 11, (7, 4))])


def discs(random):
    """Parts with a hole."""
    several = [shapely.Point(random.uniform(0, 24, 2)).buffer(random.uniform(1, 6)) for _ in range(5)]
    return shapely.union_all(several).difference(shapely.Point(12, 12).buffer(3))


def grid(random):
    """Edges of cells, of which some have no height or width, as beyond the end of an image."""
    rows, columns = (np.cumsum([0, *random.integers(0, 5, n)]).astype(float) for n in (12, 9))
    return rows, columns * 1.5


@pytest.mark.parametrize("kind", [star, blocks, discs])
def test_each_cell_is_covered_as_much_as_shapely_cuts_out_of_it(kind):
    random, met = np.random.default_rng(5), 0
    for _ in range(COUNT):
        rows, columns = grid(random)
        area = shapely.intersection(kind(random), shapely.box(0, 0, columns[-1], rows[-1]))
        left, top = np.meshgrid(columns[:-1], rows[:-1])
        right, bottom = np.meshgrid(columns[1:], rows[1:])
        truth = shapely.area(shapely.intersection(area, shapely.box(left, top, right, bottom)))
        for place in np.ndindex(truth.shape):
            alone = np.zeros(truth.shape, bool)
            alone[place] = True
            assert area_in_cells(area, alone, rows, columns) == pytest.approx(truth[place], abs=1e-9)
        marked = random.random(truth.shape) < 0.5
        assert area_in_cells(area, marked, rows, columns) == pytest.approx(truth[marked].sum(), abs=1e-9)
        met += area.area > 20
    assert met > COUNT / 2


def test_nothing_covers_no_cell():
    edges = np.arange(4.0)
    assert area_in_cells(shapely.Polygon(), np.ones((3, 3), bool), edges, edges) == 0
    assert area_in_cells(shapely.box(0, 0, 3, 3), np.zeros((3, 3), bool), edges, edges) == 0
