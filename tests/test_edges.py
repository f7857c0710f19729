"""What is measured of many shapes at once is what is measured of each alone, and what their pixels say."""

import numpy as np
import pytest
from scipy import ndimage

from tilenet.export.areas import extent, extents
from tilenet.export.descriptors import ShapeDescriptors
from tilenet.export.edges import SMALL, Edges
from tilenet.export.outlines import Region, regions
from tilenet.export.placement import MaskPlacement
from tilenet.export.shapes import Shape

RANDOM = np.random.default_rng(7)
CORNER = np.array([[70_000], [90_000]], np.int32)
NOISE = RANDOM.integers(0, 3, (80, 90))
SMOOTH = ndimage.gaussian_filter(RANDOM.normal(size=(300, 200)), 3)


def shape_of(*parts):
    return Shape(1, "", parts, 0, 0, None)


def shapes_in(plane):
    """Return the regions of a plane whose first pixel lies at `CORNER` as shapes, then those of each value as one."""
    found = [Region(region.value, tuple(ring + CORNER.T for ring in region.rings)) for region in regions([plane])]
    objects = [
        shape_of(*(region for region in found if region.value == value)) for value in np.unique(plane[plane > 0])
    ]
    return [*(shape_of(region) for region in found), *objects]


@pytest.fixture(params=[NOISE, (SMOOTH > 0).astype(int) + (SMOOTH > 0.1)], ids=["noise", "blobs"], scope="module")
def plane(request):
    return request.param


@pytest.fixture(scope="module")
def shapes(plane):
    found = shapes_in(plane)
    kinds = {(len(shape.parts) > 1, any(len(part.rings) > 1 for part in shape.parts)) for shape in found}
    assert len(found) > 50 and kinds >= {(False, False), (False, True), (True, True)}
    return found


def test_all_of_many_shapes_is_that_of_each_alone(shapes):
    together, alone = Edges(shapes), [Edges([shape]) for shape in shapes]
    for measure in (Edges.areas_and_centroids, Edges.crossings):
        for values, each in zip(measure(together), zip(*map(measure, alone), strict=True), strict=True):
            assert np.array_equal(values, np.concatenate(each))
    for measure in (Edges.moments, Edges.pixels_of_hulls):
        assert np.array_equal(measure(together), np.concatenate([*map(measure, alone)]))
    assert np.array_equal(together.boxes, np.concatenate([edges.boxes for edges in alone]))


@pytest.mark.parametrize("pixel_size", [(0.5, 0.5), (0.3, 0.7), (None, None)])
def test_the_texts_of_many_shapes_are_those_of_each_alone(shapes, pixel_size):
    class Flat:
        has_objects, shape = False, (1, 1)

    Flat.pixel_size = pixel_size
    forms, together = ShapeDescriptors(Flat), Edges(shapes)
    alone = [forms.of(edges, edges.moments())[0] for edges in (Edges([shape]) for shape in shapes)]
    assert forms.of(together, together.moments()) == alone
    assert len({tuple(values.items()) for values in alone}) > 20


@pytest.mark.parametrize("limit", [None, (70_040, 90_050), (70_001, 90_001)])
def test_extents_of_many_shapes_are_those_of_each_alone(shapes, limit):
    grid = MaskPlacement((0, 0), limit=limit)
    expected = [extent(shape.rings, grid) for shape in shapes]
    assert extents(shapes, Edges(shapes), grid) == expected
    assert (limit is None) == all(pixels == inside for pixels, inside, _ in expected)


def test_moments_and_boxes_are_those_of_the_pixels(plane, shapes):
    edges, moments = Edges(shapes), Edges(shapes).moments()
    for value, k in zip((1, 2), range(len(shapes) - 2, len(shapes)), strict=True):
        y, x = np.nonzero(plane == value) + CORNER
        places = np.stack([np.ones_like(y), y - edges.origins[k][0], x - edges.origins[k][1]])
        assert np.array_equal(moments[k], places @ places.T)
        assert edges.boxes[k].tolist() == [[y.min(), x.min()], [y.max() + 1, x.max() + 1]]


def comb(side):
    """Return a square comb: as many edges as its size allows, and the largest sums."""
    plane = np.zeros((side, side), np.uint8)
    plane[::2], plane[:, -1] = 1, 1
    return plane


def test_sums_of_the_largest_small_shape_are_exact_and_larger_ones_are_measured_alone():
    grid = MaskPlacement((0, 0))
    for side, small in ((SMALL, True), (SMALL + 1, False)):
        plane = comb(side)
        shape = shape_of(*regions([plane]))
        edges = Edges([shape])
        assert edges.are_small.tolist() == [small]
        y, x = np.nonzero(plane)
        (found,) = extents([shape], edges, grid)
        assert found == (len(y), len(y), (float(y.sum() / len(y) + 0.5), float(x.sum() / len(x) + 0.5)))
    # A bound by integers: vertices are a corner at most twice, and coordinates, products and edges at most so many.
    assert 2 * (SMALL + 1) ** 2 * (2 * SMALL * SMALL**2) < 2**53 <= 2 * (2 * SMALL + 2) ** 2 * (2 * (2 * SMALL) ** 3)


def test_shapes_that_have_a_corner_in_common_do_not_touch_themselves():
    checks = [[1, 0], [0, 1]]
    two = [shape_of(region) for region in regions([np.array(checks)])]
    one = shape_of(*regions([np.array(checks)]))
    diagonal = Edges([*two, one]).crossings()[2].tolist()
    assert diagonal == [4, 4, 2 * (4 + 4) - 8 - 2]
