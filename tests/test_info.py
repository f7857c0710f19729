"""The command ``tilenet info``, and what other commands say of the same image."""

import json
import re

import numpy as np
import tifffile
from small_work import a_folder  # noqa: F401
from stub import Bright

import tilenet


def test_info_says_what_an_image_and_a_model_are_understood_to_be(work, tilenet_command):
    _, text, _ = tilenet_command("info", work / "slide.tif", "--json")
    assert {k: json.loads(text)[k] for k in ("kind", "axes", "shape", "dtype")} == {
        "kind": "image",
        "axes": "yxc",
        "shape": [300, 400, 3],
        "dtype": "uint8",
    }
    _, text, _ = tilenet_command("info", "nuclei")
    assert "margin" in text


def test_info_wraps_notes_and_shortens_numbers_that_json_has_in_full(work, tilenet_command):
    [notes] = re.findall(r"^notes .*?(?=^metrics)", tilenet_command("info", "nuclei")[1], re.M | re.S)
    assert "Not for diagnosis." in notes
    assert max(map(len, notes.splitlines())) < 120
    size = ("info", work / "slide.tif", "--pixel-size", 0.3460559834973875)
    assert re.search(r"^pixel_size_um +\[0.346056, 0.346056\]$", tilenet_command(*size)[1], re.M)
    assert json.loads(tilenet_command(*size, "--json")[1])["pixel_size_um"] == [0.3460559834973875] * 2


def test_axes_that_are_said_in_place_of_the_files_are_told_and_shown(work, tilenet_command):
    pixels = np.random.default_rng(0).integers(0, 200, (2, 60, 70), dtype=np.uint8)
    tifffile.imwrite(work / "s.ome.tif", pixels, metadata={"axes": "CYX"}, ome=True)
    args = (work / "s.ome.tif", "-m", work / "small.safetensors", "--axes", "tyx")
    code, text, err = tilenet_command("segment", *args, "-o", work / "o.zarr")
    assert (code, "axes taken as tyx, as asked; the file says cyx" in err, "2 x 60 x 70 px" in text) == (0, True, True)
    assert "tyx 2 x 60 x 70, uint8 (the file says cyx)" in tilenet_command("plan", *args)[1]
    shown = json.loads(tilenet_command("info", args[0], "--axes", "tyx", "--json")[1])
    assert (shown["axes"], shown["axes_in_file"]) == ("tyx", "cyx")
    shown = json.loads(tilenet_command("info", args[0], "--axes", "cyx", "--json")[1])
    assert (shown["axes"], "axes_in_file" in shown) == ("cyx", False)


def test_info_counts_the_objects_of_a_mask_that_has_some(work, tilenet_command):
    pixels = np.kron(np.eye(3), np.ones((12, 12))).astype(np.uint8) * 200
    for out, objects in (("o.zarr", True), ("m.zarr", False)):
        tilenet.segment(pixels, work / out, model=Bright(), objects=objects)
    for out in ("o.zarr", "o.ome.tif"):
        if out.endswith("tif"):
            tilenet.write_tiff(work / "o.zarr", work / out)
        assert json.loads(tilenet_command("info", work / out, "--json")[1])["objects"] == 3
    assert re.search(r"^objects +3$", tilenet_command("info", work / "o.zarr")[1], re.M)
    assert "objects" not in json.loads(tilenet_command("info", work / "m.zarr", "--json")[1])


def test_info_and_segment_say_that_alpha_is_not_read(work, tilenet_command):
    path, pixels = work / "rgba.tif", np.random.default_rng(0).integers(0, 200, (60, 70, 4), dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert json.loads(tilenet_command("info", path, "--json")[1])["alpha"] == "not read"
    assert "alpha" not in json.loads(tilenet_command("info", work / "slide.tif", "--json")[1])
    _, _, err = tilenet_command("segment", path, "-m", work / "small.safetensors", "-o", work / "rgba.zarr")
    assert "rgba.tif: its alpha channel is not read" in err


def test_info_counts_missing_tiles_and_says_what_segment_would(work, monkeypatch, tilenet_command):
    path, tile = work / "sparse.tif", np.ones((64, 64, 3), np.uint8)
    options = {"shape": (128, 192, 3), "dtype": "uint8", "tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(path, iter([tile, None, tile, tile, None, tile]), **options)
    code, _, refused = tilenet_command("segment", path, "-m", work / "small.safetensors", "-o", work / "o.zarr")
    assert (code, "2 of its tiles are missing" in refused) == (2, True)
    code, text, err = tilenet_command("info", path, "-m", work / "small.safetensors", "--json")
    found = json.loads(text)
    assert (code, err, found["missing_tiles"], found["shape"]) == (0, "", 2, [128, 192, 3])
    assert f": refused: {refused.split('sparse.tif: ')[1].strip()}. With that: level 0 as stored" in found["segment"]
    monkeypatch.chdir(work)
    assert json.loads(tilenet_command("info", "sparse.tif", "-m", work / "small.safetensors", "--json")[1]) == found
    assert "missing_tiles" not in tilenet_command("info", work / "slide.tif", "--json")[1]
