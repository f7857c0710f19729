"""Masks of real files do not depend on the tile size."""

import numpy as np
import pytest
from oracles import random_network

import tilenet

IMAGES = [
    "slides/CMU-1-Small-Region.svs",
    "slides/OS-1-detail_HE.ome.tif",
    "slides/OS-2-vsi_Ki67.ome.tif",
    "slides/hamamatsu_test3_DAPI.ndpi",
    "derived/cardiomyocyte_3ch_pyramid.ome.tif",
    "derived/cmu1_generic_pyramid.tif",
    "derived/test3_DAPI_gray_pyramid.ome.tif",
    "zarr/blastocyst_z060-099_v04.ome.zarr",
    "zarr/blastocyst_z070-099_v05_sharded.ome.zarr",
    "zarr/cardiomyocyte_3ch_v04.ome.zarr",
    "volumes/plant_nuclei_1135_image.tif",
    "volumes/plant_ovule_boundarymap_image.tif",
    "volumes/xyzc_16bit__dna_conf_wf.tif",
    "small_fluo/hela_cells_3ch.tif",
    "small_fluo/mitocheck_t1_image.tif",
    "small_fluo/nup_nuclei_2ch_image.tif",
]
TIE = 1e-4  # of the logits' range
SIDE = 480  # of the part that is looked at: one and a half of the largest tiles


def network_for(image):
    """Return the packaged model where it takes the image's channels, else a random one."""
    if image.n_channels in (1, 3):
        return tilenet.load_model("nuclei")
    return random_network(in_channels=image.n_channels, depth=3, wf=3)


def whole(shape):
    return None


def middle(shape):
    """Return the box of a few planes, and of what lies around the centre of each."""
    planes = [(0, min(4, n)) for n in shape[:-2]]
    return planes + [(max(0, (n - SIDE) // 2), min(n, (n + SIDE) // 2)) for n in shape[-2:]]


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("part", [middle, pytest.param(whole, marks=pytest.mark.slow)])
def test_three_tile_sizes_give_one_mask(shared_data, name, part, record_property):
    """Of large files, the coarsest level that is worth cutting."""
    path = shared_data(name)
    image = tilenet.open_image(path)
    level = max(k for k, found in enumerate(image.levels) if k == 0 or max(found.shape) > 500)
    image = image.at_level(level)
    network = network_for(image)
    # Three stains are not red, green and blue: the first is chosen, which is DNA where that is said.
    stains = image.n_channels == 3 and not image.is_color
    scaling = {"method": "percentile", "low": 1, "high": 99.8}
    options = {"model": network, "level": level, "scaling": scaling, "channels": (0,) if stains else None}
    options["roi"] = part(image.box_shape)
    tiles = [network.footprint.step[0] * n for n in (12, 17, 40)]
    masks = [tilenet.segment(path, tile=tile, **options) for tile in tiles]
    assert masks[0].shape == tuple(stop - start for start, stop in options["roi"] or [(0, n) for n in image.box_shape])
    assert 0 < np.count_nonzero(masks[0]) < masks[0].size, "an empty mask proves nothing"
    differ = (masks[0] != masks[1]) | (masks[0] != masks[2])
    ties = int(differ.sum())
    if ties:
        logits = tilenet.segment(path, tile=tiles[0], output="logits", **options)
        classes = logits if logits.ndim == differ.ndim + 1 else logits[None]
        per_class = np.moveaxis(classes, 1, 0) if image.box_axes.startswith("t") else classes
        ordered = np.sort(per_class, axis=0)
        gap = ordered[-1] - ordered[-2]
        assert (gap[differ] < TIE * np.ptp(logits)).all()
    record_property("ties", ties)
    print(f"{name}: {masks[0].size} px, tiles {tiles}: {ties} ties")
