"""How a failing rank ends all of them: it logs what has failed, with its rank and place, and aborts.

Ranks that fail at the same time all say so: between its message and the abort a rank waits for as long as the launcher needs to pass the
message on (``World.abort``).
"""

import logging
import time

from ddcnn.errors import InputError
from ddcnn.parallel.world import World

CAUSE_SECONDS = 2.0  # within which a rank that has failed ends those that have only lost their connection to it
NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
LOST = ("Connection closed by peer", "Connection reset by peer")
logger = logging.getLogger(__name__)


def abort_all(world: World, error: BaseException) -> None:
    """Logs the error and ends all ranks. A lost connection is only the consequence of another rank's failure, which goes first."""
    if _is_lost_connection(error):
        time.sleep(CAUSE_SECONDS)
    log_failure(error, world.rank, world.size)
    world.abort(2 if isinstance(error, InputError) else 1)


def log_failure(error: BaseException, rank: int, size: int) -> None:
    """Logs an error in one line where the user can do something about it, else with its traceback."""
    if isinstance(error, InputError):
        logger.error("%s%s", f"rank {rank} of {size}: " if size > 1 else "", error)
        return
    place = ", ".join([f"rank {rank} of {size}", *getattr(error, "__notes__", [])])
    text = str(error)
    first_line = text.partition("\n")[0]
    if isinstance(error, FloatingPointError):
        logger.critical("%s: %s", place, text)
    elif is_out_of_memory(error):
        options = "--accumulate, --recompute, --resident stream, a smaller --batch-size or --width"
        remedy = f"take more ranks, on more nodes or GPUs; in a run also {options}"
        logger.critical("%s: not enough memory (%s): %s", place, first_line or type(error).__name__, remedy)
    elif _is_lost_connection(error):
        logger.critical("%s: another rank is gone (%s); what the launcher says tells why", place, first_line)
    else:
        logger.critical("%s: %s: %s", place, type(error).__name__, error, exc_info=error)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)
