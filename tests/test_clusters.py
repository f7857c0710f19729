"""Clusters that tilenet starts: where they listen, and what each worker gets."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from batch_system import a_batch_system  # noqa: F401
from faults import wait_until
from serving import certificate
from workers import listening

from tilenet import machine
from tilenet.errors import EnvironmentFault, SettingsError
from tilenet.workers import batch_jobs, clusters
from tilenet.workers.cluster_file import Tls, read_description
from tilenet.workers.clusters import described_cluster, existing_cluster, local_cluster

PIPELINES = Path(__file__).parent.parent / "pipelines"
DESCRIPTION = """
type: slurm
arguments: {cores: 8, processes: 2, memory: 4GB}
adapt: {minimum: 0, maximum: 3}
"""


@pytest.mark.parametrize(
    ("count", "named", "device", "found"),
    [
        (4, "", None, ["0", "1", "2", "3"]),
        (4, "", "auto", ["0", "1", "2", "3"]),
        (4, "", "cuda", ["0", "1", "2", "3"]),
        (4, "", "cuda:2", ["2"]),
        (2, "5,GPU-7a", "cuda", ["5", "GPU-7a"]),
        (2, "5,GPU-7a", "cuda:1", ["GPU-7a"]),
        (4, "", "cpu", []),
        (0, "", None, []),
        (0, "", "mps", []),
    ],
)
def test_the_gpus_of_a_run_are_those_that_this_process_sees(monkeypatch, count, named, device, found):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert machine.visible_gpus(device) == found


def test_each_worker_has_its_gpu_and_its_share_of_the_cores_and_so_has_one_that_replaces_it(monkeypatch):
    monkeypatch.setattr(machine, "visible_gpus", lambda device: ["1", "GPU-7a"])
    monkeypatch.setattr(clusters, "LOOK", 200)
    monkeypatch.setattr(clusters.worker, "load", str)  # PyTorch takes seconds
    with machine.threads(8), local_cluster(3, device="cuda") as client:
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["1", "1", "GPU-7a"]
        assert machine.current_threads() == 2
        assert set(client.nthreads().values()) == {1}
        assert listening() == {"127.0.0.1"}
        before = set(client.nthreads())
        client.cluster.sync(client.cluster.workers[1].close)  # as one that its nanny gave up
        wait_until(lambda: len(client.nthreads()) == 3 and not before >= set(client.nthreads()))
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["1", "1", "GPU-7a"]


def test_a_cluster_of_jobs_listens_on_loopback_and_shares_a_job_s_cores_out(tmp_path):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION)
    before = machine.current_threads()
    with described_cluster(tmp_path / "cluster.yaml") as client:
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        assert listening() == {"127.0.0.1"}
        assert machine.current_threads() == 4
        assert client.cluster._adaptive.maximum == 3 * 2
        worker = client.cluster.job_script().splitlines()[-1]
        assert "--nworkers 2" in worker and worker.rindex("--nthreads 1") > worker.index("--nthreads 4"), (
            "the last holds"
        )
    assert machine.current_threads() == before


def test_a_job_is_one_process_with_all_its_cores_unless_said_otherwise(tmp_path):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION.replace(" processes: 2,", ""))
    with described_cluster(tmp_path / "cluster.yaml") as client:
        worker = client.cluster.job_script().splitlines()[-1]
        assert machine.current_threads() == 8 and "--nworkers" not in worker.replace("--nworkers 1", "")
        assert worker.rindex("--memory-limit 0") > worker.index("--memory-limit")


@pytest.mark.parametrize("device", [None, "auto"])
@pytest.mark.parametrize(
    "asked",
    [
        "queue: gpu",
        "queue: short-GPU",
        'job_extra_directives: ["--gres=gpu:1"]',
        'job_extra_directives: ["--exclude=gpu03", "--gpus-per-node=2"]',
        'job_extra_directives: ["-p gpu"]',
        'job_extra_directives: ["-A lab --gres=gpu:1"]',
        'job_extra_directives: ["-o /log/%j --gpus=1"]',
        'job_extra_directives: ["-gpu num=1"]',
        "resource_spec: 'select=1:ngpus=1'",
        "resource_spec: gpu=1",
    ],
)
def test_jobs_with_gpus_are_not_started_by_a_process_without_one_which_would_leave_them_idle(
    monkeypatch, tmp_path, asked, device
):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION.replace("4GB}", f"4GB, {asked}}}"))
    monkeypatch.setattr(machine, "visible_gpus", lambda device: [])
    with (
        pytest.raises(SettingsError, match=r"cluster\.yaml: asks for GPUs, and this machine.* or give --device cpu"),
        described_cluster(tmp_path / "cluster.yaml", device=device),
    ):
        pass


@pytest.mark.parametrize(
    ("asked", "device", "gpus"),
    [
        ("queue: cpu", None, []),
        ("queue: gpu", "cpu", []),
        ("queue: gpu", "cuda", []),
        ("queue: gpu", "auto", ["0"]),
        ("queue: ", None, []),
        ("python: /envs/gpu/bin/python, log_directory: /scratch/gpu-group, account: gpulab", None, []),
        ('job_script_prologue: ["module load gpu-tools"]', None, []),
        ('job_extra_directives: ["--exclude=gpu[01-04]", "-A gpulab", "-o /scratch/gpu/%j.out"]', None, []),
        ('job_extra_directives: ["--export=ALL,X=/opt/gpu", "--comment=\'a gpu\' -J gpu"]', None, []),
    ],
)
def test_jobs_are_started_if_they_lack_gpus_or_the_run_uses_them_or_a_device_was_given(
    monkeypatch, tmp_path, tilenet_command, asked, device, gpus
):
    def started(*_):
        raise SettingsError("the cluster is started")

    (tmp_path / "cluster.yaml").write_text(DESCRIPTION.replace("4GB}", f"4GB, {asked}}}"))
    monkeypatch.setattr(machine, "visible_gpus", lambda device: gpus)
    monkeypatch.setattr(batch_jobs, "cluster_class", started)
    options = ["--cluster", tmp_path / "cluster.yaml", *(["--device", device] if device else [])]
    code, _, err = tilenet_command("batch", "a.tif", "--out", tmp_path / "masks", *options)
    assert code == 2 and "the cluster is started" in err


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("cores: 8", "cores: eight", "cores must be a whole number from 1, not 'eight'"),
        ("cores: 8", "cores: '8'", "cores must be a whole number from 1, not '8'"),
        ("processes: 2", "processes: 0", "processes must be a whole number from 1, not 0"),
        ("processes: 2", "processes: ", "processes must be a whole number from 1, not None"),
        ("memory: 4GB", "memory: 32", "memory must be a number with a unit, such as 32GB, not 32"),
        ("memory: 4GB", "memory: much", "memory must be a number with a unit, such as 32GB, not 'much'"),
        ("maximum: 3", "maximum: 0", "40}, the second from 1, and not below the first"),
        (
            "memory: 4GB",
            "memory: 4GB, interface: ib9",
            "slurm does not take these arguments (RuntimeError: Cluster failed to start",
        ),
    ],
)
def test_numbers_that_no_job_can_have_start_nothing(tmp_path, before, after, said):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION.replace(before, after))
    with pytest.raises(SettingsError, match=re.escape(said)), described_cluster(tmp_path / "cluster.yaml"):
        pass
    assert listening() == set()


def test_ctrl_c_ends_a_run_in_the_same_way_after_dask_jobqueue_is_imported(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    before = signal.getsignal(signal.SIGINT)
    try:
        batch_jobs.cluster_class("slurm", {"cores": 1, "memory": "1GB"}, "cluster.yaml")
        assert signal.getsignal(signal.SIGINT) is before
        assert "dask_jobqueue.runner" in sys.modules, "what installs a handler of its own"
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("cluster_*.yaml")), ids=lambda path: path.stem)
def test_a_cluster_file_to_start_from_is_one(path):
    kind, arguments, adapt, _ = read_description(path)
    assert batch_jobs.cluster_class(kind, arguments, path).__name__.lower().startswith(kind)
    assert adapt["minimum"] <= adapt["maximum"]


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("worker_extra_args: --resources GPU=1", "worker_extra_args must be a list, such as ['--resources GPU=1']"),
        ("job_extra_directives: --qos=x", "job_extra_directives must be a list, such as ['--qos=x']"),
        ("job_script_prologue: module load x", "job_script_prologue must be a list, such as ['module load x']"),
        ("job_directives_skip: 5", "job_directives_skip must be a list, such as ['5']"),
        ("scheduler_options: 127.0.0.1", "scheduler_options must be names with values, such as {port: 8786}"),
    ],
)
def test_a_text_where_a_list_belongs_is_not_taken_letter_by_letter(tmp_path, said, refused):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION.replace("4GB}", f"4GB, {said}}}"))
    with pytest.raises(SettingsError, match=re.escape(f"cluster.yaml: {refused}")):
        read_description(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    ("walltime", "written"),
    [("10:00:00", "10:00:00"), ('"10:00:00"', "10:00:00"), ("1-12:00", "1-12:00"), ("90", "90")],
)
def test_a_walltime_is_that_of_the_file_with_quotes_or_without(tmp_path, walltime, written):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION.replace("4GB}", f"4GB, walltime: {walltime}}}"))
    with described_cluster(tmp_path / "cluster.yaml") as client:
        assert f"#SBATCH -t {written}" in client.cluster.job_script().splitlines()


def test_what_a_cluster_file_leaves_empty_is_as_left_out(tmp_path):
    (tmp_path / "cluster.yaml").write_text(
        DESCRIPTION.replace("4GB}", "4GB, scheduler_options: , worker_extra_args: }")
    )
    with described_cluster(tmp_path / "cluster.yaml"):
        assert listening() == {"127.0.0.1"}


def test_a_cluster_listens_elsewhere_where_that_is_said(tmp_path):
    said = "scheduler_options: {host: 0.0.0.0}}"
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION.replace("4GB}", f"4GB, {said}"))
    with described_cluster(tmp_path / "cluster.yaml"):
        assert "0.0.0.0" in listening()


def test_a_cluster_with_tls_lets_nobody_in_without_a_certificate(tmp_path, monkeypatch):
    cert, key = certificate(tmp_path)
    tls = f"tls: {{ca_file: {cert}, cert: {cert}, key: {key}}}\n"
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION + tls)
    with described_cluster(tmp_path / "cluster.yaml") as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert all(part in client.cluster.job_script() for part in ("--tls-ca-file", "--tls-cert", "--tls-key"))
        with pytest.raises(SettingsError, match=r"tls://.*: wants a certificate"), existing_cluster(address):
            pass
        monkeypatch.setitem(clusters.CONFIG, "distributed.comm.timeouts.connect", "1s")
        with (
            pytest.raises(EnvironmentFault, match="no scheduler answers"),
            existing_cluster(address.replace("tls", "tcp")),
        ):
            pass
        with (
            pytest.raises(SettingsError, match=r"tcp://.*: is not encrypted\. Give tls://"),
            existing_cluster(address.replace("tls", "tcp"), tls=Tls(str(cert), str(cert), str(key))),
        ):
            pass
    key.unlink()
    with pytest.raises(SettingsError, match=r"key\.pem: no such file"), described_cluster(tmp_path / "cluster.yaml"):
        pass


def test_without_the_command_that_submits_jobs_nothing_is_started(tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(SettingsError, match=r"cluster\.yaml: needs sbatch, which is not installed here\. Start"),
        described_cluster(tmp_path / "cluster.yaml"),
    ):
        pass


@pytest.mark.parametrize("text", ["{}", "[]", "5", '{"address": 5}', "", "host: 1", '{"type": "Feature", "id": "a"}'])
def test_a_file_of_no_scheduler_is_refused(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with (
        pytest.raises(SettingsError, match=r"file\.json: is no scheduler file\. Give the one of dask scheduler"),
        existing_cluster(str(tmp_path / "file.json")),
    ):
        pass


def test_a_scheduler_is_found_by_its_address_and_by_its_file(tmp_path):
    (tmp_path / "cluster.yaml").write_text(DESCRIPTION)
    with described_cluster(tmp_path / "cluster.yaml") as client:
        client.write_scheduler_file(str(tmp_path / "scheduler.json"))
        address = client.scheduler.address
        for scheduler in (address, str(tmp_path / "scheduler.json")):
            with existing_cluster(scheduler) as found:
                assert found.scheduler.address == address


@pytest.mark.parametrize("error", [AssertionError(), TypeError("Can't instantiate abstract class UCXConnector")])
def test_whatever_dask_raises_of_an_address_is_said_in_a_line(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("distributed.Client", fail)
    with (
        pytest.raises(EnvironmentFault, match=r"ucx://here:1: no scheduler answers \("),
        existing_cluster("ucx://here:1"),
    ):
        pass
