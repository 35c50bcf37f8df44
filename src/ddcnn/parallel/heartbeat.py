"""What this rank is doing: counted while it works, some nanoseconds a step, and read by the thread in module ``watch``."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident, main_thread

WORKING, WAITING, UNJUDGED = "working", "waiting", "unjudged"


class _Heartbeat:
    """Of this process.

    Attributes:
        steps: grows with every sign of life.
        state: a rank that is working gives them, one that waits for others need not.
    """

    def __init__(self) -> None:
        self.steps, self.state, self.what = 0, WORKING, ""
        self.places: list[str] = []

    def text(self) -> str:
        """Such as "subdomain 2, epoch 1, step 123"."""
        return ", ".join([*self.places, *filter(None, [self.what])])


HEARTBEAT = _Heartbeat()
MAIN = main_thread().ident


def beat(what: str = "") -> None:
    """A sign of life: from now on, or still, this rank is working; ``what`` it has just done, if that is worth a word.

    From a thread that reads ahead it is no more than a sign: whether the rank works or waits the main thread knows.
    """
    HEARTBEAT.steps += 1
    if get_ident() != MAIN:
        return
    HEARTBEAT.state = WORKING
    if what:
        HEARTBEAT.what = what


def waiting() -> None:
    """From now on, until it beats, this rank waits for others."""
    HEARTBEAT.steps += 1
    HEARTBEAT.state = WAITING


def unjudged(what: str) -> None:
    """From now on, until it beats, this rank does what takes any time and gives no sign of life meanwhile, such as a download."""
    HEARTBEAT.steps += 1
    HEARTBEAT.state, HEARTBEAT.what = UNJUDGED, what


@contextmanager
def at(place: str) -> Iterator[None]:
    """Where this rank is in the method."""
    HEARTBEAT.places.append(place)
    HEARTBEAT.what = ""
    try:
        yield
    finally:
        HEARTBEAT.places.pop()
        HEARTBEAT.what = ""
