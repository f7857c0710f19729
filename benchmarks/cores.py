"""How much two cores speed up work that shares almost nothing: matrix products that stay in a core's cache.

    python benchmarks/cores.py [--rounds 4] [--json]

A process multiplies matrices of 256 x 256 (float32, 0.25 MB each) for four seconds, on each of two cores alone and on
both at once. `ratio` is the summed rate of both cores at once over the mean rate of one alone: the speed-up that
`scaling.py` could find if nothing were shared.
"""

import argparse
import json
import os
import subprocess
import sys

CHILD = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
import torch
torch.set_num_threads(1)
a, done = torch.rand(256, 256), 0
for _ in range(200):
    a @ a
started = time.perf_counter()
while time.perf_counter() - started < 4:
    for _ in range(50):
        a @ a
    done += 50
print(done / (time.perf_counter() - started))
"""


def rates(*cores: int) -> list[float]:
    """Return the products per second of processes that run at the same time, one on each of the cores."""
    command = [sys.executable, "-c", CHILD]
    children = [subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, text=True) for core in cores]
    return [float(child.communicate()[0]) for child in children]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    first, second = sorted(os.sched_getaffinity(0))[:2]
    found = []
    for _ in range(options.rounds):
        alone = (rates(first)[0] + rates(second)[0]) / 2
        found.append(round(sum(rates(first, second)) / alone, 3))
        if not options.json:
            print(f"ratio {found[-1]:.3f}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
