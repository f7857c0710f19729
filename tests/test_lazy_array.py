import copy
import gc
import pickle
import threading
import time
import tracemalloc

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import integer_network, random_network, whole_image_logits

import tilenet
from tilenet import lazy_array, tiled_array
from tilenet.errors import BlocksFailed, ImageError, ModelError, SettingsError
from tilenet.jobs.job import Job

IMAGE = np.random.default_rng(0).integers(0, 9, (90, 70), dtype=np.uint8)
LOCK = threading.Lock()
WINDOWS = [
    np.s_[:, :],
    np.s_[10:53, 5:66],
    np.s_[37, 3:9],
    np.s_[89, 69],
    np.s_[3:80:7, ::-3],
    np.s_[[3, 40, 41, 88], 2:40],
    np.s_[5:5, :],
]


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def balanced(image, **options):
    """Return an integer network whose two classes both occur in an image (C, *n)."""
    network = integer_network(2, depth=2, wf=2, **options)
    first, second = whole_image_logits(network, image)
    network.last.bias.data[1] += float(np.round(np.median(first - second)))
    return network


@pytest.fixture(scope="module")
def network():
    return balanced(IMAGE[None])


class Virtual:
    """An array of any size, made where it is read: sums of coordinates."""

    dtype = np.dtype(np.uint8)

    def __init__(self, shape):
        self.shape, self.ndim, self.n_read = shape, len(shape), 0

    def __getitem__(self, index):
        grids = np.ogrid[index]
        out = (sum(g.astype(np.int64) * k for g, k in zip(grids, (7, 3, 5), strict=False)) % 9).astype(np.uint8)
        self.n_read += out.size
        return out


class Passes:
    """A predictor (the pixel above 4 is foreground) that counts its passes, and how many ran at once."""

    def __init__(self, ndim=2, reach=1, step=1):
        self.footprint = tilenet.Footprint.same(ndim, reach=reach, step=step)
        self.n, self.now, self.most = 0, 0, 0

    def __call__(self, batch):
        with LOCK:
            self.n, self.now = self.n + 1, self.now + 1
            self.most = max(self.most, self.now)
        out = np.concatenate([np.full_like(batch, 4.5), batch], axis=1)
        time.sleep(0.001)  # or no two passes would ever meet
        with LOCK:
            self.now -= 1
        return out


@pytest.mark.parametrize("output", ["mask", "probabilities", "logits"])
def test_every_part_is_that_of_segment(network, output):
    whole = tilenet.segment(IMAGE, model=network, tile=16, output=output)
    got = tilenet.lazy(IMAGE, model=network, tile=16, output=output)
    assert (got.shape, got.dtype) == (whole.shape, whole.dtype)
    assert np.unique(whole).size > 1
    for window in WINDOWS:
        of_all = window if output == "mask" else (slice(None), *window)
        assert np.array_equal(got[of_all].compute(), whole[of_all]), window
    if output != "mask":
        assert np.array_equal(got[1, 20:30].compute(), whole[1, 20:30])


def test_a_part_is_that_of_one_pass_over_the_mirrored_whole(network):
    expected = whole_image_logits(network, IMAGE[None])
    assert np.array_equal(tilenet.lazy(IMAGE, model=network, tile=10, output="logits").compute(), expected)
    wide = tilenet.lazy(IMAGE, model=network, tile=40, chunks=(-1, 33, 17), output="logits")
    assert np.array_equal(wide[:, 50:, :9].compute(), expected[:, 50:, :9])


def test_a_part_is_not_that_of_a_network_on_the_part_alone(network):
    got = tilenet.lazy(IMAGE, model=network, tile=16, output="logits")[:, 33:60, 21:50].compute()
    assert not np.array_equal(got, tilenet.segment(IMAGE[33:60, 21:50], model=network, output="logits"))


def test_chunks_that_are_not_tiles_change_nothing(network):
    whole = tilenet.segment(IMAGE, model=network, tile=16)
    for chunks in (7, (90, 10), "auto"):
        assert np.array_equal(tilenet.lazy(IMAGE, model=network, tile=16, chunks=chunks).compute(), whole)


@pytest.mark.parametrize("axes", ["tzyx", "zyx"])
def test_planes_and_times_are_outer_axes_and_classes_stand_where_segment_puts_them(network, axes):
    stack = np.random.default_rng(1).integers(0, 9, (2, 3, 30, 21)[-len(axes) :], dtype=np.uint8)
    whole = tilenet.segment(stack, axes=axes, model=network, tile=8, output="logits")
    got = tilenet.lazy(stack, axes=axes, model=network, tile=8, output="logits")
    assert got.shape == whole.shape
    assert np.array_equal(got.compute(), whole)
    assert np.array_equal(got[1, ..., 3:20].compute(), whole[1, ..., 3:20])


