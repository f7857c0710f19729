"""How much faster more workers are, and what it costs to distribute blocks to them.

    python benchmarks/scaling.py [--rounds 3] [--side 2048] [--tile 512] [--blocks 1000 10000 100000 1000000] [--json]

**Strong scaling**: one image is segmented by 1 and by 2 workers of one thread each, in turn, with a network of the
paper's shape and half its channels; figures are medians of the rounds. A worker has one core, as under a batch system
that was asked for one, so the threads that read ahead and write behind share it. `one worker` and `two workers` are
seconds from giving out the first of `blocks` until the last is back. `finish` (the pyramid, and reading every file
again) is work of one process. `start` is a whole command on an image of one block: loading Python, PyTorch and the
model, and starting workers. `limit` is the speed-up of two separate runs of one worker each, side by side instead of
one after the other: the most that two cores with shared memory and clock could give. The goal for `speed up` is 1.9.

**Scheduling**: a store of so many blocks, with a scheduler, two workers and a client in processes of their own. The
workers write nothing, and answer at once with the lines that a journal would have, so that only client and scheduler
do any work. `flights` is how many flights were sent; in the first row, each block was a flight of its own. `ms` are
milliseconds per block: `wall` for wall-clock time, the others for the processor time of client and scheduler. `MB` is
the growth of their memory, up to its peak (the client's includes 40 bytes per block for arrays). The goal is 1 ms in
all, and memory that does not grow apart from those arrays.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import sha256
from math import isqrt
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep

import numpy as np
import psutil
import torch
import zarr
from child import memory

import tilenet
from tilenet.runner import Report
from tilenet.store import Layout, Store
from tilenet.store.journal import Written, line_of
from tilenet.workers import clusters, distributed, flights
from tilenet.workers.flights import PendingOutput
from tilenet.workers.worker import BlockResult, FlightResult, Task

BLOCK = 512
HERE = Path(__file__).parent
ENVIRON = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
# Imports this file as a module, so that Dask workers find its functions by name.
CLIENT = "import sys, scaling; print(scaling.measure(sys.argv[1], *map(int, sys.argv[2:])))"
Row = dict[str, float]


# Strong scaling.


def strong_scaling(side: int, rounds: int, tile: int, **network: int) -> Row:
    """Return the median seconds of runs by one and by two workers, which take turns."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, model = Path(name), str(Path(name) / "model.safetensors")
        tilenet.save_model(tilenet.UNet(in_channels=1, **network), model)
        pixels = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
        zarr.save_array(str(folder / "image.zarr"), pixels)
        zarr.save_array(str(folder / "small.zarr"), pixels[:64, :64])
        start = seconds_of_command(folder / "small.zarr", "--model", model, "--workers", "2", "--threads", "1")
        one, other, two = (stack.enter_context(clusters.local_cluster(n)) for n in (1, 1, 2))

        def run(client: object, name: str, image: str = "image") -> Report:
            reports: list[Report] = []
            options = {"client": client, "tile": tile, "threads": 1, "overwrite": True, "report": reports.append}
            tilenet.segment(folder / f"{image}.zarr", folder / f"{name}.zarr", model=model, **options)
            return reports[0]

        for client, cores in ((one, [0]), (other, [1]), (two, [0, 1])):
            give_cores(client, cores)
            run(client, "first", "small")
        run(two, "first", "small")
        with ThreadPoolExecutor(2) as pool:
            found = [(run(one, "a"), run(two, "c"), *pool.map(run, (one, other), ("a", "b"))) for _ in range(rounds)]
    alone, both = median(a.seconds for a, *_ in found), median(c.seconds for _, c, *_ in found)
    return {
        "blocks": found[0][0].blocks,
        "one_worker": alone,
        "two_workers": both,
        "speed_up": alone / both,
        "limit": median(2 * a.seconds / max(c.seconds, d.seconds) for a, _, c, d in found),
        "finish": median(c.finished for _, c, *_ in found),
        "start": start,
    }


def give_cores(client: object, cores: list[int]) -> None:
    """Pin each worker to one core: all threads it has, and therefore all that they start."""
    for address, core in zip(sorted(client.scheduler_info(n_workers=-1)["workers"]), cores, strict=True):
        client.run(take_core, core, workers=[address])


