"""A small image whose mask is filled share by share, in this process."""

import pytest
from faults import Stub, write_image

import tilenet

SIDES = (2048, 1024)
SMALL_BLOCKS = 8
SMALL = {"model": Stub(sleep=0), "tile": 256, "batch": 4}


@pytest.fixture(scope="module", name="folder")
def a_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shares")


@pytest.fixture(scope="module", name="small")
def small_image(folder):
    return write_image(folder / "small.tif", sides=SIDES)


def fill(image, out, shares, **options):
    return [tilenet.segment(image, out, shard=share, **SMALL | options) for share in shares]
