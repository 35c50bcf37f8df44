"""ddcnn, but on one rank storage fails in the middle: python storage.py RANK WHAT NUMBER ARGUMENTS…

WHAT: ``read``, images can no longer be read after so many reads, or ``full``, there is no room for tables, which are in files, after so
many bytes.
"""

import errno
import os
import sys
from types import SimpleNamespace

from mpi4py import MPI

from ddcnn import __main__
from ddcnn.data import row_reader
from ddcnn.io import rows

rank, what, most = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
fill, done = rows.fill, [0]


def read(*arguments):
    done[0] += 1
    if done[0] > most:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    fill(*arguments)


def write(file, data, place):
    done[0] += len(data)
    if done[0] > most:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return os.pwrite(file, data, place)


rows.IN_MEMORY, rows.BLOCK_BYTES = 0, 1 << 12
if MPI.COMM_WORLD.Get_rank() == rank:
    if what == "read":
        row_reader.fill = read
    else:
        rows.os = SimpleNamespace(**vars(os) | {"pwrite": write})
sys.argv[1:] = sys.argv[4:]
sys.exit(__main__.main())
