"""Where blocks are computed: the options ``--workers``, ``--scheduler``, ``--cluster``, and the clusters they start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from tilenet.cli.options import FILE, with_options
from tilenet.errors import SettingsError

WAYS = ("workers", "scheduler", "cluster")
TLS = ("tls_ca_file", "tls_cert", "tls_key")


cluster_options = with_options(
    click.option("--workers", type=click.IntRange(1), help="Processes on this machine, which share its cores or GPUs."),
    click.option("--scheduler", help="A running Dask scheduler: tcp://host:port, tls://... or a scheduler file."),
    click.option("--cluster", type=FILE, help="A YAML file: a cluster of Slurm, PBS, LSF or SGE jobs."),
    click.option("--tls-ca-file", help="With --scheduler tls://...: the authority that signed its certificate."),
    click.option("--tls-cert", help="The certificate of this client."),
    click.option("--tls-key", help="The key of this client."),
)


def refuse_with_shard(options: Mapping[str, Any]) -> None:
    """Raise if one mask is to be divided both among processes without a leader and among workers, which need time."""
    given = [f"--{way}" for way in WAYS if options[way] is not None]
    if given and options["shard"] is not None:
        raise SettingsError(f"--shard and {given[0]}: workers share the blocks by themselves. Leave one of them out")


@contextmanager
def cluster_of(options: dict[str, Any]) -> Iterator[Any]:
    """Remove the cluster options from `options`, and yield a Dask client, or None if none of them was given.

    Without a client, objects are found in as many processes as the network has threads, if there are as many cores.
    """
    workers, scheduler, cluster = (options.pop(name) for name in WAYS)
    files = [options.pop(name) for name in TLS]
    if sum(way is not None for way in (workers, scheduler, cluster)) > 1:
        raise SettingsError("--workers, --scheduler and --cluster: give only one of them")
    if any(files) and not (all(files) and scheduler):
        raise SettingsError("--tls-ca-file, --tls-cert and --tls-key go together, with --scheduler")
    if (workers, scheduler, cluster) == (None, None, None):
        from tilenet import machine
        from tilenet.workers.processes import several_processes

        cores = machine.current_threads()
        with several_processes(min(cores, options.get("threads") or cores)):
            yield None
        return
    from tilenet.workers import clusters
    from tilenet.workers.cluster_file import Tls

    if workers is not None:
        started = clusters.local_cluster(workers, device=options.get("device"))
    elif scheduler is not None:
        started = clusters.existing_cluster(scheduler, tls=Tls(*files) if all(files) else None)
    else:
        started = clusters.described_cluster(cluster, device=options.get("device"))
    with started as client:
        yield client
