"""Volumes and stacks: thin ones, real ones, what they cost, and what is carried through."""

from math import prod

import numpy as np
import pytest
import tifffile
import zarr
from ome_images import write_ome_zarr
from ome_zarr_models import v05
from oracles import integer_network, whole_image_logits

import tilenet
from tilenet.sizes import plan_tiles

VOLUMES = {
    "volumes/plant_nuclei_1135_image.tif": None,
    "volumes/plant_ovule_boundarymap_image.tif": None,
    "volumes/xyzc_16bit__dna_conf_wf.tif": (0,),
    "zarr/blastocyst_z060-099_v04.ome.zarr": (1,),
    "zarr/blastocyst_z070-099_v05_sharded.ome.zarr": (1,),
}
# Where a real volume is compared: a part with its real context, to keep the test small.
PART = np.s_[3:9, 20:43, 30:57]


def network_of(pool_size=(1, 2, 2), **options):
    return integer_network(2, depth=2, wf=2, ndim=3, pool_size=pool_size, **options)


@pytest.mark.parametrize("name", VOLUMES)
def test_a_real_volume_gives_the_same_logits_whatever_the_sides_of_the_tile(shared_data, name):
    path, network = shared_data(name), network_of()
    options = {"model": network, "channels": VOLUMES[name], "output": "logits"}
    with tilenet.open_image(path, channels=VOLUMES[name]) as image:
        reach = 12  # the network sees 6 to 8 px
        start = [s.start - reach for s in PART]
        box = tilenet.Box(tuple(start), tuple(s.stop + reach for s in PART))
        around = image.read(box)
    # One pass over the part and its real context, from an even origin so that it lies on the grid.
    expected = whole_image_logits(network, around)[(slice(None), *(slice(reach, -reach) for _ in PART))]
    assert np.unique(expected).size > 100
    for tile in ((4, 8, 16), 12):
        got = tilenet.segment(path, tile=tile, roi=PART, **options)
        assert np.array_equal(got, expected), tile
    lazy = tilenet.lazy(path, tile=(2, 32, 16), **options)
    assert np.array_equal(lazy[(slice(None), 5, *PART[1:])].compute(), expected[:, 2])


@pytest.mark.parametrize("planes", [1, 2, 5])
@pytest.mark.parametrize("pool_size", [(1, 2, 2), (2, 2, 2)])
def test_a_stack_thinner_than_the_context_keeps_the_promise(planes, pool_size):
    network = network_of(pool_size)
    volume = np.random.default_rng(planes).integers(0, 9, (1, planes, 23, 18), dtype=np.uint8)
    expected = whole_image_logits(network, volume)
    for tile in ((2, 8, 16), (8, 4, 4)):
        got = tilenet.segment(volume[0], axes="zyx", model=network, tile=tile, output="logits")
        assert np.array_equal(got, expected), tile


def read_size(plan):
    return prod(plan.largest_read)


def test_a_thin_stack_is_read_once_along_z_where_memory_allows():
    network = tilenet.UNet(ndim=3, depth=4, wf=4, pool_size=(1, 2, 2))
    plan = plan_tiles((30, 4096, 4096), network.footprint, memory=8 * 10**9)
    assert min(plan.tile[0], 30) == 30, "no plane is lost twice"
    assert plan.largest_read[0] == 30 + 2 * network.footprint.margin[0]


@pytest.mark.parametrize("memory", [2 * 10**9, 4 * 10**9, 10**10])
def test_the_sides_of_a_tile_cost_least_of_all_that_fit(memory):
    """Against every power of two for z and for y and x, planned one by one."""
    shape, footprint = (200, 1000, 1000), tilenet.UNet(ndim=3, depth=3, wf=4, pool_size=(1, 2, 2)).footprint
    chosen = plan_tiles(shape, footprint, memory=memory, batch=1)
    fit = memory * 3 / 4 / 2048
    sides = [2**k for k in range(2, 9) if 2**k <= chosen.block[0]]
    others = [plan_tiles(shape, footprint, tile=(z, y, x), batch=1) for z in sides for y in sides for x in sides]
    assert read_size(chosen) <= fit
    assert chosen.pixels_read <= min(plan.pixels_read for plan in others if read_size(plan) <= fit)
    assert len(set(chosen.tile)) > 1 or memory == 10**10, "an anisotropic network deserves an anisotropic tile"


