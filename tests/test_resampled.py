"""An image at another pixel size, against averages of exact fractions and other libraries."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import tifffile
from contents import whole
from oracles import integer_network, random_network, whole_image_logits
from stub import Threshold

import tilenet
from tilenet.errors import ImageError, OutputMismatch, SettingsError
from tilenet.geometry import Box
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.readers import open_image, resampled
from tilenet.readers.resampled import Resampled

# Up to 3.7 stored pixels per pixel, and down to 2 / 5.
FACTORS = [Fraction(2), Fraction(3, 2), Fraction(750, 499), Fraction(37, 10), Fraction(2, 5), Fraction(999, 1000)]


def one_axis(values, factor):
    """Return the means of a list over [i f, (i + 1) f), or its interpolation, in exact fractions."""
    n, out = len(values), []
    for i in range(ceil(Fraction(n) / factor)):
        if factor >= 1:
            low, high = i * factor, min((i + 1) * factor, Fraction(n))
            shares = {j: min(high, j + 1) - max(low, j) for j in range(floor(low), ceil(high))}
        else:
            place = (i + Fraction(1, 2)) * factor - Fraction(1, 2)
            j = floor(place)
            shares = {j: 1 - (place - j), j + 1: place - j}
        total = sum(shares.values())
        out.append(sum(Fraction(values[min(max(j, 0), n - 1)]) * w for j, w in shares.items()) / total)
    return out


def test_what_is_no_number_spoils_only_the_pixels_that_cover_it():
    row = np.ones((1, 10), np.float32)
    row[0, 2] = np.nan  # the second pixel alone covers it, as 5/3 to 10/3
    image = Resampled(open_image(row), (Fraction(1), Fraction(5, 3)))
    found = image.read_inside(Box((0, 0), (1, 6)))[0, 0]
    assert np.isnan(found).tolist() == [False, True, False, False, False, False]


def test_a_pixel_whose_centre_is_that_of_a_stored_one_needs_no_other():
    row = np.ones((1, 6), np.float32)
    row[0, 3] = np.nan
    image = Resampled(open_image(row), (Fraction(1), Fraction(1, 3)))
    found = image.read_inside(Box((0, 0), (1, 18)))[0, 0]
    # Pixel 7 lies on stored pixel 2, pixel 13 on stored pixel 4; those between them take part of stored pixel 3.
    assert np.flatnonzero(np.isnan(found)).tolist() == [8, 9, 10, 11, 12]
    assert (found[~np.isnan(found)] == 1).all()


def exact(plane, factor):
    """Return a plane of integers, resampled in fractions and rounded half up."""
    rows = [one_axis(column, factor[0]) for column in plane.T.tolist()]
    planes = [one_axis(row, factor[1]) for row in zip(*rows, strict=True)]
    return np.array([[floor(v + Fraction(1, 2)) for v in row] for row in planes])


def pixels_of(shape, dtype=np.uint8, seed=0):
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_integers_are_the_rounded_means_of_exact_fractions(factor, dtype):
    plane = pixels_of((23, 31), dtype)
    for both in ((factor, factor), (factor, Fraction(1)), (Fraction(5, 3), factor)):
        found = whole(Resampled(open_image(plane), both))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[0], exact(plane, both))


def test_means_and_interpolation_are_those_of_scikit_image():
    from skimage.transform import resize, resize_local_mean

    plane = np.random.default_rng(0).normal(size=(60, 90))
    coarse = whole(Resampled(open_image(plane), (Fraction(3, 2), Fraction(5, 2))))[0]
    np.testing.assert_allclose(coarse, resize_local_mean(plane, (40, 36), preserve_range=True), atol=1e-12)
    fine = whole(Resampled(open_image(plane), (Fraction(1, 2), Fraction(2, 3))))[0]
    expected = resize(plane, (120, 135), order=1, mode="edge", anti_aliasing=False, preserve_range=True)
    np.testing.assert_allclose(fine, expected, atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_pixel_does_not_depend_on_the_box_that_asks(factor, dtype, monkeypatch):
    stack = pixels_of((2, 83, 71, 3))
    stack = stack if dtype == "uint8" else (stack / np.float32(7)).astype(np.float32)
    image = Resampled(open_image(stack, axes="zyxc"), (factor, factor))
    monkeypatch.setattr(resampled, "PIECE", 500)  # in many pieces
    all_of_it = image.read(Box((0, -40, -40), (2, 240, 240)))
    monkeypatch.undo()
    np.testing.assert_array_equal(whole(image), all_of_it[:, :, 40:, 40:][:, :, : image.shape[1], : image.shape[2]])
    rng = np.random.default_rng(1)
    for _ in range(20):
        start = rng.integers(-40, 190, 2)
        box = Box((1, *map(int, start)), (2, *map(int, start + rng.integers(1, 40, 2))))
        np.testing.assert_array_equal(image.read(box), all_of_it[(slice(None), *box.shifted((0, 40, 40)).slices)])


def test_a_pixel_that_asked_for_other_pixels_would_be_found(monkeypatch):
    """The same test fails where the grid begins at the box instead of at the image."""
    image = Resampled(open_image(pixels_of((80, 80))), (Fraction(3, 2), Fraction(3, 2)))
    right = whole(image)
    honest = resampled.taps

    def from_the_box(start, stop, length, factor):
        found = honest(0, stop - start, length, factor)
        first = floor(start * factor)
        return resampled.Taps(first, first + found.stop, found.index, found.weight)

    monkeypatch.setattr(resampled, "taps", from_the_box)
    assert (image.read(Box((7, 7), (20, 20))) != right[:, 7:20, 7:20]).any()


def test_nothing_but_the_pixels_of_a_box_decides_it():
    plane = np.ones((40, 40), np.float32)
    plane[9, 9] = np.nan
    found = whole(Resampled(open_image(plane), (Fraction(3, 2), Fraction(3, 2))))[0]
    assert np.argwhere(np.isnan(found)).tolist() == [[6, 6]]
    assert (found[~np.isnan(found)] == 1).all()


def test_pixels_too_large_to_be_summed_exactly_are_refused():
    for dtype, factor, way in (
        (np.uint64, Fraction(3, 2), r"convert the image to 32 bits$"),
        (np.uint32, Fraction(99_999), r"choose a finer mpp \(--mpp\)$"),
    ):
        with pytest.raises(
            ImageError, match=f"of {dtype.__name__} cannot be .* in 64 bits. Choose a level .*, or {way}"
        ):
            Resampled(open_image(pixels_of((8, 8), dtype)), (factor, factor))


@pytest.mark.parametrize("name", [
    "slides/CMU-1-Small-Region.svs",
    "slides/hamamatsu_test3_DAPI.ndpi",
    "derived/cmu1_generic_pyramid.tif",
    "derived/cardiomyocyte_3ch_pyramid.ome.tif",
    "zarr/blastocyst_z060-099_v04.ome.zarr",
])  # fmt: skip
def test_real_files_are_resampled_box_by_box_as_scikit_image_does_it_whole(shared_data, name):
    from skimage.transform import resize_local_mean

    with open_image(shared_data(name)) as stored:
        stored = stored.at_level(len(stored.levels) - 1)
        n = [min(600, length) // 3 * 3 for length in stored.box_shape[-2:]]
        planes = stored.read(Box((0,) * len(stored.box_shape), (*[1] * (len(stored.box_shape) - 2), *n)))
        image = Resampled(stored, (Fraction(3, 2), Fraction(3)))
        boxes = [Box((0, 0), (n[0] // 6, n[1] // 3)), Box((n[0] // 6, 0), (n[0] * 2 // 3, n[1] // 3))]
        lead = (0,) * (len(stored.box_shape) - 2)
        parts = [image.read(Box((*lead, *b.start), (*(1 for _ in lead), *b.stop))) for b in boxes]
        found = np.concatenate(parts, axis=-2).reshape(len(planes), n[0] * 2 // 3, n[1] // 3)
        assert found.dtype == stored.dtype
        for channel, plane in zip(found, planes.reshape(len(planes), *n), strict=True):
            expected = resize_local_mean(plane.astype(float), (n[0] * 2 // 3, n[1] // 3), preserve_range=True)
            assert np.abs(channel - expected).max() <= 0.5 + 1e-6
            assert channel.min() < channel.max()


def test_it_says_that_its_image_drops_alpha(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    with open_image(tmp_path / "a.tif") as image:
        assert image.drops_alpha
        assert Resampled(image, (Fraction(2), Fraction(2))).drops_alpha


def test_it_has_the_coarser_levels_and_survives_pickling_threads_and_channels(shared_data):
    with open_image(shared_data("slides/hamamatsu_test3_DAPI.ndpi"), level=1) as stored:
        image = Resampled(stored, (Fraction(3, 2), Fraction(3, 2)))
        assert [level.shape for level in image.levels] == [(1622, 1323, 3), (1216, 992, 3), (608, 496, 3)]
        assert image.pixel_size == tuple(pytest.approx(n * 1.5) for n in stored.pixel_size)
        # A pixel is 3 px of level 0 wide: its centre lies 1 px behind that of the first.
        assert (stored.shift, image.shift) == ((0.25, 0.25), (pytest.approx(1 / 3),) * 2)
        coarse = image.at_level(1)
        box = Box((0, 0), (900, 800))
        np.testing.assert_array_equal(coarse.read(box), stored.at_level(2).read(box))
        pixels = image.read(box)
        assert pixels.any()
        with pickle.loads(pickle.dumps(image)) as again:
            np.testing.assert_array_equal(again.read(box), pixels)
        np.testing.assert_array_equal(image.with_channels((2, 0)).read(box), pixels[[2, 0]])
        np.testing.assert_array_equal(image.with_channels((2,)).with_channels((0, 0, 0)).read(box), pixels[[2, 2, 2]])
        with ThreadPoolExecutor(4) as pool:
            assert all(np.array_equal(part, pixels) for part in pool.map(image.read, [box] * 4))


# Masks.


def with_pixel_size(folder, plane, um, name="slide.ome.tif"):
    """Write a plane whose pixels are so many micrometres."""
    about = {"axes": "YX", "PhysicalSizeX": um, "PhysicalSizeY": um}
    tifffile.imwrite(folder / name, plane, metadata=about, ome=True, tile=(64, 64))
    return folder / name


@pytest.mark.parametrize("mpp", [0.75, 1.85, 0.3])
def test_logits_are_those_of_one_pass_over_the_mirrored_resampled_whole(tmp_path, mpp):
    slide = with_pixel_size(tmp_path, pixels_of((150, 201)) % 9, 0.5)
    network = integer_network(in_channels=1, n_classes=2, depth=3, wf=1)
    image = Resampled(open_image(slide), (Fraction(mpp / 0.5).limit_denominator(1000),) * 2)
    expected = whole_image_logits(network, whole(image))
    for tile in (24, 56):
        found = tilenet.segment(slide, model=network, mpp=mpp, tile=tile, output="logits", precision="fp64")
        np.testing.assert_array_equal(found, expected)
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("mpp", [1e9, 101])
def test_a_pixel_larger_than_the_whole_image_is_refused(tmp_path, mpp):
    slide = with_pixel_size(tmp_path, pixels_of((150, 200)), 0.5)
    network = integer_network(in_channels=1, n_classes=2, depth=2, wf=1)
    with pytest.raises(
        SettingsError, match=r"is 75 x 100 um in all, less than a pixel of .* um. Give an mpp far below 100"
    ):
        tilenet.segment(slide, model=network, mpp=mpp)
    assert tilenet.segment(slide, model=network, mpp=50, tile=4).shape == (2, 2)


@pytest.mark.parametrize(("name", "mpp"), [
    ("slides/hamamatsu_test3_DAPI.ndpi", 2.1),
    ("slides/CMU-1-Small-Region.svs", 1.7),
    ("derived/cmu1_generic_pyramid.tif", 1.7),
    ("derived/test3_DAPI_gray_pyramid.ome.tif", 1.3),
])  # fmt: skip
def test_the_mask_of_a_slide_is_that_of_the_resampled_array_whatever_the_tile(shared_data, name, mpp):
    path = shared_data(name)
    with open_image(path) as image:
        network = integer_network(in_channels=image.n_channels, depth=2, wf=1)
        k = max(k for k, level in enumerate(image.levels) if max(level.pixel_size) <= 1.1 * mpp)
        factor = tuple(Fraction(mpp / n).limit_denominator(1000) for n in image.levels[k].pixel_size)
        array = whole(Resampled(image.at_level(k), factor))
    expected = tilenet.segment(array, axes="cyx", model=network, tile=64, output="logits")
    for tile in (96, 250):
        found = tilenet.segment(path, model=network, mpp=mpp, tile=tile, output="logits")
        np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 100


def test_the_record_repeats_the_choice_and_refuses_another(tmp_path):
    slide = with_pixel_size(tmp_path, pixels_of((200, 260)), 0.5)
    model = tmp_path / "m.safetensors"
    card = tilenet.ModelCard(pixel_size=0.8, scaling={"method": "linear", "subtract": 0, "divide": 255})
    tilenet.save_model(random_network(in_channels=1, depth=2, wf=1), model, card=card)
    out = tmp_path / "m.zarr"
    first = np.asarray(tilenet.segment(slide, out, model=model, tile=32))
    record = tilenet.open_mask(out).info["record"]
    assert {k: record[k] for k in ("level", "mpp", "factor")} == {"level": 0, "mpp": 0.8, "factor": [[8, 5], [8, 5]]}
    assert first.shape == (125, 163)
    assert tilenet.verify(out).ok
    for same in ({}, {"mpp": 0.8}, {"level": 0}):
        assert np.array_equal(tilenet.segment(slide, out, model=model, resume=True, **same), first)
    for other, error, says in (
        ({"mpp": 0.6}, OutputMismatch, "mpp = 0.8, and now it is 0.6"),
        ({"level": 1}, SettingsError, "has levels 0 to 0, not 1"),
    ):
        with pytest.raises(error, match=says):
            tilenet.segment(slide, out, model=model, resume=True, **other)
    explicit = tilenet.segment(slide, model=model, mpp=0.8)
    assert np.array_equal(explicit, first)
    assert tilenet.segment(slide, model=model, level=0).shape == (200, 260)


def disc_slide(folder, *, um=0.5, radius=30.0, centre=(120.3, 200.8)):
    """Write a slide with one bright disc; its centre in pixels from the slide's corner."""
    y, x = np.mgrid[:301, :401] + 0.5
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    return with_pixel_size(folder, (inside * 200).astype(np.uint8), um), centre


