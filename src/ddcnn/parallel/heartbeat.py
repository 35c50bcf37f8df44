"""Heartbeat of this process: counted by the main thread at a cost of nanoseconds, read by the thread of ``stall_watchdog``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident, main_thread

WORKING, WAITING, UNJUDGED = "working", "waiting", "unjudged"


@dataclass
class Heartbeat:
    """State of this process."""

    steps: int = 0  # grows with every beat
    state: str = WORKING  # a working rank must beat; one that waits for others, or does what takes any time, need not
    what: str = ""  # last completed step, such as "step 123"
    places: list[str] = field(default_factory=list)  # where it is in the method, outermost first

    def text(self) -> str:
        """Such as "subdomain 2, epoch 1, step 123"."""
        return ", ".join([*self.places, *filter(None, [self.what])])


HEARTBEAT = Heartbeat()
MAIN = main_thread().ident


def beat(what: str = "") -> None:
    """Shows that this rank is working; ``what`` it has just done, if that is worth a message.

    From a thread that reads ahead it only counts: the main thread knows whether the rank works or waits.
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
    """From now on, until it beats, this rank may take any time without a beat, such as for a download."""
    HEARTBEAT.steps += 1
    HEARTBEAT.state, HEARTBEAT.what = UNJUDGED, what


@contextmanager
def at(place: str) -> Iterator[None]:
    """Names the place in the method, such as "subdomain 2", where this rank is inside."""
    HEARTBEAT.places.append(place)
    HEARTBEAT.what = ""
    try:
        yield
    finally:
        HEARTBEAT.places.pop()
        HEARTBEAT.what = ""
