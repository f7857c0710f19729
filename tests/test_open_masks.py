"""Masks that are opened: what they lose, and files of them that were changed, are no background."""

import json
import pickle
import shutil

import numpy as np
import pytest
from checked_masks import IMAGE, a_mask  # noqa: F401
from ome_images import write_ome_zarr

import tilenet
from tilenet.errors import BlocksFailed, OutputError, SettingsError

SMALL = IMAGE[:100, :150]


def test_a_mask_that_lost_a_file_is_not_opened_and_damaged_bytes_are_refused_on_reading(out):
    shard = out / "0" / "c" / "0" / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[:50] + bytes(40) + content[90:])
    mask = tilenet.open_mask(out)
    with pytest.raises(BlocksFailed, match=r"level 0 cannot be read .* tilenet verify"):
        mask[:]
    shard.unlink()
    with pytest.raises(BlocksFailed, match=r"0/c/0/0 \(level 0, block 0\) is not as it was written, or missing"):
        tilenet.open_mask(out)
    shard.write_bytes(content)
    (out / "1" / "zarr.json").unlink()
    with pytest.raises(BlocksFailed, match="has lost its metadata"):
        tilenet.open_mask(out)


@pytest.mark.usefixtures("zarr_reads")
@pytest.mark.parametrize("v2", [False, True], ids=["zarr 3", "zarr 2"])
def test_what_an_open_mask_loses_is_no_background(tmp_path, network, v2):
    if v2:
        image = write_ome_zarr(tmp_path / "i.zarr", [(IMAGE, (1, 1))], units={}, version="0.4", chunks=(64, 64))
        given = {"image": image, "into": image, "name": "m"}
    else:
        given = {"image": IMAGE, "out": tmp_path / "m.zarr"}
    mask = tilenet.segment(**given, model=network, tile=128, output="both")
    assert mask.layout.zarr_format == (2 if v2 else 3)
    whole, other = mask[:], pickle.loads(pickle.dumps(mask))
    step = 2 ** (len(mask.levels) - 1)
    assert np.array_equal(other[:], whole) and np.array_equal(other.levels[-1][:], whole[::step, ::step])
    for array, read in (
        ("0", mask.__getitem__),
        ("0", other.__getitem__),
        ("probabilities/0", mask.probabilities.get_basic_selection),
    ):
        folder = mask.path / mask.layout.folder(array)
        lost = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))[-1]
        content = lost.read_bytes()
        lost.unlink()
        with pytest.raises((BlocksFailed, OSError), match=f"{lost.name} is missing"):
            read(...)
        lost.write_bytes(content)
        read(...)
    shutil.rmtree(mask.path)
    with pytest.raises(BlocksFailed, match="is missing"):
        mask[:]


@pytest.mark.parametrize("name", ["m.zarr", "m.ome.tif"])
def test_a_mask_opened_by_a_relative_path_is_read_from_other_working_directories(tmp_path, network, monkeypatch, name):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    tilenet.segment(SMALL, name, model=network, tile=128)
    mask = tilenet.open_mask(name)
    whole, layer = mask[:], mask.layer()
    monkeypatch.chdir("elsewhere")
    assert whole.any() and np.array_equal(mask[:], whole) and np.array_equal(layer["data"][0][...], whole)
    table = tilenet.write_table(mask, "m.csv", image=SMALL)
    assert mask.path == tmp_path / name and table.path == tmp_path / "elsewhere" / "m.csv"


def test_a_level_of_a_mask_that_is_gone_names_the_mask(tmp_path, network):
    mask = tilenet.segment(SMALL, tmp_path / "m.zarr", model=network, tile=128)
    mask.path.rename(tmp_path / "moved.zarr")
    with pytest.raises(OSError, match=r"/m\.zarr: is missing by now\. Open it where it is$"):
        mask.layer()["data"][0][:]


def test_a_mask_that_was_replaced_while_it_was_open_is_not_read_as_a_mixture(tmp_path, network):
    out = tmp_path / "m.zarr"
    mask = tilenet.segment(IMAGE, out, model=network, tile=128, output="both")
    sent = pickle.dumps(mask)
    before = mask[:]
    again = tilenet.segment(IMAGE[:200, :150], out, model=network, tile=128, overwrite=True)
    for old in (mask, pickle.loads(sent)):
        with pytest.raises(BlocksFailed, match="was written anew since it was opened"):
            old[:]
        with pytest.raises(OSError, match="was written anew"):
            old.probabilities[:]
    assert again[:].shape == (200, 150)
    tilenet.segment(IMAGE, out, model=network, tile=128, output="both", overwrite=True)
    with pytest.raises(BlocksFailed, match="written anew"):
        mask[:]  # nor is the same mask taken for that which was opened
    assert np.array_equal(tilenet.open_mask(out)[:], before)


def test_background_that_has_no_file_is_read_as_before(tmp_path):
    def nothing(batch):
        return -np.ones_like(batch)

    mask = tilenet.segment(IMAGE, tmp_path / "m.zarr", model=nothing, footprint=tilenet.Footprint.same(2, reach=0))
    assert not any((tmp_path / "m.zarr/0").glob("c/*")) and not mask[:].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "junk",
        lambda text: "{}",
        lambda text: text.replace("600", "601"),
        lambda text: text.replace("uint8", "int16"),
    ],
    ids=["no JSON", "nothing", "shape", "type"],
)
def test_metadata_of_an_array_that_was_changed_is_damage(out, network, change):
    document = out / "0" / "zarr.json"
    document.write_text(change(document.read_text()))
    with pytest.raises(BlocksFailed, match=r"m\.zarr/0: its metadata .* with --resume"):
        tilenet.open_mask(out)
    with pytest.raises(BlocksFailed, match=r"0: its metadata .* with --resume"):
        tilenet.write_geojson(out, out.with_name("m.geojson"))


