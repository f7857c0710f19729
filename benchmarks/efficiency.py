"""Useful-FLOP efficiency of the whole command, and of other ways to run the same network.

    python benchmarks/efficiency.py [--wf 6 | --model nuclei] [--side 4096] [--memory GB] [--rounds 2] [--json]

A slide (a tiled TIFF of noise) of side x side px goes through an unpadded U-Net of depth 5, or through a model. Each
row is one way to run it:

- ``command``    `tilenet.segment`: TIFF in, zarr out, everything included except the start of Python
- ``network``    the same engine on every fourth of the same tiles, in memory, and nothing else
- ``plain``      the plain network on the same tiles in memory, channels last
- ``paper loop`` the plain network, channels first, on input tiles of 572 px laid edge to edge, as most people run it

`px/s` counts output pixels. `efficiency` is ideal FLOP per output pixel (infinite tile, no halo) x px/s / the best
rate of a 4096 x 4096 float32 matrix product in this process (best of ten): 1.0 means that every useful FLOP ran
at the speed of a matrix product. The ways take turns, and the best of the rounds counts. Run it on a quiet machine.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch

import tilenet
from tilenet import machine
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.predict import predictors

# All ways but the command run only every fourth tile, as speeds are per pixel.
EVERY = 4


def ideal_flops(network):
    """Return multiplications and additions per output pixel of an infinite tile."""
    total = 0.0
    for i, block in enumerate(network.down_path):
        total += sum(2 * m.weight.numel() for m in block.modules() if isinstance(m, torch.nn.Conv2d)) / 4**i
    for j, up in enumerate(network.up_path):
        level = network.depth - 2 - j
        total += 2 * up.up.weight.numel() / 4 / 4**level  # each output pixel of a 2x2 stride 2 sees one tap
        total += sum(2 * m.weight.numel() for m in up.conv_block.modules() if isinstance(m, torch.nn.Conv2d)) / 4**level
    return total + 2 * network.last.weight.numel()


def matrix_rate():
    """Return the best FLOP/s of a float32 matrix product on this machine."""
    a = torch.rand(4096, 4096)
    a @ a
    return 2 * 4096**3 / min(timed(lambda: a @ a) for _ in range(10))


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ways(network, slide, folder, options):
    """Return the job, and name -> (action, output pixels)."""
    how = {"memory": options.memory and int(options.memory * 1e9), "threads": options.threads}
    job = make_job(slide, network, Options(**how))
    tiles = [tile for block in job.plan for tile in block.tiles][::EVERY]
    batches = [job.image.read(tile.read)[None] for tile in tiles]
    fast = job.predictor(job.resolve_scaling())
    arguments = {"device": torch.device("cpu"), "precision": "fp32", "scaling": job.resolve_scaling()}
    plain = predictors.TorchPredictor(network, network.footprint, engine="plain", **arguments)
    naive = [
        torch.from_numpy(np.ascontiguousarray(b[..., :572, :572])).float() for b in batches if min(b.shape[2:]) >= 572
    ]
    pixels, whole = sum(tile.write.size for tile in tiles), np.prod(job.plan.shape)
    (kept, _) = network.footprint.output_shape((572, 572))

    def paper():
        with torch.inference_mode():
            for x in naive:
                network(x)

    def command():
        tilenet.segment(slide, folder / "m.zarr", model=network, overwrite=True, **how)

    return job, {
        "command": (command, int(whole)),
        "network": (lambda: [fast(b) for b in batches], pixels),
        "plain": (lambda: [plain(b) for b in batches], pixels),
        "paper loop": (paper, len(naive) * kept**2),
    }


def write_slide(path, side, channels):
    """Write noise as a tiled TIFF: grey, or red, green and blue."""
    shape = (side, side) if channels == 1 else (side, side, channels)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), compression="zlib", photometric="rgb" if channels == 3 else "minisblack"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("wf", 6), ("side", 4096), ("threads", 2), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", help="a model, in place of the classic network")
    parser.add_argument("--memory", type=float, help="GB, as segment takes them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine.keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = tilenet.load_model(options.model) if options.model else tilenet.UNet(depth=5, wf=options.wf).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_slide(folder / "slide.tif", options.side, network.in_channels)
        job, runs = ways(network, folder / "slide.tif", folder, options)
        rate, best = matrix_rate(), dict.fromkeys(runs, 1e9)
        for _ in range(options.rounds):
            for way, (action, _) in runs.items():
                best[way] = min(best[way], timed(action))
            rate = max(rate, matrix_rate())
        job.image.close()
    flops = ideal_flops(network)
    rows = [
        {"way": way, "px_per_s": round(count / best[way]), "efficiency": round(flops * count / best[way] / rate, 3)}
        for way, (_, count) in runs.items()
    ]
    found = {
        "model": options.model or f"depth 5, wf {options.wf}",
        "tile": job.plan.tile,
        "engine": job.record["engine"],
    }
    found |= {"matrix_gflops": round(rate / 1e9), "mflop_per_px": round(flops / 1e6, 3), "rows": rows}
    if options.json:
        print(json.dumps(found))
        return
    print(", ".join(f"{name} {value}" for name, value in found.items() if name != "rows"))
    for row in rows:
        print(f"{row['way']:<12} {row['px_per_s']:>10} px/s   efficiency {row['efficiency']:.2f}")


if __name__ == "__main__":
    main()
