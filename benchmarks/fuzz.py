"""Mutated images and weights: each must be opened, or refused in one line, quickly and in little memory.

    python benchmarks/fuzz.py --mutations 5000 [--seed 0] [FILE ...]

Each mutation changes a few bytes (or JSON values) of a small TIFF, zarr image or checkpoint made here, or of one of the
FILEs given. A child process then opens and reads the result. Two outcomes are right: pixels (or a network), or one
`TilenetError`. Everything else is a fault: another exception, a signal, more than 10 s, or 512 MiB more memory. Each
row says how many mutations of a kind were opened, were refused, or gave a fault. A fault is printed with its number,
by which it can be repeated:

    python benchmarks/fuzz.py --only NUMBER [--seed 0] [FILE ...]
"""

import argparse
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import tifffile
import torch
import zarr

import tilenet
from tilenet.errors import ImageError, ModelError

SECONDS, KIBIBYTES = 10, 512 * 1024
OUTCOMES = ("opened", "refused", "fault")
NUMBERS = (0, 1, -1, 7, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
VALUES = (None, True, 0, -1, 1e300, 2**31, 2**62, "", "x", "../..", [], {}, [0, 0], [[]], {"name": "x"})
EDGE = 2048
# Suffixes of files that are neither TIFFs nor folders.
KINDS = {".h5": "HDF5", ".ims": "HDF5", ".czi": "CZI", ".nd2": "ND2", ".lif": "LIF"} | dict.fromkeys(
    (".pth", ".pt", ".safetensors"), "weights"
)


def make_seeds(folder: Path) -> list[Path]:
    """Write a small file of each kind that tilenet reads."""
    random = np.random.default_rng(0)
    pixels = np.kron(random.integers(0, 255, (30, 25)), np.ones((8, 8))).astype(np.uint8)
    for name, options in {
        "zlib": {"tile": (64, 64), "compression": "zlib"},
        "lzw": {"tile": (64, 64), "compression": "lzw", "predictor": True},
        "jpeg": {"tile": (64, 64), "compression": "jpeg"},
        "jpeg2000": {"tile": (64, 64), "compression": "jpeg2000"},
        "strips": {"rowsperstrip": 16, "compression": "packbits"},
        "big": {"tile": (64, 64), "bigtiff": True},
        "ome": {"tile": (64, 64), "ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.5}},
    }.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels, **options)
    axes = [{"name": axis, "type": "space"} for axis in "yx"]
    for name, options in {"sharded": {"shards": (64, 64)}, "v2": {"zarr_format": 2}}.items():
        group = zarr.create_group(folder / f"{name}.zarr", zarr_format=options.get("zarr_format", 3))
        group.create_array("0", data=pixels, chunks=(32, 32), shards=options.get("shards"))
        scale = {"type": "scale", "scale": [1, 1]}
        image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
        v2 = name == "v2"
        group.attrs.update(
            {"multiscales": [image | {"version": "0.4"}]} if v2 else {"ome": {"version": "0.5", "multiscales": [image]}}
        )
    network = tilenet.UNet(depth=2, wf=2, batch_norm=True)
    torch.save({"state_dict": network.state_dict()}, folder / "new.pth")
    torch.save(network.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    tilenet.save_model(network, folder / "card.safetensors")
    return sorted(folder.iterdir())


def kind_of(path: Path) -> str:
    """Return the row of the table in which a seed counts."""
    if path.is_dir():
        return "zarr"
    return KINDS.get(path.suffix, "TIFF")


def mutate(path: Path, random: np.random.Generator) -> None:
    """Change a file, or one of the files in a folder, in place."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        documents = [file for file in files if file.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup")]
        path = (
            files[random.integers(len(files))] if random.random() < 0.3 else documents[random.integers(len(documents))]
        )
        if path in documents and random.random() < 0.7:
            document = json.loads(path.read_bytes())
            for _ in range(random.integers(1, 4)):
                change_value(document, random)
            path.write_text(json.dumps(document))
            return
    content = bytearray(path.read_bytes())
    for _ in range(random.integers(1, 9)):
        change_bytes(content, random)
    path.write_bytes(content)


def change_value(document: object, random: np.random.Generator) -> None:
    """Replace or remove a random value of a JSON document."""
    while isinstance(document, dict | list) and document:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = keys[random.integers(len(keys))]
        if not (isinstance(document[key], dict | list) and document[key]) or random.random() < 0.15:
            if random.random() < 0.2:
                del document[key]
            else:
                # A copy, as later mutations change it.
                document[key] = deepcopy(VALUES[random.integers(len(VALUES))])
            return
        document = document[key]


def change_bytes(content: bytearray, random: np.random.Generator) -> None:
    """Flip, set, cut or repeat some bytes, more often in headers and tables at both ends than in pixels."""
    n = len(content)
    if not n:
        return
    at = int(random.choice([random.integers(n), random.integers(min(n, EDGE)), n - 1 - random.integers(min(n, EDGE))]))
    match random.integers(7):
        case 0 if random.random() < 0.8:
            content[at] ^= 1 << random.integers(8)
        case 1:
            content[at] = random.integers(256)
        case 2 | 3:
            number = NUMBERS[random.integers(len(NUMBERS))] % 2**32
            content[at : at + 4] = struct.pack("<I", number)[: len(content[at : at + 4])]
        case 4:
            content[at : at + 2] = struct.pack("<H", random.integers(2**16))[: len(content[at : at + 2])]
        case 5 if random.random() < 0.3:
            del content[at : at + random.integers(1, 64)]
        case 6 if random.random() < 0.3:
            content[at:at] = content[at : at + random.integers(1, 64)]
        case 0 | 5 | 6 if random.random() < 0.1:
            del content[at:]


def attempt(path: Path) -> str:
    """Open and read a file; return the outcome, or a description of the fault."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        if kind_of(path) == "weights":
            tilenet.load_model(path)
        else:
            read_some(path)
        outcome = "opened"
    except (ImageError, ModelError) as error:
        outcome = "refused" if "\n" not in str(error) else f"several lines: {error}"
    except Exception:
        outcome = traceback.format_exc()
    if (seconds := time.process_time() - start) > SECONDS:
        return f"{seconds:.0f} s"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return outcome if used < KIBIBYTES else f"{used // 1024} MiB more"


def read_some(path: Path) -> None:
    """Read the corners of the first and last level."""
    with tilenet.open_image(path) as image:
        for level in {0, len(image.levels) - 1}:
            shape = image.at_level(level).box_shape
            first = tilenet.Box((0,) * len(shape), tuple(min(n, 256) for n in shape))
            last = tilenet.Box(tuple(max(0, n - 256) for n in shape), tuple(shape))
            for box in (first, last):
                outer = tuple(slice(a, a + 1) for a in box.start[:-2])
                sides = [*((s.start, s.stop) for s in outer), *zip(box.start[-2:], box.stop[-2:], strict=True)]
                image.at_level(level).read(tilenet.Box(*map(tuple, zip(*sides, strict=True))))


def try_mutation(number: int, seed: int, seeds: list[Path], folder: Path) -> tuple[str, str]:
    """Make and try the mutation of this number; return its kind and outcome."""
    source = seeds[number % len(seeds)]
    random = np.random.default_rng((seed, number))
    path = folder / f"mutated{source.suffix}"
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
    mutate(path, random)
    return kind_of(source), attempt(path)


def work(numbers: range, seed: int, seeds: list[Path], folder: Path, board: mmap.mmap, log: Path) -> None:
    """Try mutations one after another, in the child process; the board always holds the current number."""
    with log.open("a") as lines:
        for number in numbers:
            board[:8] = struct.pack("<q", number)
            lines.write(json.dumps([number, *try_mutation(number, seed, seeds, folder)]) + "\n")
            lines.flush()


def watch(pid: int, board: mmap.mmap) -> str:
    """Wait for the child process, killing it if it hangs; return what was wrong with it, or an empty string."""
    number, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "" if code == 0 else f"ended by signal {-code}" if code < 0 else f"exit {code}"
        (now,) = struct.unpack("<q", board[:8])
        if now != number:
            number, since = now, time.monotonic()
        if time.monotonic() - since > 3 * SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hangs"
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat one, and show what it does")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder, log = Path(home), Path(home) / "log"
        (folder / "seeds").mkdir()
        seeds = [*make_seeds(folder / "seeds"), *options.files]
        if options.only is not None:
            print(seeds[options.only % len(seeds)].name, *try_mutation(options.only, options.seed, seeds, folder))
            return
        board, first, started = mmap.mmap(-1, 8), 0, time.monotonic()
        rows: Counter[tuple[str, str]] = Counter()
        while first < options.mutations:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                torch.set_num_threads(1)
                work(range(first, options.mutations), options.seed, seeds, folder, board, log)
                os._exit(0)
            if wrong := watch(pid, board):
                (last,) = struct.unpack("<q", board[:8])
                print(f"{last} ({seeds[last % len(seeds)].name}): {wrong}")
                rows[kind_of(seeds[last % len(seeds)]), "fault"] += 1
                first = last + 1
            else:
                first = options.mutations
        for number, kind, outcome in map(json.loads, log.read_text().splitlines()):
            if outcome not in OUTCOMES:
                print(f"{number} ({seeds[number % len(seeds)].name}): {outcome}")
            rows[kind, outcome if outcome in OUTCOMES else "fault"] += 1
    print(f"{'':8} {'mutations':>10} " + " ".join(f"{outcome:>8}" for outcome in OUTCOMES))
    for kind in ("TIFF", "zarr", *dict.fromkeys(KINDS.values()), "all"):
        counts = [sum(n for (k, o), n in rows.items() if kind in (k, "all") and o == outcome) for outcome in OUTCOMES]
        if any(counts):
            print(f"{kind:8} {sum(counts):10} " + " ".join(f"{count:8}" for count in counts))
    print(f"{time.monotonic() - started:.0f} s, seed {options.seed}, {len(seeds)} files")
    sys.exit(any(outcome == "fault" for _, outcome in rows))


if __name__ == "__main__":
    main()
