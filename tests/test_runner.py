"""The loop, with a predictor of plain NumPy: no torch, no file, no store."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from tilenet.decide import Decision
from tilenet.errors import EnvironmentFault
from tilenet.footprint import Footprint
from tilenet.prefetch import AHEAD, BatchReader, all_batches
from tilenet.readers import open_image
from tilenet.readers.image import READERS
from tilenet.runner import BEHIND, Report, run
from tilenet.sizes import plan_tiles

REACH = 2


class BoxSum:
    """Sums each pixel's 5 x 5 neighbourhood, without padding: exact in integers."""

    footprint = Footprint.valid(2, lost=REACH)

    def __init__(self):
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch.shape)
        windows = np.lib.stride_tricks.sliding_window_view(batch.astype(np.float64), (5, 5), axis=(2, 3))
        total = windows.sum(axis=(1, 4, 5))
        return np.stack([np.full_like(total, 100.0), total], axis=1)


class Memory:
    def __init__(self, plan, done=()):
        self.plan, self.done, self.blocks = plan, set(done), {}

    def pending(self):
        return [i for i in range(len(self.plan)) if i not in self.done]

    def write(self, index, arrays):
        assert index not in self.blocks, "each block is written once"
        self.blocks[index] = {name: array.copy() for name, array in arrays.items()}

    def whole(self, name):
        out = np.zeros(self.plan.shape)
        for index, arrays in self.blocks.items():
            out[self.plan[index].box.slices] = arrays[name]
        return out


def image_and_plan(shape=(70, 95), *, tile=10, block=30, batch=4):
    pixels = np.random.default_rng(0).integers(0, 9, shape).astype(np.uint8)
    axes = "zyx"[-len(shape) :]
    return (
        pixels,
        open_image(pixels, axes=axes),
        plan_tiles(shape, BoxSum.footprint, tile=tile, block=block, batch=batch),
    )


def expected_mask(pixels):
    padded = np.pad(pixels, REACH, mode="reflect").astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return windows.sum(axis=(2, 3)) > 100


def go(image, plan, sink, predictor=None, **options):
    return run(
        plan,
        image,
        predictor or BoxSum(),
        decide=Decision("softmax", (0, 1)),
        pending=sink.pending(),
        write=sink.write,
        **options,
    )


def test_a_run_writes_what_the_predictor_gives_on_the_mirrored_whole():
    pixels, image, plan = image_and_plan()
    sink = Memory(plan)
    report = go(image, plan, sink)
    assert np.array_equal(sink.whole("mask"), expected_mask(pixels))
    assert 0.1 < expected_mask(pixels).mean() < 0.9
    assert (report.blocks, report.pixels, report.failures) == (len(plan), pixels.size, {})


def test_only_pending_blocks_are_computed():
    _, image, plan = image_and_plan()
    sink = Memory(plan, done=[0, 1, 5])
    go(image, plan, sink)
    assert sorted(sink.blocks) == sink.pending()


def test_batches_are_no_larger_than_planned_and_of_one_shape():
    _, image, plan = image_and_plan(batch=4)
    predictor = BoxSum()
    go(image, plan, Memory(plan), predictor)
    assert max(shape[0] for shape in predictor.batches) == 4
    assert {shape[2:] for shape in predictor.batches} == {(14, 14), (14, 9)}


def test_few_finished_blocks_wait_to_be_written_however_slow_that_is():
    _, image, plan = image_and_plan(tile=10, block=10)
    sink, waiting = Memory(plan), []

    def advance(pixels):
        advance.computed += 1
        waiting.append(advance.computed - len(sink.blocks))

    advance.computed, writers = 0, set()
    write = sink.write
    sink.write = lambda *block: (writers.add(threading.get_ident()), time.sleep(0.01), write(*block))
    go(image, plan, sink, progress=advance)
    assert len(sink.blocks) == len(plan) == 70
    assert max(waiting) <= BEHIND
    assert len(writers) == 1


