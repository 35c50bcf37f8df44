"""What a rank did when: spans of computing, communicating and waiting."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

KINDS = ("compute", "communicate", "wait")
PHASES = ("start", "partition", "local", "folds", "gather", "dnn", "coherent", "transfer", "global")  # "start": imports, opening files
START = PHASES.index("start")
BLOCK = 0.05  # seconds; shorter pieces in a row are put together
BLOCKS_SO_FAR = 1000  # and so are those shorter than this part of the time so far, so that long runs stay small
GAP = 1e-3  # seconds without a record that end a row


class Timeline:
    """Spans of one rank, in seconds since ``begin``, which all ranks call together.

    A span inside another one interrupts it: no second counts twice. A step of training leaves a few pieces of milliseconds; pieces
    that follow each other are put together to blocks, in which each kind stands once, with the sum of its seconds.

    Attributes:
        origin: when it began, on the clock of ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, float, float]] = []  # (phase, kind, start, stop)
        self._phase = PHASES[0]
        self._open: list[tuple[str, float]] = []  # the spans that are open, each with the time since which it goes on
        self._block: dict[str, float] = {}  # seconds per kind since ``_start``
        self._start = self._stop = 0.0
        self.begin()

    def begin(self) -> None:
        self._spans.clear()
        self._block.clear()
        self._sent = np.zeros(len(PHASES))
        self._earlier = _Earlier(np.empty((0, 4)), np.zeros(len(PHASES)), 0.0)
        self.origin = time.perf_counter()

    def now(self) -> float:
        """Seconds since it began, those of the attempts that this one goes on with included."""
        return self._earlier.seconds + self._now()

    @property
    def resumed(self) -> bool:
        return self._earlier.seconds > 0

    def _now(self) -> float:
        return time.perf_counter() - self.origin

    def count(self, sent: int) -> None:
        """This rank has sent so many bytes."""
        self._sent[PHASES.index(self._phase)] += sent

    @property
    def sent(self) -> dict[str, float]:
        """Bytes that this rank has sent to others, per phase."""
        return dict(zip(PHASES, (self._earlier.sent + self._sent).tolist(), strict=True))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spans inside belong to this phase."""
        self._end_block()
        outer, self._phase = self._phase, name
        yield
        self._end_block()
        self._phase = outer

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        begin = self._now()
        if self._open:
            self._add(*self._open[-1], begin)
        self._open.append((kind, begin))
        try:
            yield
        finally:
            end = self._now()
            self._add(*self._open.pop(), end)
            if self._open:
                self._open[-1] = (self._open[-1][0], end)

    def _add(self, kind: str, start: float, stop: float) -> None:
        if start - self._stop > GAP:
            self._end_block()
        if not self._block:
            self._start = start
        self._block[kind] = self._block.get(kind, 0.0) + stop - start
        self._stop = stop
        if stop - self._start > max(BLOCK, stop / BLOCKS_SO_FAR):
            self._end_block()

    def _end_block(self) -> None:
        """One span a kind, laid one after the other from the block's start; the last one ends with the block."""
        start, kinds = self._start, [kind for kind in KINDS if kind in self._block]
        for kind in kinds:
            seconds = self._block[kind]
            start = self._stop - seconds if kind == kinds[-1] else start
            self._spans.append((PHASES.index(self._phase), KINDS.index(kind), start, start + seconds))
            start += seconds
        self._block.clear()

    def array(self) -> np.ndarray:
        """(spans, 4) float64: phase index, kind index, start, stop in seconds."""
        if self._open:  # what goes on counts up to now
            kind, begin = self._open[-1]
            self._open[-1] = kind, self._now()
            self._add(kind, begin, self._open[-1][1])
        self._end_block()
        own, earlier = np.array(self._spans, dtype=np.float64).reshape(-1, 4), self._earlier
        return np.concatenate([earlier.spans, own + np.array([0, 0, earlier.seconds, earlier.seconds])])

    # Over several attempts

    def kept(self) -> dict[str, np.ndarray]:
        return {
            "timeline/spans": self.array(),
            "timeline/sent": np.array(list(self.sent.values())),
            "timeline/seconds": np.array([self.now()]),
        }

    def bring_back(self, arrays: dict[str, np.ndarray]) -> None:
        """What ``kept`` gave in an earlier attempt, of which the longest counts.

        Raises:
            KeyError, ValueError: it did not.
        """
        spans, sent, seconds = (arrays[f"timeline/{name}"] for name in ("spans", "sent", "seconds"))
        if spans.ndim != 2 or spans.shape[1] != 4 or sent.shape != (len(PHASES),) or seconds.shape != (1,):
            raise ValueError("no timeline")
        if seconds[0] > self._earlier.seconds:
            self.array()
            self._earlier = _Earlier(spans, sent, float(seconds[0]))
            self._spans = [(START, 0, 0.0, self._now())]  # so far this attempt has only come back to where the earlier one was
            self._sent[:] = 0


class _Earlier(NamedTuple):
    """What earlier attempts have recorded: spans (spans, 4), bytes sent (phases,), seconds."""

    spans: np.ndarray
    sent: np.ndarray
    seconds: float


# What the spans of all ranks come to: a list over ranks of arrays (spans, 4) as above.


def windows(spans: list[np.ndarray], phases: tuple[str, ...]) -> list[tuple[float, float]]:
    """Disjoint intervals, in ascending order, in which some rank is in one of the phases, each taken whole.

    A phase lasts from the first rank's start to the last one's end, without the time that rank 0 took to come back to it in a later
    attempt. Phases may overlap, since a rank waits in the next one for the others.
    """
    together = np.concatenate(spans)
    found = [together[together[:, 0] == PHASES.index(phase)] for phase in phases]
    merged: list[tuple[float, float]] = []
    for start, stop in sorted((float(part[:, 2].min()), float(part[:, 3].max())) for part in found if len(part)):
        if merged and start < merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged.pop()[1])
        merged.append((start, stop))
    for _, _, begin, end in spans[0][spans[0][:, 0] == START].tolist():
        merged = [piece for interval in merged for piece in _without(interval, begin, end)]
    return merged


def _without(interval: tuple[float, float], begin: float, end: float) -> list[tuple[float, float]]:
    start, stop = interval
    if end <= start or stop <= begin:
        return [interval]
    return [(a, b) for a, b in ((start, begin), (end, stop)) if a < b]


def wall(intervals: list[tuple[float, float]], until: float = np.inf) -> float:
    """Seconds that lie in the intervals and before a time."""
    return sum(max(0.0, min(stop, until) - start) for start, stop in intervals)


def seconds_of(spans: list[np.ndarray], phases: tuple[str, ...], kind: str) -> list[float]:
    """Seconds of a kind in the phases, per rank."""
    numbers = [PHASES.index(phase) for phase in phases]
    chosen = [part[np.isin(part[:, 0], numbers) & (part[:, 1] == KINDS.index(kind))] for part in spans]
    return [float((part[:, 3] - part[:, 2]).sum()) for part in chosen]


def phases_of(spans: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Wall seconds, waiting included, of the phases that took place; seconds of computing: the busiest rank's, and the mean."""
    found = {}
    for phase in PHASES[1:]:
        if intervals := windows(spans, (phase,)):
            busy = seconds_of(spans, (phase,), "compute")
            found[phase] = {"seconds": wall(intervals), "max_rank_seconds": max(busy), "mean_rank_seconds": float(np.mean(busy))}
    return found
