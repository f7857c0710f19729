"""Objects of images whose pixels are longer along one axis than along another: separated as they lie in space."""

import numpy as np
import pytest
from blobs import balls
from killing import lose_a_file
from ome_images import write_ome_tiff
from scipy import ndimage as ndi
from stub import Bright, Bright3D

import tilenet
from tilenet.decide import ObjectRule, relative_spacing
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.instances import separation
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import numbering
from tilenet.store import open_mask

UM = (1.25, 0.25, 0.25)


@pytest.fixture
def volume(tmp_path):
    return write_ome_tiff(tmp_path / "v.ome.tif", balls(UM), um=UM)


@pytest.mark.parametrize("um", [(0.4, 0.4, 0.4), (1, 0.4, 0.4), UM, (2.5, 0.25, 0.25), (0.4, 1.2, 0.4)])
def test_touching_balls_are_as_many_whatever_the_shape_of_the_voxels(um):
    seen = balls(um)
    assert ndi.label(seen)[1] == 1 and tilenet.objects(seen, spacing=um).max() == 8


@pytest.mark.parametrize("um", [(1, 0.4, 0.4), UM, (2.5, 0.25, 0.25), (0.4, 1.2, 0.4)])
def test_balls_of_flat_voxels_are_joined_if_these_are_taken_for_cubes(um):
    assert tilenet.objects(balls(um)).max() < 8


def test_the_distance_to_the_background_is_in_micrometres():
    own = np.pad(balls(UM)[:, 20:50, 20:45] > 0, 1)
    inside, outside = np.argwhere(own) * UM, np.argwhere(~own) * UM
    truth = np.array([np.linalg.norm(outside - pixel, axis=1).min() for pixel in inside])
    found = separation._relative_distance(own, relative_spacing(UM))[own]
    assert len(truth) > 100 and np.allclose(found, truth / truth.max(), atol=1e-6)


@pytest.mark.parametrize("um", [(0.4, 0.4, 0.4), (0.26, 0.2502, 0.2498), (3, 3, 3)])
def test_voxels_that_are_cubes_make_no_difference(um):
    seen = balls(UM)
    assert np.array_equal(tilenet.objects(seen, spacing=um), tilenet.objects(seen))


def test_depths_of_a_network_are_smoothed_in_micrometres_too():
    # Two slabs with a gap of shallow pixels between them, one plane thin: smoothing along z would fill it.
    depth = np.ones((9, 12, 12), np.float32)
    depth[4] = 0.62
    probabilities = np.stack([0.2 * (1 - depth), 0.8 * (1 - depth), depth])
    probabilities[0, :, :2], probabilities[2, :, :2] = 1, 0
    assert tilenet.objects(probabilities).max() == 1
    assert tilenet.objects(probabilities, spacing=(5, 1, 1)).max() == 2


@pytest.mark.parametrize(
    "spacing", [2, (1, 1), (1, 1, 0), (1, 1, -1), (1, 1, np.nan), (1, 1, np.inf), (None, 1, 1), "zyx"]
)
def test_a_spacing_that_is_none_is_refused(spacing):
    with pytest.raises(SettingsError, match="give 3 sizes above 0"):
        tilenet.objects(balls(UM), spacing=spacing)


def test_a_rule_whose_smoothing_would_reach_too_far_is_refused():
    with pytest.raises(SettingsError, match="not relative to the finest axis"):
        ObjectRule(spacing=(5.0, 0.5, 1.0))


def test_segment_measures_in_the_voxels_of_the_file_and_says_so(volume, tmp_path):
    truth = tilenet.objects(balls(UM), spacing=UM)
    assert np.array_equal(tilenet.segment(volume, model=Bright3D(), objects=True), truth)
    mask = tilenet.segment(volume, tmp_path / "o.zarr", model=Bright3D(), objects=True)
    assert np.array_equal(mask[...], truth) and mask.info["record"]["spacing"] == [5, 1, 1]
    assert tilenet.verify(tmp_path / "o.zarr").ok


