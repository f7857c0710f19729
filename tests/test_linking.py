"""Objects of neighbouring planes that become volumes: against sets of pixels, and the same however they are made."""

import csv
import json
from collections import defaultdict
from fractions import Fraction
from hashlib import sha256

import numpy as np
import pytest
import tifffile
from faults import tree_hash
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi
from skimage.measure import regionprops
from stub import Bright, Bright3D
from workers import Cluster

import tilenet
from tilenet import metrics, numbering, places
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.export import intensities
from tilenet.linking import chains, linked
from tilenet.making import DEPTHS, making_of
from tilenet.store import is_complete, open_mask

UM = (1.0, 0.5, 0.5)


def joined(labels, least, z=0):
    """Return labels of which no two planes share any, with one number for each chain, by sets of pixels."""
    pixels, plane_of = defaultdict(set), {}
    for place in np.argwhere(labels).tolist():
        label = int(labels[tuple(place)])
        plane_of[label] = place.pop(z)
        pixels[label].add(tuple(place))

    def measure(a, b):
        return Fraction(len(pixels[a] & pixels[b]), len(pixels[a] | pixels[b]))

    def best(a, step):
        others = [b for b in pixels if plane_of[b] == plane_of[a] + step and pixels[a] & pixels[b]]
        return max(others, key=lambda b: (measure(a, b), -b), default=None)

    number, n = {0: 0}, 0
    for b in sorted(pixels):
        a = best(b, -1)
        if a is not None and best(a, 1) == b and measure(a, b) >= Fraction(str(least)):
            number[b] = number[a]
        else:
            number[b] = n = n + 1
    return np.vectorize(number.get, otypes=[int])(labels)


def by_first_pixels(labels):
    """Number the labels of each plane in the order of their first pixels, through all planes."""
    found, n = np.zeros(labels.shape, int), 0
    for at in np.ndindex(labels.shape[:-2]):
        for label in dict.fromkeys(labels[at][labels[at] > 0].tolist()):
            found[at][labels[at] == label] = n = n + 1
    return found


@st.composite
def stacks(draw):
    shape = draw(st.tuples(*[st.integers(1, 4)] * draw(st.integers(3, 4))))
    seed, labels = draw(st.integers(0, 2**32)), draw(st.integers(1, 4))
    return by_first_pixels(np.random.default_rng(seed).integers(0, labels + 1, shape))


@given(stacks(), st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 0.5, 0.75, 1]), st.tuples(*[st.integers(1, 4)] * 4))
def test_chains_are_those_of_sets_of_pixels_whatever_the_blocks(labels, least, block):
    axes = "tzyx"[-labels.ndim :]
    truth = joined(labels, least, z=labels.ndim - 3)
    for sides in (labels.shape, block[: labels.ndim]):
        found = linked(labels, axes, sides, least)
        assert np.array_equal(np.insert(found, 0, 0)[labels], truth)


def plane(*boxes):
    """Return a plane of 20 x 20 px with the boxes (y0, y1, x0, x1), numbered from 1."""
    labels = np.zeros((20, 20), int)
    for number, (y0, y1, x0, x1) in enumerate(boxes, 1):
        labels[y0:y1, x0:x1] = number
    return labels


def chains_of(*planes, least=0.25):
    labels = by_first_pixels(np.stack(planes))
    found = linked(labels, "zyx", (1, 7, 9), least)
    assert np.array_equal(np.insert(found, 0, 0)[labels], joined(labels, least))
    return found.tolist()


def test_nuclei_that_overlap_too_little_stay_two():
    over, under = plane((0, 10, 0, 10)), plane((5, 15, 5, 15))  # 25 of 175 px
    assert chains_of(over, under) == [1, 2]
    assert chains_of(over, under, least=0.14) == [1, 1]


def test_a_block_alone_would_link_what_the_whole_stack_does_not():
    labels = by_first_pixels(np.stack([plane((0, 10, 0, 10)), plane((0, 10, 8, 20))]))
    assert linked(labels, "zyx", (1, 20, 2), 0.25).tolist() == [1, 2]
    assert linked(labels[..., 8:10], "zyx", (1, 20, 2), 0.25).tolist() == [1, 1]


def test_an_overlap_of_just_the_threshold_is_enough():
    tenth = plane((0, 1, 0, 10)), plane((0, 1, 0, 1))
    assert Fraction(0.1) > Fraction(1, 10) and chains_of(*tenth, least=0.1) == [1, 1]
    assert chains_of(*tenth, least=0.1000001) == [1, 2]


