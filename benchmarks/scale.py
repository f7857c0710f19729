"""Time and memory that it takes to plan and to resume a job of a million blocks.

    python benchmarks/scale.py [--blocks 1000000] [--folder DIR] [--json]

The script makes a store of that many blocks, with a journal and one file of one byte per block, where the file of one
block in a hundred is missing. That takes minutes, and as many inodes as blocks. Then child processes are timed. `plan`
cuts the image into blocks of tiles. `open` is `Store.resume`: taking the lease and reading the journal. `pending`
compares every file's size with the journal. `cpu` is the processor time of both, which other work on the machine
changes least. `peak` is the VmHWM of the child that resumes, `library` its value before the store was opened. The goals
for 10^6 blocks: planning under 1 s, resuming (open and pending) under 10 s and 300 MB.
"""

import argparse
import json
import tempfile
from hashlib import sha256
from math import isqrt
from pathlib import Path
from time import perf_counter, process_time

import child
import yaozarrs.v05  # noqa: F401 - loaded before the memory of the libraries is measured

from tilenet.footprint import Footprint
from tilenet.sizes import plan_tiles
from tilenet.store import Layout, Store
from tilenet.store.journal import Written, line_of

BLOCK = 512
MISSING = 100


def plan(side: int) -> dict[str, float]:
    """Plan a slide of `side` x `side` px in this process."""
    started = perf_counter()
    found = plan_tiles((side, side), Footprint.valid(2, step=16, lost=92), tile=BLOCK, block=BLOCK)
    numbers = len(found), found.n_tiles, found.redundancy, found[len(found) - 1].box.stop
    return {"plan": perf_counter() - started, "blocks": numbers[0]}


def resume(path: Path) -> dict[str, float]:
    """Resume a store in this process."""
    library, started, worked = child.memory(), perf_counter(), process_time()
    store = Store.resume(path)
    opened = perf_counter()
    pending = sum(1 for _ in store.pending())
    done = perf_counter()
    store.close()
    seconds = {"open": opened - started, "pending": done - opened, "resume": done - started}
    found = {"cpu": process_time() - worked, "pending_blocks": pending}
    return seconds | found | {"library_bytes": library, "peak_bytes": child.memory()}


def build(path: Path, side: int) -> int:
    """Make a store of `side` x `side` blocks that looks interrupted to a resumed run; return its number of blocks."""
    pixels = (side * BLOCK, side * BLOCK)
    layout = Layout("yx", pixels, (BLOCK, BLOCK), (None, None), "scale", {1: ("one", None)})
    Store.create(path, layout, {}).close()
    journal = path / ".tilenet" / "journal"
    journal.mkdir()
    with (journal / "000001-benchmark.jsonl").open("wb") as lines:
        for index in range(layout.n_blocks(0)):
            (name,) = layout.files(0, index)
            lines.write(line_of(layout, 0, index, [Written(1, sha256(b"%d" % index).hexdigest())]))
            if index % side == 0:
                (path / name).parent.mkdir(parents=True)
            if index % MISSING:
                (path / name).write_bytes(b".")
    return layout.n_blocks(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10**6, help="rounded down to a square")
    parser.add_argument("--folder", type=Path, help="where the store goes, such as a parallel file system")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    side = isqrt(options.blocks)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, started = Path(folder) / "scale.zarr", perf_counter()
        blocks = build(path, side)
        built = perf_counter() - started
        row = {**child.run(plan, side * BLOCK), **child.run(resume, path), "built": built}
    assert row["blocks"] == blocks
    assert row["pending_blocks"] == -(-blocks // MISSING)
    if options.json:
        print(json.dumps(row))
        return
    print(f"{blocks:,} blocks, laid out in {built:.0f} s")
    for name in ("plan", "open", "pending", "resume", "cpu"):
        print(f"{name:>8} {row[name]:8.2f} s")
    print(f"    peak {row['peak_bytes'] / 1e6:8.0f} MB, of which the libraries {row['library_bytes'] / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
