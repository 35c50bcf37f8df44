"""ddcnn, but something happens on one rank within a training: python interrupting.py TRAINING STEP RANK WHAT ARGUMENTS…

TRAINING is the name of its folder of checkpoints, STEP a step that is not the last of its epoch, WHAT a signal for this process, or a
command for the shell.
"""

import os
import signal
import sys

from mpi4py import MPI

from ddcnn import __main__
from ddcnn.training import resume as keeping

training, step, rank, what = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
after_step, steps = keeping.Checkpointer.after_step, 0


def interrupted(self, state) -> None:
    global steps
    if self.checkpoints.folder.name == training and MPI.COMM_WORLD.Get_rank() == rank:
        steps += 1
        if steps == step:
            for name in what.split("+"):
                if name in signal.Signals.__members__:
                    os.kill(os.getpid(), signal.Signals[name])
                else:
                    os.system(name)
    after_step(self, state)


keeping.Checkpointer.after_step = interrupted
sys.argv[1:] = sys.argv[5:]
sys.exit(__main__.main())