def test_an_object_that_splits_goes_on_in_its_best_partner():
    assert chains_of(plane((0, 10, 0, 10)), plane((0, 10, 0, 4), (0, 10, 4, 10))) == [1, 2, 1]


def test_objects_that_merge_end_but_for_the_best_partner():
    assert chains_of(plane((0, 10, 0, 4), (0, 10, 4, 10)), plane((0, 10, 0, 10))) == [1, 2, 2]


def test_of_equally_good_partners_the_first_one_is_taken():
    assert chains_of(plane((0, 10, 0, 10)), plane((0, 5, 0, 10), (5, 10, 0, 10))) == [1, 1, 2]
    assert chains_of(plane((0, 10, 0, 5), (0, 10, 5, 10)), plane((0, 10, 0, 10))) == [1, 2, 1]


def test_a_partner_that_has_a_better_one_is_none():
    # The upper left one overlaps the lower one, which is better covered by the upper right one.
    assert chains_of(plane((0, 10, 0, 6), (0, 10, 6, 20)), plane((0, 10, 3, 20))) == [1, 2, 2]


def test_an_empty_plane_ends_all_volumes():
    disc = plane((3, 12, 3, 12))
    assert chains_of(disc, plane(), disc) == [1, 2]
    assert chains_of(disc, disc, disc) == [1, 1, 1]


def test_measures_that_floats_cannot_tell_apart_are_told_apart():
    n = 2**39 - 1
    sizes = np.array([[1, n - 1], [2, n - 2], [3, n]])
    overlaps = np.array([[1, 2, n - 2], [1, 3, n - 1]])
    assert (n - 2) / (n - 1) == (n - 1) / n and Fraction(n - 2, n - 1) < Fraction(n - 1, n)
    assert chains(overlaps, sizes, 0.25).tolist() == [1, 2, 1]


def moving(shape, planes, seed=0):
    """Return a stack of blobs that change slowly along z."""
    noise = ndi.gaussian_filter(np.random.default_rng(seed).normal(size=(planes, *shape)), (1.5, 4, 4))
    return np.where(noise > np.quantile(noise, 0.65), np.uint8(200), np.uint8(0))


@pytest.fixture(scope="module")
def volume():
    return moving((90, 110), 8)


@pytest.fixture
def stack(volume, tmp_path):
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(path, volume, metadata={"axes": "ZYX", **dict(zip(SIZES, UM, strict=True))}, tile=(32, 32))
    return path


SIZES = ("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX")
HOW = {"model": Bright(), "objects": True, "tile": 32, "threads": 1}


@pytest.fixture(scope="module")
def truth(volume):
    alone = tilenet.segment(volume, axes="zyx", model=Bright(), objects=True)
    found = joined(alone, 0.25)
    assert 20 < found.max() < alone.max() / 2
    return found


def small_blocks(monkeypatch, planes=2):
    monkeypatch.setattr("tilenet.sizes.STACKED_PIXELS", planes * 32**2)
    monkeypatch.setattr(places, "PIECES", {2: (planes * 32**2, 32)})


@pytest.mark.parametrize("tile", [32, 64, None])
def test_a_store_and_an_array_hold_the_same_volumes(stack, volume, truth, tmp_path, monkeypatch, tile):
    small_blocks(monkeypatch)
    assert np.array_equal(tilenet.segment(volume, axes="zyx", **HOW | {"tile": tile}, link=0.25), truth)
    mask = tilenet.segment(stack, tmp_path / "o.zarr", **HOW | {"tile": tile}, link=0.25)
    assert np.array_equal(mask[...], truth)
    assert (mask.dtype, mask.info["objects"], mask.info["record"]["link"]) == (np.uint32, truth.max(), 0.25)
    assert tilenet.verify(tmp_path / "o.zarr").ok


