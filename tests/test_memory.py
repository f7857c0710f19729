"""What `tilenet plan` says a run takes, against the peak memory of a process."""

import json
import tracemalloc

import numpy as np
import pytest
import tifffile
from blobs import blobs
from oracles import random_network
from scipy import ndimage as ndi

import tilenet
from tilenet.geometry import Box
from tilenet.instances.components import (
    BESIDE,
    BYTES_PER_PIXEL,
    USUAL_BYTES_PER_PIXEL,
    View,
    find_objects,
    left_for,
)
from tilenet.jobs.job import RESIDENT
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
    planned = plan["host_bytes"] - RESIDENT
    assert planned / 2 < taken <= planned + SLACK


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


@pytest.mark.parametrize("memory", [1_000_000_000, 2_000_000_000, 4_000_000_000, 15_000_000_000])
def test_all_processes_that_find_objects_stay_within_the_memory_together(memory):
    places = places_layout(SLIDE, 2, memory)
    with several_processes(8):
        count, usual = n_processes(20_000 * 30_000, places.n_blocks(0), memory), usual_bytes(SLIDE, 2, memory)
    alone = usual_bytes(SLIDE, 2, memory)
    assert count == min(8, max(1, left_for(memory) // object_places.EACH))
    each = object_places._share(memory, count) + object_places._beside(places, count)
    assert 0.85 * memory < BESIDE + count * each <= memory
    assert RESIDENT + usual <= memory and (usual > alone) == (count > 1)


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
