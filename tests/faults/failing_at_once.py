"""ddcnn, but instead of a run some ranks raise, one after the other within 0.2 s: python failing_at_once.py RANKS ERROR"""

import sys
import time

from ddcnn import __main__, errors

ranks, error = [int(rank) for rank in sys.argv[1].split(",")], sys.argv[2]


def fail(arguments, world):
    world.barrier()
    if world.rank in ranks:
        time.sleep(0.2 * (1 - ranks.index(world.rank) / len(ranks)))  # the lowest last
        raise getattr(errors, error, ZeroDivisionError)("made to fail")
    world.barrier()


__main__.execute = fail
sys.argv[1:] = ["run"]
sys.exit(__main__.main())
