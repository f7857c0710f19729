"""Blocks that fail, runs that were changed, masks that were damaged: named, and mended by ``--resume``."""

import json
import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from contents import lines_of
from faults import BLOCKS, STUB, Stub, entries, is_complete, random_numbers, stray, tree_hash, use_stub, write_image
from killing import kill

import tilenet
from tilenet import api
from tilenet.batches import image_runs
from tilenet.card import ModelCard
from tilenet.cli.main import main
from tilenet.errors import DeviceLost, EnvironmentFault, TilenetError
from tilenet.jobs.mismatch import begun_with, contradiction
from tilenet.store import Store
from tilenet.unet import UNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


@pytest.fixture(scope="module")
def whole(uninterrupted, folder):
    """Return a complete mask that may be damaged."""
    return shutil.copytree(uninterrupted, folder / "whole.zarr")


def resume(commands, image, out, calls, *options, warns=""):
    """Go on with a run; return how many tiles that took."""
    calls.unlink(missing_ok=True)
    code, said = commands.run("segment", image, "-o", out, "--resume", *STUB, *options, stub={"calls": str(calls)})
    assert (code, warns in said, said != "") == (0, True, warns != "")
    assert stray(out) == []
    return len(calls.read_bytes()) if calls.exists() else 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("nan", "the network's output at [512:768, 512:768] is not finite"),
        ("memory", "MemoryError"),
        ("error", "the lamp went out"),
    ],
)
def test_a_block_that_fails_is_named_the_others_are_done_and_resume_computes_only_it(
    commands, image, tmp_path, whole, fault, says
):
    out = tmp_path / "m.zarr"
    stub = {"fault": fault, "at": [12]}  # two batches a block: the first of block 6
    code, said = commands.run("segment", image, "-o", out, *STUB, stub=stub)
    assert (code, said.count("\n")) == (3, 1)
    assert f"1 of {BLOCKS} blocks failed; block 6 at [512:1024, 512:1024]: {says}" in said
    assert (entries(out), is_complete(out)) == (BLOCKS - 1, False)
    assert resume(commands, image, out, tmp_path / "calls") == 4
    assert tree_hash(out) == tree_hash(whole)


def test_a_file_tile_that_cannot_be_read_is_named_with_its_block(commands, tmp_path, image, whole):
    broken, out = tmp_path / "broken.tif", tmp_path / "m.zarr"
    content = bytearray(image.read_bytes())
    with tifffile.TiffFile(image) as file:
        number = 5 * file.pages.first.chunked[1] + 9  # inside block 7: no other reads it
        at = file.pages.first.dataoffsets[number]
    good, content[at : at + 8] = bytes(content[at : at + 8]), b"\xff" * 8
    broken.write_bytes(content)
    code, said = commands.run("segment", broken, "-o", out, *STUB, stub={})
    assert (code, said.count("\n")) == (3, 1)
    assert f"1 of {BLOCKS} blocks failed; block 7 at [512:1024, 1024:1536]" in said
    assert f"tile {number} of page 0" in said
    content[at : at + 8] = good
    broken.write_bytes(content)
    assert resume(commands, broken, out, tmp_path / "calls", warns="was written again since") == 4
    assert np.array_equal(np.asarray(tilenet.open_mask(out)), np.asarray(tilenet.open_mask(whole)))


class Failing(torch.nn.Conv2d):
    """A network that a device fails to compute for batches of more than two tiles."""

    footprint = tilenet.Footprint.same(2, reach=1)

    def __init__(self, error):
        super().__init__(1, 2, 3, padding=1)
        self.error = error

    def forward(self, x):
        if len(x) > 2:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 3.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.7 GB). Tried to allocate 1.0 GB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: str(error)[:24],
)
def test_out_of_memory_on_a_device_ends_the_run_with_the_batch_to_try(tmp_path, error):
    pixels, network = np.zeros((600, 600), np.uint8), Failing(error)
    with pytest.raises(EnvironmentFault, match=r"out of memory for a batch of shape .*Start again with --batch 2$"):
        tilenet.segment(pixels, tmp_path / "m.zarr", model=network, tile=64, batch=4)
    assert tilenet.segment(pixels, tmp_path / "n.zarr", model=network, tile=64, batch=2).shape == (600, 600)


