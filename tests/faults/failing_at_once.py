"""ddcnn, but instead of a run some ranks raise, one after the other within 0.2 s: python failing_at_once.py RANKS ERRORS

ERRORS: the names of what they raise, one for each of RANKS or one for all; a RuntimeError is a lost connection.
"""

import sys
import time

from ddcnn import __main__, errors

ranks, names = [int(rank) for rank in sys.argv[1].split(",")], sys.argv[2].split(",")
KINDS = {"InputError": errors.InputError, "ZeroDivisionError": ZeroDivisionError, "RuntimeError": RuntimeError}


def fail(arguments, world):
    world.barrier()
    if world.rank in ranks:
        place = ranks.index(world.rank)
        kind = KINDS[names[place % len(names)]]
        time.sleep(0.2 * (1 - place / len(ranks)))  # the lowest last, if they ascend
        raise kind("Connection closed by peer" if kind is RuntimeError else "made to fail")
    world.barrier()


__main__.execute = fail
sys.argv[1:] = ["run"]
sys.exit(__main__.main())