@pytest.mark.parametrize("mpp", [0.5, 0.8, 1.3, 2.0, 0.31])
def test_the_mask_lies_where_the_slide_does_to_within_one_of_its_pixels(tmp_path, mpp):
    slide, centre = disc_slide(tmp_path)
    mask = tilenet.segment(slide, tmp_path / "m.zarr", model=Threshold(), mpp=mpp)
    attributes = json.loads((tmp_path / "m.zarr" / "zarr.json").read_text())["attributes"]
    for level, dataset in zip(mask.levels, attributes["ome"]["multiscales"][0]["datasets"], strict=True):
        moves = {t["type"]: t[t["type"]] for t in dataset["coordinateTransformations"]}
        scale, moved = moves["scale"], moves.get("translation", [0.0, 0.0])
        found = np.argwhere(np.asarray(level[...])).mean(axis=0) * scale + moved
        # A viewer puts the centre of the slide's first pixel at 0.
        wanted = (np.array(centre) - 0.5) * 0.5
        assert (np.abs(found - wanted) < np.array(scale)).all()
        assert scale[0] * 2 < 30  # the disc is resolved
    fine = np.argwhere(mask[...]).mean(axis=0)
    moves = {
        t["type"]: t[t["type"]] for t in attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    }
    placed = fine * moves["scale"] + moves.get("translation", [0.0, 0.0])
    assert np.abs(placed - wanted).max() < 0.06  # far less than half a pixel: the translation is right
    assert ("translation" in moves) == (mpp != 0.5)


