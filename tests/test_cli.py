"""The command as a user types it, in a process of its own where that matters."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_images import PIXELS, ome_zarr, tiff
from oracles import reference_state
from small_work import a_folder  # noqa: F401

import tilenet
from tilenet.cli.main import CLOSED_PIPE, cli
from tilenet.errors import SettingsError

COMMANDS = ("segment", "plan", "info", "verify", "convert", "sample", "tune")


def run(*args, **env):
    """Run the command in a new process: (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "tilenet", *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def seconds_of_children():
    """Return how long processes that this one started and that have ended have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_immediate_and_names_every_command():
    before = seconds_of_children()
    code, out, imported = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert seconds_of_children() - before < 3
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert re.findall(r"tilenet\.cli\.(main|segment)$", imported, re.M) == ["segment", "main"]
    assert re.findall(r" (torch|zarr|dask|numpy|skimage)$", imported, re.M) == []


def test_help_lists_the_commands_in_the_order_of_use_and_cuts_no_line(tilenet_command):
    said = tilenet_command("--help")[1]
    listed = re.findall(r"^  (\w+)  ", said.partition("Commands:")[2], re.M)
    assert listed[:4] == ["info", "plan", "segment", "batch"]
    assert sorted(listed) == sorted(cli.commands)
    assert "..." not in said.partition("Commands:")[2]


def test_segment_verify_and_info_tell_one_story(work, tilenet_command):
    slide, out, model = work / "slide.tif", work / "m.zarr", work / "small.safetensors"
    code, text, _ = tilenet_command("segment", slide, "--out", out, "--model", model, "--tile", "64")
    assert (code, text.startswith(f"{out}: 300 x 400 px, 1 = class 1, ")) == (0, True)
    expected = tilenet.segment(slide, model=model, tile=64)
    assert np.array_equal(np.asarray(tilenet.open_mask(out)), expected)
    code, text, _ = tilenet_command("verify", out)
    assert code == 0
    assert "8 windows" in text
    code, text, _ = tilenet_command("info", out, "--json")
    assert json.loads(text)["record"]["tile"] == [64, 64] and "pixel_size" in json.loads(text)["record"]
    text = tilenet_command("info", out)[1]
    assert "given_pixel_size: null" in text and " pixel_size: null" not in text


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--min-area", "No such option '--min-area' here: it is one of tilenet batch, export"),
        ("--nowhere", "--nowhere"),
    ],
)
def test_an_option_of_another_command_is_said_to_be_one(tmp_path, tilenet_command, option, said):
    code, out, err = tilenet_command("segment", "a.tif", "--out", tmp_path / "m.zarr", option, "20px")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and said in err and ("here" in err) == ("here" in said)


@pytest.mark.parametrize(
    "options",
    [
        ["export", "m.zarr", "--csv", "m.csv", "--positive", "dab>0.2", "--positive", "eosin>0.1"],
        ["segment", "a.tif", "-m", "nuclei", "--model=other.pt", "--out", "m.zarr"],
        ["plan", "a.tif", "--tissue", "--tissue", "auto"],
    ],
)
def test_an_option_that_is_given_twice_is_refused_as_only_one_of_its_values_would_count(tilenet_command, options):
    code, out, err = tilenet_command(*options)
    option = {"export": "--positive", "segment": "--model", "plan": "--tissue"}[options[0]]
    assert (code, out, err) == (2, "", f"tilenet: error: {option} is given twice, and takes one value. Give it once\n")


def test_several_images_where_one_is_taken_are_refused_with_the_command_that_takes_them(tilenet_command):
    code, out, err = tilenet_command("segment", "a.tif", "b.tif", "--out", "m.zarr")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "(b.tif). Give one IMAGE at a time; tilenet batch takes several images" in err
    err = tilenet_command("evaluate", "found", "true", "more")[2]
    assert err == "tilenet: error: Got unexpected extra argument (more). Give one PREDICTION and TRUTH at a time\n"
    code, out, err = tilenet_command("segment", "*.tif", "--out", "m.zarr")
    assert (code, out) == (2, "")
    assert "*.tif: does not exist. Patterns are for tilenet batch and tilenet plan, in quotes" in err


def test_a_switch_that_is_given_twice_means_the_same(tmp_path, tilenet_command):
    assert "does not exist" in tilenet_command("plan", str(tmp_path / "no.tif"), "--objects", "--objects")[2]


def test_json_goes_to_stdout_and_nothing_else(work, tilenet_command):
    slide, out, model = work / "slide.tif", work / "m.zarr", work / "small.safetensors"
    code, text, err = tilenet_command("segment", slide, "-o", out, "-m", model, "--json")
    assert (code, err) == (0, "")
    assert json.loads(text)["shape"] == [300, 400]
    assert tilenet_command("segment", slide, "-o", out, "-m", model, "--resume", "--quiet") == (0, "", "")


@pytest.mark.parametrize("command", [["info"], ["plan"], ["tune", "--seconds", "0"]], ids=" ".join)
def test_a_warning_has_the_same_prefix_whatever_the_command_and_with_json_is_a_remark(work, tilenet_command, command):
    slide, warning = work / "slide.tif", "In pixels of 30 um no nuclei can be seen"
    code, _, err = tilenet_command(*command, slide, "--pixel-size", "30", "-m", "nuclei")
    assert (code, err.startswith(f"tilenet: {slide}: "), warning in err) == (0, True, True)
    code, out, err = tilenet_command(*command, slide, "--pixel-size", "30", "-m", "nuclei", "--json")
    assert (code, err) == (0, "") and any(warning in line for line in json.loads(out)["remarks"])


def test_a_warning_about_weights_has_the_prefix_too(work, tilenet_command):
    import torch

    torch.save(reference_state(depth=2, in_channels=3, n_classes=3), work / "w.pth")
    code, _, err = tilenet_command("convert", work / "w.pth", "--out", work / "w.safetensors")
    assert (code, err.startswith(f"tilenet: {work / 'w.pth'}: does not say whether its network pads")) == (0, True)


def test_the_profile_says_where_the_time_went(work, tilenet_command):
    slide, out, model = work / "slide.tif", work / "m.zarr", work / "small.safetensors"
    _, text, _ = tilenet_command("segment", slide, "-o", out, "-m", model, "--json", "--profile")
    profile = json.loads(text)["profile"]
    seconds = profile["seconds"]
    assert profile["pixels"] == 300 * 400
    assert min(seconds[stage] for stage in ("read", "computed", "written", "finished")) > 0
    assert seconds["waited"] + seconds["computed"] + seconds["finished"] <= seconds["total"]
    assert profile["px_per_s"]["total"] == pytest.approx(300 * 400 / seconds["total"], rel=0.01)
    _, text, _ = tilenet_command("segment", slide, "-o", out, "-m", model, "--overwrite", "--profile")
    assert all(f"\n{stage} " in text for stage in ("read", "waited", "computed", "written", "finished", "total"))
    assert "objects" not in text
    _, text, _ = tilenet_command("segment", slide, "-o", out, "-m", model, "--overwrite", "--objects", "--profile")
    assert "\nobjects " in text


def test_the_plan_reads_no_pixels_and_promises_bytes(work, tilenet_command, monkeypatch):
    monkeypatch.setattr(tilenet.open_image(work / "slide.tif").__class__, "read_inside", None)
    code, text, _ = tilenet_command("plan", work / "slide.tif", "-m", work / "small.safetensors", "--json")
    plan = json.loads(text)
    assert (code, plan["shape"], plan["blocks"]) == (0, [300, 400], 1)
    assert plan["host_bytes"] > 10**8
    code, text, _ = tilenet_command("plan", work / "slide.tif", "-m", work / "small.safetensors")
    assert "redundancy" in text


def test_convert_makes_a_model_of_a_checkpoint(work, tilenet_command):
    import torch

    torch.save(reference_state(depth=2, in_channels=3, n_classes=3), work / "w.pth")
    code, _, _ = tilenet_command(
        "convert", work / "w.pth", "--out", work / "m.safetensors", "--padding", "--mask-of-class", "0,1,1"
    )
    assert code == 0
    network = tilenet.load_model(work / "m.safetensors")
    assert (network.padding, network.card.mask_of_class) == (True, (0, 1, 1))


def hdf5(folder):
    pytest.importorskip("h5py", reason="the extra formats is not installed")
    from hdf5_images import write_hdf5

    return write_hdf5(folder / "image.h5", PIXELS)


@pytest.mark.parametrize("write", [tiff, ome_zarr, hdf5])
def test_an_image_that_is_cut_off_gives_one_line_exit_2_and_nothing_written(tmp_path, tilenet_command, write):
    image = write(tmp_path)
    largest = max(filter(Path.is_file, tmp_path.rglob("*")), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = tilenet_command("segment", image, "-o", tmp_path / "o.zarr")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"tilenet: error: {tmp_path}/image")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.png", "--overview draws"),
        ("m.JPEG", "not .jpeg. Give a name in .zarr, or in .ome.tif"),
        ("m.geojson", "tilenet export mask.zarr --geojson"),
        *((f"m{end}", "Give a name in .zarr") for end in (".nii.gz", ".npy", ".h5", ".csv", ".svs", ".mrxs", ".dcm")),
    ],
)
def test_no_zarr_folder_is_called_like_another_file(work, tilenet_command, name, words):
    before = sorted(work.rglob("*"))
    args = (work / "slide.tif", "-m", work / "small.safetensors", "--out", work / name)
    for more in ((), ("--shard", "1/2"), ("--objects",)):
        code, out, err = tilenet_command("segment", *args, *more)
        assert (code, out, err.count("\n"), words in err) == (2, "", 1, True), err
    code, out, err = tilenet_command("batch", *args)
    assert (code, out, "becomes a folder of masks" in err) == (2, "", True)
    with pytest.raises(tilenet.errors.SettingsError, match="Give a name|tilenet export"):
        tilenet.segment(np.zeros((64, 64), np.uint8), work / name)
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("name", ["m", "m.v2", "m.ome.zarr", "slide_0.25"])
def test_names_that_end_like_no_file_of_another_kind_are_taken(work, tilenet_command, name):
    code, _, err = tilenet_command("segment", work / "slide.tif", "-m", work / "small.safetensors", "-o", work / name)
    assert (code, tilenet.open_mask(work / name).shape) == (0, (300, 400)), err


def test_windows_is_refused_in_one_line_before_anything_is_done(work, tilenet_command, monkeypatch):
    monkeypatch.setattr("tilenet.errors.WINDOWS", True)
    before = sorted(work.iterdir())
    code, out, err = tilenet_command("segment", work / "slide.tif", "--out", work / "m.zarr")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("tilenet: error: Windows") and "WSL2" in err
    with pytest.raises(SettingsError, match="WSL2"):
        tilenet.segment(work / "slide.tif", work / "m.zarr", model=work / "small.safetensors")
    assert sorted(work.iterdir()) == before


def test_a_line_that_was_mistyped_shows_no_traceback_even_with_debug(work):
    code, _, err = run("info", "--debug", work / "none.tif", "--nonsense")
    assert (code, err.count("\n")) == (2, 1) and "--nonsense" in err


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
def test_a_full_stdout_is_a_fault_of_the_machine_and_a_full_or_closed_stderr_is_none(work):
    def run(*args, start=(), **streams):
        command = [*start, sys.executable, "-m", "tilenet", *map(str, args)]
        return subprocess.run(command, text=True, check=False, **streams)

    with FULL.open("w") as full:
        done = run("info", "nuclei", stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 4
        assert done.stderr.startswith("tilenet: error: stdout: cannot be written (No space left on device). ")
        assert done.stderr.count("\n") == 1
        assert run("info", stdout=subprocess.PIPE, stderr=full).returncode == 2
    segment = ("segment", work / "slide.tif", "-m", work / "small.safetensors", "-o", work / "closed.zarr")
    closed = ("sh", "-c", 'exec "$@" 2>&-', "sh")
    assert run(*segment, start=closed, stdout=subprocess.PIPE).returncode == 0


def test_what_may_not_be_read_is_told_by_its_name(work, tilenet_command, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied", "/masks/journal.jsonl")

    monkeypatch.setattr("tilenet.verification.verify", closed)
    code, _, err = tilenet_command("verify", work / "any.zarr")
    assert (code, err.count("\n")) == (4, 1)
    assert "/masks/journal.jsonl: permission denied" in err


@pytest.mark.parametrize("name", ["x" * 256 + ".tif", "loop.tif"], ids=["long", "loop"])
def test_a_path_that_no_file_can_have_gives_one_line_and_exit_2(work, tilenet_command, name):
    path = work / name
    if not name.startswith("x"):
        path.symlink_to(path)
    for words in (("segment", path, "-o", work / "n.zarr"), ("segment", work / "slide.tif", "--objects", "-o", path)):
        code, _, err = tilenet_command(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert name in err and err.endswith(". Give another path\n") and "unexpected" not in err


def test_a_reader_that_goes_away_ends_the_command_quietly():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tilenet", "info", "nuclei"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")


def test_a_pipe_that_broke_elsewhere_is_not_taken_for_a_closed_stdout():
    program = """if True:
        import sys
        from tilenet import describe
        from tilenet.cli import main
        def broken(*args, **options):
            raise BrokenPipeError(32, "Broken pipe")
        describe.describe = broken
        sys.argv = ["tilenet", "info", "x.tif"]
        main.main()
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tilenet: error: unexpected BrokenPipeError: ")