def test_planes_of_a_stack_are_looped_over():
    pixels, image, plan = image_and_plan((3, 40, 50))
    sink = Memory(plan)
    go(image, plan, sink)
    assert all(np.array_equal(sink.whole("mask")[z], expected_mask(pixels[z])) for z in range(3))


def test_a_block_that_raises_is_reported_and_the_others_are_done():
    _, image, plan = image_and_plan()

    class Fails(BoxSum):
        def __call__(self, batch):
            if len(self.batches) == 3:
                self.batches.append(None)
                raise ValueError("no such luck")
            return super().__call__(batch)

    sink, predictor = Memory(plan), Fails()
    report = go(image, plan, sink, predictor)
    (index,) = report.failures
    assert report.failures[index] == "no such luck"
    assert index == 1 and len(list(plan[0].batches(plan.batch))) == 3
    begun = [1 if block.index == index else len(list(block.batches(plan.batch))) for block in plan]
    assert len(predictor.batches) == sum(begun), "no more of the block is computed in vain"
    assert sorted([*sink.blocks, index]) == list(range(len(plan)))


def test_logits_that_are_not_finite_fail_their_block_by_place():
    _, image, plan = image_and_plan()

    class Nan(BoxSum):
        def __call__(self, batch):
            logits = super().__call__(batch)
            logits[0, 0, 3, 3] = np.nan if len(self.batches) == 1 else 0
            return logits

    report = go(image, plan, Memory(plan), Nan())
    assert report.failures == {0: "the network's output at [0:10, 0:10] is not finite"}


def test_a_fault_of_the_machine_ends_the_run():
    _, image, plan = image_and_plan()

    class Full(Memory):
        def write(self, index, arrays):
            raise EnvironmentFault("disk full")

    with pytest.raises(EnvironmentFault, match="disk full"):
        go(image, plan, Full(plan))


class Elsewhere(BoxSum):
    """Decides by itself, later: as a GPU does."""

    in_flight = 3

    def __init__(self):
        super().__init__()
        self.begun, self.log, self.rooms, self.ahead = 0, [], [], []

    def allocate(self, shape, dtype):
        self.rooms.append(np.empty(shape, dtype))
        return self.rooms[-1]

    def begin(self, batch, tiles, decide):
        assert any(batch is room for room in self.rooms)
        self.begun += 1
        self.ahead.append(len(self.rooms) - self.begun)
        self.log.append(("begin", self.begun))
        number, logits = self.begun, self(batch)

        def finish():
            self.log.append(("finish", number))
            if number == 5:
                raise ValueError("the wire was cut")
            return [decide(of_tile) for of_tile in logits]

        return finish


def test_a_predictor_that_decides_by_itself_is_a_few_batches_ahead():
    pixels, image, plan = image_and_plan(batch=4)
    predictor, sink = Elsewhere(), Memory(plan)
    report = go(image, plan, sink, predictor)
    waiting = np.cumsum([1 if what == "begin" else -1 for what, _ in predictor.log])
    assert waiting.max() == predictor.in_flight
    assert waiting[-1] == 0
    assert [n for what, n in predictor.log if what == "finish"] == sorted(n for w, n in predictor.log if w == "begin")
    (failed,) = report.failures
    assert report.failures[failed] == "the wire was cut"
    assert sorted([*sink.blocks, failed]) == list(range(len(plan)))
    expected = expected_mask(pixels)
    for index, arrays in sink.blocks.items():
        assert np.array_equal(arrays["mask"], expected[plan[index].box.slices])


def test_for_a_predictor_that_decides_by_itself_all_readers_are_kept_busy():
    _, image, plan = image_and_plan(batch=1)
    predictor = Elsewhere()
    go(image, plan, Memory(plan), predictor)
    assert predictor.ahead[0] == 2 * READERS - 1


