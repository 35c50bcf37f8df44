"""How a failing rank ends all of them: of several that fail at once the lowest speaks, in one line where no traceback would help."""

import sys
import time
import traceback

import numpy as np

from ddcnn.parallel.world import World

FAILING, SPEAKING = 2**15 - 1, 2**15 - 2  # tags of messages; that of other work is smaller (MPI knows no larger ones for certain)
MOMENT = 0.4  # seconds within which ranks fail at once
NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
LOST = ("Connection closed by peer", "Connection reset by peer")


def end(world: World, text: str, code: int, echo: bool = False) -> None:
    """Says ``text`` on stderr, unless a rank that fails at the same time says its own, and ends all ranks.

    An ``echo`` of another rank's failure is only said if no rank says the cause.
    """
    if (echo and _hears(world)) or not _speaks(world):
        time.sleep(10)  # for the one that speaks to end this one too
    else:
        print(text, file=sys.stderr, flush=True)
    world.abort(code)


def told(error: BaseException, rank: int, size: int) -> str:
    """What is said of a failure: where, what, and the way out or else the traceback."""
    about = ", ".join([f"rank {rank} of {size}", *getattr(error, "__notes__", [])])
    text = str(error)
    first_line = text.partition("\n")[0]
    if isinstance(error, FloatingPointError):
        return f"ddcnn: failed: {about}: {text}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)):
        return (
            f"ddcnn: failed: {about}: not enough memory ({first_line or type(error).__name__}): take more ranks, on more nodes or GPUs, "
            "a smaller --batch-size or --width, or fewer --methods"
        )
    if is_echo(error):
        return f"ddcnn: failed: {about}: another rank is gone ({first_line}); what the launcher says tells why"
    return f"{traceback.format_exc()}ddcnn: failed: {about}: {type(error).__name__}: {error}"


def is_echo(error: BaseException) -> bool:
    """Whether what failed is the connection to another rank."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def _hears(world: World) -> bool:
    """Whether another rank fails by itself within a moment."""
    until = time.monotonic() + MOMENT
    while time.monotonic() < until:
        if any(world.communicator.Iprobe(tag=tag) for tag in (FAILING, SPEAKING)):
            return True
        time.sleep(0.01)
    return False


def _speaks(world: World) -> bool:
    """Whether this rank is the lowest of those that fail within a moment."""
    sent = _tell(world, FAILING)
    until = time.monotonic() + MOMENT
    while time.monotonic() < until:
        if world.communicator.Iprobe(tag=SPEAKING):
            return False
        if any(world.communicator.Iprobe(source=lower, tag=FAILING) for lower in range(world.rank)):
            return False
        time.sleep(0.01)
    sent += _tell(world, SPEAKING)
    return True


def _tell(world: World, tag: int) -> list:
    """The pending sends, which nobody needs to receive: the job ends."""
    others = set(range(world.size)) - {world.rank}
    return [world.communicator.Isend(np.empty(0, dtype=np.uint8), rank, tag) for rank in others]
