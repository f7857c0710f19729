"""A slide whose mask is written as a zarr and as a TIFF."""

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module", name="slide")
def a_slide(tmp_path_factory):
    """A folder with an image of known pixel size and a tiny model; killed runs leave nothing else in it."""
    folder = tmp_path_factory.mktemp("slide")
    pixels = np.random.default_rng(0).integers(0, 200, (300, 700), dtype=np.uint8)
    tifffile.imwrite(folder / "slide.tif", pixels, resolution=(40000, 40000), resolutionunit="CENTIMETER")
    tilenet.save_model(random_network(depth=2, wf=1, seed=3), folder / "tiny.safetensors")
    return folder


def segment(slide, out, **options):
    return tilenet.segment(slide / "slide.tif", out, model=slide / "tiny.safetensors", tile=64, threads=1, **options)


@pytest.fixture(scope="module", name="whole")
def both_masks(slide):
    """An uninterrupted zarr mask and an uninterrupted TIFF of it."""
    segment(slide, slide / "whole.zarr")
    segment(slide, slide / "whole.ome.tif")
    return slide / "whole.zarr", slide / "whole.ome.tif"
