"""A scaling study as SLURM jobs: one for each number of ranks, one after the other, and a dependent job that collects."""

import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence

from ddcnn.errors import InputError
from ddcnn.io.atomic import write_text
from ddcnn.scaling.study import Study

logger = logging.getLogger(__name__)
LAUNCHER = ["srun", "--mpi=pmi2"]
SCRIPT = """#!/bin/bash
# A study of {kind} scaling, written and submitted by ddcnn scaling --slurm. Again, one number of ranks:
#   {again}
#SBATCH --job-name=ddcnn-{kind}
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --no-requeue
{sbatch}set -e
# without a number of ranks: the job that collects
[ -n "$1" ] || exec {collect}
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK SLURM_KILL_BAD_EXIT=1
exec {run}
"""


def submit(study: Study, launcher: Sequence[str], sbatch: Sequence[str]) -> None:
    """Writes the study's batch script and submits it for each number of ranks, and as the job that collects.

    Each job asks for its own number of tasks, and so for the cores, GPUs and nodes that go with them; it begins after the one before has
    ended, so that they do not disturb each other.

    Args:
        launcher: started in the allocation with ``-n RANKS``; by default srun.
        sbatch: further options of sbatch.

    Raises:
        InputError: SLURM refuses, or is not there.
    """
    study.describe()
    path = study.folder / "study.sbatch"

    def options(ranks: int) -> list[str]:
        return [f"--ntasks={ranks}", f"--output={study.folder / f'{ranks}.out'}"]

    most = study.ranks[-1]
    write_text(path, script(study, launcher or LAUNCHER, sbatch, shlex.join(["sbatch", *options(most), str(path), str(most)])))
    jobs: list[str] = []
    for ranks in study.ranks:
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        jobs.append(_sbatch(*after, *options(ranks), str(path), str(ranks)))
    after_all = f"--dependency=afterok:{':'.join(jobs)}"
    collector = _sbatch(after_all, "--kill-on-invalid-dep=yes", "--ntasks=1", f"--output={study.folder / 'collect.out'}", str(path))
    logger.info("jobs %s, one after the other, then job %s: %s", ", ".join(jobs), collector, study.folder / "scaling.md")


def script(study: Study, launcher: Sequence[str], sbatch: Sequence[str], again: str) -> str:
    """The batch script of all jobs; with an argument it is the study with so many ranks."""
    program, folder = [sys.executable, "-m", "ddcnn", "scaling"], ["--output", str(study.folder)]
    options = ["--repetitions", str(study.repetitions), "--launcher", shlex.join(launcher), "--no-collect", *folder]
    options += [f"--{name}={value}" for name, value in study.size.items()]
    run = f'{shlex.join([*program, study.kind])} --ranks "$1" {shlex.join([*options, "--", *study.options])}'
    collect = shlex.join([*program, "collect", str(study.folder), "--kind", study.kind, *folder])
    lines = "".join(f"#SBATCH {option}\n" for option in sbatch)
    return SCRIPT.format(kind=study.kind, again=again, sbatch=lines, collect=collect, run=run)


def _sbatch(*options: str) -> str:
    """The number of the submitted job."""
    try:
        done = subprocess.run(["sbatch", "--parsable", *options], capture_output=True, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise InputError("--slurm: there is no sbatch here: submit from a login node, or leave --slurm out") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise InputError(f"--slurm: sbatch refuses: {said[-1]}")
    return done.stdout.strip().partition(";")[0]