@pytest.mark.parametrize("side", [1e300, 10**30, 0, -3, True, "600"])
def test_a_layout_that_no_mask_has_is_not_one_that_tilenet_wrote(out, side):
    root = json.loads((out / "zarr.json").read_text())
    root["attributes"]["tilenet"]["layout"]["shape"][0] = side
    (out / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(OutputError, match="is not a mask that tilenet wrote"):
        tilenet.open_mask(out)


def test_a_mask_of_a_newer_version_is_not_called_another_s(out):
    root = json.loads((out / "zarr.json").read_text())
    own = root["attributes"]["tilenet"]
    own["layout"]["offset"], own["version"] = 3, "99.0"
    (out / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(OutputError, match=r"m\.zarr: was written by tilenet 99\.0, which stores 'offset' of it"):
        tilenet.open_mask(out)
    own["format"] = 2
    (out / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(OutputError, match=r"m\.zarr: has store format 2, but this version of tilenet reads format 1"):
        tilenet.open_mask(out)


def test_a_mask_that_was_copied_without_its_hidden_folder_says_so(out):
    shutil.rmtree(out / ".tilenet")
    with pytest.raises(OutputError, match=r"lacks its folder \.tilenet"):
        tilenet.open_mask(out)


@pytest.mark.parametrize("name", ["m.zarr", "m.ome.tif"])
def test_a_mask_is_taken_wherever_its_path_is(tmp_path, network, name):
    mask = tilenet.segment(SMALL, tmp_path / name, model=network, tile=128, objects=True)
    for write, ending in ((tilenet.write_geojson, "json"), (tilenet.write_table, "csv")):
        for given, to in ((mask, "of_mask"), (mask.path, "of_path")):
            write(given, tmp_path / f"{to}.{ending}")
        assert (tmp_path / f"of_mask.{ending}").read_bytes() == (tmp_path / f"of_path.{ending}").read_bytes()
    assert np.array_equal(tilenet.overlay(SMALL, mask), tilenet.overlay(SMALL, mask.path))
    assert tilenet.evaluate(mask, mask.path) == tilenet.evaluate(mask.path, mask.path)
    assert tilenet.verify(mask, SMALL, model=network).ok
    assert np.array_equal(tilenet.open_mask(mask), mask)
    assert tilenet.segment(SMALL, mask, model=network, objects=True, resume=True).path == mask.path
    assert np.array_equal(tilenet.segment(SMALL, tissue=mask), tilenet.segment(SMALL, tissue=mask.path))
    if name == "m.zarr":
        assert np.array_equal(tilenet.write_tiff(mask, tmp_path / "t.tif"), mask)
    else:
        with pytest.raises(OutputError, match=rf"is the mask {mask.path}, or inside it"):
            tilenet.write_tiff(mask, mask, overwrite=True)
    assert tilenet.open_image(mask).identity()["kind"] == "tilenet array"  # as ever, so that old outputs can be resumed


def test_a_mask_of_tissue_of_many_planes_is_taken_as_its_path_is(tmp_path, network):
    stack = np.stack([SMALL] * 2)
    mask = tilenet.segment(stack, tmp_path / "m.zarr", axes="zyx", model=network, tile=128)
    assert np.array_equal(*(tilenet.segment(stack[0], model=network, tissue=given) for given in (mask, mask.path)))


@pytest.mark.parametrize("use", ["verify", "open_mask", "write_geojson", "write_table", "write_tiff", "overlay"])
def test_an_array_is_no_mask_on_disk(use, tmp_path):
    given = {"verify": (SMALL,), "open_mask": (SMALL,), "overlay": (SMALL, SMALL)}
    with pytest.raises(
        SettingsError,
        match=r"a path, or a mask that was opened, is wanted, not a ndarray\. With out=\.\.\., tilenet\.segment writes",
    ):
        getattr(tilenet, use)(*given.get(use, (SMALL, tmp_path / f"m.{'tif' if use == 'write_tiff' else 'csv'}")))


def test_arrays_are_no_files_to_be_scored():
    with pytest.raises(SettingsError, match=r"evaluate takes files, not a ndarray\. For arrays see tilenet\.metrics"):
        tilenet.evaluate(SMALL, SMALL)


@pytest.mark.parametrize("name", ["m.zarr", "m.ome.tif"])
def test_a_mask_is_not_compared_with_numbers_since_the_answer_would_be_false(tmp_path, network, name):
    mask = tilenet.segment(SMALL, tmp_path / name, model=network, tile=128)
    for compare in (lambda: mask == 1, lambda: mask != 1, lambda: 0 == mask, lambda: mask == mask[...]):
        with pytest.raises(
            TypeError, match=rf"{name}: a mask is equal to no \w+\. Compare pixels: mask\[\.\.\.\] == 1"
        ):
            compare()
    assert (mask[...] == mask).all()  # NumPy takes the pixels
    assert mask == mask and mask != tilenet.open_mask(mask) and mask in {mask}
    assert mask != None and mask in [None, mask]  # noqa: E711