@pytest.mark.parametrize("um", [(0.4, 0.4, 0.4), (0.4, 0.4002, 0.3999), (None, 0.2, 0.2)])
def test_the_record_of_cubes_and_of_unknown_sizes_is_as_it_was(tmp_path, um):
    image = write_ome_tiff(tmp_path / "v.ome.tif", balls(UM), um=um)
    mask = tilenet.segment(image, tmp_path / "o.zarr", model=Bright3D(), objects=True)
    assert "spacing" not in mask.info["record"] and np.array_equal(mask[...], tilenet.objects(balls(UM)))


@pytest.mark.parametrize(("size", "axes"), [(None, "z, y, x"), (0.3, "z"), ((2, 0.4, 0.4), "")])
def test_voxels_of_unknown_size_are_told_to_be_taken_for_cubes(caplog, size, axes):
    tilenet.segment(balls(UM), axes="zyx", model=Bright3D(), objects=True, pixel_size=size)
    said = f"the size of its voxels along {axes} is not known, so they are taken for cubes"
    assert (said in caplog.text) == (axes != "") and ("cubes" in caplog.text) == (axes != "")
    assert "--pixel-size Z,Y,X" in caplog.text or not axes
    caplog.clear()
    tilenet.segment(balls(UM), axes="zyx", model=Bright3D(), pixel_size=size)
    tilenet.segment(balls(UM), axes="zyx", model=Bright(), objects=True, pixel_size=size)
    assert "cubes" not in caplog.text


def test_a_run_that_goes_on_does_not_tell_again_that_voxels_are_taken_for_cubes(tmp_path, caplog):
    image = write_ome_tiff(tmp_path / "v.ome.tif", balls(UM), um=(None, 0.25, 0.25))
    tilenet.segment(image, tmp_path / "o.zarr", model=Bright3D(), objects=True)
    assert "cubes" in caplog.text
    caplog.clear()
    lose_a_file(tmp_path / "o.zarr")
    tilenet.segment(image, tmp_path / "o.zarr", model=Bright3D(), objects=True, resume=True)
    assert "cubes" not in caplog.text


def test_the_record_of_a_plain_mask_has_no_spacing(volume, tmp_path):
    assert "spacing" not in tilenet.segment(volume, tmp_path / "m.zarr", model=Bright3D()).info["record"]


@pytest.mark.parametrize(("um", "spacing"), [((2.0, 0.5, 0.5), None), ((0.5, 2.0, 0.5), [4, 1])])
def test_planes_of_a_stack_are_measured_along_y_and_x(tmp_path, um, spacing):
    image = write_ome_tiff(tmp_path / "v.ome.tif", balls((0.5, 1.0, 0.25)), um=um)
    mask = tilenet.segment(image, tmp_path / "o.zarr", model=Bright(), objects=True)
    planes, truth, n = tilenet.segment(image, model=Bright()), [], 0
    for plane in planes:
        found = tilenet.objects(plane, spacing=spacing)
        truth.append(np.where(found > 0, found + n, 0))
        n += found.max()
    assert mask.info["record"].get("spacing") == spacing and n > 8 and np.array_equal(mask[...], truth)
    assert np.array_equal(tilenet.segment(image, model=Bright(), objects=True), truth)


@pytest.mark.parametrize(("tile", "block"), [(16, 16), ((4, 16, 16), (4, 32, 32))])
def test_blocks_find_the_objects_of_the_whole(volume, tmp_path, monkeypatch, tile, block):
    monkeypatch.setattr("tilenet.instances.components.MARGIN", {2: 4, 3: 4})
    options = Options(tile=tile, block=block, output="objects")
    numbering.store_objects(tmp_path / "o.zarr", Request(volume, Bright3D(), options))
    mask = open_mask(tmp_path / "o.zarr")
    assert mask.layout.n_blocks(0) > 7 and np.array_equal(mask[...], tilenet.objects(balls(UM), spacing=UM))


def test_an_image_of_other_voxels_is_another_image(volume, tmp_path):
    out = tmp_path / "o.zarr"
    tilenet.segment(volume, out, model=Bright3D(), objects=True)
    write_ome_tiff(volume, balls(UM), um=(0.5, 0.25, 0.25))
    with pytest.raises(OutputMismatch, match="begun with image"):
        tilenet.segment(volume, out, model=Bright3D(), objects=True, resume=True)
