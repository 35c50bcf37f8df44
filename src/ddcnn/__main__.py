"""``python -m ddcnn``: starts the command, and ends all ranks if one of them fails."""

import signal
import sys

from ddcnn.config import parser as cli
from ddcnn.errors import InputError, Stopped
from ddcnn.parallel.abort import end, is_echo, told
from ddcnn.parallel.allocator import keep_freed
from ddcnn.parallel.launcher import launched_rank
from ddcnn.parallel.stop_requests import hold
from ddcnn.parallel.world import World

INTERRUPTED = 130  # as a shell says it of Ctrl-C
STOPPED = 75  # EX_TEMPFAIL: try again


def main() -> int:
    world = None
    try:
        if cli.needs_ranks(sys.argv[1:]):
            hold()
            keep_freed()
            world = World()
        return cli.main(sys.argv[1:], world)
    except InputError as error:
        rank = world.rank if world else launched_rank()
        if world and not error.agreed:
            end(world, f"ddcnn: error: {f'rank {rank} of {world.size}: ' if world.size > 1 else ''}{error}", 2)
        elif rank == 0 or not error.agreed:
            print(f"ddcnn: error: {error}", file=sys.stderr, flush=True)
        return 2
    except Stopped as stop:  # on all ranks
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun sends it to those that leave last, whose exit code would be another
        if world and world.rank == 0:
            print(f"ddcnn: stopped: {stop}", file=sys.stderr, flush=True)
        return STOPPED
    except KeyboardInterrupt:
        if world:
            if world.rank == 0:
                print("ddcnn: interrupted", file=sys.stderr, flush=True)
            world.abort(INTERRUPTED)
        return INTERRUPTED
    except BaseException as error:  # also SystemExit: a rank that leaves alone blocks the others in MPI_Finalize
        if world is None and not isinstance(error, Exception):
            raise
        if world:
            end(world, told(error, world.rank, world.size), 1, is_echo(error))
        else:
            print(told(error, 0, 1), file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
