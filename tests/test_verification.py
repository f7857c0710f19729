"""`verify`: files, windows that are recomputed, and images and models that are others."""

import json
import re

import numpy as np
import pytest
import tifffile
from checked_masks import IMAGE, a_mask  # noqa: F401
from oracles import random_network
from stub import Threshold
from workers import recorded_as

import tilenet
from tilenet.border_windows import border_windows
from tilenet.errors import (
    ANEW,
    REPAIR,
    ModelNotFound,
    OutputError,
    OutputIncomplete,
    OutputMismatch,
    SettingsError,
    VerifyFailed,
)
from tilenet.sizes import plan_tiles
from tilenet.store import Store
from tilenet.verification import Verification


def test_a_mask_that_is_right_passes(out, network):
    found = tilenet.verify(out, IMAGE, model=network)
    assert found.ok
    assert found.windows == 8
    assert found.pixels > 100_000


def test_of_a_mask_made_on_a_device_that_is_not_here_the_files_are_checked_and_the_device_is_named(tmp_path, network):
    out = tmp_path / "m.zarr"
    with recorded_as(device="cuda:77"):
        tilenet.segment(IMAGE, out, model=network, tile=128)
    found = tilenet.verify(out, IMAGE, model=network)
    assert found.ok and found.windows == 0
    assert found.not_recomputed == "the mask was made with device cuda:77, which this machine does not have"
    shard = out / "0" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:50])
    assert not tilenet.verify(out, IMAGE, model=network).ok


