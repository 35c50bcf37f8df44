"""What the environment of the launcher (mpirun, srun) says before MPI starts: rank, number of ranks, threads of a rank."""

import os
from pathlib import Path

RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
LAUNCHERS = (
    "mpirun", "mpiexec", "hydra_", "pmi_proxy", "mpispawn", "orte", "prte", "prun", "slurmstepd", "aprun", "apinit", "palsd", "jsrun",
    "jsm", "flux", "lrun",
)  # how the names of programs begin that start ranks  # fmt: skip


def launched_size() -> int:
    """Number of processes that the launcher has started; 1 without a launcher."""
    return next((int(os.environ[name]) for name in SIZE_VARIABLES if _number(name)), 1)


def launched_rank() -> int:
    """This process's rank according to the launcher; 0 without one, also where variables of one are left over."""
    rank = next((int(os.environ[name]) for name in RANK_VARIABLES if _number(name)), 0)
    return rank if rank and _has_launcher() else 0


def given_threads() -> int | None:
    """OMP_NUM_THREADS; None where it is no positive number."""
    return int(os.environ["OMP_NUM_THREADS"]) or None if _number("OMP_NUM_THREADS") else None


def size_variable() -> str:
    """The variable that ``launched_size`` is from."""
    return next(filter(_number, SIZE_VARIABLES), "")


def started_by(size: int) -> str:
    """How a command on so many ranks begins with the launcher of this one, as far as that is known; empty on one rank."""
    if size == 1:
        return ""
    return f"{'srun' if os.environ.get('SLURM_STEP_NUM_TASKS') == str(size) else 'mpirun'} -n {size} "


def _number(name: str) -> bool:
    text = os.environ.get(name, "")
    return text.isascii() and text.isdigit() and len(text) < 10


def _has_launcher() -> bool:
    """Whether a launcher is among the processes that this one comes from."""
    process, proc = os.getppid(), Path("/proc")
    if not (proc / "self" / "stat").exists():  # no Linux: the variables are all that is known
        return True
    while process:
        try:
            name, _, rest = (proc / str(process) / "stat").read_bytes().partition(b"(")[2].rpartition(b")")
        except OSError:  # hidden, or gone
            return False
        if name.startswith(tuple(launcher.encode() for launcher in LAUNCHERS)):
            return True
        process = int(rest.split()[1])
    return False
