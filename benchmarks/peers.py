"""Speed, memory and error of other ways to run the same network on the same slide.

    pip install -c constraints.txt ".[peers]"
    python benchmarks/peers.py [--wf 5] [--side 2048] [--tiles 256 512 1024] [--rounds 1] [--json]

A slide (grey, side x side px, tiled TIFF) goes through a U-Net of depth 5, from file to mask. Every run is a child
process of its own; the ways take turns, and the best of the rounds counts, without imports. All ways have the same
weights, threads and allocator setting, and channels-last tensors where they can choose. Each runs one tile of the given
side at a time, as batches of such tiles gain nothing on a CPU; how much overlap or context it adds is its own choice:

- ``tilenet``      `tilenet.segment` to a zarr store; ``tilenet padded`` the same with the zero-padded network
- ``MONAI``        `sliding_window_inference`, overlap 0.25, gaussian; needs the zero-padded network
- ``tiler``        `Tiler` and `Merger`, overlap 0.25, Hann window, the zero-padded network
- ``map_overlap``  `dask.array.map_overlap`, 96 px, "reflect", the zero-padded network
- ``paper loop``   the unpadded network on tiles laid edge to edge, mirrored at the border: Ronneberger et al. 2015
- ``whole``        one pass over the whole mirrored image: exact, if memory allows

`peak` is the child's VmHWM. The errors are the largest differences of its logits from those of one pass over the whole
mirrored image, as a fraction of their range, on a corner of the slide that is larger than the tile: `seams` at least
128 px from the corner's border, `border` nearer to it, where MONAI pads with zeros and Dask repeats the edge pixel.
`times` is how many times faster tilenet is, with its fastest tile size whose peak is at most that of the row.
"""

import argparse
import json
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path

import child
import numpy as np
import tifffile
import torch

import tilenet
from tilenet import machine

# Sides of the corner that the logits are compared on, each larger than the tiles that it is for.
CORNERS = (1024, 2048)
# The border has no effect on logits this far inside: more than the context, more than zero padding reaches.
RIM = 128
# Wider than zero padding reaches at depth 5, and a multiple of the step.
HALO = 112
# What the unpadded network of depth 5 loses at each end.
CONTEXT = 92
OVERLAP = 96
OURS = ("tilenet", "tilenet padded")


def mirrored(pixels, before, after):
    """Return the image with a mirrored border, as a batch of one, channels last."""
    x = np.pad(pixels, ((before, after), (before, after)), mode="reflect").astype(np.float32)[None, None]
    return torch.from_numpy(x).contiguous(memory_format=torch.channels_last)


def whole(networks, pixels, tile):
    """Run one pass over the mirrored image."""
    network = networks["valid"]
    wanted = len(pixels) + 2 * CONTEXT
    after = CONTEXT + network.footprint.axes[0].legal_at_least(wanted) - wanted
    return network(mirrored(pixels, CONTEXT, after))[0, :, : len(pixels), : len(pixels)]


def whole_padded(networks, pixels):
    """Run one pass of the zero-padded network, with its border too far away to matter."""
    return networks["padded"](mirrored(pixels, HALO, HALO))[0, :, HALO:-HALO, HALO:-HALO]


def paper_loop(networks, pixels, tile):
    """Run tiles of a legal size, edge to edge."""
    network, side = networks["valid"], len(pixels)
    read = network.footprint.axes[0].legal_at_least(tile + 2 * CONTEXT) - 16  # 572 -> 388, and so on
    step = read - 2 * CONTEXT
    padded = mirrored(pixels, CONTEXT, CONTEXT + -side % step)
    out = torch.empty(2, side, side)
    for y in range(0, side, step):
        for x in range(0, side, step):
            found = network(padded[..., y : y + read, x : x + read].contiguous(memory_format=torch.channels_last))
            out[:, y : y + step, x : x + step] = found[0, :, : side - y, : side - x]
    return out


def monai(networks, pixels, tile):
    """Run MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    x = torch.from_numpy(pixels.astype(np.float32))[None, None]
    network = networks["padded"]
    return sliding_window_inference(
        x, tile, 1, lambda b: network(b.contiguous(memory_format=torch.channels_last)), overlap=0.25, mode="gaussian"
    )[0]


def tiler(networks, pixels, tile):
    """Blend overlapping tiles, as the package does."""
    from tiler import Merger, Tiler

    tiles = Tiler(pixels.shape, (tile, tile), overlap=0.25, mode="reflect")
    padding = [tuple(p) for p in tiles.calculate_padding()[1]] if tiles.calculate_padding()[1] is not None else None
    padded = np.pad(pixels, padding, mode="reflect")
    tiles.recalculate(data_shape=padded.shape)
    merger = Merger(tiles, window="hann", logits=2)
    for number, found in tiles(padded.astype(np.float32)):
        x = torch.from_numpy(found)[None, None].contiguous(memory_format=torch.channels_last)
        merger.add(number, networks["padded"](x)[0].numpy())
    return torch.from_numpy(merger.merge(extra_padding=padding))


def map_overlap(networks, pixels, tile):
    """Run Dask's overlapping blocks, one at a time."""
    import dask
    import dask.array as da

    def logits(block):
        x = torch.from_numpy(block.astype(np.float32))[None, None].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            return networks["padded"](x)[0].numpy()

    image = da.from_array(pixels, chunks=tile)
    surrounded = da.overlap.overlap(image, depth=OVERLAP, boundary="reflect")
    found = surrounded.map_blocks(logits, dtype=np.float32, new_axis=0, chunks=((2,), *surrounded.chunks))
    trimmed = da.overlap.trim_internal(found, {0: 0, 1: OVERLAP, 2: OVERLAP}, boundary="reflect")
    with dask.config.set(scheduler="synchronous"):
        return torch.from_numpy(trimmed.compute())


