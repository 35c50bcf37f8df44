"""What a rank did when: spans of computing, communicating and waiting."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

KINDS = ("compute", "communicate", "wait")
PHASES = ("start", "partition", "local", "folds", "gather", "dnn")  # "start": imports, opening files


class Timeline:
    """Spans of one rank, in seconds since ``begin``, which all ranks call together.

    Spans do not nest: waiting inside a span of computing would be counted twice.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[int, int, float, float]] = []  # (phase, kind, start, stop)
        self._phase = PHASES[0]
        self.begin()

    def begin(self) -> None:
        self.spans.clear()
        self.origin = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.origin

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spans inside belong to this phase."""
        outer, self._phase = self._phase, name
        yield
        self._phase = outer

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        begin = self.now()
        try:
            yield
        finally:
            self.spans.append((PHASES.index(self._phase), KINDS.index(kind), begin, self.now()))

    def array(self) -> np.ndarray:
        """(spans, 4) float64: phase index, kind index, start, stop in seconds."""
        return np.array(self.spans, dtype=np.float64).reshape(-1, 4)