def test_the_card_decides_unless_something_is_said_and_a_line_says_so(tmp_path, tilenet_command):
    slide = with_pixel_size(tmp_path, pixels_of((200, 260)), 0.5)
    bare = tmp_path / "bare.tif"
    tifffile.imwrite(bare, pixels_of((200, 260)))
    model = tmp_path / "cells.safetensors"
    tilenet.save_model(random_network(in_channels=1, depth=2, wf=1), model, card=tilenet.ModelCard(pixel_size=1.0))
    said = f"tilenet: {slide}: level 0 (0.5 um/px) resampled: averaged over 2 px, for the 1 um/px that cells knows\n"
    assert tilenet_command("segment", slide, "-o", tmp_path / "a.zarr", "-m", model)[::2] == (0, said)
    assert tilenet_command("segment", slide, "-o", tmp_path / "b.zarr", "-m", model, "--quiet") == (0, "", "")
    code, out, err = tilenet_command("segment", slide, "-o", tmp_path / "c.zarr", "-m", model, "--json")
    why = json.loads(out)["resolution"]
    assert (code, err, why["factor"], why["mpp"]) == (0, "", [[2, 1], [2, 1]], 1.0)
    assert [f"tilenet: {line}\n" for line in json.loads(out)["remarks"]] == [said]
    _, out, _ = tilenet_command("plan", slide, "-m", model)
    assert "resolution  level 0 (0.5 um/px) resampled: averaged over 2 px" in out
    _, _, err = tilenet_command("segment", bare, "-o", tmp_path / "d.zarr", "-m", model)
    assert "level 0 as stored: the image does not say its pixel size (cells knows 1 um/px)" in err
    code, _, err = tilenet_command("segment", bare, "-o", tmp_path / "e.zarr", "-m", model, "--mpp", "1")
    assert (code, err.count("\n")) == (2, 1)
    assert (
        "bare.tif: does not say its pixel size, so mpp means nothing. Give it (--pixel-size), or choose a level" in err
    )
    code, _, err = tilenet_command(
        "segment", slide, "-o", tmp_path / "e.zarr", "-m", model, "--mpp", "1", "--level", "0"
    )
    assert (code, "Leave one of them out" in err) == (2, True)


