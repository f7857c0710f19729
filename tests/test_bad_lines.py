"""Command lines that are refused: in one line, with exit code 2, before anything is written."""

import os

import click
import numpy as np
import pytest
import tifffile
from oracles import random_network
from skimage.io import imsave
from small_work import a_folder  # noqa: F401

import tilenet
from tilenet.cli.main import cli

SMALL = ["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "-m", "{d}/small.safetensors"]
BAD = [
    (["segment", "{d}/none.tif", "-o", "{d}/o.zarr"], "none.tif"),
    (["segment", "{d}/text.tif", "-o", "{d}/o.zarr"], "text.tif"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "-m", "nucleus"], "nucleus: no such model"),
    (["segment", "{d}/two.tif", "-o", "{d}/o.zarr"], "2 channels"),
    (
        ["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--tile", "100", "-m", "{d}/deep.safetensors"],
        "nearest 96, 112",
    ),
    (["segment", "{d}/slide.tif", "-o", "{d}/there.zarr"], "there.zarr"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--memory", "lots"], "'lots' is not a number of bytes"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--device", "tpu"], "tpu"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--device", "meta"], "'meta' is none of auto, cpu, cuda"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--device", "cuda:77"], "cuda:77"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--level", "9"], "level"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--level", "9", "--mpp", "2"], "level 9 and mpp 2 both say"),
    (["segment", "{d}/slide.tif", "-o", "{d}/there.zarr", "-m", "nucleus"], "nucleus: no such model"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--channels", "0,7,1"], "not 7. Choose others (--channels)"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--threshold", "0.4"], "threshold"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--scaling", "percentile:1"], "percentile:LOW,HIGH, or none"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--resume", "--overwrite"], "give only one of them"),
    (["segment", "{d}/slide.tif", "-o", "{d}/there.zarr", "--overwrite"], "there.zarr"),
    (["segment", "{d}/slide.tif"], "--out"),
    (["segment", "{d}/slide.tif", "-o", ""], "is no name of a mask"),
    (["segment", "", "-o", "{d}/o.zarr"], "the image path is empty. Give a path"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--model", ""], "'': no such model"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--device", ""], "device is empty"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--scaling", ""], "scaling is empty. Give a value"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--threads", "100000"], "threads 100000: give 4096 at most"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--tile", "99999992"], "is larger than any memory"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--shard", "1/1000000000"], "give 100000 shares at most"),
    (["convert", "{d}/deep.safetensors", "-o", "{d}/deep.safetensors"], "exists already. Replace it (--overwrite)"),
    (["convert", "nuclei", "-o", "{d}/n.safetensors", "--colors", "9=ffffff"], "its values are 0, 1"),
    (["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "--axes", "zyx", "--roi", "0:1,:,:"], "its axes are yxc"),
    (["verify", "{d}/none.zarr"], "none.zarr"),
    (["verify", "{d}/slide.tif"], "slide.tif"),
    (["info", "{d}/none"], "none"),
    (["plan", "{d}/text.tif"], "text.tif"),
    (
        ["plan", "{d}/slide.tif", "--scaling", "percentile:99,1"],
        "'percentile:99,1': give two percentiles",
    ),
    (["plan", "{d}/slide.tif", "--scaling", "linear:0,0"], "'linear:0,0': a scaling cannot divide by 0"),
    (["convert", "{d}/text.tif", "-o", "{d}/m.safetensors"], "text.tif"),
    ([*SMALL, "--memory", "1.2.3G"], "is not a number of bytes"),
    ([*SMALL, "--memory", "0"], "is 0 bytes. Give a unit"),
    ([*SMALL, "--memory", "4"], "is 4 bytes. Give a unit, such as 4GB"),
    ([*SMALL, "--scaling", "percentile:99,1"], "the lower one first"),
    ([*SMALL, "--scaling", "linear:0,0"], "cannot divide by 0"),
    (["convert", "{d}/deep.safetensors", "-o", "{d}/m.safetensors", "--scaling", "linear:nan,1"], "give linear:SUB"),
    (["convert", "{d}/deep.safetensors", "-o", "{d}/m.safetensors", "--scaling", "linear:0,0"], "cannot divide by 0"),
    ([*SMALL, "--shard", "1/2", "--workers", "2"], "--shard and --workers: workers share the blocks by themselves"),
    (["info", ""], "the image path is empty. Give a path"),
    (["info", "/"], "has no zarr metadata"),
    (["verify", "{d}/none.zarr", "--seed", "-1"], "-1 is not in the range x>=0"),
    (["evaluate", "{d}/none", "{d}/none"], "none: no such file or folder. Check the path"),
    (["batch", "", "-o", "{d}/masks"], "one of the images is an empty path. Give a path"),
    (["batch", "{d}/slide.tif", "{d}/slide.tif", "-o", "{d}/masks"], "slide.tif: is named twice. Name it once, or"),
    ([*SMALL, "--mpp", "0,5"], "'0,5' is not a valid float. Write 0.5, with a point"),
    ([*SMALL, "--objects", "--least-depth", "0,5"], "Write 0.5, with a point"),
    ([*SMALL, "--channels", "0,1"], "such as --channels 0"),
    (["tune", "{d}/slide.tif", "--seconds", "nan"], "'--seconds': nan is not a finite number. Give one"),
]


@pytest.mark.parametrize(("args", "words"), BAD, ids=lambda v: "-".join(v[:1] + v[3:]) if isinstance(v, list) else None)
def test_bad_input_gives_one_line_exit_2_and_nothing_written(work, tilenet_command, args, words):
    (work / "text.tif").write_text("not an image")
    (work / "there.zarr").mkdir()
    imsave(work / "other.png", np.zeros((5, 5), np.uint8), check_contrast=False)
    tifffile.imwrite(work / "two.tif", np.zeros((2, 50, 50), np.uint8), metadata={"axes": "CYX"}, ome=True)
    tilenet.save_model(random_network(depth=5, wf=0, in_channels=3), work / "deep.safetensors")
    before = sorted(work.rglob("*"))
    code, out, err = tilenet_command(*(a.format(d=work) for a in args))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("tilenet: error: ")
    assert words in err
    assert sorted(work.rglob("*")) == before


def test_no_option_of_any_command_takes_a_number_that_is_not_finite():
    numbers = [
        option
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option.type, click.types.FloatParamType)
    ]
    assert len(numbers) > 20
    for option in numbers:
        for number in ("nan", "-nan", "inf", "-inf", "1e999"):
            with pytest.raises(click.BadParameter):
                option.type.convert(number, option, None)
        assert option.type.convert("0.5", option, None) == 0.5


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "args",
    [
        [*SMALL, "--tissue", "{d}/pipe.geojson"],
        [*SMALL, "--tissue", "{d}/pipe.png"],
        [*SMALL, "--cluster", "{d}/pipe.yaml"],
        [*SMALL, "--scheduler", "{d}/pipe.json"],
        ["segment", "{d}/pipe.tif", "-o", "{d}/o.zarr"],
        ["segment", "{d}/slide.tif", "-o", "{d}/o.zarr", "-m", "{d}/pipe.safetensors"],
        ["batch", "{d}/pipe.csv", "-o", "{d}/masks"],
        ["batch", "{d}/pipe.txt", "-o", "{d}/masks"],
        ["batch", "{d}/within.csv", "-o", "{d}/masks", "-m", "{d}/small.safetensors", "--objects", "--csv"],
        ["export", "{d}/mask.zarr", "--csv", "{d}/m.csv", "--within", "{d}/pipe.geojson"],
        ["export", "{d}/mask.zarr", "--geojson", "{d}/pipe.geojson", "--overwrite"],
        ["overlay", "{d}/slide.tif", "{d}/mask.zarr", "--out", "{d}/o.png", "--table", "{d}/pipe.csv"],
        ["evaluate", "{d}/pipe.tif", "{d}/slide.tif"],
        ["verify", "{d}/pipe.tif"],
        ["info", "{d}/pipe.tif"],
        ["convert", "{d}/pipe.pth", "-o", "{d}/m.safetensors"],
    ],
    ids=lambda args: " ".join(word for word in args if "pipe" in word or word[:1].isalpha()),
)
def test_a_pipe_is_refused_by_its_name_and_not_waited_for(work, tilenet_command, args):
    for ending in ("geojson", "png", "yaml", "json", "tif", "safetensors", "csv", "txt", "pth"):
        os.mkfifo(work / f"pipe.{ending}")
    (work / "within.csv").write_text("image,within\nslide.tif,pipe.geojson\n")
    model = tilenet.load_model(work / "small.safetensors")
    tilenet.segment(work / "slide.tif", work / "mask.zarr", model=model, objects=True)
    code, out, err = tilenet_command(*(a.format(d=work) for a in args))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"{work}/pipe." in err
