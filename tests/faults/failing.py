"""ddcnn, but on one rank a step of the method fails: python failing.py RANK STEP HOW ARGUMENTS…

HOW: ``raise`` an exception, or ``starve``: from there on the process gets next to no more memory.
"""

import resource
import sys
from pathlib import Path

from mpi4py import MPI

from ddcnn import __main__
from ddcnn.experiment import end_to_end as as_one
from ddcnn.experiment import run as experiment
from ddcnn.experiment import two_step, undecomposed

rank, step, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
MORE = 2**26  # bytes: for the threads that a training starts


def failing(function):
    def fail(*arguments, **keywords):
        if how == "raise":
            raise ZeroDivisionError(f"made to fail in {step}")
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE, resource.RLIM_INFINITY))
        return function(*arguments, **keywords)

    return fail


if MPI.COMM_WORLD.Get_rank() == rank:
    having = [module for module in (experiment, two_step, as_one, undecomposed) if hasattr(module, step)]
    assert having, f"no module has a step {step}"
    for module in having:
        setattr(module, step, failing(getattr(module, step)))
sys.argv[1:] = sys.argv[4:]
sys.exit(__main__.main())
