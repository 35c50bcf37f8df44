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
        step: one that is not the last of its epoch; 0: the training has just ended.
        what: signals for this process, joined by "+", or a command for the shell.
    """
    from mpi4py import MPI

    from ddcnn.training.resume import Checkpointer

    after_step, after_epoch, steps = Checkpointer.after_step, Checkpointer.after_epoch, 0

    def is_here(self) -> bool:
        return self.checkpoints.folder.name == training and MPI.COMM_WORLD.Get_rank() == rank

    def happens() -> None:
        for name in what.split("+"):
            if name in signal.Signals.__members__:
                os.kill(os.getpid(), signal.Signals[name])
            else:
                os.system(name)

    def at_step(self, state) -> None:
        nonlocal steps
        if is_here(self):
            steps += 1
            if steps == step:
                happens()
        after_step(self, state)

    def at_end(self, state, epoch) -> None:
        after_epoch(self, state, epoch)
        if step == 0 and is_here(self) and state.epoch > self.recipe["epochs"]:
            happens()

    Checkpointer.after_step, Checkpointer.after_epoch = at_step, at_end
    try:
        yield
    finally:
        Checkpointer.after_step, Checkpointer.after_epoch = after_step, after_epoch