def take_core(core: int) -> None:
    """Pin all threads of this process to one core."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def seconds_of_command(image: Path, *options: str) -> float:
    """Return the seconds that the whole command takes."""
    command = [sys.executable, "-m", "tilenet", "segment", str(image), "--out", f"{image}.mask.zarr", *options]
    started = perf_counter()
    subprocess.run(command, env=ENVIRON, stdout=subprocess.DEVNULL, check=True)
    return perf_counter() - started


# Scheduling.


@cache
def layout_of(out: str) -> Layout:
    """Return the layout of a store, which each process reads once."""
    return Store.inspect(out).layout


def compute_flight(task: Task, blocks: tuple[int, ...], flight: str, seconds: float) -> FlightResult:
    """Replace `distributed.compute_flight` on a worker: report at once that the blocks were written."""
    layout, digest = layout_of(task.out), sha256(flight.encode()).hexdigest()
    pixels = BLOCK * BLOCK
    lines = {index: line_of(layout, 0, index, [Written(1000, digest)]) for index in blocks}
    done = {i: BlockResult(line, Report(blocks=1, pixels=pixels)) for i, line in lines.items()}
    return FlightResult(done, worker="any")


class CountingStore(Store):
    """A store that counts the flights that come back."""

    flights = 0

    def forget(self, flight: str) -> None:
        """Count one flight."""
        self.flights += 1
        super().forget(flight)


def give_out(client: object, blocks: int) -> tuple[int, int]:
    """Let workers fill a store of so many blocks; return the number of blocks and of flights."""
    side = isqrt(blocks)
    layout = Layout("yx", (side * BLOCK, side * BLOCK), (BLOCK, BLOCK), (None, None), "scaling", {1: ("one", None)})
    with tempfile.TemporaryDirectory() as folder:
        store = CountingStore.create(Path(folder) / "m.zarr", layout, {})
        output = PendingOutput(Task(str(store.path), store.run, "image", "model"), store, None)
        assert list(distributed.work_off(client, [output])) == [output]
        assert not output.report.failures and output.report.blocks == layout.n_blocks(0)
        store.close()
        return output.report.blocks, store.flights


def measure(scheduler_file: str, scheduler: int, blocks: int, most: int) -> str:
    """Give out so many blocks, at most `most` in a flight, from the client's process; return a row as JSON."""
    distributed.compute_flight, flights.MOST = compute_flight, most
    other = psutil.Process(scheduler)

    def spent() -> tuple[float, float, float]:
        return perf_counter(), process_time(), sum(other.cpu_times()[:2])

    with clusters.existing_cluster(scheduler_file) as client:
        client.wait_for_workers(2)
        give_out(client, 100)  # now all processes have loaded what they need
        memory_before = memory("VmRSS"), memory("VmRSS", scheduler)
        before = spent()
        done, given_out = give_out(client, blocks)
        seconds = [b - a for a, b in zip(before, spent(), strict=True)]
    grown = [memory("VmHWM") - memory_before[0], memory("VmHWM", scheduler) - memory_before[1]]
    row = {"blocks": done, "flights": given_out}
    row |= zip(("wall_ms", "client_ms", "scheduler_ms"), (1000 * s / done for s in seconds), strict=True)
    return json.dumps(row | dict(zip(("client_MB", "scheduler_MB"), (size / 1e6 for size in grown), strict=True)))


@contextmanager
def dask(folder: Path) -> Iterator[tuple[Path, int]]:
    """Start a scheduler and two workers in processes of their own; yield the scheduler's file and process id."""
    file = folder / "scheduler.json"
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", file]
    work = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", file, "--nthreads", "1"]
    with (folder / "log").open("w") as log, ExitStack() as stack:

        def start(*command: object) -> int:
            command = (*map(str, command), "--host", "127.0.0.1", "--no-dashboard")
            process = subprocess.Popen(command, env=ENVIRON, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process.pid

        scheduler = start(*begin)
        while not file.exists():
            sleep(0.1)
        for _ in range(2):
            start(*work, "--no-nanny")
        yield file, scheduler


def scheduling(blocks: int, most: int) -> Row:
    """Return the time and memory that giving out so many blocks takes."""
    with tempfile.TemporaryDirectory() as folder, dask(Path(folder)) as (file, scheduler):
        command = [sys.executable, "-c", CLIENT, str(file), *map(str, (scheduler, blocks, most))]
        done = subprocess.run(command, env=ENVIRON, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of strong scaling; 0 for none")
    parser.add_argument("--side", type=int, default=2048, help="of the image, px")
    parser.add_argument("--tile", type=int, default=BLOCK, help="px")
    parser.add_argument("--depth", type=int, default=5, help="of the network")
    parser.add_argument("--wf", type=int, default=5, help="of the network: 2**wf channels at the top")
    parser.add_argument("--blocks", type=int, nargs="*", default=[10**3, 10**4, 10**5, 10**6], help="for scheduling")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    network = {"depth": options.depth, "wf": options.wf}
    strong = strong_scaling(options.side, options.rounds, options.tile, **network) if options.rounds else {}
    if strong and not options.json:
        print("  ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in strong.items()), flush=True)
    rows = []
    sizes = [(1000, 1), *((blocks, flights.MOST) for blocks in options.blocks)] if options.blocks else []
    for number, (blocks, most) in enumerate(sizes):
        rows.append(scheduling(blocks, most))
        if not options.json:
            if not number:
                print("  ".join(f"{name:>12}" for name in rows[0]))
            print(
                "  ".join(f"{value:12.3f}" if value % 1 else f"{value:12.0f}" for value in rows[-1].values()),
                flush=True,
            )
    if options.json:
        print(json.dumps({"strong_scaling": strong, "scheduling": rows}))


# Workers import this file.
if __name__ == "__main__":
    main()