@pytest.mark.parametrize("shape", [(10_000, 256, 256), (100_000, 64, 64), (50, 200, 300, 300)])
def test_planes_of_a_stack_share_files(shape):
    plan = plan_tiles(shape, tilenet.UNet(depth=3, wf=2).footprint)
    assert 16 <= len(plan) <= prod(shape[:-2]) / 8
    assert prod(map(min, plan.block, shape)) <= 2**22


def test_the_command_takes_one_side_per_axis(tmp_path, tilenet_command):
    tilenet.save_model(tilenet.UNet(ndim=3, depth=2, wf=1), tmp_path / "m.safetensors")
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, np.zeros((20, 50, 40), np.uint8), photometric="minisblack", metadata={"axes": "ZYX"})
    arguments = ("plan", path, "--model", tmp_path / "m.safetensors", "--json")
    code, out, _ = tilenet_command(*arguments, "--tile", "8,32,16")
    assert (code, '"tile": [8, 32, 16]' in out) == (0, True)
    code, out, _ = tilenet_command(*arguments, "--tile", "16")
    assert (code, '"tile": [16, 16, 16]' in out) == (0, True)
    code, _, err = tilenet_command(*arguments, "--tile", "16,32")
    assert (code, "tile 16 x 32 needs 3 positive sides" in err) == (2, True)
    code, _, err = tilenet_command("plan", path, "--tile", "8,32,32")
    assert (code, "a 2-D network is looped over planes. Give 2 sides" in err) == (2, True)


@pytest.mark.parametrize(
    ("name", "options", "axes"),
    [
        ("volumes/xyzc_16bit__dna_conf_wf.tif", {"channels": (1,), "tile": 256}, "zyx"),
        ("zarr/cardiomyocyte_3ch_v04.ome.zarr", {"channels": (0,), "level": 2}, "zyx"),
        ("zarr/blastocyst_z070-099_v05_sharded.ome.zarr", {"channels": (0,), "level": 2}, "zyx"),
    ],
)
def test_axes_scales_and_single_planes_are_carried_through_and_valid(shared_data, tmp_path, name, options, axes):
    path, out = shared_data(name), tmp_path / "m.zarr"
    with tilenet.open_image(path, level=options.get("level", 0)) as image:
        shape, sizes = image.box_shape, image.pixel_size
    network = integer_network(2, depth=2, wf=2)
    mask = tilenet.segment(path, out, model=network, output="both", **options)
    assert (mask.axes, mask.shape, mask.pixel_size) == (axes, shape, sizes)
    label = v05.ImageLabel.from_zarr(zarr.open_group(out, mode="r")).ome_attributes.multiscales[0]
    assert [axis.name for axis in label.axes] == list(axes)
    assert {axis.unit for axis in label.axes} == {"micrometer"}
    assert label.datasets[0].coordinateTransformations[0].scale == pytest.approx(sizes)
    image = v05.Image.from_zarr(zarr.open_group(out / "probabilities", mode="r")).ome_attributes.multiscales[0]
    assert [axis.name for axis in image.axes] == ["c", *axes]


def test_a_series_of_single_planes_keeps_t_and_z(tmp_path):
    series = np.random.default_rng(0).integers(0, 9, (3, 1, 30, 40), dtype=np.uint8)
    mask = tilenet.segment(series, tmp_path / "m.zarr", axes="tzyx", model=integer_network(2, depth=2, wf=2))
    assert (mask.axes, mask.shape) == ("tzyx", (3, 1, 30, 40))
    label = v05.ImageLabel.from_zarr(zarr.open_group(tmp_path / "m.zarr", mode="r")).ome_attributes.multiscales[0]
    assert [(axis.name, axis.type) for axis in label.axes][:2] == [("t", "time"), ("z", "space")]


