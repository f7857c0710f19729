"""Peak memory of whole runs on slides of growing size, with a small network.

    python benchmarks/memory.py [--sides 8192 32768] [--depth 3] [--wf 2] [--tile 1024] [--json]

Each row is one child process that segments a synthetic slide of side x side px into a store on disk. The slide is
generated tile by tile, and is never in memory whole. `peak` is the child's VmHWM, `promised` the memory that
`tilenet plan` predicts for such a run, and `ratio` the peak over that of the first row. Flat memory means ratios near
1; the goal is at most 1.10, and a peak within 10 % of the prediction.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import sys
import numpy as np, torch
import tilenet
from tilenet import machine
from tilenet.jobs.options import Options
from tilenet.jobs.setup import settle
from tilenet.readers.image import Image, Level

class Synthetic(Image):
    name, axes, dtype, level, channel_names = "synthetic", "yx", np.dtype(np.uint8), 0, ("",)
    def __init__(self, side):
        self.levels = (Level((side, side), (None, None)),)
    def at_level(self, level):
        return self
    def read_inside(self, box):
        rows, columns = (np.arange(a, b) for a, b in zip(box.start, box.stop))
        return ((rows[:, None] * 7 ^ columns * 13) % 251).astype(np.uint8)[None]
    def identity(self):
        return {"kind": "synthetic"}

machine.keep_freed_memory()
torch.manual_seed(0)
side, out, depth, wf, tile = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
network = tilenet.UNet(depth=depth, wf=wf)
tilenet.segment(Synthetic(side), out, model=network, tile=tile, threads=2)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
promised = settle(Synthetic(side), network, Options(tile=tile, threads=2)).needs()["host_bytes"]
print(peak, promised)
"""


def peak_of(side: int, folder: Path, network: tuple[int, ...]) -> tuple[int, int]:
    """Return the peak bytes of a child that segments a slide of that side, and the bytes predicted."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(side), str(folder / f"{side}.zarr"), *map(str, network)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, promised = map(int, done.stdout.split())
    return peak, promised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 32768])
    for name, default in (("depth", 3), ("wf", 2), ("tile", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        network = (options.depth, options.wf, options.tile)
        peaks = {side: peak_of(side, Path(folder), network) for side in options.sides}
    first = peaks[options.sides[0]][0]
    rows = [
        {"side": s, "peak_bytes": p, "promised_bytes": q, "ratio": round(p / first, 3)} for s, (p, q) in peaks.items()
    ]
    for row in [] if options.json else rows:
        mb = f"{row['peak_bytes'] / 1e6:8.0f} MB  promised {row['promised_bytes'] / 1e6:8.0f} MB"
        print(f"{row['side']:>6} px  {mb}  {row['ratio']:.3f}")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
