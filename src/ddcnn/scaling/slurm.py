"""A scaling study as SLURM jobs: a job array with a task per number of ranks, and a dependent job that collects."""

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
# A study of {kind} scaling, written and submitted by ddcnn scaling --slurm; again:
#   {again}
#SBATCH --job-name=ddcnn-{kind}
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --no-requeue
{sbatch}set -e
# no task of the array: the job that collects
[ -n "$SLURM_ARRAY_TASK_ID" ] || exec {collect}
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK SLURM_KILL_BAD_EXIT=1
exec {run}
"""


def submit(study: Study, launcher: Sequence[str], sbatch: Sequence[str]) -> None:
    """Writes the study's batch script and submits it twice: the array, and the job that collects.

    Args:
        launcher: started in the allocation with ``-n RANKS``; by default srun.
        sbatch: further options of sbatch.

    Raises:
        InputError: SLURM refuses, or is not there.
    """
    study.describe()
    path = study.folder / "study.sbatch"
    array = [  # every task gets the cores of the largest run, so that none of them shares a core
        f"--array={','.join(map(str, study.ranks))}", f"--ntasks={study.ranks[-1]}", f"--output={study.folder / '%a.out'}",
    ]  # fmt: skip
    write_text(path, script(study, launcher or LAUNCHER, sbatch, shlex.join(["sbatch", *array, str(path)])))
    runs = _sbatch(*array, str(path))
    collector = _sbatch(f"--dependency=afterok:{runs}", "--kill-on-invalid-dep=yes", f"--output={study.folder / 'collect.out'}", str(path))
    logger.info("array job %s, then job %s: %s", runs, collector, study.folder / "scaling.md")


def script(study: Study, launcher: Sequence[str], sbatch: Sequence[str], again: str) -> str:
    """The batch script of both jobs; a task of the array is the study with one number of ranks."""
    program, folder = [sys.executable, "-m", "ddcnn", "scaling"], ["--output", str(study.folder)]
    options = ["--repetitions", str(study.repetitions), "--launcher", shlex.join(launcher), "--no-collect", *folder]
    options += [f"--{name}={value}" for name, value in study.size.items()]
    run = f'{shlex.join([*program, study.kind])} --ranks "$SLURM_ARRAY_TASK_ID" {shlex.join([*options, "--", *study.options])}'
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
