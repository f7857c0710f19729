"""Peak memory and processor time of `tilenet export --geojson` on masks of growing size.

    python benchmarks/geojson.py [--sides 5120 20480] [--shapes] [--json]

Each row is one child process that exports a synthetic mask of side x side px: discs of 4 to 11 px radius, one per
1000 px, about as dense as nuclei, and a net of lines 2048 px apart, which is one region all over the mask. `peak` is
the child's VmHWM, `file` the size of the file that it wrote, `s` its processor seconds. Masks are read in strips, one
row of chunks each, and only the outlines of the net must be held until the end. So the peak should grow with the width
of the mask, not with its area. With `--shapes` every polygon has its area and shape as measurements.
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import process_time

import child
import numpy as np

from tilenet.export.geojson import write_geojson
from tilenet.store import Layout, Store

PIECE, BLOCK = 1024, 2048


def discs() -> np.ndarray:
    """Return PIECE x PIECE px of discs, which may overlap."""
    random = np.random.default_rng(0)
    piece = np.zeros((PIECE, PIECE), np.uint8)
    y, x = np.mgrid[:24, :24]
    for _ in range(PIECE * PIECE // 1000):
        top, left = random.integers(0, PIECE - 24, 2)
        disc = (y - 12) ** 2 * random.uniform(0.6, 1.4) + (x - 12) ** 2 < random.uniform(4, 11) ** 2
        piece[top : top + 24, left : left + 24] |= disc
    return piece


def write_mask(path: Path, side: int) -> None:
    """Write a complete mask, block by block."""
    info = {"version": "benchmark", "image": {"path": "synthetic"}, "model": {}, "scaling": {}}
    info["card"] = {"mask_of_class": [0, 1, 2], "labels": {"1": "nucleus", "2": "net"}, "colors": {}}
    info["record"] = {"level": 0, "mpp": None, "factor": [[1, 1], [1, 1]], "output": "mask", "axes": "yx"}
    labels = {1: ("nucleus", None), 2: ("net", None)}
    store = Store.create(path, Layout("yx", (side, side), (BLOCK, BLOCK), (None, None), "synthetic", labels), info)
    block = np.tile(discs(), (BLOCK // PIECE, BLOCK // PIECE))
    block[:3], block[:, :3] = 2, 2
    for index in store.pending():
        h, w = store.layout.box(0, index).shape
        store.write(index, {"mask": block[:h, :w]})
    store.build_pyramid()
    store.finish()


def export(mask: Path, out: Path, shapes: bool) -> dict[str, float]:
    """Export a mask in this process; return what it took."""
    started = process_time()
    found = write_geojson(mask, out, shapes=shapes)
    seconds = process_time() - started
    row = {"peak_bytes": child.memory(), "seconds": round(seconds, 1), "vertices": found.vertices}
    return row | {"features": sum(found.features.values()), "file_bytes": out.stat().st_size}


def measure(side: int, folder: Path, shapes: bool) -> dict[str, float]:
    mask, out = folder / f"{side}.zarr", folder / f"{side}.geojson"
    write_mask(mask, side)
    row = {"side": side} | child.run(export, mask, out, shapes)
    out.unlink()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[5120, 20480])
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(side, Path(folder), options.shapes) for side in options.sides]
    for row in [] if options.json else rows:
        sizes = f"{row['peak_bytes'] / 1e6:6.0f} MB peak  {row['file_bytes'] / 1e6:7.0f} MB file"
        rate = row["side"] ** 2 / row["seconds"] / 1e6
        print(
            f"{row['side']:>6} px  {sizes}  {row['features']:9.0f} features  {row['vertices']:10.0f} vertices  "
            f"{row['seconds']:6.1f} s  {rate:5.1f} Mpx/s"
        )
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
