"""Time and peak memory of a rank: spans of computing, communicating and waiting, in the phases of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ddcnn.parallel import memory

KINDS = ("compute", "communicate", "wait")
PHASES = (
    "start", "partition", "local", "folds", "gather", "dnn", "coherent", "transfer", "global", "spatial",
)  # "start": imports, opening files; an older version had the first nine  # fmt: skip
OLDER_AND_OWN = ((9,), (len(PHASES),))  # shapes of what is counted for each phase
START = PHASES.index("start")
BLOCK = 0.05  # seconds; consecutive shorter pieces are merged
BLOCKS_SO_FAR = 1000  # the same for pieces shorter than this part of the time so far: a long run has few spans, too
GAP = 1e-3  # seconds without a record that end a block


class Timeline:
    """Spans of one rank, in seconds since ``begin``, which all ranks call together.

    A span inside another one interrupts it, so no second counts twice. A step of training records a few pieces of milliseconds;
    consecutive pieces are merged into blocks that hold each kind once, with the sum of its seconds. A resumed run begins where the
    records of the earlier attempt end.

    Attributes:
        backend: of the last process group; empty before there was one.
    """

    backend = ""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, float, float]] = []  # (phase, kind, start, stop)
        self._phase = PHASES[0]
        self._open: list[tuple[str, float]] = []  # open spans, outermost first, each with the time since which it has not been interrupted
        self._block: dict[str, float] = {}  # seconds per kind since ``_start``
        self._start = self._stop = 0.0
        self._begin()

    def begin(self) -> None:
        """What was before does not count."""
        memory.take_peaks()  # of the whole process: a timeline of a single rank, made meanwhile, leaves them alone
        self._begin()

    def _begin(self) -> None:
        self._spans.clear()
        self._block.clear()
        self._sent = np.zeros(len(PHASES))
        self._peaks = np.zeros((len(PHASES), len(memory.KINDS)))
        self._earlier = 0.0  # seconds of the attempts that this one continues
        self._origin = time.perf_counter()

    def now(self) -> float:
        """Seconds since ``begin``, with those of the attempts that this one continues."""
        return time.perf_counter() - self._origin

    @property
    def resumed(self) -> bool:
        return self._earlier > 0

    def count(self, sent: int) -> None:
        """Adds bytes that this rank has sent."""
        self._sent[PHASES.index(self._phase)] += sent

    @property
    def sent(self) -> dict[str, float]:
        """Bytes that this rank has sent, by phase."""
        return dict(zip(PHASES, self._sent.tolist(), strict=True))

    def take_peaks(self) -> np.ndarray:
        """(phases, 3) bytes: the peak memory of each phase, by ``memory.KINDS``; 0 where there is none. The kernel's starts anew."""
        number = PHASES.index(self._phase)
        self._peaks[number] = np.maximum(self._peaks[number], memory.take_peaks())
        return self._peaks

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spans and memory inside belong to the phase ``name``."""
        outer = self._phase
        self._change_phase(name)
        yield
        self._change_phase(outer)

    def _change_phase(self, name: str) -> None:
        self._end_block()
        self.take_peaks()
        self._phase = name

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Records the time inside as "compute", "communicate" or "wait"."""
        begin = self.now()
        if self._open:
            self._add(*self._open[-1], begin)
        self._open.append((kind, begin))
        try:
            yield
        finally:
            end = self.now()
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
        """Records the block as one span per kind, one after the other from its start; the last one ends with the block."""
        start, kinds = self._start, [kind for kind in KINDS if kind in self._block]
        for kind in kinds:
            seconds = self._block[kind]
            start = self._stop - seconds if kind == kinds[-1] else start
            self._spans.append((PHASES.index(self._phase), KINDS.index(kind), start, start + seconds))
            start += seconds
        self._block.clear()

    def array(self) -> np.ndarray:
        """(spans, 4) float64: phase index, kind index, start, stop in seconds."""
        if self._open:  # the current span counts up to now
            kind, begin = self._open[-1]
            self._open[-1] = kind, self.now()
            self._add(kind, begin, self._open[-1][1])
        self._end_block()
        return np.array(self._spans, dtype=np.float64).reshape(-1, 4)

    # Runs that are resumed

    def to_save(self) -> dict[str, np.ndarray]:
        return {
            "timeline/spans": self.array(), "timeline/sent": self._sent.copy(), "timeline/peaks": self.take_peaks().copy(),
            "timeline/seconds": np.array([self.now()]),
        }  # fmt: skip

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continues what an earlier attempt has saved; of several, the longest counts, and of peaks the largest.

        Raises:
            KeyError, ValueError: these are not arrays that have been saved.
        """
        spans, sent, seconds = (arrays[f"timeline/{name}"] for name in ("spans", "sent", "seconds"))
        if spans.ndim != 2 or spans.shape[1] != 4 or sent.shape not in OLDER_AND_OWN or seconds.shape != (1,):
            raise ValueError("no timeline")
        peaks = arrays.get("timeline/peaks", np.zeros(self._peaks.shape))  # none in what an older version has saved
        if peaks.shape[:1] not in OLDER_AND_OWN or peaks.shape[1:] != self._peaks.shape[1:]:
            raise ValueError("no peaks of memory")
        sent, peaks = (np.concatenate([one, np.zeros((len(PHASES) - len(one), *one.shape[1:]))]) for one in (sent, peaks))
        self._peaks = np.maximum(self._peaks, peaks)
        if seconds[0] > self._earlier:
            self._end_block()
            self._origin += self._earlier - seconds[0]
            self._earlier, self._sent = float(seconds[0]), sent
            restored = (START, 0, self._earlier, self.now())  # until now this attempt has only restored the earlier one
            self._spans = [*map(tuple, spans.tolist()), restored]
            self._open = [(kind, restored[-1]) for kind, _ in self._open]


# Evaluation of the spans of all ranks: a list over ranks of arrays (spans, 4) as above.


def windows(spans: list[np.ndarray], phases: tuple[str, ...]) -> list[tuple[float, float]]:
    """Disjoint ascending intervals of time that the phases take together.

    A phase lasts from the start of its first rank to the end of its last one, without the time that rank 0 needed to resume it in a later
    attempt. Phases may overlap: a rank waits for the others in its next phase.
    """
    everything = np.concatenate(spans)
    by_phase = [everything[everything[:, 0] == PHASES.index(phase)] for phase in phases]
    merged: list[tuple[float, float]] = []
    for start, stop in sorted((float(part[:, 2].min()), float(part[:, 3].max())) for part in by_phase if len(part)):
        if merged and start < merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged.pop()[1])
        merged.append((start, stop))
    for _, _, begin, end in spans[0][spans[0][:, 0] == START].tolist():
        pieces = [((start, min(stop, begin)), (max(start, end), stop)) for start, stop in merged]
        merged = [(start, stop) for pair in pieces for start, stop in pair if start < stop]
    return merged


def wall(intervals: list[tuple[float, float]], until: float = np.inf) -> float:
    """Seconds of the intervals before a time."""
    return sum(max(0.0, min(stop, until) - start) for start, stop in intervals)


def seconds_of(spans: list[np.ndarray], phases: tuple[str, ...], kind: str) -> list[float]:
    """Seconds of a kind in the phases, by rank."""
    numbers = [PHASES.index(phase) for phase in phases]
    chosen = [part[np.isin(part[:, 0], numbers) & (part[:, 1] == KINDS.index(kind))] for part in spans]
    return [float((part[:, 3] - part[:, 2]).sum()) for part in chosen]


def largest_peaks(peaks: np.ndarray, phases: tuple[str, ...]) -> list[int | None]:
    """The largest of all ranks' peaks (ranks, phases, 3) over the given phases, by ``memory.KINDS``, in bytes; None where there is none."""
    largest = peaks[:, [PHASES.index(phase) for phase in phases]].max(axis=(0, 1))
    return [int(peak) or None for peak in largest.tolist()]


def phase_seconds(spans: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Of each phase that took place: wall seconds, and seconds of computing of the busiest rank and on average."""
    seconds = {}
    for phase in PHASES[1:]:
        if intervals := windows(spans, (phase,)):
            busy = seconds_of(spans, (phase,), "compute")
            seconds[phase] = {"seconds": wall(intervals), "max_rank_seconds": max(busy), "mean_rank_seconds": float(np.mean(busy))}
    return seconds
