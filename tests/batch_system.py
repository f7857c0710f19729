"""A stand-in for the commands of a batch system: it runs no job, and refuses, lists and forgets as a test says."""

import os

import pytest

from tilenet.workers.submitted_jobs import NONE_LISTED

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
# A submission is refused with the first line of `refused`, if there is one, which is then taken off unless `always`.
SUBMIT = """#!/bin/sh
exec 9> {folder}/lock
flock 9
echo >> {folder}/submitted
if [ -s {folder}/refused ]; then
  head -n 1 {folder}/refused >&2
  [ -e {folder}/always ] || sed -i 1d {folder}/refused
  exit 1
fi
id=$(wc -l < {folder}/submitted)
echo "$id Priority" >> {folder}/listed
echo "{accepted}"
"""
LIST = """#!/bin/sh
cat {folder}/listed
"""
QSTAT = """#!/bin/sh
if [ "$1" = -s ]; then  # SGE
  echo 'job-ID  prior   name       user         state submit/start at     queue                 slots ja-task-ID'
  sed 's, .*, 0.55500 dask-worke me       qw    01/02/2026 10:11:12            8,; s,^,   ,' {folder}/listed
else
  echo 'Job id            Name             User              Time Use S Queue'
  echo '----------------  ---------------- ----------------  -------- - -----'
  sed 's, .*,.server        dask-worker      me                       0 Q workq,' {folder}/listed
fi
"""
BJOBS = """#!/bin/sh
if [ -s {folder}/listed ]; then
  echo 'JOBID   USER    STAT  QUEUE      FROM_HOST   EXEC_HOST   JOB_NAME   SUBMIT_TIME'
  sed 's, .*,     me      PEND  normal     login       -           dask       Oct 22 09:22,' {folder}/listed
else
  echo 'No unfinished job found' >&2
  exit 255
fi
"""
ACCEPTED = {"sbatch": "Submitted batch job $id", "qsub": "$id.server", "bsub": "Job <$id> is submitted to queue <any>."}


class BatchSystem:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.refuse(0)
        for command, accepted in ACCEPTED.items():
            self.command(command, SUBMIT.format(folder=folder, accepted=accepted))
        for command, script in (("squeue", LIST), ("qstat", QSTAT), ("bjobs", BJOBS)):
            self.command(command, script.format(folder=folder))
        for command in ("scancel", "qdel", "bkill"):
            self.command(command, "#!/bin/sh\n")

    def command(self, name, script):
        (self.folder / name).write_text(script)
        (self.folder / name).chmod(0o755)

    def refuse(self, jobs, words=TIMED_OUT):
        (self.folder / "refused").write_text(f"{words}\n" * jobs)

    def refuse_all(self, words):
        self.refuse(1, words)
        (self.folder / "always").touch()

    def forget_all(self):
        """Have no job in the queue any more, now and later."""
        for command in ("squeue", "qstat"):
            self.command(command, "#!/bin/sh\n")
        self.command("bjobs", f"#!/bin/sh\necho '{NONE_LISTED}' >&2\nexit 255\n")

    @property
    def submitted(self):
        file = self.folder / "submitted"
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture(autouse=True, name="batch_system")
def a_batch_system(tmp_path, monkeypatch):
    """Have the commands of a batch system that runs no jobs come first."""
    system = BatchSystem(tmp_path / "batch")
    monkeypatch.setenv("PATH", f"{system.folder}:{os.environ['PATH']}")
    return system
