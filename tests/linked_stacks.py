"""A stack of objects that change slowly along z, and which of them belong together, by sets of pixels."""

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from ome_images import write_ome_tiff
from scipy import ndimage as ndi
from stub import Bright

import tilenet
from tilenet.runs import object_places

UM = (1.0, 0.5, 0.5)
HOW = {"model": Bright(), "objects": True, "tile": 32, "threads": 1}


def joined(labels, least, z=0):
    """Return labels of which no two planes share any, with one number for each chain, by sets of pixels."""
    pixels, plane_of = defaultdict(set), {}
    for place in np.argwhere(labels).tolist():
        label = int(labels[tuple(place)])
        plane_of[label] = place.pop(z)
        pixels[label].add(tuple(place))

    def measure(a, b):
        return Fraction(len(pixels[a] & pixels[b]), len(pixels[a] | pixels[b]))

    def best(a, step):
        others = [b for b in pixels if plane_of[b] == plane_of[a] + step and pixels[a] & pixels[b]]
        return max(others, key=lambda b: (measure(a, b), -b), default=None)

    number, n = {0: 0}, 0
    for b in sorted(pixels):
        a = best(b, -1)
        if a is not None and best(a, 1) == b and measure(a, b) >= Fraction(str(least)):
            number[b] = number[a]
        else:
            number[b] = n = n + 1
    return np.vectorize(number.get, otypes=[int])(labels)


def by_first_pixels(labels):
    """Number the labels of each plane in the order of their first pixels, through all planes."""
    found, n = np.zeros(labels.shape, int), 0
    for at in np.ndindex(labels.shape[:-2]):
        for label in dict.fromkeys(labels[at][labels[at] > 0].tolist()):
            found[at][labels[at] == label] = n = n + 1
    return found


def moving(shape, planes, seed=0):
    """Return a stack of blobs that change slowly along z."""
    noise = ndi.gaussian_filter(np.random.default_rng(seed).normal(size=(planes, *shape)), (1.5, 4, 4))
    return np.where(noise > np.quantile(noise, 0.65), np.uint8(200), np.uint8(0))


@pytest.fixture(scope="module", name="volume")
def a_volume():
    return moving((90, 110), 8)


@pytest.fixture(name="stack")
def a_stack(volume, tmp_path):
    return write_ome_tiff(tmp_path / "s.ome.tif", volume, um=UM)


@pytest.fixture(scope="module", name="truth")
def true_volumes(volume):
    alone = tilenet.segment(volume, axes="zyx", model=Bright(), objects=True)
    found = joined(alone, 0.25)
    assert 20 < found.max() < alone.max() / 2
    return found


def small_blocks(monkeypatch, planes=2):
    monkeypatch.setattr("tilenet.sizes.STACKED_PIXELS", planes * 32**2)
    monkeypatch.setattr(object_places, "PIECES", {2: (planes * 32**2, 32)})
