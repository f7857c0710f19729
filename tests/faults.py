"""The command in processes that can be killed: ``main()`` in forks of a server that has loaded PyTorch.

Run as a program it is that server. The model called ``stub`` is a NumPy predictor; everything else is the command as a
user runs it.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import tifffile
from store_helpers import (  # noqa: F401 - for the tests
    ForkServer,
    KillAtStep,
    journal_lines,
    load_all_that_is_loaded_by,
    random_numbers,
    replace_step,
    serve,
    tree,
    tree_hash,
    wait_until,
)
from stub import sum_of_nine

from tilenet.card import ModelCard
from tilenet.footprint import Footprint

SIDES = (2048, 2560)
BLOCKS, ENTRIES = 20, 30
TILES_PER_BLOCK = 4
# Pixels along x of what a model is asked before a run, at the most.
ASKED = 128
STUB = ("--model", "stub", "--tile", "256", "--batch", "2")
# Computed, and not yet in the journal: one in the making, two being written.
IN_FLIGHT = 3


class Stub:
    """Tells whether the 3 x 3 pixels around one are bright.

    Parameters
    ----------
    sleep : float
        Seconds per batch.
    calls : path
        Gets one byte per tile.
    fault : str
        What goes wrong: ``nan``, ``memory``, ``error``, ``die``, ``hang`` (in C, where no handler runs), ``wait``
        (which a signal ends).
    at : list of int
        In which calls.
    bright : int
        Sum of nine pixels.
    hanging : path
        Made when it hangs.
    until : path
        What it waits for; nothing ends a wait for no file.
    """

    footprint = Footprint.same(2, reach=1)

    def __init__(self, *, sleep=0.01, calls=None, fault="", at=(), bright=900, hanging=None, until=None):
        self.sleep, self.calls, self.hanging, self.until, self.bright = sleep, calls, hanging, until, bright
        self.fault, self.at = fault, at
        self.card = ModelCard(name="stub")
        self.number = -1

    def __call__(self, batch):
        tile = batch.shape[-1] > ASKED  # not what a model is asked before a run
        if tile:
            self._count(len(batch))
        fault = self.fault if tile and self.number in self.at else ""
        if fault == "hang":
            Path(self.hanging).touch()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        while fault == "wait" and not (self.until and Path(self.until).exists()):
            time.sleep(0.003)
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "memory":
            raise MemoryError
        if fault == "error":
            raise ValueError("the lamp went out")
        total = sum_of_nine(batch)
        if fault == "nan":
            total[0, 0, 9, 9] = np.nan
        return np.concatenate([np.full_like(total, self.bright), total], axis=1)

    def _count(self, tiles):
        self.number += 1
        if self.calls:
            with Path(self.calls).open("ab") as file:
                file.write(b"." * tiles)
        time.sleep(self.sleep)


def use_stub(stub, setattr=setattr):
    """Have the model called ``stub`` be a `Stub` of some arguments."""
    from tilenet.models import named

    load, find = named.load_model, named.find_model
    setattr(named, "load_model", lambda name: Stub(**stub) if Path(name).name == "stub" else load(name))
    setattr(named, "find_model", lambda name: Path(name) if Path(name).name == "stub" else find(name))


def write_image(path, *, seed=0, sides=SIDES, side=128):
    """Write a tiled TIFF of noise on a slope, so that its mask is neither empty nor full."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 120, sides[1], dtype=np.uint8)
    pixels = random.integers(0, 136, sides, dtype=np.uint8) // 8 * 8 + slope
    tifffile.imwrite(path, pixels, tile=(side, side), compression="zlib")
    return path


class Commands(ForkServer):
    """Commands in processes of their own, with what they print in files."""

    def __init__(self, folder):
        super().__init__(__file__)
        self.folder, self.number = folder, 0

    def start(self, *args, **request):
        """Start a command; `stub` are arguments of `Stub`, `environ` and `limit` see `_child`."""
        self.number += 1
        prints = self.folder / f"prints{self.number}"
        command = Command(self, self.ask(args=[str(a) for a in args], prints=str(prints), **request))
        command.prints = prints
        return command

    def run(self, *args, **request):
        """Return (exit code, what was printed to stderr)."""
        return self.start(*args, **request).wait()


class Command:
    """One of them."""

    def __init__(self, commands, pid):
        self._commands, self.pid = commands, pid

    def wait(self, seconds=120):
        """Return (exit code, stderr); the code of a killed one is negative."""
        status = self._commands.wait(self.pid, seconds)
        assert status is not None, f"still running after {seconds} s: {self.said}"
        return status, self.said

    @property
    def said(self):
        file = Path(f"{self.prints}.err")
        return file.read_text() if file.exists() else ""  # killed before it could make the file

    def signal(self, number):
        """Send a signal; False if it had ended by itself."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def is_complete(out):
    """Tell what the store says of itself."""
    root = out / "zarr.json"
    return root.exists() and json.loads(root.read_bytes())["attributes"]["tilenet"]["complete"]


def entries(out):
    """Return the number of journal entries, 0 before there is a store."""
    merged = out / ".tilenet" / "journal.jsonl"
    return len(merged.read_bytes().splitlines()) - 1 if merged.exists() else journal_lines(out)


def stray(out):
    """Return files that a run leaves only if it was not cleaned up after."""
    beside = [p.name for p in out.parent.glob(f".{out.name}*")]
    inside = [p for pattern in ("*.part", "lock.*") for p in out.rglob(pattern)]
    return [*beside, *inside]


def _serve():
    import torch

    torch.set_num_threads(1)
    load_all_that_is_loaded_by(_every_command)
    serve(_child)


def _every_command(folder):
    """Do what tests have commands do."""
    from tilenet.cli.main import main

    image, out = write_image(folder / "slide.tif", sides=(300, 300)), folder / "m.zarr"
    use_stub({"sleep": 0})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the server answers
    for args in (("segment", image, "-o", out, *STUB, "--objects"), ("verify", out)):
        sys.argv = ["tilenet", *map(str, args)]
        main()


def _end_with(server):
    """End this process when the server is gone: nobody else would end one that hangs."""
    while os.getppid() == server:
        time.sleep(0.5)
    os._exit(98)


def _child(request):
    from tilenet.cli.main import main

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for number, ending in ((1, "out"), (2, "err")):
        handle = os.open(f"{request['prints']}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request.get("environ", {}))
    if (stub := request.get("stub")) is not None:
        use_stub(stub | {"hanging": request.get("hanging")})
    if request.get("hang_reads"):
        from tilenet.readers.image import Image

        Image.read = lambda self, box: (Path(request["hanging"]).touch(), time.sleep(600))
    if side := request.get("block"):
        from tilenet import sizes

        sizes.BLOCK_SIDES = {2: (side, side)}
    if pieces := request.get("pieces"):
        from tilenet.runs import object_places

        object_places.PIECES = {2: pieces}
    if kill := request.get("kill"):
        replace_step(KillAtStep(*kill))
    if bytes_ := request.get("file_size_limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
    os.chdir(request.get("cwd", "."))
    sys.argv = ["tilenet", *request["args"]]
    status, before, start = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if request.get("measure"):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            used = {"seconds": time.process_time() - start, "kibibytes": peak - before}
            Path(f"{request['prints']}.used").write_text(json.dumps(used))
        os._exit(status)


if __name__ == "__main__":
    _serve()
