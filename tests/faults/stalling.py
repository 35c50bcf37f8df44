"""ddcnn, but one rank is stuck, slow or late: python stalling.py RANK HOW STEP ARGUMENTS…

HOW: ``loop`` never ends a step of the method, ``slow`` takes 0.2 s more for each batch of the subimages, ``sleep`` is stuck without Python.
"""

import ctypes
import sys
import time

from mpi4py import MPI

from ddcnn import __main__
from ddcnn.data.batches import Subimages
from ddcnn.experiment import end_to_end as as_one
from ddcnn.experiment import two_step, undecomposed

rank, how, step = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def loop(*arguments, **keywords):
    while True:
        pass


def sleep(*arguments, **keywords):
    ctypes.PyDLL(None).sleep(1000)  # which keeps every other thread of Python from going on


def slow(self, *arguments, batch=Subimages.batch):
    time.sleep(0.2)
    return batch(self, *arguments)


if MPI.COMM_WORLD.Get_rank() == rank:
    if how == "slow":
        Subimages.batch = slow
    else:
        for module in (two_step, as_one, undecomposed):
            if hasattr(module, step):
                setattr(module, step, {"loop": loop, "sleep": sleep}[how])
sys.argv[1:] = sys.argv[4:]
sys.exit(__main__.main())
