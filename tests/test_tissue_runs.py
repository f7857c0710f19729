"""Blocks without tissue are background and are not read; all others are as without a map."""

import csv
import json
import signal

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from faults import STUB, entries, tree_hash, wait_until
from ome_images import write_ome_zarr
from ome_zarr_models import v04, v05
from store_helpers import tree
from stub import Bright
from tissue_images import BLOCK, OPTIONS, SIDES, a_mask_of_ones_own, a_slide, blocks_of, glass, write  # noqa: F401
from workers import Cluster

import tilenet
from tilenet.batches.image_runs import BatchRun
from tilenet.errors import OutputMismatch, SettingsError, VerifyFailed
from tilenet.geometry import Box
from tilenet.readers.image import Image
from tilenet.store import Store
from tilenet.tissue import detection
from tilenet.workers import worker

# The promise.


@pytest.mark.parametrize(
    "how",
    [{}, {"level": 1}, {"mpp": 0.8}, {"roi": [(100, 1100), (40, 1400)]}, {"output": "both"}, {"channels": [0]}],
    ids=str,
)
def test_a_block_with_tissue_is_as_without_a_map_and_any_other_is_0(slide, tmp_path, how):
    options = OPTIONS | {"tile": 256} | how
    plain = tilenet.segment(slide, tmp_path / "plain.zarr", **options)
    mask = tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, **options)
    kept, skipped = list(blocks_of(mask, computed=True)), list(blocks_of(mask, computed=False))
    assert kept and skipped
    assert mask.info["tissue"]["skipped_blocks"] == len(skipped)
    for box in kept:
        assert np.array_equal(mask[box], plain[box])
        if mask.probabilities is not None:
            assert np.array_equal(mask.probabilities[(..., *box)], plain.probabilities[(..., *box)])
    for box in skipped:
        assert plain[box].any() and not mask[box].any()
        if mask.probabilities is not None:
            assert not mask.probabilities[(..., *box)].any()


def test_no_pixel_whose_context_has_tissue_is_skipped(slide, tmp_path):
    mask = tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, **OPTIONS)
    context = Box((300 - 1, 500 - 1), (600 + 1, 900 + 1))
    y, x = (np.arange(a, b) for a, b in zip(context.start, context.stop, strict=True))
    assert mask.layout.block_has_tissue_at(y, x).all()
    assert not mask.layout.block_has_tissue_at(np.arange(1100), np.arange(1500)).all()


def test_glass_is_not_read_at_full_resolution(slide, tmp_path, monkeypatch):
    read, boxes = Image.read, []
    monkeypatch.setattr(Image, "read", lambda self, box: boxes.append(box) or read(self, box))
    mask = tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, **OPTIONS)
    assert len(boxes) == len(list(blocks_of(mask, computed=True))) < mask.info["tissue"]["blocks"]
    assert all(mask.tissue.meets(Box(tuple(max(0, a) for a in box.start), box.stop)) for box in boxes)


def test_an_array_is_what_a_store_holds(slide, tmp_path):
    mask = tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, output="both", **OPTIONS)
    assert np.array_equal(tilenet.segment(slide, tissue=True, **OPTIONS), mask[...])
    assert np.array_equal(
        tilenet.segment(slide, tissue=True, output="probabilities", **OPTIONS), mask.probabilities[...]
    )
    nothing = tilenet.segment(glass(), tissue=np.zeros((10, 14), bool), output="probabilities", **OPTIONS)
    assert (nothing.shape, nothing.dtype, nothing.any()) == ((2, *SIDES), np.float32, np.False_)
    with pytest.raises(SettingsError, match="has no logits"):
        tilenet.segment(slide, tissue=True, output="logits", **OPTIONS)


def test_a_stack_has_one_map_of_what_any_plane_shows(tmp_path):
    stack = np.stack([glass(seed=k) for k in range(3)])
    stack[2, 300:500, 600:800] = 200
    plain = tilenet.segment(stack, axes="zyx", **OPTIONS)
    mask = tilenet.segment(stack, tmp_path / "mask.zarr", axes="zyx", tissue=True, **OPTIONS)
    assert 0 < mask.info["tissue"]["skipped_blocks"] < mask.info["tissue"]["blocks"]
    computed = np.broadcast_to(mask.layout.block_has_tissue_at(np.arange(SIDES[0]), np.arange(SIDES[1])), stack.shape)
    assert computed[:, 300:500, 600:800].all()
    assert np.array_equal(mask[...], np.where(computed, plain, 0))


