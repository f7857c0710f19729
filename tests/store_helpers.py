"""Small stores, their truth, and a process that can be killed at any step.

Run as a program it is a `ForkServer`: each request is one run of a store in a forked process, so
that a kill costs a fraction of a second.
"""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from tilenet.store import Layout, Store, TissueMap, can_resume, file_system

# Flags of mount(2).
REMOUNT, READ_ONLY = 32, 1
VOLATILE = ".tilenet/log.jsonl"
INFO = {
    "version": "0.0",
    "image": {"path": "a.tif"},
    "model": {"name": "stub"},
    "card": {"labels": {"1": "one"}},
    "record": {"tile": [16, 16], "threshold": 0.5},
    "scaling": {"method": "none"},
}
LABELS = {1: ("one", (255, 0, 0, 255)), 2: ("two", (0, 0, 255, 255))}
FRAME = {
    "axes": [{"name": "t", "type": "time", "unit": "second"}, *({"name": n, "type": "space"} for n in "yx")],
    "scale": [60.0, 500.0, 250.0],
    "translation": [0.0, 3.0, 0.0],
}
TISSUE = TissueMap(np.arange(35).reshape(7, 5) % 3 == 0, (401, 290)).to_json()
LAYOUTS = {
    "plane": Layout("yx", (701, 533), (128, 256), (0.25, 0.5), "plane", LABELS),
    "odd blocks": Layout("yx", (401, 301), (97, 151), (None, None), "odd", LABELS, 3),
    "one pixel": Layout("yx", (1, 1), (512, 512), (None, None), "dot", {}, 1),
    "one row": Layout("yx", (1, 1030), (64, 64), (None, 1.0), "row", LABELS),
    "volume": Layout("zyx", (21, 301, 277), (16, 128, 96), (2.0, 0.5, 0.5), "volume", LABELS),
    "series": Layout("tyx", (3, 40, 290), (2, 32, 100), (None, 0.5, 0.5), "series", LABELS, 2, "float16"),
    "format 2": Layout(
        "tyx",
        (3, 40, 290),
        (2, 32, 100),
        (None, 0.5, 0.5),
        "0.4",
        LABELS,
        2,
        zarr_format=2,
        frame=FRAME,
        tissue=TISSUE,
    ),
    "part with tissue": Layout(
        "zyx", (3, 40, 100), (2, 32, 64), (2.0, 0.5, 0.5), "part", LABELS, origin=(0, 361, 190), tissue=TISSUE
    ),
    "all axes": Layout("tzyx", (2, 3, 270, 33), (1, 2, 150, 32), (1.0, 2.0, 0.5, 0.5), "all", LABELS, 2),
    "many labels": Layout("yx", (300, 50), (512, 512), (None, None), "many", {1000: ("far", None)}),
    "tiny": Layout("yx", (300, 40), (128, 64), (0.5, 0.5), "tiny", LABELS),
    "tiny with classes": Layout("yx", (300, 40), (128, 64), (0.5, 0.5), "tiny", LABELS, 2),
}
# Masks in an image: their folder is its labels group.
PLANE_FRAME = {name: values[1:] for name, values in FRAME.items()}
INSIDE = {
    f"inside, format {zarr_format}": replace(
        LAYOUTS["tiny"], zarr_format=zarr_format, source="../../", frame=PLANE_FRAME
    )
    for zarr_format in (2, 3)
}


@contextmanager
def beating(*files):
    """Let the hearts of lease files beat."""
    stop = threading.Event()

    def beat():
        while not stop.wait(0.1):
            for file in files:
                os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def truth_of(layout, seed=0):
    """Return mask and probabilities (K, *shape); whole blocks of the mask are background."""
    random = np.random.default_rng(seed)
    values = np.array([0, *layout.labels], layout.mask_dtype)
    mask = values[random.integers(0, len(values), layout.shape)]
    for index in range(0, layout.n_blocks(0), 3):
        if layout.n_blocks(0) > 1:
            mask[layout.box(0, index).slices] = 0
    probabilities = random.random((layout.classes, *layout.shape)).astype(layout.probability_dtype)
    return {"mask": mask, "probabilities": probabilities}


def part(layout, truth, index):
    """Return the arrays of one block."""
    return {name: array[(..., *layout.box(0, index).slices)] for name, array in truth.items()}


def write_all_blocks(store, truth, indices=None):
    for index in store.pending() if indices is None else indices:
        store.write(index, part(store.layout, truth, index))


def finish(store):
    """Complete a store whose blocks are written."""
    store.build_pyramid()
    store.finish()


def make(path, layout, *, seed=0, **options):
    """Write a complete store; return its truth."""
    truth = truth_of(layout, seed)
    store = Store.create(path, layout, INFO, **options)
    write_all_blocks(store, truth)
    finish(store)
    return truth


