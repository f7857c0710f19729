"""Reading a mask in a TIFF: as arrays, as what it says of itself, and where it is no whole one."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from store_helpers import LAYOUTS, make
from tiff_masks import a_slide, both_masks, segment  # noqa: F401

import tilenet
from tilenet.errors import BlocksFailed, OutputError
from tilenet.masks import tiff_mask
from tilenet.masks.tiff_export import write_tiff


def test_a_tiff_of_a_newer_version_is_not_called_another_s(whole, tmp_path):
    newer = whole[1].read_bytes().replace(b"probability_dtype", b"probability_dtypo")  # of the same length
    (tmp_path / "m.ome.tif").write_bytes(newer)
    with pytest.raises(OutputError, match=r"m\.ome\.tif: was written by tilenet .*, which stores 'probability_dtypo'"):
        tilenet.open_mask(tmp_path / "m.ome.tif")


def test_a_tiff_that_is_refused_is_closed(whole, monkeypatch):
    opened, closed, open_image = [], [], tiff_mask.open_image

    def watched(path):
        image = open_image(path)
        opened.append(path)
        close = image.close
        image.close = lambda: closed.append(path) or close()
        return image

    monkeypatch.setattr(tiff_mask, "open_image", watched)
    monkeypatch.setattr(tiff_mask.TiffMask, "dtype", np.dtype(np.uint16))
    with pytest.raises(OutputError, match="its pages are not what its description says"):
        tilenet.open_mask(whole[1])
    assert opened == closed


def test_a_closed_mask_says_that_it_is_closed_and_not_that_it_is_damaged(whole):
    with tilenet.open_mask(whole[1]) as mask:
        assert mask[0].any() or mask[...].any()
    for use in (lambda: mask[0], lambda: np.asarray(mask)):
        with pytest.raises(OutputError, match=r"\.tif: is closed\. Open it again$"):
            use()


def test_a_tiff_mask_that_is_taken_for_an_image_is_said_to_be_one(slide, whole, caplog):
    with caplog.at_level("WARNING", "tilenet"):
        segment(slide, None)
        assert caplog.text == ""
        tilenet.segment(whole[1], model=slide / "tiny.safetensors", tile=64, threads=1)
    assert f"{whole[1]}: is a mask that tilenet wrote, and is segmented like any image" in caplog.text


def test_every_level_of_a_tiff_becomes_an_array_as_the_mask_does(whole):
    mask = tilenet.open_mask(whole[1])
    for level in mask.levels:
        assert np.array_equal(np.asarray(level), level[...])
        assert np.asarray(level, np.float32).dtype == np.float32
    assert np.asarray(mask.levels[1]).shape == mask.levels[1].shape
    with pytest.raises(ValueError, match="without copying"):
        np.array(mask.levels[0], copy=False)


def test_a_wrong_tile_of_a_coarse_level_is_found(tmp_path):
    make(tmp_path / "m.zarr", LAYOUTS["plane"])
    write_tiff(tmp_path / "m.zarr", tmp_path / "m.tif").close()
    with tifffile.TiffFile(tmp_path / "m.tif") as tiff:
        coarse = tiff.series[0].levels[1].pages[0]
        tiles = tiff.series[0].levels[0].pages[0]
        at, size = tiles.dataoffsets[0], tiles.databytecounts[0]
        tag = {name: coarse.tags[name] for name in ("TileOffsets", "TileByteCounts")}
        assert len(coarse.dataoffsets) == 1
        with (tmp_path / "m.tif").open("r+b") as file:
            for name, value in (("TileOffsets", at), ("TileByteCounts", size)):
                file.seek(tag[name].offset + 8)
                file.write(int(value).to_bytes(4, "little"))
    assert "not every second pixel" in tilenet.verify(tmp_path / "m.tif", windows=0).damage[0]


INDICES = [
    (),
    (2,),
    (Ellipsis, 5),
    (-1, slice(3, 9, 2)),
    (slice(None, None, -3), slice(8, 2, -1)),
    (slice(5, 5), slice(None)),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_a_tiff_mask_is_indexed_as_numpy_is(whole, index):
    mask = tilenet.open_mask(whole[1])
    assert np.array_equal(mask[index], np.asarray(mask)[index])
    assert mask[index].shape == np.asarray(mask)[index].shape


@pytest.mark.parametrize("index", [(0, 0, 0), 300, (0, -701), "x", [1, 2], np.array([1, 2])], ids=str)
def test_an_index_that_is_none_is_refused(whole, index):
    with pytest.raises(IndexError):
        tilenet.open_mask(whole[1])[index]


def test_info_tells_of_a_tiff_what_it_tells_of_the_zarr(whole, tilenet_command):
    told = [json.loads(tilenet_command("info", path, "--json")[1]) for path in whole]
    assert told[0] == told[1]
    assert told[0]["kind"] == "mask"


def changed(mask, out, change):
    """Copy a mask, and change what it says of how it was made."""
    if mask.is_dir():
        shutil.copytree(mask, out)
        root = json.loads((out / "zarr.json").read_text())
        change(root["attributes"]["tilenet"])
        (out / "zarr.json").write_text(json.dumps(root))
        return out
    with tifffile.TiffFile(mask) as tiff:
        (text,) = (e.text for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.endswith("}Description"))
    own = json.loads(text)
    change(own["tilenet"])
    before, after = (t.replace('"', "&quot;").encode() for t in (text, json.dumps(own)))
    content = mask.read_bytes()
    if before not in content:
        before, after = text.encode(), json.dumps(own).encode()
    assert content.count(before) == 1
    out.write_bytes(content.replace(before, after.ljust(len(before))))
    return out


@pytest.mark.parametrize("kind", [0, 1], ids=["zarr", "tiff"])
def test_a_mask_that_lacks_how_it_was_made_is_refused_in_a_line(slide, whole, tmp_path, tilenet_command, kind):
    changes = {part: lambda own, part=part: own.pop(part) for part in ("image", "model", "card", "record", "scaling")}
    changes |= {"labels": lambda own: own["card"].pop("labels")}
    suffix = (".zarr", ".ome.tif")[kind]
    for part, change in changes.items():
        out = changed(whole[kind], tmp_path / f"{part}{suffix}", change)
        with pytest.raises(BlocksFailed, match=rf"{part}\S+: was changed: it lacks its {part}\. Copy or make it again"):
            tilenet.open_mask(out)
    cards = changed(whole[kind], tmp_path / f"cards{suffix}", lambda own: own.update(card=[]))
    table, picture = tmp_path / "a.csv", tmp_path / "a.png"
    for command in (
        ("info", cards),
        ("export", cards, "--csv", table),
        ("overlay", slide / "slide.tif", cards, "--out", picture),
        ("verify", cards),
    ):
        code, _, err = tilenet_command(*command)
        assert code == 3 and len(err.splitlines()) == 1 and ("lacks its card" in err or "zarr.json" in err), err
    assert tilenet.open_mask(changed(whole[kind], tmp_path / f"same{suffix}", lambda own: None)).shape == (300, 700)
