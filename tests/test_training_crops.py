"""Targets against slow truth, and crops that stay aligned with them."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from training_helpers import discs

from tilenet import UNet
from tilenet.errors import SettingsError
from tilenet.training.augment import draw_crop, draw_grid
from tilenet.training.crops import Crops
from tilenet.training.data import Pair
from tilenet.training.recipe import Recipe
from tilenet.training.stain import add_mirrored_nuclei, membranes, modality_of, paint_holes, paint_stains
from tilenet.training.targets import border_weights, depth_classes, make_targets

STILL = Recipe(zoom=1, elastic=0, intensity=0, stain=0, flips=False, turns="none", scaling={"method": "none"})

# Where the first pixel of crops of (28, 28), (29, 29) and (28, 44) lies, so that begun trainings go on with them.
EARLIER = {
    "none": [[21.0, -8.0], [20.0, -9.0], [21.0, -16.0]],
    "right": [[21.0, 19.0], [20.0, 19.0], [13.0, 19.0]],
}


def slow_border_weights(labels, w0, sigma):
    out = np.zeros(labels.shape)
    points = {k: np.argwhere(labels == k) for k in np.unique(labels) if k}
    for at in np.ndindex(labels.shape):
        distances = sorted(np.sqrt(((p - np.array(at)) ** 2).sum(1)).min() for p in points.values())
        out[at] = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return out


@pytest.mark.parametrize("shape", [(24, 31), (9, 8, 11)])
def test_border_weights_equal_the_formula_written_out(shape):
    labels = np.zeros(shape, int)
    labels[..., 1:4, 2:5], labels[..., 2:6, 5:7], labels[..., 7:, 1:3] = 4, 2, 9
    weights = border_weights(labels, w0=10, sigma=2)
    assert np.allclose(weights, slow_border_weights(labels, 10, 2), atol=1e-4)
    assert weights.max() > 5 > 0.1 > weights.min()


def test_a_lone_object_has_no_border_weight():
    labels = np.zeros((12, 12), int)
    labels[3:7, 3:7] = 1
    assert not border_weights(labels, w0=10, sigma=5).any()


def test_depth_classes_of_a_square_are_rings():
    labels = np.zeros((9, 9), int)
    labels[1:8, 1:8] = 1  # distances 1, 2, 3, 4 of 4: rim, body, centre, centre
    assert depth_classes(labels)[4].tolist() == [0, 1, 2, 3, 3, 3, 2, 1, 0]


def test_an_object_cut_by_the_edge_is_deepest_at_the_edge():
    labels = np.zeros((9, 9), int)
    labels[2:7, :4] = 1
    assert depth_classes(labels)[4].tolist() == [3, 3, 2, 1, 0, 0, 0, 0, 0]


def test_touching_objects_have_rims_between_them():
    labels = np.ones((12, 24), int)
    labels[:, 12:] = 2
    assert (depth_classes(labels)[:, 11:13] == 1).all()


@pytest.mark.parametrize(
    "change",
    [{}, {"flips": True}, {"turns": "right"}, {"flips": True, "turns": "right"}],
    ids=["still", "flips", "turns", "both"],
)
@pytest.mark.parametrize("source", [(23, 17), (5, 19, 14)])
def test_image_and_target_of_a_crop_stay_aligned_pixel_by_pixel(change, source):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 200, (1, *source)).astype(np.float32))
    shape, lost = (7, 28, 28)[-len(source) :], (2, 6, 6)[-len(source) :]
    for _ in range(8):
        x, y = draw_crop(pixels, pixels, shape=shape, lost=lost, recipe=replace(STILL, **change), rng=rng)
        inner = x[(slice(None), *(slice(k, -k) for k in lost))]
        assert torch.allclose(inner, y, atol=0.02)
        assert inner.std() > 10


def test_a_still_crop_is_a_window_of_the_mirrored_image():
    image = np.arange(35, dtype=np.float32).reshape(5, 7)
    x, _ = draw_crop(
        torch.from_numpy(image)[None],
        torch.zeros(2, 5, 7),
        shape=(9, 9),
        lost=(1, 1),
        recipe=STILL,
        rng=np.random.default_rng(0),
    )
    mirrored = np.pad(image, 12, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, (9, 9))
    assert (np.abs(windows - x[0].numpy()).max(axis=(2, 3)) < 1e-3).any()


def test_deformed_crops_keep_classes_whole_and_move_with_the_image():
    rng = np.random.default_rng(1)
    label = torch.from_numpy((discs(rng) > 0).astype(np.float32))[None]
    recipe = replace(STILL, zoom=1.5, elastic=4, turns="any", flips=True)
    agree = []
    for _ in range(10):
        x, y = draw_crop(label, label, shape=(48, 48), lost=(8, 8), recipe=recipe, rng=rng)
        assert set(y.unique().tolist()) <= {0.0, 1.0}
        agree.append(((x[:, 8:-8, 8:-8] > 0.5) == (y > 0.5)).float().mean())
    assert min(agree) > 0.97


@pytest.mark.parametrize("look", ["stained", "fluorescent"])
def test_painted_nuclei_are_bluer_than_what_is_brown_around_them(look):
    rng = np.random.default_rng(4)
    nuclei = torch.from_numpy((discs(rng) > 0).astype(np.float32))
    image = torch.stack([1 - 0.6 * nuclei, 1 - 0.8 * nuclei, 1 - 0.3 * nuclei])
    if look == "fluorescent":
        image = (0.8 * nuclei).expand(3, -1, -1)
    assert modality_of(image, nuclei) == look
    warmth = []
    for _ in range(40):
        x = paint_stains(image, nuclei, rng, look=look)
        assert 0 < x.min() <= x.max() <= 1
        warm = x[0] - x[2]
        warmth.append(float(warm[nuclei == 0].mean() - warm[nuclei > 0].mean()))
    assert np.mean(np.array(warmth) > 0) > 0.6


def test_painted_crops_keep_their_hues_and_others_do_not():
    nuclei = torch.from_numpy((discs(np.random.default_rng(4)) > 0).astype(np.float32))
    image = torch.stack([1 - 0.6 * nuclei, 1 - 0.8 * nuclei, 1 - 0.3 * nuclei])
    recipe = replace(STILL, grey=1, dab=1)

    def spread(recipe):
        x, _ = draw_crop(
            image,
            torch.stack([nuclei, nuclei]),
            shape=(64, 64),
            lost=(8, 8),
            recipe=recipe,
            rng=np.random.default_rng(1),
            look="stained",
        )
        return float((x.amax(0) - x.amin(0)).mean())

    assert spread(recipe) > 0.05
    assert spread(replace(recipe, dab=0)) < 1e-6


def test_a_crop_of_fluorescence_without_nuclei_becomes_pale_tissue():
    dark, none = torch.full((3, 60, 60), 0.02), torch.zeros(60, 60)
    brightness = [
        float(paint_stains(dark, none, np.random.default_rng(seed), look="fluorescent").median()) for seed in range(20)
    ]
    assert np.median(brightness) > 0.7


def test_a_crowd_has_more_nuclei_none_of_which_touch_and_targets_that_fit():
    nuclei = torch.zeros(60, 90)
    nuclei[5:15, 10:20], nuclei[20:28, 60:80] = 1, 2
    x, target = add_mirrored_nuclei((nuclei / 2)[None], torch.stack([nuclei, 3 - nuclei]))
    assert torch.equal(x[0] * 2, target[0])
    assert torch.equal(target[0][nuclei > 0], nuclei[nuclei > 0])
    labels, count = ndimage.label(target[0].numpy() > 0)
    assert count == 8
    assert sorted(np.bincount(labels.ravel())[1:]) == [100] * 4 + [160] * 4
    assert (target[1][target[0] > 0] == 3 - target[0][target[0] > 0]).all()


def test_membranes_lie_between_nuclei_that_touch():
    depth = torch.zeros(40, 60)
    depth[5:35, 5:30], depth[5:35, 30:55] = 1, 1  # two nuclei, whose rims are one region
    depth[10:30, 10:25], depth[10:30, 35:50] = 2, 2
    rng = np.random.default_rng(0)
    brown = torch.stack([membranes(depth, rng) for _ in range(20)])
    assert (brown[:, 15:25, 28:32].amax((1, 2)) > brown[:, 15:25, 15:20].mean((1, 2))).all()
    assert not membranes(torch.zeros(40, 60), rng).any()


def test_what_images_look_like():
    nuclei = torch.zeros(20, 20)
    nuclei[5:12, 5:12] = 1
    bright, dark, none = nuclei.expand(3, -1, -1), (1 - nuclei).expand(3, -1, -1), torch.zeros(20, 20)
    assert modality_of(torch.stack([nuclei, nuclei, 1 - nuclei]), nuclei) == "stained"
    assert modality_of(bright, nuclei) == "fluorescent"
    others = [(dark, nuclei), (bright[:1], nuclei), (bright, none), (bright, none + 1), (bright[:, None], nuclei[None])]
    assert {modality_of(*pair) for pair in others} == {"other"}


@pytest.mark.parametrize("option", ["dab", "dyed", "holes"])
def test_stains_are_refused_where_nothing_could_be_stained(option):
    network = UNet(1, 2, depth=2, wf=2)
    pair = Pair("a", np.zeros((1, 80, 80), np.float32), discs(np.random.default_rng(0), (80, 80)).astype(np.int32))
    Crops([pair], Recipe(tile=20), network.footprint, ())
    with pytest.raises(SettingsError, match="three channels"):
        Crops([pair], Recipe(tile=20, **{option: 0.5}), network.footprint, ())


def test_holes_are_white_and_leave_nuclei_as_they_are():
    rng = np.random.default_rng(4)
    nuclei = torch.from_numpy((discs(rng, (90, 120)) > 0).astype(np.float32))
    tissue = torch.full((3, 90, 120), 0.5)
    shares = []
    for _ in range(40):
        x = paint_holes(tissue, nuclei, rng)
        assert torch.equal(x[:, nuclei > 0], tissue[:, nuclei > 0])
        assert 0.5 - 1e-6 <= x.min() <= x.max() < 1.2
        shares.append(float((x.mean(0) > 0.9).float().mean()))
    assert 0.02 < np.mean(shares) < 0.4
    assert max(shares) < 0.6


def test_only_grey_images_are_inverted():
    rng = np.random.default_rng(0)
    target = torch.zeros(2, 40, 40)
    for channels, expected in (([0.9, 0.2, 0.6], [0.9, 0.2, 0.6]), ([0.2] * 3, [0.8] * 3), ([0.2], [0.8])):
        image = torch.tensor(channels)[:, None, None].expand(len(channels), 40, 40)
        recipe, look = replace(STILL, invert=1), modality_of(image, target[0])
        x, _ = draw_crop(image, target, shape=(20, 20), lost=(2, 2), recipe=recipe, rng=rng, look=look)
        assert torch.allclose(x, torch.tensor(expected)[:, None, None].expand(-1, 20, 20), atol=1e-5)


@pytest.mark.parametrize(("paint", "repainted"), [("dab", {"colour"}), ("holes", {"colour"}), ("dyed", {"bright"})])
def test_only_what_an_option_is_for_is_repainted(paint, repainted):
    target = torch.zeros(2, 40, 40)
    target[:, 10:20, 10:20] = 1
    images = {
        "colour": torch.stack([0.9 - 0.5 * target[0], 0.2 * target[0] + 0.2, 0.6 + 0 * target[0]]),
        "bright": (0.2 + 0.6 * target[:1]).expand(3, -1, -1),
        "dark": (0.8 - 0.6 * target[:1]).expand(3, -1, -1),
    }
    for kind, image in images.items():
        plain, painted = (
            draw_crop(
                image,
                target,
                shape=(20, 20),
                lost=(2, 2),
                recipe=recipe,
                rng=np.random.default_rng(1),
                look=modality_of(image, target[0]),
            )[0]
            for recipe in (STILL, replace(STILL, **{paint: 1.0}))
        )
        assert torch.allclose(painted, plain, atol=1e-5) is (kind not in repainted)


def test_stretched_crops_are_longer_one_way_by_as_much_as_was_asked_at_most():
    recipe = replace(STILL, stretch=2.0, turns="any")
    ratios = []
    for seed in range(50):
        grid = draw_grid((100, 100), (21, 21), recipe, np.random.default_rng(seed))
        steps = torch.stack([grid[11, 10] - grid[10, 10], grid[10, 11] - grid[10, 10]])
        lengths = torch.linalg.svdvals(steps)
        assert abs(float(lengths.prod()) - 1) < 1e-4
        ratios.append(float(lengths[0] / lengths[1]))
    assert max(ratios) < 2.001
    assert 1.3 < np.mean(ratios) < 1.6


@pytest.mark.parametrize("shape", [(29, 32), (32, 29), (5, 8, 9)])
def test_crops_that_are_only_turned_by_right_angles_lie_on_the_pixels_whatever_their_sides(shape):
    recipe = replace(STILL, turns="right", flips=True)
    for seed in range(20):
        grid = draw_grid((60,) * len(shape), shape, recipe, np.random.default_rng(seed))
        assert torch.allclose(grid, grid.round(), atol=1e-4)


@pytest.mark.parametrize("turns", ["none", "right"])
def test_crops_whose_sides_are_all_odd_or_all_even_are_those_of_earlier_versions(turns):
    recipe, found = replace(STILL, turns=turns), []
    for shape in ((28, 28), (29, 29), (28, 44)):
        grid = draw_grid((60, 50), shape, recipe, np.random.default_rng(3))
        found.append([float(n) for n in grid[0, 0]])
    assert found == EARLIER[turns]


def test_targets_follow_from_the_order_of_the_numbers_and_not_from_their_size():
    labels = np.zeros((40, 50), np.int32)
    labels[5:15, 5:15], labels[5:15, 16:20], labels[20:30, 5:35] = 1, 2, 3
    numbers = np.array([0, 7, 400, 2**25])
    recipe = Recipe(targets="depth", small=60, w0=10)
    expected = make_targets(labels, recipe, ())
    tracemalloc.start()
    found = make_targets(numbers[labels].astype(np.int32), recipe, ())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, expected) and expected[1].max() > 2
    assert peak < 10e6


def test_small_objects_and_borders_weigh_more():
    labels = discs(np.random.default_rng(2)).astype(np.int32)
    plain, small = (make_targets(labels, Recipe(small=s, w0=0), ()) for s in (0, 10_000))
    assert (plain[1] == 1).all()
    assert (small[1][labels > 0] == 2.5).all()
    assert (small[1][labels == 0] == 1).all()
    assert make_targets(labels, Recipe(w0=10), ())[1].max() > 2