def test_all_ways_to_compute_blocks_skip_the_same(slide, tmp_path):
    tilenet.segment(slide, tmp_path / "alone.zarr", tissue=True, **OPTIONS)
    alone, progress = tree(tmp_path / "alone.zarr"), []
    tilenet.segment(
        slide,
        tmp_path / "workers.zarr",
        tissue=True,
        client=Cluster(workers=2),
        progress=lambda *done: progress.append(done),
        **OPTIONS,
    )
    worker.close_all()
    assert progress[-1] == (SIDES[0] * SIDES[1],) * 2
    for share in ((2, 3), (1, 3), (3, 3)):
        tilenet.segment(slide, tmp_path / "shares.zarr", tissue=True, shard=share, **OPTIONS)
    (result,) = tilenet.batch([slide], tmp_path / "masks", tissue=True, **OPTIONS)
    assert result.tissue == pytest.approx(1 - tilenet.open_mask(tmp_path / "alone.zarr").info["tissue"]["skipped"])
    assert 0 < result.tissue < 1
    for other in ("workers.zarr", "shares.zarr", "masks/slide.zarr"):
        assert tree(tmp_path / other) == alone
    tiff = tilenet.segment(slide, tmp_path / "mask.ome.tif", tissue=True, **OPTIONS)
    assert np.array_equal(tiff[...], tilenet.open_mask(tmp_path / "alone.zarr")[...])
    assert tilenet.verify(tmp_path / "mask.ome.tif", model=OPTIONS["model"]).ok
    tiff.close()


def test_a_batch_in_one_process_counts_the_glass_that_it_skips(slide, tmp_path, monkeypatch):
    counted, finish = [], BatchRun._finish

    def counting(batch, slide):
        counted.append(slide.report.skipped)
        finish(batch, slide)

    monkeypatch.setattr(BatchRun, "_finish", counting)
    tilenet.batch([slide], tmp_path / "masks", tissue=True, **OPTIONS)
    assert counted == [tilenet.open_mask(tmp_path / "masks" / "slide.zarr").info["tissue"]["skipped_blocks"]] > [0]


def test_no_worker_is_asked_for_glass(slide, tmp_path):
    cluster = Cluster(workers=2)
    asked, submit = [], cluster.submit
    cluster.submit = lambda *args, **kwargs: asked.append(args[2]) or submit(*args, **kwargs)
    mask = tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, client=cluster, **OPTIONS)
    worker.close_all()
    assert len(asked) == mask.info["tissue"]["blocks"] - mask.info["tissue"]["skipped_blocks"]


# Killed, resumed, checked.


def test_killed_and_resumed_without_a_word_of_tissue_every_byte_is_the_same(commands, slide, tmp_path):
    how = ("-q", *STUB)
    assert commands.run("segment", slide, "-o", tmp_path / "whole.zarr", "--tissue", *how, stub={}) == (0, "")
    out = tmp_path / "killed.zarr"
    run = commands.start("segment", slide, "-o", out, "--tissue", *how, stub={"fault": "wait", "at": [6]})
    wait_until(lambda: entries(out) > 5)  # all of the glass, and one of the four blocks of two calls each
    run.signal(signal.SIGKILL)
    run.wait()
    assert Store.inspect(out).layout.tissue and list(Store.inspect(out).pending())
    assert commands.run("segment", slide, "-o", out, "--resume", *how, stub={}) == (0, "")
    assert tree_hash(out) == tree_hash(tmp_path / "whole.zarr")
    assert Store.inspect(out).info["tissue"]["skipped_blocks"] == 5