@pytest.mark.parametrize("pool_size", [(2, 2, 2), (1, 2, 2)])
def test_a_part_of_a_volume_is_that_of_segment(pool_size):
    volume = np.random.default_rng(2).integers(0, 9, (11, 30, 21), dtype=np.uint8)
    network = balanced(volume[None], ndim=3, pool_size=pool_size)
    whole = tilenet.segment(volume, axes="zyx", model=network, tile=(4, 8, 8))
    assert 0.1 < whole.mean() < 0.9
    got = tilenet.lazy(volume, axes="zyx", model=network, tile=(4, 8, 16))
    assert np.array_equal(got.compute(), whole)
    assert np.array_equal(got[5, 3:20, 7:9].compute(), whole[5, 3:20, 7:9])


def test_a_plane_of_a_terabyte_volume_costs_the_tiles_that_it_touches():
    volume, model = Virtual((10_000,) * 3), Passes(3, reach=3, step=4)
    mask = tilenet.lazy(volume, axes="zyx", model=model, tile=32)
    passes = model.n
    part = mask[5000, 300:340, 500:540]  # 300:340 and 500:540 each lie in two tiles of 32
    assert mask.npartitions <= lazy_array.MOST_CHUNKS
    assert len(cloudpickle.dumps(part)) < 100_000
    got = part.compute()
    assert model.n - passes == 2 * 2
    assert volume.n_read <= 2 * 2 * 48**3
    y, x = np.ogrid[300:340, 500:540]
    assert np.array_equal(got, (7 * 5000 + 3 * y + 5 * x) % 9 > 4.5)


def test_a_petabyte_volume_makes_no_more_tasks_than_a_small_one_needs():
    mask = tilenet.lazy(Virtual((100_000,) * 3), axes="zyx", model=Passes(3), tile=64)
    part = mask[70_000:70_005, 10, 99_990:]
    (optimised,) = dask.optimize(part)
    assert len(optimised.__dask_graph__()) < 10
    assert part.compute().shape == (5, 10)


def test_a_reduction_of_a_slice_costs_the_slice():
    model = Passes()
    mask = tilenet.lazy(Virtual((10**6, 10**6)), model=model, tile=64)
    assert mask.chunks[0][0] > 64, "chunks of many tiles, or this shows nothing"
    total = (mask[64_000:64_064, 0:128] > 0).sum().compute()
    assert 0 < total < 64 * 128
    assert model.n == 7 + 2, "seven passes that ask the model, and two tiles"


def test_pixels_beside_the_wanted_ones_are_not_computed():
    model = Passes()
    thumbnail = tilenet.lazy(IMAGE, model=model, tile=2)[::45, ::35]
    before = model.n
    assert np.array_equal(thumbnail.compute(), IMAGE[::45, ::35] > 4)
    assert model.n - before == 4


def test_a_dask_array_is_computed_chunk_by_chunk_as_boxes_need_it():
    computed = set()

    def make(block_info):
        computed.add(block_info[None]["chunk-location"])
        return np.zeros((100, 100), np.uint8)

    source = da.map_blocks(make, chunks=((100,) * 40, (100,) * 40), dtype=np.uint8, meta=np.empty((0, 0), np.uint8))
    mask = tilenet.lazy(source, model=Passes(reach=5), tile=50)
    mask[1010:1020, 2130:2140].compute()
    assert computed == {(9, 20), (9, 21), (10, 20), (10, 21)}, "the tile 1000:1050, 2100:2150 and 5 px around it"
    computed.clear()
    mask[1060, 2160].compute()
    assert computed == {(10, 21), (10, 22), (11, 21), (11, 22)}


def test_percentiles_are_those_of_the_whole_image_and_read_once():
    rule = {"method": "percentile", "low": 1, "high": 99}
    network = integer_network(depth=2, wf=1)
    whole = tilenet.segment(IMAGE, model=network, tile=16, batch=1, scaling=rule, output="logits")
    source = da.from_array(IMAGE, chunks=16)
    got = tilenet.lazy(source, model=network, tile=16, scaling=rule, output="logits")
    assert np.array_equal(got[:, 40:50, :20].compute(), whole[:, 40:50, :20])
    assert not np.array_equal(
        tilenet.segment(IMAGE[40:50, :20], model=network, scaling=rule, output="logits"), whole[:, 40:50, :20]
    )


