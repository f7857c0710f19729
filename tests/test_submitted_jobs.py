"""Jobs that a batch system refuses, keeps in its queue, or ends before their worker comes."""

import logging
import re
import time
from contextlib import contextmanager

import pytest
from batch_system import TIMED_OUT, a_batch_system  # noqa: F401
from faults import wait_until
from workers import write_image

from tilenet.errors import EnvironmentFault
from tilenet.workers import clusters, distributed, submitted_jobs
from tilenet.workers.clusters import described_cluster
from tilenet.workers.submitted_jobs import jobs_of

DESCRIPTION = """
type: {kind}
arguments: {{cores: 8, processes: {processes}, memory: 4GB}}
adapt: {{minimum: {minimum}, maximum: 3}}
"""
INVALID = "sbatch: error: Batch job submission failed: Invalid partition name specified"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Look at the jobs several times a second."""
    monkeypatch.setattr(clusters, "LOOK_AT_JOBS", 100)


def cluster_file(folder, *, kind="slurm", minimum=2, processes=1):
    file = folder / "cluster.yaml"
    file.write_text(DESCRIPTION.format(kind=kind, minimum=minimum, processes=processes))
    return file


@contextmanager
def jobs_in(file):
    """Start a cluster, and yield its jobs and Dask's cluster."""
    with described_cluster(file) as client:
        yield jobs_of(client.cluster), client.cluster


def seen_in_vain(jobs):
    try:
        jobs.raise_if_in_vain()
    except EnvironmentFault as error:
        return str(error)
    return ""


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_that_the_batch_system_refuses_are_submitted_again_and_no_others(
    tmp_path, caplog, batch_system, processes
):
    batch_system.refuse(5)
    with caplog.at_level(logging.INFO), jobs_in(cluster_file(tmp_path, minimum=3, processes=processes)) as (_, cluster):
        wait_until(lambda: batch_system.submitted == 8)
        time.sleep(0.5)
        assert batch_system.submitted == 8 and len(cluster.worker_spec) == 3
    assert caplog.messages == [f"a job was refused ({TIMED_OUT}). It is submitted again every half minute"]


def test_a_cluster_all_of_whose_jobs_are_refused_ends_without_a_word_of_dask(tmp_path, caplog, batch_system):
    batch_system.refuse_all(TIMED_OUT)
    with jobs_in(cluster_file(tmp_path)):
        wait_until(lambda: batch_system.submitted >= 5)
    assert [record.name for record in caplog.records] == ["tilenet"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("slurm", INVALID), ("pbs", "qsub: Unknown queue"), ("lsf", "nope: No such queue. Job not submitted.")],
)
@pytest.mark.parametrize("command", ["segment", "batch"])
def test_a_run_whose_jobs_are_refused_for_good_ends_with_the_words_of_the_batch_system(
    tmp_path, batch_system, tilenet_command, command, kind, words
):
    batch_system.refuse_all(words)
    image, out = write_image(tmp_path / "slide.tif"), tmp_path / ("m.zarr" if command == "segment" else "masks")
    options = ["--tile", "512", "--cluster", cluster_file(tmp_path, kind=kind)]
    code, _, said = tilenet_command(command, image, "--out", out, *options)
    assert code == 4
    assert f"error: {options[-1]}: every job is refused ({words}). Mend the arguments in {options[-1]}, and" in said


@pytest.mark.parametrize(
    "words",
    [
        TIMED_OUT,
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "qsub: would exceed queue normal's per-user limit of jobs in 'Q' state",
        "Unable to run job: job rejected: only 5 jobs are allowed per user (current job count: 5).",
    ],
)
def test_a_trouble_that_passes_is_waited_for(tmp_path, batch_system, words):
    batch_system.refuse(9, words)
    with jobs_in(cluster_file(tmp_path)) as (jobs, _):
        said = set()
        while batch_system.submitted < 9:
            said.add(seen_in_vain(jobs))
            time.sleep(0.01)
        assert said == {""}
        wait_until(lambda: jobs.remark().startswith("Jobs in the queue: 2"))


@pytest.mark.parametrize(
    "words",
    [
        INVALID,
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: error: Memory specification can not be satisfied",
        "sbatch: unrecognized option '--foo'",
        "qsub: Job violates queue and/or server resource limits",
    ],
)
def test_a_refusal_for_good_is_not_waited_for(tmp_path, batch_system, words):
    batch_system.refuse_all(words)
    with jobs_in(cluster_file(tmp_path)) as (jobs, _):
        wait_until(lambda: f"({words})" in seen_in_vain(jobs))


def test_while_one_job_is_accepted_the_refusal_of_others_ends_nothing(tmp_path, batch_system, monkeypatch):
    monkeypatch.setattr(submitted_jobs, "REFUSALS", 1)
    with jobs_in(cluster_file(tmp_path, minimum=1)) as (jobs, cluster):
        wait_until(lambda: len(cluster.workers) == 1)
        batch_system.refuse_all(INVALID)
        cluster.adapt(minimum_jobs=3, maximum_jobs=3)
        wait_until(lambda: batch_system.submitted >= 9)
        assert seen_in_vain(jobs) == ""
        wait_until(lambda: f"Jobs in the queue: 1 (Priority). Jobs refused: 2 ({INVALID})" in jobs.remark())