def test_another_tissue_is_refused_by_name_on_resuming(slide, tmp_path):
    mine, other = np.eye(2, dtype=bool), np.ones((2, 2), bool)
    tilenet.segment(slide, tmp_path / "plain.zarr", **OPTIONS)
    tilenet.segment(slide, tmp_path / "auto.zarr", tissue=True, **OPTIONS)
    before = tree(tmp_path / "auto.zarr")
    tilenet.segment(slide, tmp_path / "mine.zarr", tissue=resized(mine), **OPTIONS)
    for name, given_now in (("plain", True), ("auto", resized(mine)), ("auto", False), ("mine", resized(other))):
        with pytest.raises(OutputMismatch, match="was begun with tissue = .*, and now it is"):
            tilenet.segment(slide, tmp_path / f"{name}.zarr", tissue=given_now, resume=True, **OPTIONS)
    for name, given_now in (("auto", True), ("auto", None), ("mine", resized(mine)), ("mine", None)):
        tilenet.segment(slide, tmp_path / f"{name}.zarr", tissue=given_now, resume=True, **OPTIONS)
    assert tree(tmp_path / "auto.zarr") == before


def resized(cells):
    return np.kron(cells, np.ones((SIDES[0] // 20, SIDES[1] // 20), bool))


def test_a_run_that_is_gone_on_with_looks_for_no_tissue(slide, tmp_path, monkeypatch):
    whole = tilenet.segment(slide, tmp_path / "whole.zarr", tissue=True, **OPTIONS)
    store = Store.create(tmp_path / "m.zarr", whole.layout, whole.info)
    store.close()
    monkeypatch.setattr(detection, "find", None)
    tilenet.segment(slide, tmp_path / "m.zarr", tissue=True, resume=True, **OPTIONS)
    assert tree(tmp_path / "m.zarr") == tree(tmp_path / "whole.zarr")


def test_the_area_of_tissue_is_that_of_the_cells_that_have_tissue_themselves(slide, tmp_path, tilenet_command):
    tilenet.segment(slide, tmp_path / "m.zarr", tissue=True, objects=True, **OPTIONS | {"model": Bright(bright=900)})
    code, out, _ = tilenet_command("export", tmp_path / "m.zarr", "--csv", tmp_path / "m.csv", "--json")
    said = json.loads(out)["csv"]
    # 300 x 400 px of 0.5 um: all cells of 16 px that they touch, without the rim of one cell that is only context.
    assert code == 0 and said["tissue_mm2"] == pytest.approx(20 * 26 * 64e-6, rel=0.01)
    (count,), (density,) = (said[key].values() for key in ("in_tissue", "per_mm2_of_tissue"))
    assert density == pytest.approx(count / said["tissue_mm2"], abs=0.01)


def test_verify_knows_what_was_skipped(slide, tmp_path, monkeypatch):
    tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, **OPTIONS)
    found = tilenet.verify(tmp_path / "mask.zarr", model=OPTIONS["model"], windows=20)
    assert found.ok and found.windows == 20
    tilenet.segment(slide, tmp_path / "none.zarr", tissue=np.zeros((11, 15), bool), **OPTIONS)
    found = tilenet.verify(tmp_path / "none.zarr", model=OPTIONS["model"])
    assert found.ok and "there is no tissue" in found.not_recomputed

    def wrong(self, index):
        return self.write(index, {"mask": np.ones(self.layout.box(0, index).shape, np.uint8)})

    monkeypatch.setattr(Store, "write_background", wrong)
    tilenet.segment(slide, tmp_path / "wrong.zarr", tissue=True, **OPTIONS)
    found = tilenet.verify(tmp_path / "wrong.zarr", model=OPTIONS["model"], windows=20)
    with pytest.raises(VerifyFailed, match="are not what the network gives"):
        found.raise_if_failed("wrong.zarr")


def test_a_speck_of_tissue_in_a_large_mask_is_recomputed(tmp_path, monkeypatch):
    monkeypatch.setattr("tilenet.sizes.BLOCK_SIDES", {2: (128, 128)})
    pixels, speck = np.zeros((4096, 4096), np.uint8), np.zeros((64, 64), bool)
    speck[37, 22] = True
    mask = tilenet.segment(pixels, tmp_path / "mask.zarr", tissue=speck, **OPTIONS | {"tile": 128})
    assert len(list(blocks_of(mask, computed=True))) == 1
    for seed in range(3):
        found = tilenet.verify(tmp_path / "mask.zarr", pixels, model=OPTIONS["model"], windows=1, seed=seed)
        assert (found.ok, found.windows, found.not_recomputed) == (True, 1, "")


def test_a_damaged_map_is_found_and_put_right(slide, tmp_path):
    tilenet.segment(slide, tmp_path / "mask.zarr", tissue=True, **OPTIONS)
    before, shard = tree(tmp_path / "mask.zarr"), tmp_path / "mask.zarr" / "tissue" / "0" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-3])
    assert tilenet.verify(tmp_path / "mask.zarr").damage == ["tissue/0/c/0/0 is changed"]
    tilenet.segment(slide, tmp_path / "mask.zarr", resume=True, **OPTIONS)
    assert tree(tmp_path / "mask.zarr") == before


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_in_an_image_have_the_map_beside_them(slide, tmp_path, version, tilenet_command):
    image, model = tmp_path / "image.ome.zarr", tmp_path / "small.safetensors"
    tilenet.save_model(tilenet.UNet(depth=2, wf=1), model)
    names = {"dimension_names": ["y", "x"]} if version == "0.5" else {}
    write_ome_zarr(image, [(tifffile.imread(slide), (0.5, 0.5))], version=version, chunks=(256, 256), **names)
    args = ("--into", image, "--name", "cells", "-m", model, "--tissue", "--overview")
    code, out, _ = tilenet_command("segment", image, *args)
    assert code == 0 and "% skipped as glass" in out and (tmp_path / "image.cells.overview.png").exists()
    mask = tilenet.open_mask(image / "labels" / "cells")
    group = zarr.open_group(image / "labels" / "cells" / "tissue", mode="r")
    assert np.array_equal(group["0"][...], mask.tissue.cells) and 0 < mask.tissue.cells.mean() < 1
    {"0.4": v04, "0.5": v05}[version].ImageLabel.from_zarr(group)
    assert tilenet_command("verify", image / "labels" / "cells")[0] == 0
    yaozarrs.validate_zarr_store(image)


