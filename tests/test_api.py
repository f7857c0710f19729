import dask.array as da
import numpy as np
import pytest
import tifffile
import torch
import zarr
from oracles import integer_network, random_network, whole_image_logits
from store_helpers import tree
from stub import Threshold
from torch import nn

import tilenet
from tilenet import machine
from tilenet.errors import (
    BlocksFailed,
    ImageError,
    ModelError,
    OutputExists,
    OutputMismatch,
    SettingsError,
)
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.store import Store

IMAGE = np.random.default_rng(0).integers(0, 200, (150, 211), dtype=np.uint8)


def test_an_array_in_gives_an_array_of_classes_out(network):
    mask = tilenet.segment(IMAGE, model=network, tile=32)
    expected = whole_image_logits(network, IMAGE[None]).argmax(axis=0)
    assert (mask.shape, mask.dtype) == (IMAGE.shape, np.uint8)
    assert (mask != expected).sum() <= 2
    assert 0.02 < mask.mean() < 0.98


def test_probabilities_have_the_classes_where_ome_wants_them(network):
    plane = tilenet.segment(IMAGE, model=network, output="probabilities")
    assert plane.shape == (2, *IMAGE.shape)
    assert np.allclose(plane.sum(axis=0), 1)
    series = tilenet.segment(IMAGE[None, None], axes="tzyx", model=network, output="probabilities")
    assert series.shape == (1, 2, 1, *IMAGE.shape)
    assert np.array_equal(series[0, :, 0], plane)


def test_a_store_holds_what_the_array_would(tmp_path, network):
    mask = tilenet.segment(IMAGE, tmp_path / "deep" / "m.zarr", model=network, tile=32, output="both")
    assert np.array_equal(np.asarray(mask), tilenet.segment(IMAGE, model=network, tile=32))
    assert np.array_equal(zarr.open(tmp_path / "deep" / "m.zarr" / "0")[:], np.asarray(mask))
    probabilities = tilenet.segment(IMAGE, model=network, tile=32, output="probabilities")
    assert np.array_equal(mask.probabilities[:], probabilities)


def test_the_store_says_how_it_was_made(tmp_path, network):
    mask = tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network, tile=32, threads=1)
    record = mask.info["record"]
    assert (record["tile"], record["threads"], record["precision"], record["device"]) == ([32, 32], 1, "fp32", "cpu")
    assert mask.info["version"] == tilenet.__version__
    assert len(mask.info["model"]["sha256"]) == 64


def test_a_bare_network_sees_unscaled_pixels_and_is_given_back_as_it_was():
    seen = []

    class Spy(nn.Module):
        footprint = tilenet.Footprint.same(2, reach=1)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.drop = nn.Dropout(0.9)

        def forward(self, x):
            if x.shape[-1] > IMAGE.shape[-1] // 2:  # a tile, not what is asked before
                seen.append((x.max().item(), x.dtype, self.training))
            return self.drop(self.conv(x))

    network = Spy().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tilenet.segment(IMAGE, model=network)
    assert {dtype for _, dtype, _ in seen} == {torch.float32}
    assert max(value for value, _, _ in seen) == IMAGE.max()
    assert not any(training for _, _, training in seen)
    assert network.training
    assert network.drop.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_scaling_is_that_of_the_whole_image_whatever_the_tile():
    network = integer_network(depth=2, wf=1)
    rule = {"method": "percentile", "low": 1, "high": 99}
    low, high = np.percentile(IMAGE, [1, 99])
    scaled = ((IMAGE.astype(np.float64) - low) / (high - low))[None]
    expected = whole_image_logits(network, scaled)
    for tile in (16, 50):
        got = tilenet.segment(IMAGE, model=network, scaling=rule, tile=tile, output="logits")
        assert np.allclose(got, expected, atol=1e-5 * np.ptp(expected))


def test_a_scaling_per_tile_would_show():
    network = integer_network(depth=2, wf=1)
    gradient = (np.arange(200)[:, None] + np.zeros(200)).astype(np.uint8)
    rule = {"method": "percentile", "low": 0, "high": 100}
    whole = tilenet.segment(gradient, model=network, scaling=rule, output="logits")
    part = tilenet.segment(gradient[:100], model=network, scaling=rule, output="logits")
    assert not np.allclose(whole[:, :50], part[:, :50])