@pytest.mark.parametrize("prefix", ["CUDA error", "HIP error", "Triton Error [CUDA]", "Triton Error [HIP]"])
def test_a_gpu_that_fails_ends_the_run_and_no_block_is_at_fault(tmp_path, prefix):
    failure = f"{prefix}: an illegal memory access was encountered"
    network = Failing(RuntimeError(f"{failure}\nCUDA kernel errors might be asynchronously reported"))
    said = rf"the GPU failed on a batch of shape .* \({re.escape(failure)}\)\. .* To go on, run again with --resume"
    with pytest.raises(DeviceLost, match=said) as caught:
        tilenet.segment(np.zeros((600, 600), np.uint8), tmp_path / "m.zarr", model=network, tile=64, batch=4)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("objects", [False, True])
def test_a_gpu_that_fails_ends_a_batch_too_and_no_image_is_at_fault(tmp_path, objects):
    images, told = [write_image(tmp_path / f"{name}.tif", sides=(600, 600)) for name in "abc"], []
    how = {"model": Failing(RuntimeError("CUDA error: device lost")), "tile": 64, "batch": 4, "objects": objects}
    with pytest.raises(DeviceLost, match="the GPU failed"):
        tilenet.batch(images, tmp_path / "masks", tell=told.append, **how)
    assert told == [] and not list((tmp_path / "masks").rglob("lock.*"))


def test_masks_that_are_being_finished_when_a_gpu_fails_are_finished(tmp_path, monkeypatch):
    class FailingLater(Failing):
        def forward(self, x):
            if not x.any():
                return torch.nn.Conv2d.forward(self, x)
            if len(x) > 2:
                failing.set()
            return super().forward(x)

    def finish_late(store):
        assert failing.wait(10)
        time.sleep(0.2)  # until the batch has ended, or waits
        finish(store)

    failing, finish, told = threading.Event(), image_runs.finish, []
    monkeypatch.setattr(image_runs, "finish", finish_late)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((600, 600), np.uint8), tile=(256, 256))
    images = [tmp_path / "a.tif", write_image(tmp_path / "b.tif", sides=(600, 600))]
    how = {"model": FailingLater(RuntimeError("CUDA error: device lost")), "tile": 64, "batch": 4}
    with pytest.raises(DeviceLost, match="the GPU failed"):
        tilenet.batch(images, tmp_path / "masks", tell=told.append, **how)
    assert [(result.slide, result.status) for result in told] == [("a", "done")]
    assert [line["status"] for line in lines_of(tmp_path / "masks" / "summary.csv")] == ["done"]


@pytest.fixture(scope="module")
def halfway(commands, image, folder):
    out = folder / "half.zarr"
    code, _ = commands.run("segment", image, "-o", out, *STUB, "--threads", "1", stub={"fault": "error", "at": [3]})
    assert code == 3
    return out