# The command.


def test_the_option_stands_alone_or_has_a_mask_behind_it(slide, tmp_path, own, tilenet_command):
    from PIL import Image as Pillow

    Pillow.fromarray(own).save(tmp_path / "own.png")
    small = tilenet.save_model(tilenet.UNet(depth=2, wf=1), tmp_path / "small.safetensors")
    rest = ("-m", small, "--tile", 256, "--threads", 1)
    code, out, err = tilenet_command("segment", slide, "--tissue", "--out", tmp_path / "auto.zarr", *rest)
    assert code == 0 and "% skipped as glass" in out and "tissue by intensity above" in err
    code, out, _ = tilenet_command(
        "segment", slide, "--tissue", tmp_path / "own.png", "-o", tmp_path / "own.zarr", *rest, "--json"
    )
    assert (code, json.loads(out)["tissue"]["method"]) == (0, "given")
    code, _, err = tilenet_command("segment", "--tissue", slide, "-o", tmp_path / "no.zarr", *rest)
    assert code == 2 and "--tissue takes the next word as its mask: put it last" in err and err.count("\n") == 1
    code, out, _ = tilenet_command("plan", slide, *rest, "--tissue")
    skipped = json.loads(tilenet_command("info", tmp_path / "auto.zarr", "--json")[1])["tissue"]["skipped_blocks"]
    assert code == 0 and f"{skipped} of 9 blocks are skipped" in out
    code, out, _ = tilenet_command("verify", tmp_path / "auto.zarr")
    assert code == 0 and "as the network gives" in out


def test_a_plan_does_not_read_a_whole_slide_for_it(slide, tilenet_command, monkeypatch):
    monkeypatch.setattr(detection, "CHEAP", 100)
    code, out, _ = tilenet_command("plan", slide, "--tissue", "--json")
    assert code == 0 and json.loads(out)["tissue"] is None


def test_a_list_says_whose_tissue_is_which(slide, tmp_path, own):
    tifffile.imwrite(tmp_path / "own.tif", own)
    (tmp_path / "list.csv").write_text("image,name,tissue\nslide.tif,a,auto\nslide.tif,b,own.tif\nslide.tif,c,\n")
    results = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", **OPTIONS)
    assert [r.status for r in results] == ["done"] * 3
    assert results[1].tissue < results[0].tissue < 1 and results[2].tissue is None
    with (tmp_path / "masks" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tissue"] for row in rows[1:]] == [str(results[1].tissue), ""]
