"""What the environment of the launcher (mpirun, srun) says before MPI starts: rank, number of ranks, threads of a rank."""

import os

RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def launched_size() -> int:
    """Number of processes that the launcher has started; 1 without a launcher."""
    return next((int(os.environ[name]) for name in SIZE_VARIABLES if os.environ.get(name, "").isdigit()), 1)


def launched_rank() -> int:
    """This process's rank according to the launcher; 0 without one."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if os.environ.get(name, "").isdigit()), 0)


def given_threads() -> int | None:
    """OMP_NUM_THREADS; None where it is no positive number."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) or None if given.isdigit() else None
