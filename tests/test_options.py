"""What a caller may say, of whatever type, and what is refused in a line before anything is written."""

import re

import numpy as np
import pytest
import tifffile
import torch
from oracles import random_network
from store_helpers import tree

import tilenet
from tilenet.errors import ImageError, ModelError, OutputExists, SettingsError
from tilenet.footprint import AxisFootprint, Footprint
from tilenet.jobs.options import Options

IMAGE = np.random.default_rng(0).integers(0, 255, (70, 90), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    return random_network(depth=2, wf=1)


def test_numbers_and_sequences_of_any_kind_are_plain_ones():
    options = Options(tile=np.array([64, np.int64(32)]), block=np.int32(128), channels=["DAPI", np.int8(2)])
    assert (options.tile, options.block, options.channels) == ((64, 32), 128, ("DAPI", 2))
    assert Options(channels="DAPI").channels == ("DAPI",)
    assert all(type(side) is int for side in (*options.tile, options.block))


def test_numbers_that_numpy_computed_are_recorded_as_plain_ones(tmp_path):
    def model(batch):
        return batch[:, :1]

    def made(name, whole, real, true):
        axis = AxisFootprint(whole(4), whole(0), [whole(4), whole(4)], whole(4))
        scaling = {"method": "percentile", "low": real(1), "high": 99, "clip": [real(0), 1], "per_channel": true}
        options = {name: real(0.5) for name in ("threshold", "mpp", "pixel_size")}
        footprint = Footprint([axis, axis])
        tilenet.segment(IMAGE, tmp_path / name, model=model, footprint=footprint, scaling=scaling, **options)
        return tree(tmp_path / name)

    assert made("numpy", np.int64, np.float32, np.bool_(True)) == made("plain", int, float, True)
    with pytest.raises(ModelError, match=r"scaling cannot be .*np\.float32\(2\.0\).*Correct the card"):
        tilenet.ModelCard(scaling={"method": "linear", "divide": np.float32(2)})
    with pytest.raises(ModelError, match=r"metrics cannot be .*np\.float32"):
        tilenet.ModelCard(metrics={"dice": {"all": [np.float32(1)]}})


def test_a_roi_may_be_an_array(network):
    whole = tilenet.segment(IMAGE, model=network)
    assert np.array_equal(tilenet.segment(IMAGE, model=network, roi=np.array([[8, 40], [0, 90]])), whole[8:40])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads 0"),
        ({"threads": -1}, "threads -1"),
        ({"batch": 1.5}, "batch"),
        ({"memory": 0}, "memory 0"),
        ({"tile": 64.0}, "tile 64.0"),
        ({"tile": "512"}, "tile '512'"),
        ({"level": "1"}, "level '1'"),
        ({"roi": 5}, "roi 5"),
        ({"mpp": "0.5"}, "mpp '0.5'"),
        ({"axes": 3}, "axes 3"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"threshold": float("inf")}, "threshold inf"),
        ({"pixel_size": True}, "pixel_size True"),
        ({"pixel_size": (True, 0.5)}, r"pixel_size \(True, 0.5\)"),
        ({"tissue": {}}, "tissue is empty"),
        ({"scaling": {}}, "scaling is empty"),
        ({"scaling": 5}, "scaling 5"),
        ({"roi": [(0, 0.9), (0, 5)]}, "neither a slice nor"),
        ({"probability_dtype": "int8"}, "float16, float32, float64, not int8"),
        ({"scaling": {"method": "linear", "subtrct": 5}}, "knows no subtrct"),
        ({"scaling": {"method": "none", "divide": 5}}, "knows no divide"),
        ({"scaling": {"method": "linear", "clip": [3, -1]}}, "it would be"),
        ({"resume": True, "overwrite": True}, "give only one of them"),
        ({"resume": True}, "for a mask on disk: give out"),
        ({"overwrite": True}, "for a mask on disk: give out"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_name(network, options, said):
    with pytest.raises((SettingsError, ModelError), match=said):
        tilenet.segment(IMAGE, model=network, **options)


def test_a_tensor_is_no_image_and_the_way_out_is_told(network):
    with pytest.raises(ImageError, match=r"torch\.float32.*NumPy array"):
        tilenet.segment(torch.zeros(70, 90), model=network)


@pytest.mark.parametrize(
    ("made", "said"),
    [(lambda x: {"out": x}, "gives a dict"), (lambda x: 1 / 0, "division by zero"), (lambda x: None, "a NoneType")],
)
def test_a_model_that_gives_no_logits_is_refused_before_anything_is_read(made, said):
    class Model(torch.nn.Module):
        footprint = Footprint.same(2, reach=1)

        def forward(self, x):
            return made(x)

    with pytest.raises(ModelError, match=said):
        tilenet.segment(IMAGE, model=Model())
    with pytest.raises(ModelError, match=said):
        tilenet.segment(IMAGE, model=made, footprint=Model.footprint)


def test_a_run_that_takes_more_than_the_memory_it_was_given_says_so(network, caplog):
    with caplog.at_level("WARNING", logger="tilenet"):
        tilenet.segment(IMAGE, model=network, memory=10**10)
        tilenet.segment(IMAGE, model=network, memory="10GB")
        assert caplog.messages == []
        tilenet.segment(IMAGE, model=network, memory=10**8)
    (said,) = [m for m in caplog.messages if "more than the memory of 0.10 GB" in m]
    enough = int(re.search(r"Give --memory (\d+)MB or more", said)[1])
    caplog.clear()
    tilenet.segment(IMAGE, model=network, memory=f"{enough}MB")
    assert caplog.messages == []
    tilenet.segment(IMAGE, model=network, memory=f"{enough - 1}MB")
    assert [m for m in caplog.messages if f"Give --memory {enough}MB or more" in m]


def test_a_memory_without_its_unit_is_refused(network):
    with pytest.raises(SettingsError, match="memory 4: give a whole number, 1000000 at least"):
        tilenet.segment(IMAGE, model=network, memory=4)


@pytest.mark.parametrize(
    ("said", "count"),
    [("4GB", 4 * 10**9), ("4G", 4 * 10**9), ("4GiB", 4 * 2**30), ("512 mib", 512 * 2**20), ("1.5TiB", 3 * 2**39)],
)
def test_units_of_memory_are_powers_of_1000_and_with_an_i_of_1024(said, count):
    assert Options(memory=said).memory == count


@pytest.mark.parametrize("device", [["cpu"], 1.5])
def test_a_device_of_another_type_than_text_is_refused(network, device):
    with pytest.raises(SettingsError, match=re.escape(f"device {device!r} is none of auto, cpu, cuda")):
        tilenet.segment(IMAGE, model=network, device=device)


def test_more_memory_than_there_is_anywhere_is_enough(network):
    options = Options(memory="9" * 400 + "GB", tile=16)
    assert tilenet.segment(IMAGE, model=network, memory=options.memory, tile=16).shape == IMAGE.shape


def test_sides_of_a_plan_are_whole_numbers_of_any_kind(network):
    plan = tilenet.plan_tiles((64, 64), network.footprint, tile=np.int64(16))
    assert plan.tile == (16, 16)
    for sizes, said in (
        ({"tile": 16.5}, "tile 16.5"),
        ({"batch": 2.5}, "batch 2.5: give a whole number"),
        ({"batch": 0}, "batch 0: give"),
        ({"origin": (3,)}, r"origin \(3,\) needs 2 numbers"),
    ):
        with pytest.raises(SettingsError, match=said):
            tilenet.plan_tiles((64, 64), network.footprint, **sizes)
    for batch in (np.int64(3), 3.0):  # as segment takes them
        assert tilenet.plan_tiles((64, 64), network.footprint, batch=batch).batch == 3


@pytest.mark.parametrize("shard", ["1/2", (1.0, 2), 1, (1, 2, 3)])
def test_a_share_that_is_no_pair_of_whole_numbers_is_refused_before_anything_is_made(tmp_path, network, shard):
    with pytest.raises(SettingsError, match="two whole numbers"):
        tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network, shard=shard)
    assert not (tmp_path / "m.zarr").exists()


