"""Standard deviation, least and largest value of each object, against NumPy and Python's integers."""

from math import sqrt

import numpy as np
import pytest

from tilenet.export.object_statistics import ObjectStatistics

RANDOM = np.random.default_rng(0)


def spread_of(objects, values, pieces, *, exact):
    """Return what the objects have if their pixels come in pieces, in another order."""
    found = ObjectStatistics([False, True], int(objects.max()), exact=exact)
    for piece in RANDOM.permutation(pieces):
        mine = RANDOM.permutation(np.flatnonzero(np.arange(len(objects)) % pieces == piece))
        for place in (0, 1):
            found.add(place, objects[mine], values[mine])
    assert found.of(0, 1) == ()
    return [found.of(1, number) for number in range(1, int(objects.max()) + 1)]


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.uint32, 2**32 - 9, 2**32), (np.int32, -(2**31), 2**31)])
def test_sums_of_squares_beyond_2_to_the_64_lose_no_digit(dtype, low, high):
    values, objects = RANDOM.integers(low, high, 100_000).astype(dtype), RANDOM.integers(1, 4, 100_000)
    found = spread_of(objects, values, 1, exact=True)
    for number, (deviation, least, most) in enumerate(found, start=1):
        own = values[objects == number].tolist()
        total, squares, n = sum(own), sum(value**2 for value in own), len(own)
        assert squares > 2**64
        assert (deviation, least, most) == (sqrt(n * squares - total**2) / n, min(own), max(own))
    assert found == spread_of(objects, values, 7, exact=True) and found[0][0] > 1


def test_real_numbers_that_are_large_and_nearly_equal_keep_their_digits():
    objects = np.repeat([1, 2, 3, 4], 1000)
    noise = RANDOM.normal(size=4000)
    values = np.where(objects == 2, 0.1, 1e9 + noise)
    values[objects == 3] += 1e-3
    values[3500] = np.nan
    first, constant, third, missing = spread_of(objects, values, 5, exact=False)
    for number, found in ((1, first), (3, third)):
        own = values[objects == number]
        assert found == (pytest.approx(np.std(own - 1e9), rel=1e-7), own.min(), own.max())
    assert constant == (0, 0.1, 0.1) and np.isnan(missing).all()
    infinite = spread_of(np.ones(4, np.int64), np.array([np.inf, 1, 2, 3]), 2, exact=False)
    assert np.isnan(infinite[0][0]) and infinite[0][1:] == (1, np.inf)


def test_an_object_of_one_pixel_does_not_vary():
    assert spread_of(np.array([1, 2]), np.array([7, 9], np.uint8), 1, exact=True) == [(0, 7, 7), (0, 9, 9)]
