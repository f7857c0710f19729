"""How much work a batch of small images takes besides the network.

    python benchmarks/many.py [--sides 512 1024 2048] [--images 32] [--threads 2] [--rounds 3] [--objects] [--json]

The images are the sample photograph, mirrored over and over and shifted, as uncompressed TIFFs of side x side px. Each
round segments all of them with the packaged model, by one call of `tilenet.batch`, and then gives the tiles of one
image to the bare network as often as there are images; `--objects` numbers the objects and writes tables, too. A batch
of two images comes first, and loads the libraries. `ms` is the processor time of all threads for each image, `network`
the part of it that the bare network takes (the median of the rounds), and `images/s` the rate by the clock in the best
round. The part of the network should not be much smaller for small images than for large ones, nor fall when there are
more of them.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import tifffile
from skimage import data

import tilenet
from tilenet import machine
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job


def write_images(folder: Path, side: int, count: int) -> list[Path]:
    """Write images of side x side px, each with other pixels, and return their paths."""
    photo = data.immunohistochemistry()
    whole = np.pad(photo, [(0, max(0, 2 * side - len(photo)))] * 2 + [(0, 0)], "reflect")
    paths = [folder / f"{side}-{i}.tif" for i in range(count)]
    for i, path in enumerate(paths):
        shifted = np.roll(whole, (37 * i, 11 * i), axis=(0, 1))
        tifffile.imwrite(path, shifted[:side, :side], photometric="rgb")
    return paths


def bare(image: Path, threads: int) -> Callable[[], object]:
    """Return a function that gives all tiles of an image to the network as a run does, and reads and writes nothing."""
    with make_job(image, "nuclei", Options(threads=threads)) as job:
        predictor = job.predictor(job.resolve_scaling())
        tiles = [tile for block in map(job.plan.__getitem__, range(len(job.plan))) for tile in block.tiles]
        pixels = [job.read(tile) for tile in tiles]

    def run() -> None:
        with machine.threads(threads):
            for tile, batch in zip(tiles, pixels, strict=True):
                predictor.begin(batch, [tile], job.decision)()

    return run


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that something takes, by the clock and of the processor."""
    started, worked = perf_counter(), process_time()
    run()
    return perf_counter() - started, process_time() - worked


def measure(folder: Path, side: int, options: argparse.Namespace) -> dict[str, float]:
    """Return one row."""
    images = write_images(folder, side, options.images)
    network = bare(images[0], options.threads)
    how = {"threads": options.threads, "objects": options.objects, "table": options.objects}

    def batch(count: int, name: str) -> None:
        results = tilenet.batch(images[:count], folder / f"{side}-{name}", **how)
        assert [result.status for result in results] == ["done"] * count

    batch(2, "first")
    network()
    seconds, work, shares = [], [], []
    for turn in range(options.rounds):
        wall, cpu = timed(lambda turn=turn: batch(len(images), str(turn)))
        _, alone = timed(lambda: [network() for _ in images])
        seconds.append(wall)
        work.append(cpu)
        shares.append(alone / cpu)
    return {
        "side": side,
        "images": len(images),
        "images_per_s": round(len(images) / min(seconds), 2),
        "cpu_ms_per_image": round(1e3 * min(work) / len(images), 1),
        "network": round(median(shares), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048])
    for name, default in (("images", 32), ("threads", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--objects", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), side, options) for side in options.sides]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        rates = f"{row['images_per_s']:>7.2f} images/s  {row['cpu_ms_per_image']:>7.1f} ms"
        print(f"{row['side']:>6} px {rates}  network {row['network']:.0%}")


if __name__ == "__main__":
    main()
