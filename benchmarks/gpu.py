"""How close a network comes to a GPU's matrix rate, and how close a whole run comes to the network's speed.

    python benchmarks/gpu.py [--wf 6] [--tile 2048] [--batch 1] [--precisions bf16 fp16 fp32] [--rounds 3]
                             [--side 16384 | --slide FILE] [--workers 0 8] [--json]

There is one row for each precision. The network is the paper's U-Net (depth 5, unpadded) of three channels. `matrix` is
the rate of a product of two 8192 x 8192 matrices in that precision (fp32 without TF32), best of ten. `plain` and
`network` are output pixels per second for one batch of noise that is already on the device: through PyTorch's layers
(channels last) and through the fast path, which take turns; the best of the rounds counts. `efficiency` is ideal FLOP
per output pixel (infinite tile, no halo) x the network's px/s over the rate of the bf16 product. `bytes` is the peak
device memory of the fast path, per pixel read. `difference` is the largest difference between the fast path's logits
and those in float64, as a fraction of the range of the latter.

Then, for each number of workers (0: none), a process of its own runs `tilenet segment`, from a JPEG pyramid of side x
side px (256 px tiles, made from the sample photograph) to a zarr mask. `command` is its px/s including the start of
Python and of the workers; `run` is the px/s from the first block to the last of the pyramid. Both are also given
relative to the network's. Goals on an H200: an efficiency of at least 0.45 in bf16, and a `run` of at least 0.90 of the
network. Without a CUDA device, the script says so and exits with 2.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from efficiency import ideal_flops
from reading import make_jpeg

import tilenet
from tilenet.predict import predictors
from tilenet.predict.on_gpu import GpuPredictor
from tilenet.scaling import Scaling

MATRIX = 8192
CUDA = torch.device("cuda")


def matrix_rate(precision: str) -> float:
    """Return the best FLOP/s of a matrix product on the GPU."""
    a = torch.randn(MATRIX, MATRIX, device=CUDA).to(predictors.PRECISIONS[precision])
    for _ in range(3):
        a @ a
    return 2 * MATRIX**3 / min(seconds(lambda: a @ a) for _ in range(10))


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds until the device has finished an action."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_network(network: tilenet.UNet, precision: str, options: argparse.Namespace) -> dict[str, float]:
    """Return px/s of both engines on one batch, and the memory and error of the fast one."""
    read = options.tile + 2 * network.footprint.axes[0].lost
    x = torch.randint(0, 256, (options.batch, 3, read, read), dtype=torch.uint8, device=CUDA)
    made = {
        engine: GpuPredictor(
            network, network.footprint, device=CUDA, precision=precision, engine=engine, scaling=Scaling()
        )
        for engine in ("plain", "fast")
    }

    def run(engine: str) -> torch.Tensor:
        with made[engine].computing(tuple(x.shape)):
            return made[engine].logits(x)

    run("plain")  # cuDNN loads its kernels
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run("fast")
    peak = torch.cuda.max_memory_allocated() - before
    taken = {engine: [] for engine in made}
    for _ in range(options.rounds):
        for engine, times in taken.items():
            times.append(seconds(lambda engine=engine: run(engine)))
    pixels = options.batch * options.tile**2
    return {
        "plain_px_per_s": pixels / min(taken["plain"]),
        "network_px_per_s": pixels / min(taken["fast"]),
        "bytes_per_px": peak / (options.batch * read**2),
        "difference": error_of(network, made["fast"]),
    }


def error_of(network: tilenet.UNet, fast: GpuPredictor) -> float:
    """Return the largest difference of the fast path's logits from float64, as a fraction of their range."""
    side = network.footprint.axes[0].legal_at_least(600)
    x = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=CUDA)
    with torch.inference_mode():
        exact = copy.deepcopy(network).double().to(CUDA)(x.double())
        with fast.computing(tuple(x.shape)):
            return float((fast.logits(x).double() - exact).abs().max() / (exact.max() - exact.min()))


def measure_command(folder: Path, precision: str, workers: int, options: argparse.Namespace) -> dict[str, float]:
    """Return px/s of the whole command, and of the run alone."""
    slide = options.slide or folder / "slide.tif"
    command = [sys.executable, "-m", "tilenet", "segment", slide, "--out", folder / "mask.zarr"]
    command += ["--model", folder / "network.safetensors", "--device", "cuda", "--precision", precision]
    command += [
        "--tile",
        options.tile,
        "--batch",
        options.batch,
        "--memory",
        "40GB",
        "--overwrite",
        "--profile",
        "--json",
    ]
    command += ["--workers", workers] if workers else []
    started = time.perf_counter()
    printed = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    whole = time.perf_counter() - started
    profile = json.loads(printed)["profile"]["seconds"]
    with tilenet.open_image(slide) as image:
        pixels = prod(image.box_shape)
    return {
        "workers": workers,
        "command_px_per_s": pixels / whole,
        "run_px_per_s": pixels / profile["total"],
        **profile,
    }


def rows(options: argparse.Namespace) -> Iterator[dict]:
    torch.manual_seed(0)
    network = tilenet.UNet(in_channels=3, depth=5, wf=options.wf).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:  # keeps the logits from fading, so that both classes occur
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    flops, tensor_cores = ideal_flops(network), matrix_rate("bf16")
    with tempfile.TemporaryDirectory() as name:
        if options.workers:
            if not options.slide:
                make_jpeg(Path(name) / "slide.tif", options.side)
            tilenet.save_model(network, Path(name) / "network.safetensors")
        for precision in options.precisions:
            found = measure_network(network, precision, options)
            torch.cuda.empty_cache()
            found["efficiency"] = flops * found["network_px_per_s"] / tensor_cores
            commands = [measure_command(Path(name), precision, workers, options) for workers in options.workers]
            yield {"precision": precision, "matrix_flops": matrix_rate(precision), **found, "commands": commands}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("wf", 6), ("tile", 2048), ("batch", 1), ("side", 16384), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precisions", nargs="*", default=["bf16", "fp16", "fp32"])
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 8])
    parser.add_argument("--slide", help="in place of the one that is made")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        sys.exit(2)
    device = torch.cuda.get_device_name()
    if not options.json:
        print(f"{device}, wf {options.wf}, tile {options.tile}, batch {options.batch}")
    made = []
    for row in rows(options):
        made.append(row)
        if not options.json:
            tell(row)
    if options.json:
        print(json.dumps({"device": device, "wf": options.wf, "tile": options.tile, "rows": made}))


def tell(row: dict) -> None:
    plain, network = row["plain_px_per_s"], row["network_px_per_s"]
    print(f"{row['precision']}  matrix {row['matrix_flops'] / 1e12:5.0f} TFLOP/s", end="  ")
    print(f"plain {plain / 1e6:6.1f}  network {network / 1e6:6.1f} Mpx/s  efficiency {row['efficiency']:.2f}", end="  ")
    print(f"{row['bytes_per_px']:.0f} bytes/px  difference {row['difference']:.1e}", flush=True)
    for found in row["commands"]:
        command, run = found["command_px_per_s"], found["run_px_per_s"]
        print(f"      {found['workers']} workers", end="  ")
        print(f"command {command / 1e6:6.1f} Mpx/s ({command / network:.2f} of network)", end="  ")
        print(f"run {run / 1e6:6.1f} ({run / network:.2f})", end="  ")
        print(f"{found['total']:.1f} s, of them {found['finished']:.1f} to finish", flush=True)


if __name__ == "__main__":
    main()
