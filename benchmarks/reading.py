"""Tiles per second that reach the network, compared with libraries that people would otherwise read them with.

    python benchmarks/reading.py [FILE ...] [--side 8192] [--tile 512] [--context 92] [--rounds 3] [--json]

The reads are those of a plan: tiles of 512 px with 92 px of context on each side, in the plan's order, by as many
threads as a run reads with. Without files, the script makes two from the sample photograph: a JPEG pyramid (tiles of
256 px) and, mirrored over and over too, sharded zarr (chunks of 256 px, shards of 2048 px, zstd). Ways to read:

- ``tilenet``  `Image.read`, mirrored where a tile leaves the image
- ``aszarr``   `zarr.open(tifffile.imread(path, aszarr=True))`, the documented way to read a part of a TIFF
- ``openslide`` `read_region`, with a cache as large as tilenet's (the package openslide-python)
- ``zarr``     zarr-python as it comes
- ``zarrs``    zarr-python with the codec pipeline of the package zarrs

The other ways read only what lies inside the image. In each round the ways take turns, each beginning with nothing
cached. `tiles/s` is the best of the rounds, `ratio` the median over the rounds of tilenet's rate over that of the row,
and `difference` the largest difference from tilenet's pixels (OpenSlide may decode JPEG slightly differently).
`decodes` says how often tilenet decoded each file tile or chunk on average: 1.0 is once. It promises to decode each of
them once per row of blocks, whatever the number of reads.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from statistics import median
from time import perf_counter

import imagecodecs
import numpy as np
import tifffile
import zarr
from skimage import data

from tilenet import open_image
from tilenet.footprint import Footprint
from tilenet.geometry import Box, ceil_div, mirror
from tilenet.readers.image import CACHE_BYTES, READERS
from tilenet.sizes import plan_tiles

Read = Callable[[Box], np.ndarray]
FILE_TILE, SHARD, LEVELS = 256, 2048, 3


def make_jpeg(path: Path, side: int) -> None:
    """Write the sample photograph, repeated to side x side px, as a JPEG pyramid; equal tiles are encoded once."""
    photo = data.immunohistochemistry()
    unit = np.pad(photo, ((0, len(photo)), (0, len(photo)), (0, 0)), mode="symmetric")

    @cache
    def encoded(y: int, x: int, step: int) -> bytes:
        rows, columns = ((a + np.arange(FILE_TILE)) * step % len(unit) for a in (y, x))
        pixels = unit[np.ix_(rows, columns)]
        return imagecodecs.jpeg_encode(pixels, level=85, colorspace="RGB", outcolorspace="YCBCR", subsampling=(2, 2))

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(LEVELS):
            n, period = side >> level, len(unit) >> level
            starts = range(0, n, FILE_TILE)
            tiff.write(
                (encoded(y % period, x % period, 1 << level) for y in starts for x in starts),
                shape=(n, n, 3),
                dtype="u1",
                photometric="rgb",
                tile=(FILE_TILE, FILE_TILE),
                compression="jpeg",
                subfiletype=int(level > 0),
                metadata=None,
            )


def make_zarr(path: Path, side: int) -> None:
    """Write the same photograph, mirrored over and over, as a sharded zarr array (c, y, x)."""
    photo = data.immunohistochemistry()
    array = zarr.create_array(
        path,
        shape=(3, side, side),
        dtype="u1",
        chunks=(3, FILE_TILE, FILE_TILE),
        shards=(3, SHARD, SHARD),
        dimension_names=["c", "y", "x"],
    )
    for y in range(0, side, SHARD):
        rows = photo[np.ix_([mirror(i, 512) for i in range(y, y + SHARD)], [mirror(i, 512) for i in range(side)])]
        array[:, y : y + SHARD] = np.moveaxis(rows, 2, 0)[:, : side - y]


@contextmanager
def by_aszarr(path: str) -> Iterator[Read]:
    with tifffile.imread(path, aszarr=True, level=0) as store:
        array = zarr.open_array(store, mode="r")
        yield lambda box: np.moveaxis(array[box.slices], 2, 0) if array.ndim == 3 else array[box.slices][None]


@contextmanager
def by_openslide(path: str) -> Iterator[Read]:
    import openslide

    with openslide.OpenSlide(path) as slide:
        slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        yield lambda box: np.moveaxis(np.asarray(slide.read_region(box.start[::-1], 0, box.shape[::-1]))[..., :3], 2, 0)


@contextmanager
def by_zarr(path: str) -> Iterator[Read]:
    array = zarr.open_array(path, mode="r")
    yield lambda box: array[..., *box.slices]


@contextmanager
def by_zarrs(path: str) -> Iterator[Read]:
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), by_zarr(path) as read:
        yield read


def ways_of(path: str) -> dict[str, Callable[[str], object]]:
    """Return the other ways to read a file."""
    if Path(path).is_dir():
        return {"zarr": by_zarr} | ({"zarrs": by_zarrs} if find_spec("zarrs") else {})
    openslide = find_spec("openslide") and __import__("openslide").OpenSlide.detect_format(path)
    return {"aszarr": by_aszarr} | ({"openslide": by_openslide} if openslide else {})


def tiles_per_second(read: Read, boxes: list[Box]) -> float:
    started = perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(read, boxes):
            pass
    return len(boxes) / (perf_counter() - started)


def n_pieces(path: str) -> int:
    """Return how many file tiles or chunks there are, counting those of all channels as one."""
    if Path(path).is_dir():
        array = zarr.open_array(path, mode="r")
        plane = list(zip(array.shape, array.chunks, strict=True))[array.ndim > 2 :]  # channels are the first axis
    else:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            plane = list(zip(page.shape, page.chunks, strict=True))[:2]
    return prod(ceil_div(length, side) for length, side in plane)


def measure(path: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Return one row for each way to read a file."""
    with open_image(path) as image:
        inside, shape = Box.of_shape(image.box_shape), image.box_shape
    footprint = Footprint.valid(2, step=16, lost=options.context)
    plan = plan_tiles(shape, footprint, tile=options.tile)
    tiles = [tile.read for block in plan for tile in block.tiles]
    rates: dict[str, list[float]] = {"tilenet": []}
    differences = {"tilenet": 0}
    sample = tiles[:: max(1, len(tiles) // 16)]
    for _ in range(options.rounds):
        with open_image(path) as image:
            rates["tilenet"].append(tiles_per_second(image.read, tiles))
            expected = [image.read(box & inside) for box in sample]
            decodes = image.n_decoded
        for way, opening in ways_of(path).items():
            with opening(path) as read:
                rates.setdefault(way, []).append(tiles_per_second(lambda box, read=read: read(box & inside), tiles))
                found = [read(box & inside) for box in sample]
            wrong = [np.abs(a.astype(int) - b).max() for a, b in zip(expected, found, strict=True)]
            differences[way] = int(max(wrong))
    return [
        {
            "file": "/".join(Path(path).parts[-2:]),
            "way": way,
            "tiles": len(tiles),
            "tiles_per_s": round(max(found), 1),
            "ratio": round(median(a / b for a, b in zip(rates["tilenet"], found, strict=True)), 2),
            "difference": differences[way],
            "decodes": round(decodes / n_pieces(path), 2) if way == "tilenet" else None,
        }
        for way, found in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="a TIFF of any kind, or a zarr array (c, ..., y, x)")
    for name, default in (("side", 8192), ("tile", 512), ("context", 92), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = options.files
        if not files:
            files = [f"{folder}/jpeg.tif", f"{folder}/sharded.zarr"]
            make_jpeg(Path(files[0]), options.side)
            make_zarr(Path(files[1]), options.side)
        rows = [row for path in files for row in measure(path, options)]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        decodes = f"decodes {row['decodes']:.2f}" if row["decodes"] else f"difference {row['difference']}"
        rate = f"{row['tiles_per_s']:>8.1f} tiles/s  ratio {row['ratio']:>6.2f}"
        print(f"{row['file']:<36} {row['way']:<10} {rate}  {decodes}")


if __name__ == "__main__":
    main()