def test_threads_give_the_same_and_one_pass_runs_at_a_time():
    model = Passes()
    with dask.config.set(scheduler="threads", num_workers=4):
        got = tilenet.lazy(IMAGE, model=model, tile=10).compute()
    assert np.array_equal(got, IMAGE > 4)
    assert (model.n > 60, model.most) == (True, 1)


@pytest.fixture
def files(tmp_path):
    """Return paths of an image and of a model."""
    import tifffile

    tifffile.imwrite(tmp_path / "i.tif", IMAGE, tile=(32, 32))
    tilenet.save_model(random_network(depth=2, wf=3), tmp_path / "m.safetensors")
    return tmp_path / "i.tif", tmp_path / "m.safetensors"


@pytest.fixture
def made(monkeypatch):
    """Return the predictors that are made, as they are."""
    predictors = []
    make = Job.predictor
    monkeypatch.setattr(Job, "predictor", lambda job, scaling: predictors.append(make(job, scaling)) or predictors[-1])
    yield predictors
    tiled_array._unpickled.clear()


def test_a_process_keeps_the_images_of_few_arrays_open(files, monkeypatch):
    monkeypatch.setattr(tiled_array, "KEPT", 3)
    tiled_array._unpickled.clear()
    arrays = [tilenet.lazy(files[0], model=files[1], tile=16, scaling=f"linear:0,{k}") for k in range(1, 6)]
    expected = [array[:5, :5].compute() for array in arrays]
    sent = [pickle.loads(pickle.dumps(array)) for array in arrays]
    assert len(tiled_array._unpickled) == 3
    assert all(np.array_equal(array[:5, :5].compute(), made) for array, made in zip(sent, expected, strict=True))
    tiled_array._unpickled.clear()


def test_a_process_has_one_copy_of_a_model_however_many_tasks_and_arrays_use_it(files, made):
    arrays = [tilenet.lazy(image, model=files[1], tile=16) for image in (files[0], IMAGE)]
    with dask.config.set(scheduler="threads", num_workers=4):
        results = [array.compute() for array in arrays]
        results.append(pickle.loads(pickle.dumps(arrays[0])).compute())
    assert len(made) == 1
    assert all(np.array_equal(result, results[0]) for result in results)
    tilenet.lazy(IMAGE, model=files[1], tile=16, scaling={"method": "linear", "divide": 2}).compute()
    assert len(made) == 2, "another scaling is another predictor"


def test_a_model_is_let_go_with_the_last_array_that_uses_it(network):
    array = tilenet.lazy(IMAGE, model=network, tile=30)
    array.compute()
    gc.collect()
    before = len(tiled_array._predictors)
    del array
    gc.collect()
    assert len(tiled_array._predictors) == before - 1


def test_what_is_sent_holds_neither_weights_nor_pixels_of_files_and_opens_them_once(files, made):
    array = tilenet.lazy(files[0], model=files[1], tile=16)
    sent = pickle.dumps(array)
    assert len(sent) < 10_000 < files[1].stat().st_size
    first, again = (pickle.loads(sent) for _ in range(2))
    tiles = [a.dask.layers[f"original-{a.name}"][f"original-{a.name}"] for a in (first, again)]
    assert tiles[0] is tiles[1]
    assert np.array_equal(first.compute(), tilenet.segment(files[0], model=files[1], tile=16, batch=1))


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_was_changed_in_between_is_refused(files, which):
    import tifffile

    sent = pickle.dumps(tilenet.lazy(files[0], model=files[1], tile=16))
    tifffile.imwrite(files[0], IMAGE[:32], tile=(32, 32)) if which == 0 else tilenet.save_model(
        random_network(5, depth=2, wf=3), files[1]
    )
    with pytest.raises((ImageError, ModelError), match=f"{files[which].name}: was changed since the lazy array"):
        pickle.loads(sent).compute()


def test_other_processes_give_the_same(files):
    array = tilenet.lazy(files[0], model=files[1], tile=32)
    with dask.config.set(scheduler="processes", num_workers=1):
        got = array[10:60, 30:].compute()
    assert np.array_equal(got, tilenet.segment(files[0], model=files[1], tile=32, batch=1)[10:60, 30:])


