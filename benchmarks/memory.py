"""Peak memory of whole runs on slides of growing size, with a small network.

    python benchmarks/memory.py [--sides 8192 32768] [--depth 3] [--wf 2] [--tile 1024] [--json]

Each row is one child process that segments a synthetic slide of side x side px into a store on disk. The slide is
generated tile by tile, and is never in memory whole. `peak` is the child's VmHWM, `promised` the memory that
`tilenet plan` predicts for such a run. The goal is a peak within 10 % of the prediction, whatever the side.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import child
import numpy as np
import torch

import tilenet
from tilenet import machine
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.readers.image import Image, Level


class Synthetic(Image):
    """A grey slide whose pixels are computed."""

    name, axes, dtype, level, channel_names = "synthetic", "yx", np.dtype(np.uint8), 0, ("",)

    def __init__(self, side: int) -> None:
        self.levels = (Level((side, side), (None, None)),)

    def at_level(self, level: int) -> "Synthetic":
        """Return itself: there is one level."""
        return self

    def read_inside(self, box: tilenet.Box) -> np.ndarray:
        """Return the pixels of a box."""
        rows, columns = (np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True))
        return ((rows[:, None] * 7 ^ columns * 13) % 251).astype(np.uint8)[None]

    def identity(self) -> dict[str, Any]:
        """Return what tells this image from others."""
        return {"kind": "synthetic"}


def segment(side: int, folder: Path, depth: int, wf: int, tile: int) -> dict[str, int]:
    """Segment a slide in this process; return a row."""
    machine.keep_freed_memory()
    torch.manual_seed(0)
    network = tilenet.UNet(depth=depth, wf=wf)
    tilenet.segment(Synthetic(side), folder / f"{side}.zarr", model=network, tile=tile, threads=2)
    peak = child.memory()
    promised = make_job(Synthetic(side), network, Options(tile=tile, threads=2)).needs()["host_bytes"]
    return {"side": side, "peak_bytes": peak, "promised_bytes": promised}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 32768])
    for name, default in (("depth", 3), ("wf", 2), ("tile", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        network = (options.depth, options.wf, options.tile)
        rows = [child.run(segment, side, Path(folder), *network) for side in options.sides]
    for row in [] if options.json else rows:
        print(f"{row['side']:>6} px  {row['peak_bytes'] / 1e6:8.0f} MB  promised {row['promised_bytes'] / 1e6:8.0f} MB")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
