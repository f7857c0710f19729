"""Batches on a real Slurm: two nodes on this machine, jobs that are cancelled, and the bytes of a local run.

tests/slurm.sh install && pytest -q -m slow tests/test_slurm.py
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import wait_until
from store_helpers import journal_lines, tree
from stub import SLEEP
from workers import write_image

import tilenet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("slurmctld") or os.geteuid() != 0, reason="needs tests/slurm.sh install, as root"
    ),
]
SCRIPT = Path(__file__).with_name("slurm.sh")
NAMES = ("a", "b", "c", "d")
# In the jobs it takes its time, so that those that are to be lost are not at their end by then.
MODEL = "stub:bright"
CLUSTER = """
type: slurm
arguments:
  cores: 1
  memory: 4GB
  walltime: "00:20:00"
  log_directory: {folder}
  death_timeout: 120
adapt: {{minimum: 1, maximum: 2}}
"""


@pytest.fixture
def slurm(tmp_path):
    """Start the cluster; return the environment in which its commands work."""
    folder = tmp_path / "slurm"
    subprocess.run([SCRIPT, "start", folder], check=True, timeout=120)
    paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1", SLEEP: "0.2"}
    yield {**os.environ, **paths, "SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([SCRIPT, "stop", folder], check=True)


def jobs(environ, states="R"):
    """Return the ids of the jobs that run, or are in other states of Slurm's."""
    command = ["squeue", "-h", "-t", states, "-o", "%A"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()


def lines_written(out):
    """Return the lines of the journals of all masks that are not complete."""
    return sum(map(journal_lines, out.glob("*.zarr")))


def test_a_batch_whose_jobs_are_cancelled_has_the_bytes_of_a_local_one(slurm, tmp_path):
    (tmp_path / "slides").mkdir()
    images = [write_image(tmp_path / "slides" / f"{n}.tif", seed=i, sides=(2048, 2048)) for i, n in enumerate(NAMES)]
    (tmp_path / "cluster.yaml").write_text(CLUSTER.format(folder=tmp_path))
    options = ["--model", MODEL, "--tile", "512", "--threads", "1", "--cluster", tmp_path / "cluster.yaml"]
    command = [sys.executable, "-m", "tilenet", "batch", tmp_path / "slides" / "*.tif", "--out", tmp_path / "masks"]
    seen, cancelled = set(), set()
    with (tmp_path / "said").open("w") as said:
        batch = subprocess.Popen([*map(str, command + options)], env=slurm, stdout=said, stderr=said)
        deadline = time.monotonic() + 400
        while batch.poll() is None and time.monotonic() < deadline:
            running = jobs(slurm)
            seen |= set(running)
            # A few blocks into the work of each, the first two jobs are lost.
            if len(cancelled) < 2 and running and lines_written(tmp_path / "masks") >= 5 * (len(cancelled) + 1):
                victim = min(set(running) - cancelled, default=None)
                if victim:
                    subprocess.run(["scancel", victim], env=slurm, check=True)
                    cancelled.add(victim)
            time.sleep(0.3)
        batch.kill()
        batch.wait()
    text = (tmp_path / "said").read_text()
    assert batch.returncode == 0, text
    assert text.splitlines()[-1].endswith("4 done, 0 skipped, 0 failed; see summary.csv")
    assert len(cancelled) == 2 and len(seen) >= 3, (cancelled, seen)
    for name, image in zip(NAMES, images, strict=True):
        tilenet.segment(image, tmp_path / "alone.zarr", model=MODEL, overwrite=True, tile=512, threads=1)
        assert tree(tmp_path / "masks" / f"{name}.zarr") == tree(tmp_path / "alone.zarr")
    wait_until(lambda: jobs(slurm) == [])
    print(f"\n{len(seen)} jobs, {len(cancelled)} of them cancelled; {len(NAMES)} masks identical")


def submit(environ, folder, *options):
    """Submit the job script of the page in a folder; return the id of the job."""
    script = SCRIPT.parent.parent / "pipelines" / "array_slurm.sh"
    batch = ["slides/*.tif", "--out", "masks", "--model", MODEL, "--tile", "512", "--threads", "1"]
    command = ["sbatch", "--parsable", "--cpus-per-task=1", "--mem=4G", *options, script, *batch]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_array_of_shares_one_of_them_cancelled_and_the_job_that_collects_have_the_bytes_of_a_local_batch(
    slurm, tmp_path
):
    (tmp_path / "slides").mkdir()
    for i, name in enumerate(NAMES):
        write_image(tmp_path / "slides" / f"{name}.tif", seed=i, sides=(2048, 2048))
    (tmp_path / "tilenet").write_text(f'#!/bin/sh\nexec {sys.executable} -m tilenet "$@"\n')
    (tmp_path / "tilenet").chmod(0o755)
    environ = slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SHARES": "2"}
    for attempt, jobs_wanted in ((1, "1-2"), (2, "1")):
        array = submit(environ, tmp_path, f"--array={jobs_wanted}")
        collects = submit(environ, tmp_path, f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
        if attempt == 1:
            wait_until(lambda: lines_written(tmp_path / "masks") >= 5, seconds=120)
            subprocess.run(["scancel", f"{array}_1"], env=environ, check=True)
        wait_until(lambda: time.sleep(0.5) or not jobs(environ, "PD,R,CG"), seconds=300)
        assert (tmp_path / "masks" / "summary.csv").exists() == (attempt == 2)
    assert "0 done, 4 skipped, 0 failed" in (tmp_path / f"slurm-{collects}.out").read_text()
    for name in NAMES:
        image = tmp_path / "slides" / f"{name}.tif"
        tilenet.segment(image, tmp_path / "alone.zarr", model=MODEL, overwrite=True, tile=512, threads=1)
        assert tree(tmp_path / "masks" / f"{name}.zarr") == tree(tmp_path / "alone.zarr")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("queue: nope", r"every job is refused \(sbatch: error: invalid partition specified: nope"),
        ("python: /nope/python", r"[45] jobs ended before a worker came, job [45] last\. Its log says why"),
    ],
)
def test_a_run_whose_jobs_are_all_refused_or_end_at_once_ends_and_says_why(slurm, tmp_path, argument, said):
    image, file = write_image(tmp_path / "slide.tif"), tmp_path / "cluster.yaml"
    file.write_text(CLUSTER.format(folder=tmp_path).replace("cores: 1", f"cores: 1\n  {argument}"))
    command = [sys.executable, "-m", "tilenet", "segment", image, "--out", tmp_path / "m.zarr", "--cluster", file]
    done = subprocess.run(list(map(str, command)), env=slurm, capture_output=True, text=True, timeout=400)
    assert done.returncode == 4 and re.search(said, done.stderr.splitlines()[-1]), done.stderr
    wait_until(lambda: jobs(slurm, "PD,R") == [])
