"""What a run costs besides the network: from a JPEG slide to a zarr mask, with a network that takes no time.

    python benchmarks/host.py [--side 16384] [--tile 2048] [--rounds 3] [--json]

The slide is the sample photograph, repeated to side x side px (256 px tiles, a pyramid). Tiles are read with the
context of the paper's network (depth 5), as for a GPU. For each tile, the predictor returns a piece of a precomputed
mask of blots of 64 px. `px/s` counts output pixels of the best round, from opening the slide to the verified mask and
its pyramid. `per core` divides the pixels by processor time instead of wall-clock time: with a given number of cores,
no network can get masks faster than that. `read` and `written` are seconds summed over threads, `finished` is seconds.
"""

import argparse
import json
import os
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
from reading import make_jpeg

import tilenet
from tilenet import machine
from tilenet.jobs.job import Job
from tilenet.readers.image import READERS

BLOT = 64


class Instant:
    """A predictor that returns precomputed masks; see `tilenet.runner.DecidingPredictor`."""

    in_flight = 2

    def __init__(self, footprint):
        self.footprint = footprint

    def allocate(self, shape, dtype):
        """Return an array that a batch is read into."""
        return np.empty(shape, dtype)

    def begin(self, batch, tiles, decide):
        """Return a function that returns the mask of each tile."""
        return lambda: [{"mask": blots(tile.crop.shape[-2:])} for tile in tiles]


@cache
def blots(shape):
    """Return a mask of random squares."""
    grid = np.random.default_rng(0).integers(0, 2, [-(-n // BLOT) for n in shape], dtype=np.uint8)
    return np.kron(grid, np.ones((BLOT, BLOT), np.uint8))[: shape[0], : shape[1]]


def measure(slide, folder, options):
    """Return wall-clock and processor seconds of one run, and figures from its report."""
    reports, network = [], tilenet.UNet(in_channels=3, depth=5, wf=1).eval()
    started, before = time.perf_counter(), os.times()
    how = {"model": network, "tile": options.tile, "engine": "plain", "overwrite": True, "report": reports.append}
    tilenet.segment(slide, folder / "mask.zarr", **how)
    after = os.times()
    return {
        "wall": time.perf_counter() - started,
        "processor": after.user + after.system - before.user - before.system,
        **{name: getattr(reports[0], name) for name in ("read", "waited", "written", "finished")},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("side", 16384), ("tile", 2048), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine.keep_freed_memory()
    Job.predictor = lambda job, scaling: Instant(job.footprint)
    with tempfile.TemporaryDirectory() as name:
        make_jpeg(Path(name) / "slide.tif", options.side)
        rounds = [measure(Path(name) / "slide.tif", Path(name), options) for _ in range(options.rounds + 1)]
    best = min(rounds[1:], key=lambda found: found["wall"])  # the first loads libraries
    pixels = options.side**2
    found = {"px_per_s": pixels / best["wall"], "px_per_core_s": pixels / best["processor"], **best}
    if options.json:
        print(json.dumps({"side": options.side, "tile": options.tile, "readers": READERS, **found}))
        return
    print(f"{found['px_per_s'] / 1e6:.0f} Mpx/s, {found['px_per_core_s'] / 1e6:.0f} Mpx/s per core", end="; ")
    print(", ".join(f"{name} {best[name]:.2f} s" for name in ("wall", "read", "waited", "written", "finished")))


if __name__ == "__main__":
    main()