def test_objects_are_linked_along_z_and_not_along_t(volume, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    series = np.stack([volume[:5], volume[:5]])
    alone = tilenet.segment(series, axes="tzyx", **HOW)
    expected = joined(alone, 0.25, z=1)
    assert len(np.intersect1d(expected[0], expected[1])) == 1, "only the background"
    assert np.array_equal(tilenet.segment(series, axes="tzyx", link=0.25, **HOW), expected)
    mask = tilenet.segment(series, tmp_path / "o.zarr", axes="tzyx", link=0.25, **HOW)
    assert np.array_equal(mask[...], expected)
    other = np.moveaxis(series, 0, 1)
    alone = tilenet.segment(other, axes="ztyx", **HOW)
    assert np.array_equal(tilenet.segment(other, axes="ztyx", link=0.25, **HOW), joined(alone, 0.25, z=0))


def test_channels_have_no_part_in_links(volume, truth):
    two = np.stack([volume, np.zeros_like(volume)], axis=1)
    assert np.array_equal(tilenet.segment(two, axes="zcyx", channels=0, link=0.25, **HOW), truth)


def test_workers_and_shares_link_as_one_process(stack, truth, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    whole = tilenet.segment(stack, tmp_path / "whole.zarr", link=0.25, **HOW)
    tilenet.segment(stack, tmp_path / "shared.zarr", link=0.25, **HOW, client=Cluster(workers=2))
    for share in ((2, 2), (1, 2), (2, 2)):
        tilenet.segment(stack, tmp_path / "divided.zarr", link=0.25, **HOW, shard=share)
    assert np.array_equal(whole[...], truth) and whole.layout.n_blocks(0) > 7
    for name in ("shared", "divided"):
        assert tree_hash(tmp_path / f"{name}.zarr") == tree_hash(whole.path), name


class Killed(Exception):
    """Ends a run, as a signal would."""


def killed(*_, **__):
    raise Killed


@pytest.mark.parametrize("where", ["_fill_places", "linked", "_write_numbers", "finish"])
def test_a_killed_run_goes_on_to_the_same_volumes(stack, truth, tmp_path, monkeypatch, where):
    out = tmp_path / "o.zarr"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(numbering, where, killed)
        tilenet.segment(stack, out, link=0.25, **HOW)
    if where == "linked":
        assert is_complete(making_of(out, None) / DEPTHS) and not out.exists()
        with pytest.raises(
            OutputMismatch, match=r"was begun with link = 0.25, and now it is 0.5\. Leave the option out"
        ):
            tilenet.segment(stack, out, link=0.5, resume=True, **HOW)
    mask = tilenet.segment(stack, out, model=Bright(), threads=1, resume=True)  # options left out are those of the run
    assert np.array_equal(mask[...], truth)
    assert tree_hash(out) == tree_hash(tilenet.segment(stack, tmp_path / "whole.zarr", link=0.25, **HOW).path)


def test_a_run_is_not_resumed_with_another_link(stack, tmp_path):
    out = tmp_path / "o.zarr"
    tilenet.segment(stack, out, link=0.25, **HOW)
    for link, error in ((0.25, None), (0.3, "begun with link = 0.25, and now it is 0.3")):
        if error is None:
            tilenet.segment(stack, out, link=link, resume=True, **HOW)
            continue
        with pytest.raises(OutputMismatch, match=error):
            tilenet.segment(stack, out, link=link, resume=True, **HOW)
    tilenet.segment(stack, out, overwrite=True, **HOW)
    with pytest.raises(OutputMismatch, match="begun with link = not given, and now it is 0.25"):
        tilenet.segment(stack, out, link=0.25, resume=True, **HOW)


def test_a_damaged_mask_is_repaired_with_its_links(stack, truth, tmp_path):
    out = tmp_path / "o.zarr"
    mask = tilenet.segment(stack, out, link=0.25, **HOW)
    next(p for p in (out / "0" / "c").rglob("*") if p.is_file()).unlink()
    assert np.array_equal(tilenet.segment(stack, out, model=Bright(), threads=1, resume=True)[...], truth)
    assert open_mask(out).info[numbering.FIRSTS] == mask.info[numbering.FIRSTS]


def test_what_is_not_linked_is_recorded_as_before(stack, tmp_path):
    mask = tilenet.segment(stack, tmp_path / "o.zarr", **HOW)
    assert "link" not in mask.info["record"]
    firsts = np.unique(mask[...], return_index=True)[1][1:] + 1
    assert mask.info[numbering.FIRSTS] == sha256(firsts.astype(np.uint64).tobytes()).hexdigest()
    other = tilenet.segment(stack, tmp_path / "l.zarr", link=0.25, **HOW)
    assert mask.info[numbering.FIRSTS] != other.info[numbering.FIRSTS] != ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": False}, r"link 0.25 is for objects\. Ask for them \(--objects\), too"),
        ({"model": Bright3D()}, "link is for a 2-D model, and the objects of a 3-D one are volumes"),
        (
            {"axes": "tyx"},
            r"link joins objects along z, and its axes are tyx\. Leave link out, or name one of them z \(--axes\)",
        ),
        ({"roi": "3:4,:,:"}, r"link joins objects of several planes, and there is one\. Leave link out"),
        *(({"link": link}, rf"link {link} is not above 0 and at most 1") for link in (0, -0.1, 1.5)),
        ({"link": np.nan}, "link nan: give a number above 0, and at most 1"),
        ({"link": "0.25"}, "link '0.25': give a number above 0, and at most 1"),
        ({"link": True}, "link True: give a number above 0, and at most 1"),
    ],
)
def test_links_that_make_no_sense_are_refused_in_one_line(volume, tmp_path, options, message):
    for out in (None, tmp_path / "o.zarr"):
        with pytest.raises(SettingsError, match=message) as raised:
            tilenet.segment(volume, out, **{"axes": "zyx", "link": 0.25, **HOW, **options})
        assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.fixture
