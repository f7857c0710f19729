"""Whose an open image is: what the caller opened stays open, what tilenet opened is closed."""

import pickle

import cloudpickle
import numpy as np
import pytest
import tifffile

import tilenet
from tilenet.errors import ImageError, ModelError, OutputMismatch, SettingsError, TilenetError
from tilenet.geometry import Box
from tilenet.readers import open_image
from tilenet.readers.tiff_decode import PageReader


@pytest.fixture
def slide(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (96, 112), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(32, 32))
    return tmp_path / "slide.tif"


@pytest.fixture
def open_now(monkeypatch):
    """Return the files that are open, and keep them from being collected."""
    opened, init = [], PageReader.__init__

    def opening(self, path):
        init(self, path)
        opened.append(self)

    monkeypatch.setattr(PageReader, "__init__", opening)
    return lambda: [reader.name for reader in opened if reader._file >= 0]


def test_an_image_that_the_caller_opened_stays_open_whatever_is_done_with_it(slide, tmp_path):
    out = tmp_path / "m.zarr"
    with open_image(slide) as image:
        mask = tilenet.segment(image, out)
        assert np.array_equal(tilenet.segment(image), np.asarray(mask))
        assert tilenet.verify(out, image).ok
        assert tilenet.overlay(image, out).shape == (96, 112, 3)
        assert np.array_equal(tilenet.lazy(image).compute(), np.asarray(mask))
        with pytest.raises(TilenetError):
            tilenet.segment(image, tmp_path / "n.zarr", tile=3)
        with pytest.raises(TilenetError):
            tilenet.segment(image, out, threshold=0.3, resume=True)
        tilenet.segment(image, tmp_path / "o.zarr", objects=True)
        tilenet.segment(image, tmp_path / "p.zarr", shard=(1, 1))
        assert image.read_inside(tilenet.Box((0, 0), (2, 2))).shape == (1, 2, 2)


def test_an_image_opened_by_a_relative_path_is_found_from_other_working_directories(slide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_image(slide.name) as image:
        lazy, whole = tilenet.lazy(slide.name), Box.of_shape(image.box_shape)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        tifffile.imwrite(slide.name, np.zeros((96, 112), np.uint8))  # an image of that name is there, too
        mask = tilenet.segment(image, "m.zarr")
        assert mask.info["image"]["path"] == str(slide)
        assert tilenet.verify("m.zarr").ok
        with pickle.loads(pickle.dumps(image)) as other:
            assert np.array_equal(other.read(whole), image.read(whole))
    assert np.array_equal(pickle.loads(cloudpickle.dumps(lazy)).compute(scheduler="synchronous"), np.asarray(mask))


@pytest.mark.parametrize("axes", ["tyx", "yxz", "qqq"])
def test_an_open_image_keeps_its_axes_and_refuses_others(axes):
    stack = np.zeros((3, 40, 40), np.uint8)
    image = open_image(stack, axes="zyx")
    assert np.array_equal(tilenet.segment(image, axes="ZYX"), tilenet.segment(stack, axes="zyx"))
    assert open_image(open_image(np.zeros((4, 5, 3), np.uint8), axes="yxc"), axes="yxc", channels=1).axes == "yxc"
    for use in (tilenet.segment, tilenet.lazy, open_image):
        with pytest.raises(ImageError, match=f"was opened with the axes zyx, not {axes}. Give axes to open_image"):
            use(image, axes=axes)


def test_an_open_image_is_no_array_and_says_how_all_of_it_is_read(slide):
    with open_image(slide) as image:
        for use in (np.asarray, np.mean, np.array):
            with pytest.raises(TypeError, match=r"slide\.tif: is read by boxes\. .*: image\.read\(tilenet"):
                use(image)
        assert np.array_equal(image.read(tilenet.Box.of_shape(image.box_shape))[0], tifffile.imread(slide))


def test_an_image_that_was_opened_by_its_path_is_closed_when_the_call_ends(slide, tmp_path, open_now):
    out = tmp_path / "m.zarr"
    tilenet.segment(slide)
    tilenet.segment(slide, out)
    tilenet.segment(slide, objects=True)
    tilenet.segment(slide, tmp_path / "p.zarr", shard=(1, 1))
    assert tilenet.verify(out).ok
    tilenet.overlay(slide, out)
    tilenet.batch([slide], tmp_path / "masks")
    tilenet.batch([slide], tmp_path / "masks")
    assert open_now() == []


def test_an_image_that_was_opened_by_its_path_is_closed_where_the_call_fails(slide, tmp_path, open_now):
    def broken(batch):
        raise ValueError("broken")

    with pytest.raises(SettingsError):
        tilenet.segment(slide, tile=3)
    with pytest.raises(ModelError, match="broken"):
        tilenet.segment(slide, model=broken, footprint=tilenet.Footprint.same(2, reach=1))
    assert open_now() == []
    with pytest.raises(TilenetError):
        tilenet.segment(slide, tmp_path / "m.zarr", scaling={"method": "percentile", "low": 3, "high": 1})
    assert open_now() == []
    tilenet.segment(slide, tmp_path / "m.zarr")
    with pytest.raises(OutputMismatch):
        tilenet.segment(slide, tmp_path / "m.zarr", tile=64, resume=True)
    assert open_now() == []


def test_a_batch_that_is_broken_off_closes_what_it_had_opened_ahead(slide, tmp_path, open_now):
    copies = [tmp_path / f"s{k}.tif" for k in range(4)]
    for path in copies:
        path.write_bytes(slide.read_bytes())

    def broken(result):
        raise LookupError(result.slide)

    with pytest.raises(LookupError):
        tilenet.batch(copies, tmp_path / "masks", tell=broken)
    assert open_now() == []
    with pytest.raises(LookupError, match="slide"):
        tilenet.batch([slide], tmp_path / "one", tell=broken)  # of the last image, too, whatever is told is raised
    assert [lock.name for lock in tmp_path.rglob("lock.*")] == []
