"""A SLURM of the tests' own, and jobs on it, submitted as a user does."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
import pytest

JOBS = Path(__file__).parents[2] / "jobs"
LIMIT = 600  # seconds that a job may take: only to end a test that hangs
MPI_OF_VENDOR = {"MPICH": "pmi2", "Intel MPI": "pmi2", "Open MPI": "pmix"}


class Slurm:
    """Commands of the private SLURM at ``folder``."""

    def __init__(self, folder: Path, mpi: str):
        venv = sys.prefix if (Path(sys.prefix) / "bin" / "activate").exists() else ""
        beside = str(Path(sys.executable).parent)
        self.environment = cluster.environment(folder) | {"DDCNN_VENV": venv, "DDCNN_MPI": mpi}
        self.environment["PATH"] = f"{beside}{os.pathsep}{self.environment['PATH']}"

    def run(self, *command: object, cwd: Path | None = None, check: bool = True, **variables: str) -> str:
        """stdout of a command."""
        arguments, variables = list(map(str, command)), self.environment | variables
        done = subprocess.run(arguments, cwd=cwd, env=variables, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def submit(self, script: str, *options: object, cwd: Path, sbatch: tuple[str, ...] = (), **variables: str) -> str:
        """sbatch SBATCH jobs/SCRIPT OPTIONS: the number of the job."""
        return self.run("sbatch", "--parsable", *sbatch, JOBS / script, *options, cwd=cwd, **variables).strip()

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What ``scontrol show job`` tells of a job, or of the tasks of an array."""
        lines = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in lines if line.strip()]

    def wait(self, job: str) -> dict[str, str]:
        """A job that is over."""
        self.until(lambda: self.jobs(job)[0]["JobState"] in cluster.OVER, f"job {job} did not end")
        return self.jobs(job)[0]

    def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Looks again and again; ``sbatch --wait`` would look only now and then."""
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, otherwise
            time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    reason = cluster.missing()
    if reason:
        pytest.skip(reason)
    asked = "from mpi4py import MPI; print(MPI.get_vendor()[0])"
    vendor = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60).stdout.strip()
    if vendor not in MPI_OF_VENDOR:
        pytest.skip(f"it is not known how srun starts ranks of {vendor or 'this MPI'}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        cluster.start(folder)
        yield Slurm(folder, MPI_OF_VENDOR[vendor])
    finally:
        cluster.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)
