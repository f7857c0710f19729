"""What a volume of 10^15 voxels on 1,000 GPUs would need, extrapolated from measurements at a small scale.

    python benchmarks/scaling.py --rounds 0 --json > scaling.json
    python benchmarks/petavoxel.py scaling.json [--gpus 1000] [--rate 1e7 1e8] [--memory 60e9] [--chunk 128] [--json]

The plan, the length of the journal and the chunks that a block reads are counted, not estimated: they are those that
tilenet would use. The cost of a flight and of a block comes from a linear fit to the rows of `scaling.json`.
`finish_ms` is measured here: the processor time per block of 256 x 256 x 256 voxels for the pyramid and the check, in a
store of 32 blocks. `--rate`, the voxels per second of one GPU, is an assumption: measure yours.
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import process_time

import numpy as np

from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div
from tilenet.plan import Plan
from tilenet.sizes import plan_tiles
from tilenet.store import Layout, Store
from tilenet.store.journal import Written, line_of
from tilenet.workers.flights import blocks_per_flight, seconds_per_flight

SIDE = 100_000
# A 3-D U-Net of depth 4, as `Footprint.of_unet` walks it: three poolings, 44 voxels lost on each side.
FOOTPRINT = Footprint.valid(3, step=8, lost=44)
DAY = 86_400
BYTES_PER_FILE = 40  # bytes per file of a block, see `tilenet.store.journal.Journal`


def layout_of(shape: tuple[int, ...], block: tuple[int, ...]) -> Layout:
    return Layout("zyx", shape, block, (None,) * 3, "petavoxel", {1: ("cell", None)})


def finish_seconds() -> float:
    """Return processor seconds per block for the pyramid and the check of every file, with a mask of small cells."""
    layout = layout_of((512, 1024, 1024), (256, 256, 256))
    z, y, x = np.ogrid[:256, :256, :256]
    cells = (np.sin(z / 5) + np.sin(y / 5) + np.sin(x / 5) > 1).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "m.zarr", layout, {})
        for index in store.pending():
            store.write(index, {"mask": cells})
        started = process_time()
        store.build_pyramid()
        store.finish()
        return (process_time() - started) / layout.n_blocks(0)


def costs(rows: list[dict[str, float]]) -> tuple[float, float]:
    """Return milliseconds of client and scheduler per flight and per block: a least-squares fit to all rows."""
    ways = np.array([[row["flights"] / row["blocks"], 1] for row in rows])
    found = np.array([row["client_ms"] + row["scheduler_ms"] for row in rows])
    flight, block = np.linalg.lstsq(ways, found, rcond=None)[0]
    return float(flight), float(block)


def chunks_of(plan: Plan, chunk: int) -> int:
    """Return how many chunks of the image a block in the middle reads, each counted once."""
    block = plan[len(plan) // 2]
    seen = set()
    for tile in block.tiles:
        ranges = [range(a // chunk, ceil_div(b, chunk)) for a, b in zip(tile.read.start, tile.read.stop, strict=True)]
        seen |= {(z, y, x) for z in ranges[0] for y in ranges[1] for x in ranges[2]}
    return len(seen)


def work_out(rows: list[dict[str, float]], options: argparse.Namespace) -> dict[str, object]:
    """Return the figures that do not depend on the GPU."""
    plan = plan_tiles((SIDE,) * 3, FOOTPRINT, memory=int(options.memory))
    layout = layout_of(plan.shape, plan.block)
    levels = [layout.n_blocks(level) for level in range(len(layout.levels))]
    line = len(line_of(layout, 0, len(plan) // 2, [Written(10**6, "0" * 64)]))
    flight, block = costs(rows)
    return {
        "blocks": len(plan),
        "block": plan.block,
        "tile": plan.tile,
        "voxels_computed_per_voxel": plan.redundancy,
        "pyramid_blocks": sum(levels[1:]),
        "journal_GB": sum(levels) * line / 1e9,
        "client_GB": sum(levels) * BYTES_PER_FILE / 1e9,
        "chunks_per_block": chunks_of(plan, options.chunk),
        "requests": len(plan) * chunks_of(plan, options.chunk),
        "ms_per_flight": flight,
        "ms_per_block": block,
        "finish_ms": finish_seconds() * 1000,
    }


def at_rate(needs: dict[str, object], rate: float, gpus: int) -> dict[str, float]:
    """Return the figures that follow if each GPU gives `rate` voxels per second."""
    block_seconds = np.prod(needs["block"]) / rate
    most = blocks_per_flight(needs["blocks"], gpus)
    blocks = min(most, int(seconds_per_flight(gpus) // block_seconds) + 1)
    per_second = gpus / block_seconds
    load = per_second / blocks * needs["ms_per_flight"] + per_second * needs["ms_per_block"]
    return {
        "rate": rate,
        "days": needs["blocks"] * block_seconds / gpus / DAY,
        "blocks_per_s": per_second,
        "blocks_per_flight": blocks,
        "client_and_scheduler_load": load / 1000,
        "requests_per_s": per_second * needs["chunks_per_block"],
        "finish_days": needs["blocks"] * needs["finish_ms"] / 1000 / DAY,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scaling", type=Path, help="what benchmarks/scaling.py --json prints")
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--rate", type=float, nargs="+", default=[1e7, 1e8], help="voxels per second of a GPU")
    parser.add_argument("--memory", type=float, default=60e9, help="bytes for a worker")
    parser.add_argument("--chunk", type=int, default=128, help="side of the image's chunks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    needs = work_out(json.loads(options.scaling.read_text())["scheduling"], options)
    rates = [at_rate(needs, rate, options.gpus) for rate in options.rate]
    if options.json:
        print(json.dumps({"needs": needs, "rates": rates}))
        return
    for found in (needs, *rates):
        print()
        for name, value in found.items():
            print(f"{name:>26} {value:,.3g}" if isinstance(value, float) else f"{name:>26} {value}")


if __name__ == "__main__":
    main()