def test_a_part_is_in_pixels_of_the_resampled_image(tmp_path):
    slide = with_pixel_size(tmp_path, pixels_of((200, 260)), 0.5)
    network = integer_network(in_channels=1, n_classes=2, depth=2, wf=1)
    everything = tilenet.segment(slide, model=network, mpp=0.75)
    part = tilenet.segment(slide, model=network, mpp=0.75, roi=[(30, 99), (50, 120)])
    assert np.array_equal(part, everything[30:99, 50:120])
    assert part.any()


def test_a_mask_of_a_stored_level_lies_where_one_resampled_to_it_does(tmp_path):
    plane = np.random.default_rng(0).integers(0, 255, (512, 640), np.uint8)
    path = tmp_path / "pyramid.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        about = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(plane, subifds=2, tile=(64, 64), metadata=about)
        for f in (2, 4):
            writer.write(plane[::f, ::f], subfiletype=1, tile=(64, 64))
    stored = tilenet.segment(path, tmp_path / "stored.zarr", model=Threshold(), level=2)
    with_pixel_size(tmp_path, plane, 0.5, name="plain.ome.tif")
    resampled = tilenet.segment(tmp_path / "plain.ome.tif", tmp_path / "r.zarr", model=Threshold(), mpp=2.0)
    found = [json.loads((mask.path / "zarr.json").read_text())["attributes"]["ome"] for mask in (stored, resampled)]
    places = [about["multiscales"][0]["datasets"][0]["coordinateTransformations"] for about in found]
    assert places[0] == places[1]
    assert places[0][1]["translation"] == [0.75, 0.75]  # 1.5 px of level 0