def mask(stack, tmp_path):
    return tilenet.segment(stack, tmp_path / "o.zarr", link=0.25, **HOW)


def test_a_table_has_one_line_for_each_volume(mask, stack, volume, truth, tmp_path):
    found = tilenet.write_table(mask.path, tmp_path / "t.csv", shapes=True, intensities=True)
    with (tmp_path / "t.csv").open() as file:
        lines = {int(line["object"]): line for line in csv.DictReader(file)}
    assert found.volumes and found.counts["class 1"] == len(lines) == truth.max()
    assert found.per_mm3["class 1"] == pytest.approx(truth.max() / (truth.size * np.prod(UM) / 1e9))
    for solid in regionprops(truth, intensity_image=volume, spacing=UM):
        line, pixels = lines[solid.label], np.count_nonzero(truth == solid.label)
        assert (int(line["volume_px"]), line["area_px"]) == (pixels, "")
        assert float(line["volume_um3"]) == pytest.approx(pixels * np.prod(UM))
        z, y, x = np.argwhere(truth == solid.label).mean(axis=0) + 0.5
        assert [float(line[a]) for a in "zyx"] == pytest.approx([z, y, x], abs=1e-3)
        assert [int(line["front"]), int(line["back"])] == [solid.bbox[0], solid.bbox[3]]
        assert float(line["mean_0"]) == pytest.approx(solid.intensity_mean)
        if solid.bbox[3] - solid.bbox[0] > 2:
            assert float(line["axis_major_um"]) == pytest.approx(solid.axis_major_length, rel=1e-5)


@pytest.mark.parametrize(("numbers", "few"), [([5, 5, 9000, 7, 9000], [5, 7, 9000]), ([5, 7, 7], [5, 6, 7])])
def test_numbers_that_are_far_apart_cost_no_more_than_others(numbers, few):
    here, places = intensities._few(np.array(numbers))
    assert (here.tolist(), here[places].tolist()) == (few, numbers)


def test_polygons_of_a_volume_have_its_number_in_each_plane(mask, truth, tmp_path):
    found = tilenet.write_geojson(mask.path, tmp_path / "g.geojson")
    features = json.loads((tmp_path / "g.geojson").read_text())["features"]
    seen = {(int(f["properties"]["name"]), f["geometry"].get("plane", {"z": 0})["z"]) for f in features}
    expected = {(int(n), z) for z, labels in enumerate(truth) for n in np.unique(labels[labels > 0])}
    assert found.volumes and seen == expected and len(features) == len(expected)


def test_small_volumes_are_left_out_of_a_table(mask, truth, tmp_path):
    with pytest.raises(SettingsError, match="its objects have volumes. Give um3"):
        tilenet.write_table(mask.path, tmp_path / "t.csv", min_area="50um2")
    found = tilenet.write_table(mask.path, tmp_path / "t.csv", min_area="50um3")
    kept = np.count_nonzero(np.bincount(truth[truth > 0])[1:] * np.prod(UM) >= 50)
    assert 0 < found.left_out == truth.max() - kept and found.counts["class 1"] == kept


def test_a_picture_draws_the_volumes_that_a_table_lists(mask, stack, tmp_path):
    tilenet.write_table(mask.path, tmp_path / "t.csv")
    whole = tilenet.overlay(stack, mask.path, table=tmp_path / "t.csv", plane=4)
    assert np.array_equal(whole, tilenet.overlay(stack, mask.path, plane=4))
    lines = (tmp_path / "t.csv").read_text().splitlines(keepends=True)
    (tmp_path / "t.csv").write_text("".join(lines[:6]))
    assert not np.array_equal(whole, tilenet.overlay(stack, mask.path, table=tmp_path / "t.csv", plane=4))


