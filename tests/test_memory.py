"""What `tilenet plan` says a run takes, against the peak memory of a process."""

import json

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet
from tilenet.jobs.job import RESIDENT

# What Python's own objects take beyond what the server of commands has loaded, at the most.
SLACK = 100e6


@pytest.mark.parametrize("tile", [256, 1024])
def test_a_run_takes_no_more_memory_than_its_plan_says(commands, tmp_path, tilenet_command, tile):
    pixels = np.random.default_rng(0).integers(0, 200, (1024, 2048), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(256, 256))
    tilenet.save_model(random_network(in_channels=1, n_classes=2, depth=3, wf=5), tmp_path / "m.safetensors")
    options = (tmp_path / "slide.tif", "-m", tmp_path / "m.safetensors", "--tile", tile, "--threads", 1)
    plan = json.loads(tilenet_command("plan", *options, "--json")[1])
    run = commands.start("segment", *options, "--out", tmp_path / "m.zarr", measure=True)
    assert run.wait() == (0, "")
    taken = 1024 * json.loads(run.prints.with_suffix(".used").read_text())["kibibytes"]
    planned = plan["host_bytes"] - RESIDENT
    assert planned / 2 < taken <= planned + SLACK