@pytest.fixture
def refusal(halfway, tilenet_command, monkeypatch):
    """Return what goes on with this run, is refused, and returns what it says."""

    def refused(image, *options):
        settings = dict(zip(STUB[::2], STUB[1::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
        code, _, said = tilenet_command("segment", image, "-o", halfway, "--resume", *chain(*settings.items()))
        assert (code, said.count("\n")) == (2, 1)
        return said

    use_stub({}, monkeypatch.setattr)
    return refused


CHANGES = {
    "tile": ("--tile", "512"),
    "batch": ("--batch", "4"),
    "threads": ("--threads", "2"),
    "precision": ("--precision", "bf16"),
    "engine": ("--engine", "fast"),
    "output": ("--output", "both"),
    "probability_dtype": ("--probability-dtype", "float16"),
    "scaling": ("--scaling", "linear:0,255"),
    "missing": ("--missing", "fill"),
    "channels": ("--channels", "0"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_setting_is_refused_by_name_with_both_values(refusal, image, halfway, field):
    before = tree_hash(halfway)
    said = refusal(image, *CHANGES[field])
    assert f"was begun with {field} = " in said
    assert "and now it is " in said
    assert tree_hash(halfway) == before
    assert stray(halfway) == []


def test_every_field_of_the_record_is_compared(halfway):
    info = Store.inspect(halfway).info
    for field in info["record"]:
        other = info | {"record": info["record"] | {field: "another"}}
        said = begun_with(contradiction(info, other))
        assert re.match(f"was begun with {field} = .*, and now it is another. Leave the", said)
    assert set(CHANGES) < info["record"].keys()


def exchange_two_tiles(path):
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages.first.tags[name]
            first, second, *others = tag.value
            tag.overwrite([second, first, *others])


@pytest.mark.parametrize("sides", [(2048, 2560), (9, 9)])
def test_another_image_is_refused_by_its_length(refusal, tmp_path, sides):
    other = write_image(tmp_path / "slide.tif", seed=1, sides=sides)
    assert "was begun with image bytes = " in refusal(other)


def test_another_image_that_is_as_long_is_refused_by_its_tables(refusal, image, tmp_path):
    other = tmp_path / "slide.tif"
    shutil.copy(image, other)
    exchange_two_tiles(other)
    assert other.stat().st_size == image.stat().st_size
    assert "was begun with image tables_sha256 = " in refusal(other)


def test_other_weights_and_another_card_are_refused_but_another_place_is_not(tmp_path, tilenet_command):
    image, out = write_image(tmp_path / "slide.tif", sides=(600, 600)), tmp_path / "m.zarr"
    torch.manual_seed(0)
    first, second = (UNet(depth=2, wf=1) for _ in range(2))
    card = ModelCard(name="cells")
    for name, network, mask in (
        ("a", first, (0, 1)),
        ("b", second, (0, 1)),
        ("c", first, (0, 2)),
        ("d", first, (0, 1)),
    ):
        tilenet.save_model(network, tmp_path / f"{name}.safetensors", card=replace(card, mask_of_class=mask))
    assert tilenet_command("segment", image, "-o", out, "-m", tmp_path / "a.safetensors")[0] == 0
    for name, field in (("b", "model sha256"), ("c", "card")):
        code, _, said = tilenet_command("segment", image, "-o", out, "--resume", "-m", tmp_path / f"{name}.safetensors")
        assert code == 2
        assert f"was begun with {field}" in said
    (tmp_path / "slide.tif").rename(tmp_path / "moved.tif")
    moved = ("segment", tmp_path / "moved.tif", "-o", out, "--resume", "-m", tmp_path / "d.safetensors")
    code, _, said = tilenet_command(*moved)
    assert (code, said) == (0, "")


def test_a_complete_run_resumed_computes_nothing_and_touches_nothing(commands, image, whole, tmp_path):
    before = {path: path.lstat().st_mtime_ns for path in (whole, *whole.rglob("*"))}
    assert resume(commands, image, whole, tmp_path / "calls") == 0
    assert {path: path.lstat().st_mtime_ns for path in (whole, *whole.rglob("*"))} == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {"cut": cut, "emptied": lambda path: path.write_bytes(b""), "flipped": flip, "deleted": lambda p: p.unlink()}


@pytest.mark.parametrize("times", [8, pytest.param(80, marks=pytest.mark.slow)])
def test_verify_names_every_damaged_file_and_resume_mends_them(commands, image, whole, tmp_path, times, capsys):
    random, expected, found = random_numbers(), tree_hash(whole), 0
    kinds = cycle(DAMAGES.items())
    for _ in range(times // 4):
        shards = sorted(path for path in whole.rglob("c/*/*") if path.is_file())
        hurt = {shards[i]: next(kinds) for i in random.choice(len(shards), 4, replace=False)}
        for path, (_, damage) in hurt.items():
            damage(path)
        run = commands.start("verify", whole, "--windows", "2", stub={})
        code, said = run.wait()
        listed = Path(f"{run.prints}.out").read_text()
        assert (code, said.count("\n")) == (3, 1)
        named = {path for path in hurt if path.relative_to(whole).as_posix() in listed}
        found += len(named)
        assert len(listed.splitlines()) == len(named) == 4, listed
        level_0 = sum(path.relative_to(whole).parts[0] == "0" for path in hurt)
        assert resume(commands, image, whole, tmp_path / "calls") == 4 * level_0
        assert tree_hash(whole) == expected
    assert commands.run("verify", whole, "--windows", "2", stub={}) == (0, "")
    with capsys.disabled():
        print(f"\n{found} of {times} damaged shards named, no false alarm, all mended to the same bytes")


@pytest.mark.parametrize(
    ("name", "damage"),
    [("0/zarr.json", "flipped"), ("1/zarr.json", "deleted"), *((".tilenet/journal.jsonl", kind) for kind in DAMAGES)],
)
def test_damaged_documents_are_found_and_mended(commands, image, whole, tmp_path, name, damage):
    expected = tree_hash(whole)
    DAMAGES[damage](whole / name)
    code, said = commands.run("verify", whole, "--windows", "0", stub={})
    assert (code, said.count("\n")) == (3, 1)
    resume(commands, image, whole, tmp_path / "calls")
    assert tree_hash(whole) == expected


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10**5, b'{"attributes": {"tilenet": {"format": 1}}}'])
def test_a_mask_without_its_root_is_no_mask_and_nothing_in_it_is_touched(
    image, halfway, tmp_path, content, tilenet_command
):
    out = shutil.copytree(halfway, tmp_path / "m.zarr")
    (out / "zarr.json").write_bytes(content)
    before = tree_hash(out)
    for line in (["verify", out], *(["segment", image, "-o", out, how] for how in ("--resume", "--overwrite"))):
        code, _, said = tilenet_command(*line)
        assert (code, said.count("\n")) == (2, 1)
        assert str(out) in said
    assert tree_hash(out) == before


def test_a_mask_whose_record_was_changed_by_hand_is_refused(tmp_path, monkeypatch):
    image, out, model = write_image(tmp_path / "slide.tif", sides=(600, 600)), tmp_path / "m.zarr", Stub(sleep=0)
    kill(monkeypatch, Store, "build_pyramid", tilenet.segment, image, out, model=model, tile=256)
    for name in ("record", "image", "model", "card", "scaling"):
        document = json.loads((out / "zarr.json").read_bytes())
        for value in (None, 7, "x"):
            document["attributes"]["tilenet"][name] = value
            changed = out.with_name(f"{name}-{value}.zarr")
            (changed / ".tilenet").mkdir(parents=True)
            (changed / "zarr.json").write_text(json.dumps(document))
            with pytest.raises(TilenetError, match=f"^{changed}: its {name} was changed or removed") as refused:
                tilenet.segment(image, changed, model=model, resume=True)
            assert refused.value.exit_code == 2
    assert tilenet.segment(image, out, model=model, resume=True).shape == (600, 600)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ZeroDivisionError("no\nluck"), 1, "unexpected ZeroDivisionError: no luck. Run again with --debug"),
        (OSError(5, "Input/output error"), 1, "unexpected OSError: [Errno 5] Input/output error. Run"),
        (MemoryError(), 4, "out of memory. Run again with a smaller --tile"),
        (RecursionError("too deep"), 1, "unexpected RecursionError"),
        (EnvironmentFault("lost \x1b[31m\x07"), 4, "lost ?[31m?"),
    ],
)
def test_whatever_else_goes_wrong_is_one_line_too(monkeypatch, capsys, error, code, says):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(api, "segment", fail)
    monkeypatch.setattr(sys, "argv", ["tilenet", "segment", "a.tif", "-o", "b.zarr"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (code, 1)
    assert f"tilenet: error: {says}" in said


@pytest.mark.parametrize("place", [0, 1, 4])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, place):
    def fail(*args, **options):
        raise ZeroDivisionError("no luck")

    words = ["segment", "a.tif", "-o", "b.zarr"]
    monkeypatch.setattr(api, "segment", fail)
    monkeypatch.setattr(sys, "argv", ["tilenet", *words[:place], "--debug", *words[place:]])
    with pytest.raises(ZeroDivisionError, match="no luck"):
        main()