def placed_image(path, *, version, units=("second", "nanometer", "nanometer", "nanometer")):
    """Write a time series of volumes in two levels, each with its own scale and translation; return their numbers."""
    pixels = np.random.default_rng(5).integers(0, 9, (2, 3, 64, 80), dtype=np.uint8)
    places = [
        ([30.0, 900.0, 250.0, 200.0], [0.0, 7e3, 4e4, -5e4]),
        ([30.0, 900.0, 500.0, 400.0], [0.0, 7e3, 40125.0, -49900.0]),
    ]
    levels = [(pixels[..., ::k, ::k], *place) for k, place in zip((1, 2), places, strict=True)]
    named = {axis: unit for axis, unit in zip("tzyx", units, strict=True) if unit}
    about = {"coordinateTransformations": [{"type": "scale", "scale": [2.0] * 4}]}
    write_ome_zarr(path, levels, axes="tzyx", units=named, version=version, about=about, chunks=(1, 3, 32, 32))
    return [tuple(2 * np.array(numbers) for numbers in place) for place in places]


def place_of(out, level=0):
    """Return axes, scale and translation of a level of a mask, as the strictest reader understands them."""
    label = v05.ImageLabel.from_zarr(zarr.open_group(out, mode="r")).ome_attributes.multiscales[0]
    scale, *rest = label.datasets[level].coordinateTransformations
    return label.axes, np.array(scale.scale), np.array(rest[0].translation if rest else [0.0] * len(scale.scale))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("options", [{}, {"level": 1}, {"roi": [(0, 2), (1, 3), (8, 24), (16, 40)]}, {"mpp": 1.3}])
def test_a_mask_lies_where_its_ome_zarr_image_does(tmp_path, version, options):
    levels = placed_image(tmp_path / "i.zarr", version=version)
    mask = tilenet.segment(tmp_path / "i.zarr", tmp_path / "m.zarr", model=integer_network(2, depth=2, wf=2), **options)
    axes, scale, translation = place_of(tmp_path / "m.zarr")
    assert [(a.name, a.type, a.unit) for a in axes] == [("t", "time", "second")] + [
        (a, "space", "nanometer") for a in "zyx"
    ]
    image_scale, image_translation = levels[options.get("level", 0)]
    if "mpp" in options:
        assert scale == pytest.approx([60, 1800, 1300, 1300])
        # Both begin at the same edge of their first pixels, half a pixel before its centre.
        assert translation - scale / 2 == pytest.approx(image_translation - image_scale / 2)
        return
    assert scale == pytest.approx(image_scale)
    assert translation == pytest.approx(image_translation + image_scale * mask.origin)
    assert place_of(tmp_path / "m.zarr", level=len(mask.levels) - 1)[2] == pytest.approx(translation)


def test_units_that_ome_zarr_does_not_name_become_micrometres_or_go(tmp_path):
    levels = placed_image(tmp_path / "i.zarr", version="0.5", units=(None, "nm", "pixels", "millimeter"))
    tilenet.segment(tmp_path / "i.zarr", tmp_path / "m.zarr", model=integer_network(2, depth=2, wf=2))
    axes, scale, translation = place_of(tmp_path / "m.zarr")
    assert [axis.unit for axis in axes] == [None, "micrometer", None, "millimeter"]
    factors = [1, 1e-3, 1, 1]
    assert scale == pytest.approx(levels[0][0] * factors)
    assert translation == pytest.approx(levels[0][1] * factors)


def test_axes_that_are_said_to_be_others_have_no_place(tmp_path):
    placed_image(tmp_path / "i.zarr", version="0.5")
    with tilenet.open_image(tmp_path / "i.zarr", axes="ztyx") as image:
        assert image.frame is None
    with tilenet.open_image(tmp_path / "i.zarr") as image:
        assert image.frame["axes"][0] == {"name": "t", "type": "time", "unit": "second"}