PEERS = {"MONAI": monai, "tiler": tiler, "map_overlap": map_overlap, "paper loop": paper_loop, "whole": whole}
IMPORTS = {
    "MONAI": ("monai.inferers",),
    "tiler": ("tiler",),
    "map_overlap": ("dask.array",),
    "paper loop": (),
    "whole": (),
}
UNPADDED = ("paper loop", "whole", "tilenet")


def measure(way, tile, slide):
    """Run one way once, in this process; return its seconds, peak and errors."""
    machine.keep_freed_memory()
    torch.set_num_threads(2)
    networks = make_networks(json.loads(slide.with_suffix(".json").read_text())["wf"])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in IMPORTS.get(way, ("zarr",)):
            import_module(module)
        start = time.perf_counter()
        segment(way, networks, tile, slide)
        seconds, peak = time.perf_counter() - start, child.memory()
        side = next((side for side in CORNERS if side > tile), CORNERS[0])  # one pass has no seam anywhere
        pixels = tifffile.imread(slide)[:side, :side]
        truth = (whole(networks, pixels, tile) if way in UNPADDED else whole_padded(networks, pixels)).numpy()
        if way in OURS:
            network = networks[weights_of(way)]
            found = tilenet.segment(pixels, model=network, tile=tile, threads=2, output="logits")
        else:
            found = PEERS[way](networks, pixels, tile).numpy()
    return {"seconds": seconds, "peak": peak, **errors(found, truth)}


def errors(found, truth):
    """Return the largest differences of logits (K, y, x), inside and near the border, as a fraction of their range."""
    differences = np.abs(found - truth).max(0) / np.ptp(truth)
    inside = differences[RIM:-RIM, RIM:-RIM].max()
    differences[RIM:-RIM, RIM:-RIM] = 0
    return {"seams": float(inside), "border": float(differences.max())}


def segment(way, networks, tile, slide):
    """Take a slide from file to mask."""
    if way in OURS:
        network, out = networks[weights_of(way)], slide.with_name("mask.zarr")
        tilenet.segment(slide, out, model=network, tile=tile, threads=2, overwrite=True)
    else:
        PEERS[way](networks, tifffile.imread(slide), tile).argmax(0).to(torch.uint8)


def weights_of(way):
    """Return which of the two networks a way runs."""
    return "valid" if way in UNPADDED else "padded"


def make_networks(wf):
    """Return the unpadded and the zero-padded network, with the same weights."""
    torch.manual_seed(0)
    valid = tilenet.UNet(depth=5, wf=wf).eval().requires_grad_(False)
    for layer in valid.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(layer.weight)  # with PyTorch's default, deep levels would hardly matter
    padded = tilenet.UNet(depth=5, wf=wf, padding=True).eval().requires_grad_(False)
    padded.load_state_dict(valid.state_dict())
    return {name: n.to(memory_format=torch.channels_last) for name, n in (("valid", valid), ("padded", padded))}


def compare(rows):
    """Add to each row how many times faster tilenet is without using more memory."""
    ours = [row for row in rows if row["way"] == "tilenet"]
    for row in rows:
        fitting = [own["px_per_s"] for own in ours if own["peak_bytes"] <= row["peak_bytes"]]
        row["times"] = round(max(fitting) / row["px_per_s"], 2) if fitting and row["way"] not in OURS else None
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("wf", 5), ("side", 2048), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tiles", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = [(way, tile) for tile in options.tiles for way in (*OURS, *PEERS) if way != "whole"]
    runs.append(("whole", options.side))
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tif"
        pixels = np.random.default_rng(0).integers(0, 255, (options.side, options.side), dtype=np.uint8)
        tifffile.imwrite(slide, pixels, tile=(256, 256), compression="zlib")
        slide.with_suffix(".json").write_text(json.dumps({"wf": options.wf}))
        found = {run: [] for run in runs}
        for _ in range(options.rounds):
            for run in runs:
                found[run].append(child.run(measure, *run, slide))
    rows = compare(
        [
            {
                "way": way,
                "tile": tile,
                "px_per_s": round(options.side**2 / min(one["seconds"] for one in measured)),
                "peak_bytes": max(one["peak"] for one in measured),
                **{name: max(one[name] for one in measured) for name in ("seams", "border")},
            }
            for (way, tile), measured in found.items()
        ]
    )
    if options.json:
        print(json.dumps({"wf": options.wf, "side": options.side, "rows": rows}))
        return
    for row in rows:
        times = f"{row['times']:.2f}x" if row["times"] else ""
        speed, peak = f"{row['px_per_s']:>8} px/s", f"{row['peak_bytes'] / 1e9:6.2f} GB"
        wrong = f"seams {row['seams']:.0e}, border {row['border']:.0e}"
        print(f"{row['way']:<15} {row['tile']:>5}  {speed}  {peak}  {wrong}  {times}")


if __name__ == "__main__":
    main()