def test_a_run_goes_on_with_its_own_image_and_says_which_it_was(tmp_path):
    paths = [tmp_path / "plane.tif", tmp_path / "stack.tif", tmp_path / "other.tif"]
    for path, image in zip(paths, (IMAGE, np.stack([IMAGE] * 3), IMAGE[:-1]), strict=True):
        tifffile.imwrite(path, image, metadata={"axes": "ZYX"[-image.ndim :]}, imagej=True)
    tilenet.segment(paths[0], tmp_path / "m.zarr", model=Threshold(), axes="yx")
    for path in paths[1:]:
        with pytest.raises(OutputMismatch, match=r"m\.zarr: was begun with image .* Give the image"):
            tilenet.segment(path, tmp_path / "m.zarr", model=Threshold(), resume=True)


def test_pixels_that_are_no_numbers_are_named_as_the_reason():
    image = IMAGE.astype(np.float32)
    image[20, 30] = np.nan
    with pytest.raises(
        BlocksFailed, match="as there are pixels in the image that are not finite. Replace them in the image$"
    ):
        tilenet.segment(image, model=Threshold())


def test_a_function_runs_on_no_device_of_ours(monkeypatch):
    function = Threshold()
    monkeypatch.setattr(machine, "find_device", lambda name: torch.device("cuda" if name == "auto" else name))
    job = make_job(IMAGE, function, Options())
    assert job.record["device"] == "cpu"
    assert job.needs()["device_bytes"] == 0
    with pytest.raises(SettingsError, match="device cuda: the model is a function"):
        make_job(IMAGE, function, Options(device="cuda"))


def test_any_callable_with_a_footprint_is_a_model():
    assert np.array_equal(tilenet.segment(IMAGE, model=Threshold(), tile=64), IMAGE > 100)


def test_a_network_without_a_footprint_is_refused_unless_one_is_given():
    network = nn.Conv2d(1, 2, 5, padding=2)
    with pytest.raises(ModelError, match="Conv2d has no footprint. Give footprint="):
        tilenet.segment(IMAGE, model=network)
    mask = tilenet.segment(IMAGE, model=network, footprint=tilenet.Footprint.same(2, reach=2), tile=30)
    assert np.array_equal(mask, tilenet.segment(IMAGE, model=network, footprint=tilenet.Footprint.same(2, reach=2)))


def test_a_footprint_that_is_not_the_networks_is_refused():
    with pytest.raises(ModelError, match=r"the footprint says .* the network gives"):
        tilenet.segment(IMAGE, model=nn.Conv2d(1, 2, 5), footprint=tilenet.Footprint.same(2, reach=2))


def test_grey_feeds_a_network_of_three_channels_and_other_mismatches_are_refused():
    network = random_network(depth=2, wf=2, in_channels=3)
    assert tilenet.segment(IMAGE, model=network).shape == IMAGE.shape
    five = np.stack([IMAGE] * 5)
    with pytest.raises(ImageError, match="has 5 channels, the model takes 3. Choose with --channels"):
        tilenet.segment(five, axes="cyx", model=network)
    chosen = tilenet.segment(five, axes="cyx", channels=(4, 0, 1), model=network)
    assert np.array_equal(chosen, tilenet.segment(IMAGE, model=network))


def test_channels_are_seen_in_the_order_given():
    network = random_network(depth=2, wf=2, in_channels=2)
    pair = np.stack([IMAGE, IMAGE[::-1]])
    swapped = tilenet.segment(pair, axes="cyx", channels=(1, 0), model=network, output="logits")
    assert np.array_equal(swapped, tilenet.segment(pair[::-1], axes="cyx", model=network, output="logits"))
    assert not np.array_equal(swapped, tilenet.segment(pair, axes="cyx", model=network, output="logits"))


