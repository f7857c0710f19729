"""How much of a GPU's matrix rate a network reaches, and how much of that a whole run keeps.

    python benchmarks/gpu.py [--wf 6] [--tile 2048] [--batch N] [--side 16384] [--device cuda] [--rounds 3] [--json]

One row for each precision (fp16, bf16, fp32). The network is the paper's U-Net (depth 5, unpadded) of three
channels. `matrix` is the rate of a product of two 8192 x 8192 matrices in that precision (fp32 without TF32), best of
ten. `network` runs the predictor on one batch that is on the device already; `command` is `tilenet.segment`, from a
JPEG pyramid of side x side px (256 px tiles, made from the sample photograph) to a zarr mask, everything included but
the start of Python. Px/s count output pixels, the best of the rounds; `efficiency` is ideal FLOP per output pixel
(infinite tile, no halo) x the network's px/s over the rate of the bf16 product; `of network` is the command's px/s over
the network's. Goals on an H200: an efficiency of at least 0.45 in bf16, `of network` at least 0.90.
Without a CUDA device it says so, and exits with 2.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from efficiency import ideal_flops
from reading import make_jpeg

import tilenet
from tilenet import predict
from tilenet.job import Job
from tilenet.options import Options
from tilenet.scaling import Scaling
from tilenet.settling import settle

PRECISIONS = ("fp16", "bf16", "fp32")
MATRIX = 8192


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the best FLOP/s of a matrix product there."""
    a = torch.rand(MATRIX, MATRIX, device=device).to(predict.PRECISIONS[precision])
    for _ in range(3):
        a @ a
    return 2 * MATRIX**3 / min(seconds(lambda: a @ a, device) for _ in range(10))


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return how long an action takes until the device has done it."""
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(job: Job, slide: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return px/s of the bare network and of the whole command, for the precision of a job."""
    device, precision = torch.device(job.device), job.record["precision"]
    predictor = job.predictor(Scaling())
    tiles = list(next(job.plan[0].batches(job.plan.batch)))
    with tilenet.open_image(slide) as image:
        there = torch.from_numpy(np.stack([image.read(tile.read) for tile in tiles])).to(device)

    def network() -> None:
        with predictor.computing(tuple(there.shape)):
            predictor.logits(there)

    def command() -> None:
        settings = {"tile": options.tile, "batch": options.batch, "memory": options.memory, "precision": precision}
        out = folder / f"{precision}.zarr"
        tilenet.segment(slide, out, model=job.network, device=job.device, overwrite=True, **settings)

    network()  # cuDNN loads its kernels
    bare = min(seconds(network, device) for _ in range(3 * options.rounds))
    whole = min(seconds(command, device) for _ in range(options.rounds))
    pixels = sum(tile.write.size for tile in tiles)
    return {"network_px_per_s": pixels / bare, "command_px_per_s": options.side**2 / whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("wf", 6), ("tile", 2048), ("batch", None), ("side", 16384), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", type=float, default=40e9, help="bytes of the device that a run may use")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        sys.exit(2)
    options.memory = int(options.memory)
    device = torch.device(options.device)
    torch.manual_seed(0)
    network = tilenet.UNet(in_channels=3, depth=5, wf=options.wf)
    flops, tensor_cores = ideal_flops(network), matrix_rate(device, "bf16")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        slide = f"{name}/slide.tif"
        make_jpeg(Path(slide), options.side)
        for precision in PRECISIONS:
            settings = Options(
                tile=options.tile,
                batch=options.batch,
                memory=options.memory,
                precision=precision,
                device=options.device,
            )
            found = measure(settle(slide, network, settings), slide, Path(name), options)
            found["efficiency"] = flops * found["network_px_per_s"] / tensor_cores
            found["of_network"] = found["command_px_per_s"] / found["network_px_per_s"]
            rows.append({"precision": precision, "matrix_flops": matrix_rate(device, precision), **found})
    if options.json:
        print(json.dumps({"device": torch.cuda.get_device_name(device), "flop_per_px": flops, "rows": rows}))
        return
    print(f"{torch.cuda.get_device_name(device)}, wf {options.wf}, tile {options.tile}, {flops / 1e6:.2f} MFLOP/px")
    for row in rows:
        rates = (
            f"network {row['network_px_per_s'] / 1e6:7.2f} Mpx/s  command {row['command_px_per_s'] / 1e6:7.2f} Mpx/s"
        )
        shares = f"efficiency {row['efficiency']:.2f}  of network {row['of_network']:.2f}"
        print(f"{row['precision']}  matrix {row['matrix_flops'] / 1e12:7.1f} TFLOP/s  {rates}  {shares}")


if __name__ == "__main__":
    main()