def run(path, layout, *, seed=0, overwrite=False, delay=0.0, until=None):
    """Do what a command would: start or go on, and finish; given a file, not before there is that."""
    if can_resume(path) and not overwrite:
        store = Store.resume(path)
    else:
        store = Store.create(path, layout, INFO, overwrite=overwrite)
    try:
        if until:
            wait_until(Path(until).exists)
        truth = truth_of(layout, seed)
        for index in store.pending():
            store.write(index, part(layout, truth, index))
            time.sleep(delay)
        store.build_pyramid(progress=lambda done, total: time.sleep(delay))
        store.finish()
    finally:
        store.close()


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.003)


def write_for(leader, path, layout, blocks, lines):
    """Write blocks for the run of another process, and its lines into a file."""
    store, truth = Store.join(path, leader), truth_of(layout)
    found = b"".join(store.write(index, part(layout, truth, index)) for index in blocks)
    store.close()
    if lines:
        Path(lines).write_bytes(found)


def random_numbers():
    """Return random numbers; their seed is shown where the test fails."""
    seed = np.random.SeedSequence().entropy
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def tree(path):
    """Return the content of every file but the volatile one, by relative path."""
    return {
        name: file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and (name := file.relative_to(path).as_posix()) != VOLATILE
    }


def tree_hash(path):
    digest = sha256()
    for name, content in tree(path).items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def journal_lines(path):
    """Return the lines of all journals of a store that is not complete."""
    try:
        return sum(len(file.read_bytes().splitlines()) for file in (path / ".tilenet" / "journal").glob("*.jsonl"))
    except FileNotFoundError:
        return 0  # tidied away this moment


class KillAtStep:
    """Stands in for `files.step`: kills this process before, in the middle of, or after one."""

    def __init__(self, number, when):
        self.left, self.when, self.do = number, when, file_system.step

    def __call__(self, name, do, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left == 0 and self.when == "torn" and do is file_system.write_all:
            handle, data = args
            os.write(handle, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return self.do(name, do, *args, **kwargs)
        finally:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def damage_of(path):
    """Return the damage of a store."""
    return Store.inspect(path).check()


def replace_step(stand_in, setattr=setattr):
    """Put a stand-in where every module of the store finds `step`."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tilenet.store") and hasattr(module, "step"):
            setattr(module, "step", stand_in)


class ForkServer:
    """A program that runs `serve`, with what is imported by this process in reach."""

    def __init__(self, program):
        self._server = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def ask(self, **request):
        """Start a process, and return its number; given ``wait_for``, a number, return how that process ended."""
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def wait(self, pid, seconds=120):
        """Return the exit code of a process, negative if it was killed; None if it was still running, and is killed."""
        return self.ask(wait_for=pid, seconds=seconds)

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def serve(child):
    """Answer the requests of a `ForkServer`: call `child`, which ends its process, in a fork."""
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("wait_for"):
            answer = _wait(pid, request["seconds"])
        else:
            answer = os.fork()
            if answer == 0:
                child(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


class Children(ForkServer):
    """Runs in processes of their own."""

    def __init__(self):
        super().__init__(__file__)

    def run(self, path, layout, **options):
        """Return how a run ended: 0, or -9 if it was killed."""
        return self.wait(self.start(path, layout, **options))

    def start(self, path, layout, **options):
        return self.ask(path=str(path), layout=layout, **options)


def load_all_that_is_loaded_by(run):
    """Import, before forking, all that a fork imports; by name, because running zarr here would start threads."""
    source, sink = os.pipe()
    if os.fork() == 0:
        folder = Path(tempfile.mkdtemp())
        run(folder)
        shutil.rmtree(folder)
        os.write(sink, " ".join(name for name in sys.modules if not name.startswith("_")).encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as told:
        for name in told.read().split():
            with suppress(ImportError):
                importlib.import_module(name)
    assert os.wait()[1] == 0, "it failed"


def _child(request):
    from tilenet.errors import TilenetError

    status = 99
    try:
        if kill := request.get("kill"):
            replace_step(KillAtStep(*kill))
        path, layout = Path(request["path"]), (LAYOUTS | INSIDE)[request["layout"]]
        if "join" in request:
            write_for(request["join"], path, layout, request["blocks"], request.get("lines"))
        else:
            run(
                path,
                layout,
                **{name: request[name] for name in ("seed", "overwrite", "delay", "until") if name in request},
            )
        status = 0
    except TilenetError as error:
        status = error.exit_code
        if "said" in request:
            Path(request["said"]).write_text(str(error))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    load_all_that_is_loaded_by(lambda folder: run(folder / "m.zarr", LAYOUTS["tiny with classes"]))
    serve(_child)
