"""What `tilenet plan` says a run takes, against the peak memory of a process."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tifffile
import torch
from blobs import blobs
from oracles import random_network
from scipy import ndimage as ndi

import tilenet
from tilenet.byte_counts import FOR_CUDA, library_bytes
from tilenet.geometry import Box
from tilenet.instances.components import (
    BYTES_PER_PIXEL,
    USUAL_BYTES_PER_PIXEL,
    View,
    beside,
    find_objects,
    left_for,
)
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.runs import object_places
from tilenet.runs.object_places import n_processes, places_layout, usual_bytes
from tilenet.store import Layout
from tilenet.workers.processes import several_processes

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
    planned = plan["host_bytes"] - library_bytes()
    assert planned / 2 < taken <= planned + SLACK


LOADED = """
import torch, tilenet.api, tilenet.cli.segment
from pathlib import Path
from tilenet.byte_counts import library_bytes
tilenet.load_model("nuclei")
(peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak) * 1024 / library_bytes())
"""


def test_the_libraries_of_a_run_take_no_more_memory_than_is_counted_for_them():
    loaded = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True)
    assert 0.6 < float(loaded.stdout) <= 1


def test_a_pytorch_that_is_built_for_cuda_counts_as_more_memory(monkeypatch):
    network, needs = random_network(in_channels=1, n_classes=2, depth=2, wf=2), []
    for built in (None, "13.0"):
        monkeypatch.setattr(torch.version, "cuda", built)
        job = make_job(np.zeros((64, 64), np.uint8), network, Options())
        needs.append((job.needs()["host_bytes"], beside()))
    assert np.diff(needs, axis=0).tolist() == [[FOR_CUDA, FOR_CUDA]]


def bytes_per_pixel_of(foreground, depth):
    """Return how much memory NumPy, SciPy and scikit-image allocate at once to find the objects of an image."""
    box = Box.of_shape(foreground.shape)
    tracemalloc.start()
    found = find_objects(box, foreground.shape, lambda _: View(foreground.copy(), depth.copy()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.firsts) > 5
    return peak / foreground.size


@pytest.mark.parametrize(("shape", "coarse"), [((512, 768), 4), ((32, 96, 128), 2)])
def test_finding_objects_takes_the_bytes_per_pixel_that_are_planned(shape, coarse):
    foreground = blobs(shape, seed=0, coarse=coarse, share=0.06) > 0
    depth = ndi.gaussian_filter(foreground.astype(np.float32), 2)
    assert 0.8 * USUAL_BYTES_PER_PIXEL < bytes_per_pixel_of(foreground, depth) < 1.1 * USUAL_BYTES_PER_PIXEL
    joined = foreground.copy()
    joined[..., ::8], joined[..., ::8, :], joined[::8] = True, True, True
    assert 0.8 * BYTES_PER_PIXEL < bytes_per_pixel_of(joined, depth) <= BYTES_PER_PIXEL


SLIDE = Layout("yx", (20_000, 30_000), (2048, 2048), (None, None), "nuclei")


@pytest.mark.parametrize("left", [800_000_000, 1_600_000_000, 3_600_000_000, 14_600_000_000])
def test_all_processes_that_find_objects_stay_within_the_memory_together(left):
    memory = beside() + left
    places = places_layout(SLIDE, 2, memory)
    with several_processes(8):
        count, usual = n_processes(20_000 * 30_000, places.n_blocks(0), memory), usual_bytes(SLIDE, 2, memory)
    alone = usual_bytes(SLIDE, 2, memory)
    assert count == min(8, max(1, left_for(memory) // object_places.EACH))
    each = object_places._share(memory, count) + object_places._beside(places, count)
    assert 0.85 * memory < beside() + count * each <= memory
    assert library_bytes() + usual <= memory and (usual > alone) == (count > 1)


def test_a_plan_with_objects_counts_the_processes_that_find_them(tmp_path, tilenet_command):
    tilenet.save_model(random_network(in_channels=1, n_classes=2, depth=2, wf=1), tmp_path / "m.safetensors")
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, np.zeros((8192, 8192), np.uint8), tile=(1024, 1024), compression="zlib")

    def planned(*options):
        code, out, _ = tilenet_command("plan", slide, "-m", tmp_path / "m.safetensors", "--json", *options)
        assert code == 0
        return json.loads(out)["host_bytes"]

    one, two, four, eight = (planned("--objects", "--memory", "20GB", "--threads", n) for n in (1, 2, 4, 8))
    assert one < two and eight - four == 2 * (four - two)
    assert planned("--objects", "--memory", "2GB", "--threads", 4) < two
    assert planned("--memory", "20GB", "--threads", 4) == planned("--memory", "20GB", "--threads", 1) < two
