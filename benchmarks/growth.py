"""Time per pixel of whole runs on slides of growing size, with a small network.

    python benchmarks/growth.py [--sides 4096 8192 16384 32768] [--depth 2] [--wf 1] [--tile 1024] [--rounds 1] [--json]

Each row is a slide of side x side px: a tiled TIFF (256 px, zlib), written once, one tile at a time, from 256 different
tiles of smooth noise, so that all sides compress and decode alike. A child process segments it into a store on disk.
Its time covers everything from opening the file to the pyramid and the check of every checksum, but not the start of
Python and the libraries, which an image of 64 px loads first. `ns/px` is wall-clock time, `cpu` the processor time of
all threads of the child (which other work on the machine changes less). Both should not grow with the side. Sides take
turns, small ones up to three times a round, and the best counts. The tile is the same for all sides: by default, larger
slides get larger tiles, which cost less per pixel.
"""

import argparse
import json
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time

import child
import numpy as np
import tifffile
import torch

import tilenet
from tilenet import machine

FILE_TILE, KINDS, MOST = 256, 256, 3


def write_slide(path: Path, side: int) -> None:
    """Write a grey slide of side x side px, one tile at a time."""
    random = np.random.default_rng(0)
    steps = random.integers(-3, 4, (KINDS, FILE_TILE, FILE_TILE))
    kinds = (128 + steps.cumsum(axis=1).clip(-60, 60) + steps.cumsum(axis=2).clip(-60, 60)).astype(np.uint8)
    packed = [zlib.compress(kind, 1) for kind in kinds]

    def tiles() -> Iterator[bytes]:
        for index in range((side // FILE_TILE) ** 2):
            yield packed[index * 31 % KINDS]

    options = {"shape": (side, side), "dtype": "u1", "tile": (FILE_TILE, FILE_TILE), "compression": "zlib"}
    tifffile.imwrite(path, tiles(), photometric="minisblack", bigtiff=True, metadata=None, **options)


def segment(slide: Path, out: Path, depth: int, wf: int, tile: int, threads: int) -> tuple[float, float]:
    """Return the wall-clock and processor seconds that a slide takes in this process."""
    machine.keep_freed_memory()
    torch.manual_seed(0)
    options = {"model": tilenet.UNet(depth=depth, wf=wf), "tile": tile, "threads": threads}
    tilenet.segment(np.zeros((64, 64), np.uint8), out.with_suffix(".first"), **options)
    started, worked = perf_counter(), process_time()
    tilenet.segment(slide, out, **options)
    return perf_counter() - started, process_time() - worked


def seconds_of(slide: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Return what `segment` returns in a process of its own."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        numbers = (options.depth, options.wf, options.tile, options.threads)
        return child.run(segment, slide, Path(folder) / "mask.zarr", *numbers)


def measure(options: argparse.Namespace) -> list[dict[str, float]]:
    """Return one row for each side."""
    best = {side: (float("inf"), float("inf")) for side in options.sides}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        slides = {side: Path(folder) / f"{side}.tif" for side in options.sides}
        for side, path in slides.items():
            write_slide(path, side)
        for turn in range(options.rounds * MOST):
            for side, path in slides.items():
                # Large sides need fewer turns: the longer a run takes, the smaller its noise.
                if turn < options.rounds * min(MOST, max(options.sides) ** 2 // (4 * side**2) or 1):
                    best[side] = tuple(map(min, best[side], seconds_of(path, options)))
    return [
        {
            "side": side,
            "seconds": round(wall, 2),
            "ns_per_px": round(wall / side**2 * 1e9, 2),
            "cpu_ns_per_px": round(worked / side**2 * 1e9, 2),
        }
        for side, (wall, worked) in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    for name, default in (("depth", 2), ("wf", 1), ("tile", 1024), ("threads", 2), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where slides and masks go while they are needed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options)
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        rates = f"{row['ns_per_px']:>7.2f} ns/px  cpu {row['cpu_ns_per_px']:>7.2f} ns/px"
        print(f"{row['side']:>6} px {row['seconds']:>8.2f} s {rates}")


if __name__ == "__main__":
    main()
