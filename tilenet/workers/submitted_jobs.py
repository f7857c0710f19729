"""Jobs that were submitted to a batch system: some are refused, wait for hours, or end before their worker comes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilenet.errors import EnvironmentFault, one_line

LOG = logging.getLogger("tilenet")
# Most characters that are shown of what a batch system says.
LONGEST = 300
# What a batch system says of troubles that pass: it does not answer, or takes no more jobs of this user for now.
PASSING = re.compile(
    r"time[d-]? ?out|contact|connect|communicat|temporar|try again|retry|unavailable|busy|zero bytes|drain|"
    r"MaxSubmit|would exceed|number of jobs|jobs are allowed",
    re.IGNORECASE,
)
# How often in a row all jobs may be refused after one was accepted; how many may end before the first worker comes.
REFUSALS, ENDS = 20, 4
# How users ask why their jobs wait.
ASK = {"slurm": "squeue --me", "pbs": "qstat", "lsf": "bjobs", "sge": "qstat"}
# How tilenet asks which jobs wait or run: each has a line, which its number begins. Slurm says why it waits, too.
LIST = {
    "slurm": ["squeue", "--noheader", "--me", "--format=%A %r"],
    "pbs": ["qstat"],
    "lsf": ["bjobs", "-w"],
    "sge": ["qstat", "-s", "a"],
}
# LSF may be set up to give this for an error.
NONE_LISTED = "No unfinished job found"
LOOPBACK = "The scheduler listens on this machine alone: for workers on others, give interface. "


class SubmittedJobs:
    """The jobs of one cluster: submits some of them again, and knows when that is in vain."""

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self.kind = path, kind  # the cluster file, and its batch system
        self._cluster: Any = None
        self._accepted = self._had_worker = False
        self._refused_in_a_row, self._said = 0, set[str]()
        self._ended, self._reasons = list[str](), set[str]()
        # Whether one of the jobs was ever listed, and which were not when the batch system was last asked.
        self._listed_once, self._unlisted = False, set[str]()

    def job_class(self, kind_of_job: Any) -> Any:
        """Return a class of jobs whose `refusal` says why they were refused: Dask takes them for started."""
        from distributed.core import Status

        jobs = self

        class Job(kind_of_job):  # type: ignore[misc]
            refusal = ""

            async def start(self) -> None:
                try:
                    await super().start()
                    jobs._accepted = True
                except (RuntimeError, OSError, ValueError) as error:  # the command fails, cannot start, or gives no id
                    self.refusal = _words_of(error)
                    self.status = Status.running  # Dask asserts this here

            @staticmethod
            async def _call(cmd: list[str], **options: Any) -> Any:
                # For LSF, dask-jobqueue throws the words away that say why a job is refused.
                return await kind_of_job._call([part.removesuffix(" 2> /dev/null") for part in cmd], **options)

            async def close(self) -> None:
                await super().close()
                self.status = Status.closed  # Dask asserts in the end that no job is open

        return Job

    def watch(self, cluster: Any) -> None:
        """Name the cluster whose jobs these are; `jobs_of` returns them."""
        self._cluster = cluster
        cluster.submitted_jobs = self

    async def submit_again(self) -> None:
        """Submit the jobs again that were refused, or that ended before their worker came; in Dask's event loop."""
        self._refused_in_a_row = self._refused_in_a_row + 1 if self._all_refused() else 0
        refused = self._refused()
        for refusal in sorted({job.refusal for job in refused.values()} - self._said):
            self._said.add(refusal)
            LOG.warning("a job was refused (%s). It is submitted again every half minute", refusal)
        ended = await self._find_ended()
        self._ended += [job.job_id for job in ended.values()]
        workers = self._cluster.workers
        again = [name for name in (*refused, *ended) if name in workers]
        for name in again:
            # Dask waits for these when it closes a cluster, and asserts that no job is open then.
            self._cluster._futures.add(asyncio.ensure_future(workers.pop(name).close()))
        if again:
            self._cluster.scale(jobs=len(self._cluster.worker_spec))

    def raise_if_in_vain(self) -> None:
        """Raise `EnvironmentFault` if the batch system takes no job, or if all jobs end before their worker comes."""
        self._had_worker = self._had_worker or bool(self._workers())
        refusals = [job.refusal for job in self._refused().values()]
        tried = not self._accepted or self._refused_in_a_row >= REFUSALS
        if tried and self._all_refused() and not any(map(PASSING.search, refusals)):
            raise EnvironmentFault(f"{self.path}: every job is refused ({refusals[0]}). {self._way_out()}")
        if len(self._ended) >= ENDS and not self._had_worker:
            raise EnvironmentFault(
                f"{self.path}: {len(self._ended)} jobs ended before a worker came, job {self._ended[-1]} last. Its "
                f"log says why. {self._hint()}{self._way_out()}"
            )

    def remark(self) -> str:
        """Return sentences that say how many jobs wait, and how many are refused."""
        waiting, refused = len(dict(self._waiting())), list(self._refused().values())
        said = f"Jobs in the queue: {waiting}"
        if self._reasons:
            said += f" ({', '.join(sorted(self._reasons))})"
        if refused:
            said += f". Jobs refused: {len(refused)} ({refused[0].refusal})"
        return f"{said}. {self._hint()}See {ASK[self.kind]}, and the logs of the jobs"

    async def _find_ended(self) -> dict[str, Any]:
        """Return the jobs without a worker that the batch system no longer lists; note why the others wait."""
        waiting = dict(self._waiting())
        if not waiting:
            return {}
        try:
            listed = await next(iter(waiting.values()))._call(LIST[self.kind])
        except (RuntimeError, OSError) as error:
            if NONE_LISTED not in str(error):  # it does not answer now
                return {}
            listed = ""
        found = dict(_jobs_in(listed))
        self._note(waiting, found)
        before, self._unlisted = self._unlisted, {job.job_id for job in waiting.values()} - found.keys()
        gone = self._unlisted if self.kind == "slurm" else self._unlisted & before if self._listed_once else set()
        still = dict(self._waiting())
        return {name: job for name, job in waiting.items() if name in still and job.job_id in gone}

    def _note(self, waiting: dict[str, Any], found: dict[str, str]) -> None:
        """Note why jobs wait, where the batch system says so, and whether it lists these jobs at all.

        What other systems than Slurm list may be some seconds old, or that of another server. So their jobs count as
        ended if they are not listed twice in a row, and only if one of them was ever listed.
        """
        if self.kind == "slurm":
            self._reasons = {found.get(job.job_id, "") for job in waiting.values()} - {"", "None"}
        self._listed_once |= any(job.job_id in found for job in list(self._cluster.workers.values()))

    def _refused(self) -> dict[str, Any]:
        return {name: job for name, job in list(self._cluster.workers.items()) if job.refusal}

    def _all_refused(self) -> bool:
        return 0 < len(self._cluster.workers) == len(self._refused())

    def _waiting(self) -> Iterator[tuple[str, Any]]:
        """Yield the jobs that were accepted, and have no worker."""
        present = self._workers()
        for name, job in list(self._cluster.workers.items()):
            parts = self._cluster.worker_spec.get(name, {}).get("group", [""])  # one for each process of a job
            if not job.refusal and present.isdisjoint(f"{name}{part}" for part in parts):
                yield name, job

    def _workers(self) -> set[str]:
        # A copy, because the event loop may add one meanwhile.
        return {str(found["name"]) for found in list(self._cluster.scheduler_info["workers"].values())}

    def _hint(self) -> str:
        return LOOPBACK if "://127." in self._cluster.scheduler_address else ""

    def _way_out(self) -> str:
        return f"Mend the arguments in {self.path}, and run the same command again (segment: with --resume)"


def _jobs_in(listed: str) -> Iterator[tuple[str, str]]:
    r"""Yield the number of each job that a batch system lists, and the rest of its line.

    >>> list(_jobs_in("Job id  Name  User  Time Use S Queue\n12.pbs  dask  me  0 Q work\n13.pbs  dask  me  0 C work"))
    [('12', 'dask me 0 Q work')]
    """
    for line in listed.splitlines():
        first, *rest = line.split() or [""]
        # Torque lists jobs as complete (C) for some minutes.
        if (number := re.match(r"\d+", first)) and rest[-2:-1] != ["C"]:
            yield number[0], " ".join(rest)


def _words_of(error: Exception) -> str:
    """Return what a batch system said when it refused a job, or else the exit code of its command."""
    said = " ".join(str(error).rpartition("stderr:")[2].split())
    code = re.search(r"Exit code: (-?\d+)", str(error))
    return said[:LONGEST] or (f"exit code {code[1]}" if code else one_line(error))


def jobs_of(cluster: Any) -> SubmittedJobs | None:
    """Return the jobs of a cluster; None if it has none that tilenet submits."""
    return getattr(cluster, "submitted_jobs", None)