def test_volumes_are_scored_against_volumes(mask, stack, truth, tmp_path):
    tifffile.imwrite(tmp_path / "truth.tif", truth.astype(np.uint16), metadata={"axes": "ZYX"})
    scores = tilenet.evaluate(mask.path, tmp_path / "truth.tif")
    assert (scores["images"], scores["objects"]["0.9"]["f1"]) == (1, 1)
    tilenet.segment(stack, tmp_path / "p.zarr", link=0.9, **HOW)
    scores = tilenet.evaluate(tmp_path / "p.zarr", tmp_path / "truth.tif")
    assert scores["images"] == 1 and scores["objects"]["0.5"]["f1"] < 0.5
    tilenet.segment(stack, tmp_path / "q.zarr", **HOW)
    assert tilenet.evaluate(tmp_path / "q.zarr", tmp_path / "truth.tif")["images"] == len(truth)


@pytest.mark.parametrize(("least", "volumes", "f1"), [(0.1, 66, 0.90), (0.25, 97, 0.715)])
def test_real_nuclei_cut_into_planes_are_joined_again_but_for_the_first_and_last_planes_of_some(
    shared_data, least, volumes, f1
):
    true = tifffile.imread(shared_data("volumes/plant_nuclei_1135_label.tif")).astype(np.int64)
    planes = np.where(true > 0, true + (true.max() + 1) * np.arange(len(true))[:, None, None], 0)
    numbers = np.unique(planes, return_inverse=True)[1].reshape(true.shape)
    found = np.insert(linked(numbers, "zyx", true.shape, least), 0, 0)[numbers].astype(np.int32)
    assert len(np.unique(true)) == 55 and found.max() == volumes
    matched = metrics.count_objects(found, true.astype(np.int32), thresholds=(0.9,))[0.9]
    assert (matched.matched, round(matched.f1, 3)) == (54, f1), "what is left over is small, and extra"


def test_the_command_and_a_batch_link(stack, truth, tmp_path, tilenet_command):
    how = ("--model", "stub:bright", "--objects", "--link", "0.25")
    code, out, _ = tilenet_command("segment", stack, "--out", tmp_path / "c.zarr", *how, "--json")
    assert (code, json.loads(out)["objects"]) == (0, truth.max())
    assert np.array_equal(open_mask(tmp_path / "c.zarr")[...], truth)
    code, out, err = tilenet_command("batch", stack, "--out", tmp_path / "b", *how, "--csv", "--json")
    assert code == 0, err
    assert json.loads(out)["slides"][0]["counts"] == {"class 1": truth.max()}
    code, out, err = tilenet_command("batch", stack, "--out", tmp_path / "a", *how, "--csv", "--min-area", "5um2")
    assert code == 3 and "its objects have volumes" in out + err and not (tmp_path / "a" / "s.zarr").exists()
    (tmp_path / "list.csv").write_text(f"image,link\n{stack},0.9\n")
    code, _, err = tilenet_command("batch", tmp_path / "list.csv", "--out", tmp_path / "l", *how)
    assert code == 0, err
    assert open_mask(tmp_path / "l" / "s.zarr").info["record"]["link"] == 0.9
    code, _, err = tilenet_command("segment", stack, "--out", tmp_path / "x.zarr", *how[:2], "--link", "0.25")
    assert code == 2 and "link 0.25 is for objects" in err


def test_a_part_has_the_links_of_its_planes(stack, truth, tmp_path):
    part = tilenet.segment(stack, tmp_path / "p.zarr", link=0.25, roi="2:6,:,:", **HOW)
    alone = tilenet.segment(stack, roi="2:6,:,:", **HOW)
    assert part.shape[0] == 4 and np.array_equal(part[...], joined(alone, 0.25))
    assert part[...].max() < truth.max()


@pytest.mark.parametrize(
    ("name", "channel"),
    [("zarr/blastocyst_z070-099_v05_sharded.ome.zarr", 1), ("volumes/xyzc_16bit__dna_conf_wf.tif", 0)],
)
def test_volumes_of_real_stacks_are_those_of_sets_of_pixels(shared_data, tmp_path, monkeypatch, name, channel):
    path, options = shared_data(name), {"channels": (channel,), "objects": True, "roi": "12:18,:128,:128"}
    small_blocks(monkeypatch)
    alone = tilenet.segment(path, tile=64, **options)
    mask = tilenet.segment(path, tmp_path / "o.zarr", tile=32, link=0.25, **options)
    expected = joined(alone, 0.25)
    assert 1 <= expected.max() < alone.max() and np.array_equal(mask[...], expected)
