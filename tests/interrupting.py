"""Something happens on one rank within a training."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted(training: str, step: int, rank: int, what: str) -> Iterator[None]:
    """In here, at a step of a training something happens on one rank.

    Args:
        training: the name of its folder of checkpoints.
        step: one that is not the last of its epoch.
        what: signals for this process, joined by "+", or a command for the shell.
    """
    from mpi4py import MPI

    from ddcnn.training.resume import Checkpointer

    after_step, steps = Checkpointer.after_step, 0

    def happening(self, state) -> None:
        nonlocal steps
        if self.checkpoints.folder.name == training and MPI.COMM_WORLD.Get_rank() == rank:
            steps += 1
            if steps == step:
                for name in what.split("+"):
                    if name in signal.Signals.__members__:
                        os.kill(os.getpid(), signal.Signals[name])
                    else:
                        os.system(name)
        after_step(self, state)

    Checkpointer.after_step = happening
    try:
        yield
    finally:
        Checkpointer.after_step = after_step
