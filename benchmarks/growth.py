"""Time per pixel of whole runs on slides of growing size, with a small network.

    python benchmarks/growth.py [--sides 4096 8192 16384 32768] [--depth 2] [--wf 1] [--tile 1024] [--rounds 1] [--json]

Each row is a slide of side x side px: a tiled TIFF (256 px, zlib), written once, one tile at a time, from 256 different
tiles of smooth noise, so that all sides compress and decode alike. A child process segments it into a store on disk.
Its time covers everything from opening the file to the pyramid and the check of every checksum, but not the start of
Python and the libraries, which an image of 64 px loads first. `ns/px` is wall-clock time, `cpu` the processor time of
all threads of the child (which other work on the machine changes less), and `ratio` each of them over that of the first
row. Sides take turns, small ones up to three times a round, and the best counts. The goal is a ratio of at most 1.05.
The tile is the same for all sides: by default, larger slides get larger tiles, which cost less per pixel.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

FILE_TILE, KINDS, MOST = 256, 256, 3
CHILD = """
import sys, time
import numpy as np, torch
import tilenet
from tilenet import machine

slide, out, depth, wf, tile, threads = *sys.argv[1:3], *map(int, sys.argv[3:])
machine.keep_freed_memory()
torch.manual_seed(0)
network = tilenet.UNet(depth=depth, wf=wf)
options = {"model": network, "tile": tile, "threads": threads}
tilenet.segment(np.zeros((64, 64), np.uint8), out + ".first", **options)
started, worked = time.perf_counter(), time.process_time()
tilenet.segment(slide, out, **options)
print(time.perf_counter() - started, time.process_time() - worked)
"""


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


def seconds_of(slide: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Return wall-clock and processor seconds of a child process that segments a slide."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        numbers = map(str, (options.depth, options.wf, options.tile, options.threads))
        command = [sys.executable, "-c", CHILD, str(slide), f"{folder}/mask.zarr", *numbers]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, worked = map(float, done.stdout.split())
    return wall, worked


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
    first = [seconds / options.sides[0] ** 2 for seconds in best[options.sides[0]]]
    return [
        {
            "side": side,
            "seconds": round(wall, 2),
            "ns_per_px": round(wall / side**2 * 1e9, 2),
            "cpu_ns_per_px": round(worked / side**2 * 1e9, 2),
            "ratio": round(wall / side**2 / first[0], 3),
            "cpu_ratio": round(worked / side**2 / first[1], 3),
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
        ratios = f"ratio {row['ratio']:.3f}  cpu {row['cpu_ratio']:.3f}"
        print(f"{row['side']:>6} px {row['seconds']:>8.2f} s {rates}  {ratios}")


if __name__ == "__main__":
    main()