@pytest.mark.parametrize("objects", [False, True])
def test_another_image_or_model_that_is_named_is_refused_where_no_window_can_be_recomputed(tmp_path, network, objects):
    out = tmp_path / "m.zarr"
    with recorded_as(device="cuda:77", engine="fast"):
        tilenet.segment(IMAGE, out, model=network, tile=128, objects=objects)
    assert tilenet.verify(out, IMAGE, model=network).not_recomputed
    with pytest.raises(OutputMismatch, match="is not the image"):
        tilenet.verify(out, IMAGE // 2, model=network)
    with pytest.raises(OutputMismatch, match="was made with model sha256 = .*, and here it is"):
        tilenet.verify(out, IMAGE, model=random_network(depth=3, wf=2, seed=5))


def test_another_model_that_is_named_is_refused_where_the_image_is_gone_too(tmp_path, network):
    image, out = tmp_path / "image.tif", tmp_path / "m.zarr"
    tifffile.imwrite(image, IMAGE)
    tilenet.segment(image, out, model=network, tile=128)
    image.unlink()
    found = tilenet.verify(out, model=network)
    assert found.ok and "the image is no longer at" in found.not_recomputed
    with pytest.raises(OutputMismatch, match="was made with model sha256 = .*, and here it is"):
        tilenet.verify(out, model=random_network(depth=3, wf=2, seed=5))
    with pytest.raises(ModelNotFound):
        tilenet.verify(out, model=tmp_path / "none.safetensors")


def test_of_a_mask_made_with_an_object_of_python_the_files_are_checked_and_it_is_said_what_recomputes_windows(out):
    found = tilenet.verify(out, IMAGE)
    assert found.ok and found.windows == 0
    assert "UNet of Python: tilenet.verify(mask, model=...)" in found.not_recomputed


def test_of_objects_it_is_said_why_no_window_is_recomputed_if_windows_are_asked_for(tmp_path, network):
    tilenet.segment(IMAGE, tmp_path / "o.zarr", model=network, tile=128, objects=True)
    assert "objects depend on more" in tilenet.verify(tmp_path / "o.zarr", IMAGE, model=network).not_recomputed
    assert tilenet.verify(tmp_path / "o.zarr", windows=0) == tilenet.verification.Verification()


@pytest.mark.parametrize("wrong", [{"windows": -1}, {"windows": 1.5}, {"windows": "a"}, {"seed": -1}, {"seed": None}])
def test_what_is_no_count_is_refused(out, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(SettingsError, match=re.escape(f"{name} {value!r}: give a whole number, 0 at least")):
        tilenet.verify(out, IMAGE, **wrong)


def test_windows_straddle_every_border_of_tiles_before_any_twice(network):
    plan = plan_tiles((4096, 4096), network.footprint, tile=512)
    boxes = list(border_windows(plan, 7, np.random.default_rng(1)))
    for axis in (0, 1):
        crossed = {b for box in boxes for b in range(512, 4096, 512) if box.start[axis] < b < box.stop[axis]}
        assert crossed == set(range(512, 4096, 512))


def test_windows_touch_the_given_parts_in_turn_and_cross_every_border_of_each(network):
    plan = plan_tiles((3, 8192, 8192), network.footprint, tile=512)
    parts = [tilenet.Box((1024, 2048), (2048, 3072)), tilenet.Box((7168, 0), (8192, 1024))]
    boxes = list(border_windows(plan, 12, np.random.default_rng(1), parts))
    for k, part in enumerate(parts):
        own = [tilenet.Box(box.start[1:], box.stop[1:]) for box in boxes[k::2]]
        assert all((box & part).size for box in own)
        for axis in (0, 1):
            borders = [b for b in range(512, 8192, 512) if part.start[axis] <= b <= part.stop[axis]]
            assert {b for box in own for b in borders if box.start[axis] < b < box.stop[axis]} == set(borders)
    assert {box.start[0] for box in boxes} == {0, 1, 2}


def test_windows_meet_every_plane_before_any_twice(network):
    plan = plan_tiles((5, 256, 256), network.footprint, tile=64)
    boxes = list(border_windows(plan, 5, np.random.default_rng(1)))
    assert sorted(box.start[0] for box in boxes) == [0, 1, 2, 3, 4]


def test_a_first_plane_that_is_wrong_is_found(tmp_path, network, monkeypatch):
    write = Store.write

    def corrupt(self, index, arrays):
        if index == 0:
            arrays["mask"][0] ^= 1
        write(self, index, arrays)

    monkeypatch.setattr(Store, "write", corrupt)
    stack = np.stack([IMAGE[:200, :200]] * 2)
    tilenet.segment(stack, tmp_path / "m.zarr", model=network, axes="zyx")
    found = tilenet.verify(tmp_path / "m.zarr", stack, model=network)
    assert not found.damage
    assert {box.start[0] for box, _ in found.differences} == {0}


def test_windows_of_a_small_image_lie_inside_it(network):
    plan = plan_tiles((3, 20, 5), network.footprint)
    for box in border_windows(plan, 5, np.random.default_rng(0)):
        assert box in tilenet.Box((0, 0, 0), (3, 20, 5))
        assert box.shape == (1, 20, 5)


@pytest.mark.parametrize("border", [128, 256, 384, 512])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_strip_of_one_pixel_at_a_tile_border_is_found(tmp_path, network, border, axis, monkeypatch):
    write = Store.write

    def corrupt(self, index, arrays):
        box = plan_tiles(IMAGE.shape, network.footprint, tile=128)[index].box
        if box.start[axis] <= border < box.stop[axis]:
            strip = [slice(None)] * 2
            strip[axis] = slice(border - box.start[axis], border - box.start[axis] + 1)
            arrays["mask"][tuple(strip)] ^= 1
        write(self, index, arrays)

    monkeypatch.setattr(Store, "write", corrupt)
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network, tile=128)
    found = tilenet.verify(tmp_path / "m.zarr", IMAGE, model=network)
    assert not found.damage, "the files are as written: only recomputing finds it"
    assert found.differences
    assert all(box.start[axis] <= border < box.stop[axis] for box, _ in found.differences)
    with pytest.raises(VerifyFailed, match=r"pixels at \[.*\] are not what the network gives"):
        found.raise_if_failed("m.zarr")


@pytest.mark.parametrize(("value", "ties"), [(100, True), (200, False)])
def test_a_difference_between_classes_that_are_as_likely_is_counted_as_a_tie(tmp_path, monkeypatch, value, ties):
    image, write = np.full((100, 130), 30, np.uint8), Store.write
    image[40:47, 50:61] = value
    image[80:, 90:] = 200

    def corrupt(self, index, arrays):
        arrays["mask"][40:47, 50:61] ^= 1
        write(self, index, arrays)

    monkeypatch.setattr(Store, "write", corrupt)
    mask = tilenet.segment(image, tmp_path / "m.zarr", model=Threshold())
    assert np.unique(mask[40:47, 50:61]) == [ties] and mask[80:, 90:].all()
    found = tilenet.verify(tmp_path / "m.zarr", image, model=Threshold())
    assert (found.ok, found.ties > 0, len(found.differences) > 0) == (ties, ties, not ties)
    assert found.ties % (7 * 11) == 0, "whole patches lie in a window"


def test_a_flipped_byte_is_found_without_the_image(out, network):
    shard = max((out / "0").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = tilenet.verify(out, windows=0)
    assert len(found.damage) == 1
    with pytest.raises(VerifyFailed, match=rf"\. {re.escape(REPAIR.capitalize())}$"):
        found.raise_if_failed(out)
    tilenet.segment(IMAGE, out, model=network, resume=True)
    assert tilenet.verify(out, windows=0).ok


def test_what_resuming_does_not_mend_is_to_be_overwritten(out, network):
    document = json.loads((out / "zarr.json").read_text())
    document["attributes"]["more"] = 1
    (out / "zarr.json").write_text(json.dumps(document))
    found = tilenet.verify(out, windows=0)
    assert found.lasting == ["zarr.json"]
    with pytest.raises(VerifyFailed, match=rf"zarr.json is changed\. {re.escape(ANEW.capitalize())}$"):
        found.raise_if_failed(out)
    with pytest.raises(OutputError, match="--overwrite"):
        tilenet.segment(IMAGE, out, model=network, resume=True)
    differing = Verification(differences=[(tilenet.Box((0, 0), (9, 9)), 3)])
    with pytest.raises(VerifyFailed, match=rf"\. {re.escape(ANEW.capitalize())}$"):
        differing.raise_if_failed(out)


def test_files_that_file_managers_leave_are_no_fault_of_a_mask_and_are_told(out, network, tilenet_command):
    (out / ".DS_Store").write_bytes(b"")
    assert tilenet_command("verify", out, "--windows", "0")[2] == ""
    for name in ("0/c/Thumbs.db", "0/c/0/desktop.ini", "thumbs.db"):
        (out / name).write_bytes(b"x")
    found = tilenet.verify(out, IMAGE, model=network)
    assert found.ok and found.windows and not found.foreign
    code, _, err = tilenet_command("verify", out, "--windows", "0")
    assert (code, err.count("\n")) == (0, 1) and "(3 are there). Delete it before you overwrite the mask" in err
    code, printed, err = tilenet_command("verify", out, "--windows", "0", "--json")
    assert (code, err) == (0, "") and "is no part of the mask" in json.loads(printed)["remarks"][0]
    (out / "0" / "c" / "my Thumbs.db").write_bytes(b"x")
    assert tilenet.verify(out, windows=0).foreign == ["0/c/my Thumbs.db"]


def test_of_files_that_tilenet_did_not_write_no_run_is_said_to_help(out, network):
    (out / "notes.txt").write_text("mine")
    (out / "0" / "c" / "more.txt").write_text("mine")
    found = tilenet.verify(out, IMAGE, model=network)
    assert found.foreign == ["0/c/more.txt", "notes.txt"]
    with pytest.raises(VerifyFailed) as only_foreign:
        found.raise_if_failed("m.zarr")
    assert str(only_foreign.value) == (
        "m.zarr: 0/c/more.txt is extra: tilenet did not write it; and 1 more. Move away what tilenet did not write"
    )
    tilenet.write_tiff(out, out.with_name("m.tif"))  # they do the mask no harm
    (out / "0" / "c" / "0" / "0").write_bytes(b"cut")
    with pytest.raises(VerifyFailed, match=r"Move away what tilenet did not write, then run the .* --resume"):
        tilenet.verify(out, IMAGE, model=network).raise_if_failed("m.zarr")
    (out / "notes.txt").unlink()
    (out / "0" / "c" / "more.txt").unlink()
    tilenet.segment(IMAGE, out, model=network, tile=128, resume=True)
    assert tilenet.verify(out, IMAGE, model=network).ok


def test_another_image_or_model_is_refused(out, network):
    with pytest.raises(OutputMismatch, match=r"made from \(pixels_sha256: .*\. Give the image that was segmented$"):
        tilenet.verify(out, IMAGE // 2, model=network)
    with pytest.raises(OutputMismatch, match="made with model sha256 .* Give the model that it was made with$"):
        tilenet.verify(out, IMAGE, model=random_network(1, depth=3, wf=2))


@pytest.mark.parametrize(
    ("first", "other", "told"),
    [
        ({"n_classes": 1}, {"n_classes": 2}, "model sha256"),
        ({"n_classes": 2}, {"n_classes": 1}, "model sha256"),
        ({"depth": 2}, {"depth": 4}, "model footprint"),
        ({}, {"in_channels": 3}, "model sha256"),
    ],
    ids=["more classes", "fewer classes", "other tiles", "colour"],
)
def test_another_model_is_named_before_settings_that_follow_from_it(tmp_path, first, other, told):
    out, image, options = tmp_path / "m.zarr", np.stack([IMAGE, IMAGE]), {"depth": 2, "wf": 2, "in_channels": 2}
    tilenet.segment(image, out, axes="cyx", model=random_network(**options | first), tile=66)
    another = random_network(**options | other)
    with pytest.raises(OutputMismatch, match=f"was begun with {told} = .* Give the model that the run was started"):
        tilenet.segment(image, out, axes="cyx", model=another, resume=True)
    with pytest.raises(OutputMismatch, match=f"was made with {told} = .* Give the model that it was made with$"):
        tilenet.verify(out, image, model=another)


def test_of_another_image_only_mask_and_image_are_spoken_of(tmp_path, network, tilenet_command):
    for name, side in (("a", 90), ("b", 80), ("c", 90)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((side, side + 9), np.uint8), tile=(32, 32))
    tilenet.save_model(network, tmp_path / "m.safetensors")
    tilenet.segment(tmp_path / "a.tif", tmp_path / "m.zarr", model=tmp_path / "m.safetensors")
    code, _, error = tilenet_command("verify", tmp_path / "m.zarr", "--image", tmp_path / "b.tif")
    assert (code, error.count("\n")) == (2, 1)
    assert error.endswith("Give the image that was segmented\n")
    assert "resume" not in error and "--overwrite" not in error
    assert tilenet_command("verify", tmp_path / "m.zarr", "--image", tmp_path / "c.tif")[0] == 0


def test_a_mask_whose_image_is_gone_is_not_called_recomputed(tmp_path, network):
    tilenet.segment(IMAGE, tmp_path / "m.zarr", model=network, tile=128)
    found = tilenet.verify(tmp_path / "m.zarr", model=network)
    assert (found.ok, found.windows) == (True, 0)
    assert "no longer" in found.not_recomputed


def test_an_unfinished_mask_is_called_that_whatever_else_is_wrong_with_it(out):
    (out / "0" / "c" / "0" / "0").write_bytes(b"cut")
    root = json.loads((out / "zarr.json").read_text())
    root["attributes"]["tilenet"]["complete"] = False
    (out / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(OutputIncomplete, match="is not complete"):
        tilenet.verify(out, IMAGE)