def test_an_output_that_exists_is_refused_and_left_alone(tmp_path, network):
    out = tmp_path / "m.zarr"
    tilenet.segment(IMAGE, out, model=network)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(OutputExists, match=r"m\.zarr"):
        tilenet.segment(IMAGE, out, model=network)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    tilenet.segment(IMAGE // 2, out, model=network, overwrite=True)
    assert np.array_equal(np.asarray(tilenet.open_mask(out)), tilenet.segment(IMAGE // 2, model=network))


# Passes that ask a model before a run of several tiles per batch.
ASKED = 10


class Fails:
    """A predictor that gives up after some batches."""

    footprint = tilenet.Footprint.same(2, reach=1)

    def __init__(self, after):
        self.left = after

    def __call__(self, batch):
        self.left -= 1
        if self.left < 0:
            raise ValueError("the lamp went out")
        return np.concatenate([np.full_like(batch, 100), batch], axis=1)


@pytest.fixture
def halfway(tmp_path):
    out = tmp_path / "half.zarr"
    with pytest.raises(BlocksFailed):
        tilenet.segment(IMAGE, out, tile=16, threads=1, model=Fails(ASKED + 2))
    return out


@pytest.mark.parametrize("engine", [None, "auto", "plain"])
def test_a_resumed_run_says_of_a_tile_that_cannot_be_that_it_cannot_be(halfway, engine):
    with pytest.raises(SettingsError, match="tile 16,16,16 has 3 sides") as caught:
        tilenet.segment(IMAGE, halfway, model=Fails(10**9), resume=True, engine=engine, tile=(16, 16, 16))
    assert not isinstance(caught.value, OutputMismatch)


def test_a_resumed_run_refuses_another_image_or_model(halfway, network):
    with pytest.raises(OutputMismatch, match="image pixels_sha256"):
        tilenet.segment(IMAGE // 2, halfway, model=Fails(10**9), resume=True)
    with pytest.raises(OutputMismatch, match="was begun with"):
        tilenet.segment(IMAGE, halfway, model=network, resume=True)


def test_what_a_resumed_run_leaves_unsaid_is_taken_from_the_record(halfway):
    mask = tilenet.segment(IMAGE, halfway, model=Fails(10**9), resume=True, memory=10**9)
    assert mask.info["record"]["tile"] == [16, 16]
    assert np.array_equal(np.asarray(mask), IMAGE > 100)


def test_resume_starts_a_run_where_there_is_none(tmp_path, network):
    assert tilenet.segment(IMAGE, tmp_path / "new.zarr", model=network, resume=True).shape == IMAGE.shape


@pytest.mark.parametrize(("out", "output"), [(None, "both"), ("m.zarr", "logits"), ("m.zarr", "probabilities")])
def test_an_output_that_cannot_be_is_refused(tmp_path, network, out, output):
    with pytest.raises(SettingsError, match=f"output '{output}'"):
        tilenet.segment(IMAGE, out and tmp_path / out, model=network, output=output)
    assert not list(tmp_path.iterdir())


def test_axes_that_do_not_end_in_the_networks_are_refused(network):
    with pytest.raises(ImageError, match="a 2-D network runs over yx"):
        tilenet.segment(np.zeros((4, 5, 6), np.uint8), axes="yxz", model=network)


def discs():
    """Return an image of bright discs, four of them in touching pairs, and how many there are."""
    y, x = np.mgrid[:200, :260]
    centres = [(40, 40), (40, 66), (120, 60), (150, 180), (150, 206), (60, 200)]
    image = sum(((y - cy) ** 2 + (x - cx) ** 2 < 15**2) for cy, cx in centres) > 0
    return (image * np.uint8(200)), len(centres)


def test_a_mask_of_z_before_t_is_refused_with_the_order_that_can_be_written(tmp_path, network):
    image, options = IMAGE[:60, :50].reshape(3, 1, 20, 50), {"axes": "ztyx", "model": network}
    with pytest.raises(ImageError, match=r"has z before t \(ztyx\), .* image so \(tzyx\); an array: ") as caught:
        tilenet.segment(image, tmp_path / "m.zarr", **options)
    assert "give np.transpose(array, [1, 0, 2, 3]), axes 'tzyx'. Or get an array" in str(caught.value)
    array = tilenet.segment(image, **options)
    turned = np.transpose(image, [1, 0, 2, 3])
    swapped = tilenet.segment(turned, tmp_path / "m.zarr", axes="tzyx", model=network)
    assert np.array_equal(array.swapaxes(0, 1), swapped[:])


def test_a_function_is_given_pixels_in_the_usual_order_in_memory():
    def brightest(batch):
        assert (batch.shape[1], batch.dtype, batch.flags.c_contiguous) == (3, np.float32, True)
        return np.concatenate([np.full_like(batch[:, :1], 100), batch.max(axis=1, keepdims=True)], axis=1)

    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    footprint = tilenet.Footprint.same(2, reach=0)
    mask = tilenet.segment(image, axes="yxc", model=brightest, footprint=footprint, tile=32, batch=2)
    assert np.array_equal(mask, image.max(axis=2) > 100)


def test_objects_are_numbered_and_touching_ones_parted(tmp_path):
    image, count = discs()
    labels = tilenet.segment(image, model=Threshold(), objects=True)
    assert np.unique(labels).tolist() == list(range(count + 1))
    assert np.array_equal(labels > 0, image > 100)
    mask = tilenet.segment(image, tmp_path / "o.zarr", model=Threshold(), objects=True)
    assert np.array_equal(np.asarray(mask), labels)
    assert mask.dtype == np.uint32
    found = tilenet.verify(tmp_path / "o.zarr", image, model=Threshold())
    assert (found.ok, found.windows) == (True, 0)
    assert "objects" in found.not_recomputed


def test_objects_and_probabilities_are_not_made_at_once(tmp_path):
    with pytest.raises(SettingsError, match="objects and output 'both'"):
        tilenet.segment(discs()[0], tmp_path / "o.zarr", model=Threshold(), objects=True, output="both")


def test_a_mask_is_returned_while_another_run_looks_who_is_alive(tmp_path, monkeypatch):
    finish = Store.finish

    def watched(store):
        finish(store)
        (store.path / ".tilenet" / "note.part").touch()

    monkeypatch.setattr(Store, "finish", watched)
    mask = tilenet.segment(IMAGE, tmp_path / "m.zarr", model=Threshold())
    assert np.array_equal(mask, tilenet.segment(IMAGE, model=Threshold()))


def test_objects_of_a_stack_are_those_of_its_planes_and_numbered_on(tmp_path):
    image, count = discs()
    alone = tilenet.segment(image, model=Threshold(), objects=True)
    stack = np.stack([image, 0 * image, image])
    labels = tilenet.segment(stack, axes="zyx", model=Threshold(), objects=True)
    assert np.array_equal(labels, np.stack([alone, 0 * alone, np.where(alone > 0, alone + count, 0)]))
    mask = tilenet.segment(stack, tmp_path / "o.zarr", axes="zyx", model=Threshold(), objects=True)
    assert np.array_equal(mask[...], labels) and mask.info["objects"] == 2 * count
    table = tilenet.write_table(tmp_path / "o.zarr", tmp_path / "o.csv")
    assert table.objects and not table.volumes and sum(table.counts.values()) == 2 * count


WAYS_TO_OPEN = {
    "path": lambda path: path,
    "level": lambda path: path / "0",
    "image": tilenet.open_image,
    "image of an array": lambda path: tilenet.open_image(tilenet.open_mask(path).levels[0], pixel_size=1),
    "mask": tilenet.open_mask,
    "zarr array": lambda path: zarr.open(path, mode="r")["0"],
    "dask array": lambda path: da.from_zarr(path / "0") + 1,
}


@pytest.mark.parametrize("way", WAYS_TO_OPEN)
@pytest.mark.parametrize("objects", [False, True])
def test_the_image_itself_is_never_replaced(tmp_path, way, objects):
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=Threshold())
    before = tree(tmp_path)
    image = WAYS_TO_OPEN[way](tmp_path / "m.zarr")
    with pytest.raises(OutputExists, match="is the image|holds the image"):
        tilenet.segment(image, tmp_path / "m.zarr", model=Threshold(), overwrite=True, objects=objects)
    assert before == tree(tmp_path)
