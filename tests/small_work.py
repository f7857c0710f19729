"""A folder with an image, slide.tif, and a small model, small.safetensors, to try commands on."""

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet


@pytest.fixture(name="work")
def a_folder(tmp_path):
    """Return the folder."""
    pixels = np.random.default_rng(0).integers(0, 200, (300, 400, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, photometric="rgb", tile=(64, 64))
    tilenet.save_model(random_network(depth=2, wf=2, in_channels=3), tmp_path / "small.safetensors")
    return tmp_path
