"""Objects of neighbouring planes that become volumes: the same however they are made, and after a kill."""

from hashlib import sha256

import numpy as np
import pytest
from linked_stacks import HOW, a_stack, a_volume, joined, small_blocks, true_volumes  # noqa: F401
from stub import Bright3D

import tilenet
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.runs import numbering


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