def test_a_block_for_whose_tiles_there_is_no_room_fails_alone():
    _, image, plan = image_and_plan(batch=4)

    class Crowded(Elsewhere):
        def allocate(self, shape, dtype):
            if len(self.rooms) == 1:
                self.rooms.append(None)
                raise MemoryError("no room for a batch")
            return super().allocate(shape, dtype)

    predictor, sink = Crowded(), Memory(plan)
    report = go(image, plan, sink, predictor)
    assert "no room for a batch" in report.failures.values()
    assert len(sink.blocks) == len(plan) - len(report.failures) > 0


def test_reading_keeps_only_a_bounded_number_of_tiles_ahead():
    _, image, plan = image_and_plan((200, 200), tile=10, block=100, batch=2)
    lock, reads, computed = threading.Lock(), [0], [0]
    inner = image.read

    def counted(box):
        with lock:
            reads[0] += 1
        return inner(box)

    image.read = counted

    class Slow(BoxSum):
        def __call__(self, batch):
            time.sleep(0.002)
            computed[0] += len(batch)
            assert reads[0] - computed[0] <= (AHEAD - 1) * plan.batch
            return super().__call__(batch)

    report = go(image, plan, Memory(plan), Slow())
    assert not report.failures
    assert computed[0] == plan.n_tiles


@pytest.mark.parametrize("axes", ["yxc", "cyx", "zyxc"])
def test_batches_hold_the_pixels_of_their_tiles_in_the_order_of_the_image(axes):
    sides = {"z": 2, "y": 40, "x": 50, "c": 3}
    shape = tuple(sides[axis] for axis in axes)
    pixels = np.random.default_rng(0).integers(0, 9, shape).astype(">u2")
    image = open_image(pixels, axes=axes)
    plan = plan_tiles(image.box_shape, BoxSum.footprint, tile=10, block=20, batch=3)
    reader, seen = BatchReader(image, 2, ahead=2, allocate=np.empty), 0
    with ThreadPoolExecutor(2) as pool:
        for batch in reader.batches(pool, all_batches(plan, range(len(plan)))):
            wait(batch.reads)
            for tile, found in zip(batch.work.tiles, batch.pixels, strict=True):
                assert np.array_equal(found, image.read(tile.read).reshape(3, *tile.read.shape[-2:]))
                seen += tile.write.size
            in_memory = np.moveaxis(batch.pixels, 1, -1) if axes.endswith("c") else batch.pixels
            assert in_memory.flags.c_contiguous and batch.pixels.dtype == np.uint16 and in_memory.dtype.isnative
    assert seen == np.prod(image.box_shape)


def test_progress_adds_up_to_the_pixels_of_the_image():
    pixels, image, plan = image_and_plan()
    steps = []

    class Prompt(BoxSum):
        def __call__(self, batch):
            assert len(steps) == len(self.batches), "the last batch is done before the next one begins"
            return super().__call__(batch)

    assert not go(image, plan, Memory(plan), Prompt(), progress=steps.append).failures
    assert sum(steps) == pixels.size
    assert len(steps) > len(plan)


def test_a_report_takes_the_numbers_of_another_but_not_its_failures():
    report = Report(blocks=1, read=2.0, failures={3: "dark"})
    report.add(Report(blocks=2, read=0.5, failures={4: "torn"}))
    assert report == Report(blocks=3, read=2.5, failures={3: "dark"})


class Clock(threading.local):
    """The time of each thread by itself, which is moved by hand."""

    now = 0.0

    def read(self):
        return self.now

    def pass_before(self, seconds, function):
        def later(*args):
            self.now += seconds
            return function(*args)

        return later


def test_the_report_tells_slow_reading_from_slow_writing(monkeypatch):
    _, image, plan = image_and_plan()
    clock, sink = Clock(), Memory(plan)
    monkeypatch.setattr("tilenet.prefetch.perf_counter", clock.read)
    image.read = clock.pass_before(2, image.read)
    sink.write = clock.pass_before(1, sink.write)
    started = time.perf_counter()
    report = go(image, plan, sink)
    assert (report.read, report.written) == (2 * plan.n_tiles, len(plan))
    assert min(report.waited, report.computed) > 0
    assert report.waited + report.computed < report.seconds < time.perf_counter() - started