def test_jobs_that_are_refused_for_long_after_one_was_accepted_end_the_run(tmp_path, batch_system, monkeypatch):
    monkeypatch.setattr(submitted_jobs, "REFUSALS", 4)
    with jobs_in(cluster_file(tmp_path)) as (jobs, cluster):
        wait_until(lambda: len(cluster.workers) == 2)
        batch_system.refuse_all(INVALID)
        batch_system.forget_all()
        wait_until(lambda: INVALID in seen_in_vain(jobs))
        assert batch_system.submitted >= 2 + 2 * 4


def test_a_submission_that_gives_no_number_ends_the_run_instead_of_being_repeated(tmp_path, batch_system):
    batch_system.command("sbatch", "#!/bin/sh\necho Thank you\n")
    with jobs_in(cluster_file(tmp_path)) as (jobs, _):
        wait_until(lambda: "every job is refused (Could not parse job id" in seen_in_vain(jobs))


@pytest.mark.parametrize("kind", ["slurm", "lsf"])
def test_a_refusal_without_words_is_its_exit_code(tmp_path, batch_system, caplog, kind):
    batch_system.refuse_all(" ")
    with jobs_in(cluster_file(tmp_path, kind=kind)) as (jobs, _):
        wait_until(lambda: "every job is refused (exit code 1)" in seen_in_vain(jobs))
        wait_until(lambda: batch_system.submitted >= 8)
    assert caplog.messages == ["a job was refused (exit code 1). It is submitted again every half minute"]


def test_jobs_that_wait_are_not_submitted_again_and_a_remark_says_why_they_wait(tmp_path, batch_system):
    with jobs_in(cluster_file(tmp_path)) as (jobs, _):
        wait_until(lambda: "(Priority)" in jobs.remark())
        time.sleep(0.5)
        assert batch_system.submitted == 2 and seen_in_vain(jobs) == ""
        assert jobs.remark() == (
            "Jobs in the queue: 2 (Priority). The scheduler listens on this machine alone: for workers on others, give "
            "interface. See squeue --me, and the logs of the jobs"
        )


@pytest.mark.parametrize("says", ["exit 1", "echo 99999 of another"])
def test_a_queue_that_does_not_answer_or_is_another_takes_no_job_for_ended(tmp_path, batch_system, says):
    for command in ("squeue", "qstat", "bjobs"):
        batch_system.command(command, f"#!/bin/sh\n{says}\n")
    for kind in ("slurm", "pbs", "lsf", "sge") if says == "exit 1" else ("pbs", "lsf", "sge"):
        before = batch_system.submitted
        with jobs_in(cluster_file(tmp_path, kind=kind)) as (jobs, _):
            wait_until(lambda: jobs.remark().startswith("Jobs in the queue: 2"))
            time.sleep(0.5)
            assert batch_system.submitted == before + 2 and seen_in_vain(jobs) == ""


def test_jobs_that_end_before_a_worker_comes_are_submitted_again_and_end_the_run_if_all_do(tmp_path, batch_system):
    batch_system.forget_all()
    with jobs_in(cluster_file(tmp_path)) as (jobs, _):
        wait_until(lambda: seen_in_vain(jobs))
        said = re.search(
            r": (\d+) jobs ended before a worker came, job \d+ last\. Its log says why", seen_in_vain(jobs)
        )
        assert int(said[1]) >= submitted_jobs.ENDS  # more if it is looked at late
        wait_until(lambda: batch_system.submitted >= 6)
        jobs._had_worker = True
        assert seen_in_vain(jobs) == ""


@pytest.mark.parametrize("kind", ["pbs", "lsf", "sge"])
def test_other_systems_than_slurm_are_asked_which_jobs_ended_too(tmp_path, batch_system, kind):
    with jobs_in(cluster_file(tmp_path, kind=kind)) as (jobs, _):
        wait_until(lambda: jobs._listed_once)
        time.sleep(0.5)
        assert batch_system.submitted == 2 and seen_in_vain(jobs) == ""
        assert jobs.remark().startswith("Jobs in the queue: 2. ")
        batch_system.forget_all()
        wait_until(lambda: "jobs ended before a worker came" in seen_in_vain(jobs))


def test_jobs_that_are_cancelled_for_long_are_waited_for_at_the_end(tmp_path, batch_system):
    batch_system.command("scancel", '#!/bin/sh\n[ "$1" -gt 4 ] || sleep 3\n')
    batch_system.forget_all()
    with jobs_in(cluster_file(tmp_path)) as (jobs, cluster):
        wait_until(lambda: seen_in_vain(jobs))
    assert cluster.status.name == "closed"


def test_a_run_says_again_and_again_that_its_jobs_wait(tmp_path, batch_system, tilenet_command, monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", 0.5)
    monkeypatch.setattr(distributed, "WAKE", 0.1)
    said = []

    def warning(text, *words):
        said.append(text % words)
        if len(said) == 3:
            batch_system.forget_all()

    monkeypatch.setattr(distributed.LOG, "warning", warning)
    image, file = write_image(tmp_path / "slide.tif"), cluster_file(tmp_path, minimum=1)
    code, _, _ = tilenet_command("segment", image, "--out", tmp_path / "m.zarr", "--tile", "512", "--cluster", file)
    assert code == 4 and len(said) >= 3
    expected = r"no worker yet, for \d+ min: 12 blocks wait\. Jobs in the queue: "
    assert all(re.match(expected, line) for line in said[:3])
