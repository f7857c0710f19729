"""Decoded pieces are shared: by threads, by overlapping tiles, by blocks side by side."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import tifffile
import zarr

from tilenet.decide import Decision
from tilenet.footprint import Footprint
from tilenet.geometry import Box
from tilenet.readers import open_image
from tilenet.readers.cache import PieceCache
from tilenet.runner import run
from tilenet.sizes import plan_tiles

CONTEXT, FILE_TILE, BLOCK = 20, 32, 96
PIXELS = np.random.default_rng(0).integers(0, 256, (288, 960), dtype=np.uint8)


def piece(n):
    return np.zeros(n, np.uint8)


def test_the_cache_keeps_to_its_bytes_but_always_holds_the_newest():
    cache = PieceCache(max_bytes=250)
    for key in (1, 2, 1, 3, 1):
        cache.get(key, lambda: piece(100))
    assert (cache.n_decoded, cache.n_bytes) == (3, 200)  # 2, unused longest, made room for 3
    cache.get(2, lambda: piece(100))
    assert cache.n_decoded == 4
    for _ in range(2):
        cache.get("large", lambda: piece(1000))
    assert (cache.n_decoded, cache.n_bytes) == (5, 1000)


def test_several_pieces_are_decoded_by_one_call_for_those_that_are_not_there():
    cache, asked = PieceCache(), []

    def decode(keys):
        asked.append(keys)
        return [piece(key) for key in keys]

    assert [p.size for p in cache.get_all([1, 2, 3], decode)] == [1, 2, 3]
    assert [p.size for p in cache.get_all([5, 2, 4, 1], decode)] == [5, 2, 4, 1]
    assert asked == [[1, 2, 3], [5, 4]]
    assert (cache.n_decoded, cache.n_bytes) == (5, 15)


def test_pieces_that_do_not_fit_together_are_given_all_the_same():
    cache = PieceCache(max_bytes=250)
    found = cache.get_all([1, 2, 3, 4], lambda keys: [piece(100) for _ in keys])
    assert len(found) == 4
    assert cache.n_bytes == 200


def test_a_piece_that_fails_is_tried_again():
    cache = PieceCache()

    def fail(keys):
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        cache.get_all([1, 2], fail)
    assert [p.size for p in cache.get_all([1, 2], lambda keys: [piece(1) for _ in keys])] == [1, 1]


def test_where_fewer_pieces_come_than_were_asked_for_nobody_waits_for_the_others(monkeypatch):
    waits, cache = threading.Event(), PieceCache()

    class Awaited(Future):
        def result(self, timeout=None):
            waits.set()
            return super().result(timeout)

    monkeypatch.setattr("tilenet.readers.cache.Future", Awaited)
    with ThreadPoolExecutor(1) as other:
        waiting = []

        def fewer(keys):
            waiting.append(other.submit(cache.get_all, [2], fewer))
            assert waits.wait(timeout=20)
            return [piece(1)]

        with pytest.raises(ValueError, match="zip"):
            cache.get_all([1, 2], fewer)
        with pytest.raises(ValueError, match="zip"):
            waiting[0].result(timeout=10)


def test_what_another_thread_is_decoding_is_waited_for_after_the_rest_is_decoded():
    cache, begun, rest = PieceCache(), threading.Event(), threading.Event()

    def slow(keys):
        begun.set()
        assert rest.wait(timeout=20)
        return [piece(key) for key in keys]

    def quick(keys):
        assert keys == [2]
        rest.set()
        return [piece(2)]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_all, [1], slow)
        assert begun.wait(timeout=20)
        assert [p.size for p in cache.get_all([1, 2], quick)] == [1, 2]
        assert first.result()[0].size == 1
    assert cache.n_decoded == 2


def write_tiff(folder):
    path = folder / "image.tif"
    tifffile.imwrite(path, PIXELS, tile=(FILE_TILE, FILE_TILE), compression="zlib")
    return path


def write_zarr(folder, **options):
    options = {"chunks": (FILE_TILE, FILE_TILE), "shards": (3 * FILE_TILE, 3 * FILE_TILE)} | options
    zarr.create_array(folder / "image.zarr", data=PIXELS, **options)
    return folder / "image.zarr"


def cache_of(image):
    return image._cache if hasattr(image, "_cache") else image._pages.cache


class Middle:
    """Gives the pixel in the middle of what it sees."""

    footprint = Footprint.valid(2, lost=CONTEXT)

    def __call__(self, batch):
        inside = batch[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT].astype(np.float32)
        return np.concatenate([np.full_like(inside, 100), inside], axis=1)


class Mask:
    def __init__(self, plan):
        self.plan, self.pixels = plan, np.zeros(plan.shape, np.uint8)

    def pending(self):
        return range(len(self.plan))

    def write(self, index, arrays):
        self.pixels[self.plan[index].box.slices] = arrays["mask"]


def run_with(path, *, kept):
    """Return how many file tiles a run decodes with a cache of so many, and how many its rows of blocks touch."""
    with open_image(path) as image:
        plan = plan_tiles(PIXELS.shape, Middle.footprint, tile=48, block=BLOCK, batch=2)
        cache_of(image).max_bytes = kept * FILE_TILE**2
        sink = Mask(plan)
        report = run(
            plan, image, Middle(), decide=Decision("softmax", (0, 1)), pending=sink.pending(), write=sink.write
        )
        assert not report.failures
        assert np.array_equal(sink.pixels, PIXELS > 100)
        touched = set()
        for block in plan:
            seen = ((max(0, a - CONTEXT), b + CONTEXT) for a, b in zip(block.box.start, block.box.stop, strict=True))
            ends = zip(seen, PIXELS.shape, strict=True)
            ranges = (range(a // FILE_TILE, -(-min(b, n) // FILE_TILE)) for (a, b), n in ends)
            touched |= {(block.position[0], *cell) for cell in product(*ranges)}
        return image.n_decoded, len(touched)


@pytest.mark.parametrize("write", [write_tiff, write_zarr])
def test_each_file_tile_is_decoded_once_in_each_row_of_blocks(tmp_path, write):
    path = write(tmp_path)
    n_tiles = PIXELS.size // FILE_TILE**2
    of_two_blocks = 2 * ((BLOCK + 2 * CONTEXT) // FILE_TILE + 2) ** 2
    assert of_two_blocks < n_tiles / 3, "less than a row of blocks touches: the rows must not help each other"
    decoded, touched = run_with(path, kept=of_two_blocks)
    assert n_tiles < decoded == touched
    decoded, touched = run_with(path, kept=4)
    assert decoded > 1.2 * touched, "a cache that holds no tile's context would not do"


def test_chunks_that_are_there_do_not_keep_others_from_being_read(tmp_path):
    with open_image(write_zarr(tmp_path)) as image:
        corner = Box((0, 0), (40, 70))
        np.testing.assert_array_equal(image.read(corner)[0], PIXELS[corner.slices])
        assert image.n_decoded == 6
        larger = Box((0, 0), (100, 100))  # those that lack are no box
        np.testing.assert_array_equal(image.read(larger)[0], PIXELS[larger.slices])
        assert image.n_decoded == 16
        inner = Box((33, 33), (95, 95))
        np.testing.assert_array_equal(image.read(inner)[0], PIXELS[inner.slices])
        assert image.n_decoded == 16


@pytest.mark.parametrize(("at_once", "n_calls"), [(2**24, 1), (4000, 3), (100, 9)])
def test_chunks_are_asked_for_together_as_far_as_they_are_not_too_much(tmp_path, monkeypatch, at_once, n_calls):
    monkeypatch.setattr("tilenet.readers.zarr.AT_ONCE", at_once)
    calls, inner = [], zarr.Array.__getitem__

    def counted(self, selection):
        calls.append(selection)
        return inner(self, selection)

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    with open_image(write_zarr(tmp_path)) as image:
        box = Box((5, 5), (90, 90))
        np.testing.assert_array_equal(image.read(box)[0], PIXELS[box.slices])
        assert len(calls) == n_calls
        assert image.n_decoded == 9


def test_what_is_kept_of_one_call_is_let_go_one_by_one(tmp_path):
    with open_image(write_zarr(tmp_path)) as image:
        image.read(Box((0, 0), (96, 96)))
        kept = [kept.result() for kept in image._cache._pieces.values()]
        assert len(kept) == 9
        assert all(pixels.base is None for pixels in kept)


@pytest.mark.parametrize("write", [write_tiff, write_zarr])
def test_what_is_kept_was_promised(tmp_path, write):
    with open_image(write(tmp_path)) as image:
        image.read(Box.of_shape(PIXELS.shape))
        assert cache_of(image).n_bytes == image.kept_bytes == PIXELS.nbytes
        assert image.with_channels((0, 0, 0)).kept_bytes == PIXELS.nbytes
    assert open_image(PIXELS).kept_bytes == 0
