"""A mask that the tests of `verify` and of opened masks damage."""

import numpy as np
import pytest

import tilenet

IMAGE = np.random.default_rng(0).integers(0, 200, (600, 700), dtype=np.uint8)


@pytest.fixture(name="out")
def a_mask(tmp_path, network):
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network, tile=128)
    return tmp_path / "m.zarr"