@pytest.fixture
def client():
    """Return the client of a cluster in this process, which Dask then uses for all that it computes."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with (
        dask.config.set(scheduler=None),
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_distributed_client_gives_the_same(client, network):
    got = client.compute(tilenet.lazy(IMAGE, model=network, tile=32)[20:70]).result()
    assert np.array_equal(got, tilenet.segment(IMAGE, model=network, tile=32)[20:70])


@pytest.mark.usefixtures("client")
def test_an_array_that_a_cluster_keeps_is_segmented_and_refused_by_lazy(network):
    kept = da.from_array(IMAGE, chunks=20).persist()
    assert np.array_equal(tilenet.segment(kept, model=network), tilenet.segment(IMAGE, model=network))
    with pytest.raises(ImageError, match="from before that; segment takes it"):
        tilenet.lazy(kept, model=network)


def test_training_a_network_further_changes_no_array_that_was_made(network):
    trained = copy.deepcopy(network)
    array = tilenet.lazy(IMAGE, model=trained, tile=30)
    trained.last.weight.data.mul_(-1)
    assert np.array_equal(array.compute(), tilenet.segment(IMAGE, model=network, tile=30))
    assert not np.array_equal(array.compute(), tilenet.segment(IMAGE, model=trained, tile=30))


def test_a_tile_that_cannot_be_computed_is_named():
    class Fails(Passes):
        def __call__(self, batch):
            return np.where(batch.max() < 9, super().__call__(batch), np.inf)

    image = IMAGE.copy()
    image[40, 40] = 9
    array = tilenet.lazy(image, model=Fails(), tile=30)
    assert array[:20].compute().shape == (20, 70)
    with pytest.raises(BlocksFailed, match=r"tile at \[30:60, 30:60\].*not finite"):
        array[40, 40].compute()


def test_a_resampled_image_is_that_of_segment_before_and_after_it_was_sent(shared_data):
    path, options = shared_data("slides/OS-1-detail_HE.ome.tif"), {"mpp": 1.7, "model": "nuclei", "tile": 64}
    part = np.s_[64:128, 100:120]
    whole = tilenet.segment(path, batch=1, roi=part, **options)
    array = tilenet.lazy(path, **options)
    assert array.shape[0] < 1101
    for got in (array, pickle.loads(pickle.dumps(array))):
        assert np.array_equal(got[part].compute(), whole)


def test_what_is_not_for_lazy_is_refused(network):
    with pytest.raises(TypeError, match="lazy has no option resume"):
        tilenet.lazy(IMAGE, model=network, resume=True)
    with pytest.raises(TypeError, match=r"lazy has no option objects\. .*segment"):
        tilenet.lazy(IMAGE, model=network, objects=True)
    with pytest.raises(SettingsError, match="output 'both'"):
        tilenet.lazy(IMAGE, model=network, output="both")
    with pytest.raises(SettingsError, match="nearest 4, 6"):
        tilenet.lazy(IMAGE, model=network, tile=5)
    for chunks in (0, "abc", (8, 8, 8, 8), -5, 1.5, object()):
        with pytest.raises(SettingsError, match=r"^chunks .* do not fit shape \("):
            tilenet.lazy(IMAGE, model=network, chunks=chunks)


def test_tasks_can_be_told_by_their_names(network):
    assert tilenet.lazy(IMAGE, model=network).name.startswith("tilenet-segment-")


def test_a_real_file_and_the_packaged_model_give_what_segment_gives(shared_data):
    path = shared_data("volumes/plant_ovule_boundarymap_image.tif")
    options = {"model": "nuclei", "tile": 64}
    whole = tilenet.segment(path, batch=1, roi=np.s_[4:6, :, :], **options)
    got = tilenet.lazy(path, **options)[4:6].compute()
    assert np.array_equal(got, whole)


def test_a_slice_of_an_axis_of_any_length_takes_the_memory_of_its_tiles():
    endless = np.broadcast_to(np.uint8(3), (10**9, 64))
    made = tilenet.lazy(endless, model=random_network(depth=2, wf=1), tile=64)
    made[5:9, 7:9].compute()
    tracemalloc.start()
    assert made[10**9 - 5 :, 7:9].compute().shape == (5, 2)
    (_, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    assert peak < 2**24


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.just(n), st.slices(n) | st.integers(-n, n - 1) | st.lists(st.integers(-n, n - 1), max_size=5)
        )
    )
)
def test_indices_pick_what_they_pick_of_an_array(drawn):
    length, index = drawn
    picked = tiled_array.picked(index, length)
    assert picked.tolist() == np.atleast_1d(np.arange(length)[np.array(index, int) if index == [] else index]).tolist()
    with pytest.raises(IndexError, match=f"not within an axis of {length}"):
        tiled_array.picked([0, length], length)