@pytest.mark.parametrize(
    ("size", "how", "words"),
    [
        (None, {}, "nuclei knows nuclei 10 to 40 px wide, here 0.51 to 2.1 um. Wider ones are cut in pieces: try"),
        (2, {}, "nuclei knows nuclei 10 to 40 px wide, here 20 to 80 um. Narrower ones are missed: try a finer --mpp"),
        (29, {}, "here 290 to 1200 um. In pixels of 29 um no nuclei can be seen: give a file of finer pixels"),
        (0.13, {}, ""),
        (1.4, {}, ""),
        (None, {"mpp": 0.25}, ""),
        (None, {"level": 0}, ""),
    ],
)  # fmt: skip
def test_pixels_plainly_too_small_or_too_large_for_the_packaged_model_are_told(shared_data, caplog, size, how, words):
    image = shared_data("small_fluo/hela_cells_3ch.tif")
    make_job(image, "nuclei", Options(channels=2, pixel_size=size, **how)).close()
    assert words in caplog.text and ("px wide" in caplog.text) == bool(words)


def test_of_a_model_of_the_same_name_nothing_is_said_about_widths(tmp_path, caplog):
    network = random_network(in_channels=1, n_classes=2, depth=2, wf=1)
    tilenet.save_model(network, tmp_path / "nuclei.safetensors", card=tilenet.ModelCard(name="nuclei"))
    slide = with_pixel_size(tmp_path, pixels_of((64, 64)), 0.05)
    make_job(slide, tmp_path / "nuclei.safetensors", Options()).close()
    assert "px wide" not in caplog.text
