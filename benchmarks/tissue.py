"""What skipping glass saves: runs of one slide with and without ``--tissue``, which take turns.

    python benchmarks/tissue.py SLIDE [--canvas 6144] [--rounds 3] [--json]
    python benchmarks/tissue.py SLIDE --lost [--level 1] [--channels 0]

With ``--canvas N``, the slide, a colour picture, is put in the middle of N x N px of its own glass, made by repeating
its brightest square. Scans of whole slides have that much glass; small test files do not. Each row is one round: the
seconds of each run, from opening the file to the last check of the mask, and their ratio. The last line has the
median ratio, and the fraction of the pixels that lies in blocks with tissue. The inverse of that fraction is an upper
bound on the ratio.

With ``--lost``, nothing is timed. The script counts the objects (connected pixels of the mask) that a run without
``--tissue`` finds, and those of them that lie entirely outside the tissue map. Because blocks are larger than the map's
cells, fewer objects are lost in fact.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import ndimage

import tilenet
from tilenet import machine
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.store import TissueMap

GLASS = 256


def on_canvas(slide: Path, side: int, out: Path) -> Path:
    """Write a pyramid with the slide in the middle of its own glass; return its path."""
    with tilenet.open_image(slide) as image:
        h, w = image.box_shape
        pixels = np.moveaxis(image.read_inside(tilenet.Box.of_shape((h, w))), 0, -1)
    corners = [(y, x) for y in range(0, h - GLASS, GLASS) for x in range(0, w - GLASS, GLASS)]
    y, x = max(corners, key=lambda at: pixels[at[0] : at[0] + GLASS, at[1] : at[1] + GLASS].mean())
    repeats = -(-side // GLASS)
    canvas = np.tile(pixels[y : y + GLASS, x : x + GLASS], (repeats, repeats, 1))[:side, :side]
    canvas[(side - h) // 2 :, (side - w) // 2 :][:h, :w] = pixels
    with tifffile.TiffWriter(out) as tiff:
        levels = [canvas[:: 2**k, :: 2**k] for k in range(4)]
        for k, level in enumerate(levels):
            first = {"subifds": len(levels) - 1} if not k else {"subfiletype": 1}
            tiff.write(level, tile=(256, 256), compression="jpeg", photometric="rgb", **first)
    return out


def lost(slide: Path, **options: Any) -> str:
    """Return a line saying how many objects lie outside the tissue map of a slide, and how large they are."""
    mask = tilenet.segment(slide, **options)
    job = make_job(slide, "nuclei", Options(tissue=True, **options))
    labels, count = ndimage.label(mask)
    # With the context that was added to what was found: all that is sure to be computed.
    widened = TissueMap(job.tissue.map.cells, job.tissue.map.covers)
    there = widened.at(*map(np.arange, mask.shape[-2:]))
    sizes = np.bincount(labels.ravel())
    inside = np.bincount(labels[..., there].ravel(), minlength=len(sizes))
    outside = sizes[1:][inside[1:] == 0]
    found = f"{slide.name}: {job.tissue.text}, {widened.fraction:.1%} of the cells"
    where = f"{len(outside)} of {count} objects lie outside, the largest of {max(outside, default=0)} px"
    return f"{found}; {where}, {outside.sum()} of {sizes[1:].sum()} px"


def main() -> None:
    """Measure, and print one row per round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--canvas", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lost", action="store_true")
    parser.add_argument("--level", type=int)
    parser.add_argument("--channels", type=int, nargs="+")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine.keep_freed_memory()
    if options.lost:
        print(lost(options.slide, level=options.level, channels=options.channels and tuple(options.channels)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = on_canvas(options.slide, options.canvas, folder / "slide.tif") if options.canvas else options.slide
        tilenet.segment(slide, folder / "warm.zarr", roi=[(0, 512), (0, 512)])
        rows, computed = [], 1.0
        for number in range(options.rounds):
            seconds = {}
            for tissue in (None, True) if number % 2 else (True, None):
                started = time.perf_counter()
                mask = tilenet.segment(slide, folder / "mask.zarr", tissue=tissue, overwrite=True)
                seconds["all" if tissue is None else "tissue"] = time.perf_counter() - started
                computed = computed if tissue is None else 1 - mask.info["tissue"]["skipped"]
            rows.append(seconds | {"ratio": seconds["all"] / seconds["tissue"]})
            if not options.json:
                print("  ".join(f"{key} {value:.2f}" for key, value in rows[-1].items()))
    result = {"ratio": statistics.median(row["ratio"] for row in rows), "computed": computed, "rounds": rows}
    print(
        json.dumps(result)
        if options.json
        else f"median ratio {result['ratio']:.2f}, {computed:.1%} of the pixels computed"
    )


if __name__ == "__main__":
    main()
