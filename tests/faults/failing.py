"""ddcnn, but on one rank a step of the method raises: python failing.py RANK STEP ARGUMENTS…"""

import sys

from mpi4py import MPI

from ddcnn import __main__, as_one, experiment, two_step

rank, step = int(sys.argv[1]), sys.argv[2]
if MPI.COMM_WORLD.Get_rank() == rank:

    def fail(*arguments, **keywords):
        raise ZeroDivisionError(f"made to fail in {step}")

    for module in (experiment, two_step, as_one):
        if hasattr(module, step):
            setattr(module, step, fail)
sys.argv[1:] = sys.argv[3:]
sys.exit(__main__.main())