def test_a_network_of_four_axes_has_no_plan():
    with pytest.raises(SettingsError, match="1 to 3 axes, not 4"):
        tilenet.plan_tiles((9, 9, 9, 9), Footprint.same(4, reach=1))


def test_a_mask_is_not_put_into_its_own_image(tmp_path, network):
    (tmp_path / "planes").mkdir()
    for z in range(2):
        tifffile.imwrite(tmp_path / "planes" / f"z{z}.tif", IMAGE)
    with pytest.raises(OutputExists, match="inside it"):
        tilenet.segment(tmp_path / "planes", tmp_path / "planes" / "m.zarr", model=network)
    assert sorted(path.name for path in (tmp_path / "planes").iterdir()) == ["z0.tif", "z1.tif"]


def test_an_output_that_no_store_can_be_is_refused_before_a_batch_begins(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE)
    (tmp_path / "list.csv").write_text("image,output\na.tif,probabilities\n")
    for images, options in (([tmp_path / "a.tif"], {"output": "logits"}), ([tmp_path / "list.csv"], {})):
        with pytest.raises(SettingsError, match="a store can be mask or both"):
            tilenet.batch(images, tmp_path / "masks", **options)
    assert not (tmp_path / "masks").exists()


def test_what_the_caller_s_own_functions_raise_is_not_taken_for_something_else(tmp_path, network):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE)

    def broken(*_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        tilenet.segment(IMAGE, model=network, progress=broken)
    for status in ("done", "skipped"):
        with pytest.raises(LookupError, match="mine"):
            tilenet.batch([tmp_path / "a.tif"], tmp_path / "masks", model=network, tell=broken)
        assert f",{status}," in (tmp_path / "masks" / "summary.csv").read_text()


@pytest.mark.parametrize("how", [{}, {"objects": True}, {"out": "m.zarr"}, {"out": "m.zarr", "objects": True}], ids=str)
def test_every_way_to_segment_reports_once_at_the_end(tmp_path, network, how):
    reports = []
    if "out" in how:
        how = {**how, "out": tmp_path / how["out"]}
    tilenet.segment(IMAGE, model=network, report=reports.append, **how)
    assert [report.blocks for report in reports] == [1] and reports[0].pixels == IMAGE.size


class InAFile:
    """What the data sets of other libraries have in common with a NumPy array."""

    def __init__(self, pixels):
        self._pixels, self.shape, self.dtype, self.ndim = pixels, pixels.shape, pixels.dtype, pixels.ndim

    def __len__(self):
        return len(self._pixels)

    def __getitem__(self, index):
        return self._pixels[index]


def test_an_array_of_another_library_is_known_again_by_its_pixels(tmp_path, network, monkeypatch):
    monkeypatch.setattr("tilenet.readers.array.HASHED", 90 * 16)
    mask = tilenet.segment(InAFile(IMAGE), tmp_path / "m.zarr", model=network)
    assert np.array_equal(np.asarray(mask), tilenet.segment(IMAGE, model=network))
    assert tilenet.verify(tmp_path / "m.zarr", InAFile(IMAGE), model=network).ok
    with pytest.raises(tilenet.errors.OutputMismatch):
        tilenet.verify(tmp_path / "m.zarr", InAFile(IMAGE ^ (np.arange(90) == 89)), model=network)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": random_network(depth=1, wf=1)}, "not a UNet. Give a network as model="),
        ({"progress": True}, "progress True is nothing that can be called"),
        ({"memory": "much"}, "'much' is not a number of bytes"),
        ({"model": torch.nn.Conv2d}, "Conv2d is a class. Give an instance"),
        ({"footprint": 3}, "3 is no Footprint"),
        ({"footprint": Footprint.same(2, reach=3)}, "a UNet's footprint follows from its layers"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_in_each_other_s_place_are_refused_by_name(network, options, said):
    with pytest.raises((SettingsError, ModelError), match=said):
        tilenet.segment(IMAGE, **{"model": network, **options})


def test_a_rule_may_be_given_as_its_text(network):
    rule = {"method": "percentile", "low": 1, "high": 99}
    found = tilenet.segment(IMAGE, model=network, scaling="percentile:1,99", output="logits", channels=0)
    assert np.array_equal(found, tilenet.segment(IMAGE, model=network, scaling=rule, output="logits"))


def test_a_part_may_be_counted_from_the_end_and_leave_axes_out(network):
    stack = np.stack([IMAGE] * 3)
    whole = tilenet.segment(stack, axes="zyx", model=network)
    for part in (np.s_[..., 8:40], np.s_[1:-1, ...], np.s_[0:2, ..., -16:], np.s_[-1:, 5:, :-5], ...):
        assert np.array_equal(tilenet.segment(stack, axes="zyx", model=network, roi=part), whole[part])


def test_modules_that_only_some_machines_have_are_no_attributes():
    assert tilenet.training.Recipe is tilenet.Recipe
    assert not hasattr(tilenet, "nonsense") and not hasattr(tilenet, "a.b")


def test_a_footprint_is_for_a_network_of_one_s_own(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE)
    with pytest.raises(SettingsError, match="nuclei has a footprint of its own"):
        tilenet.batch([tmp_path / "a.tif"], tmp_path / "masks", footprint=Footprint.same(2, reach=1))
