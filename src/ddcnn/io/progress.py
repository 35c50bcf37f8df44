"""Progress of a run on rank 0: bars with the time left where stderr is a terminal, else lines in the log.

Launchers such as mpirun pass output through pipes, so under them it is lines unless a bar is asked for.
"""

import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

WIDE, NARROW = 140, 50  # columns of a terminal: one line has room for a phase, and a bar has none
logger = logging.getLogger(__name__)


class Overall:
    """How far all phases of a run together are; the time that they will take is told by their sizes, and by how long those before took.

    Args:
        sizes: of the phases, in their order: title, and seconds, of which only the relation counts. Those that are not shown after all
            are passed over.
    """

    def __init__(self, sizes: Sequence[tuple[str, float]]):
        self.sizes = sizes
        self.number = -1  # of the current phase
        self._size = self._seconds = 0.0  # of what has been done in this attempt

    def begin(self, title: str) -> None:
        later = range(self.number + 1, len(self.sizes))
        self.number = next((number for number in later if self.sizes[number][0] == title), self.number)

    def end(self, part: float, seconds: float) -> None:
        """The current phase has ended, of which this attempt has done a ``part`` in so many seconds."""
        self._size += part * self.sizes[self.number][1]
        self._seconds += seconds

    def text(self, part: float, seconds: float, left: float | None) -> str:
        """Which phase this is, and the time left of all.

        Args:
            part: of the current phase, that this attempt has done, in so many seconds.
            left: seconds of the current phase, None if that is not known yet.
        """
        size, own = self.sizes[self.number][1], sum(size for _, size in self.sizes[self.number + 1 :])
        done, so_far = self._size + part * size, self._seconds + seconds
        text = f"phase {self.number + 1} of {len(self.sizes)}"
        if not done:
            return text
        return f"{text}, {duration(so_far / done * (own if left is not None else own + size) + (left or 0.0))} left in all"


class Progress:
    """Counts the epochs of a phase, or other pieces of work, within ``with``.

    Args:
        total: number of pieces.
        style: "auto", "bar", "lines" or "none".
        seconds: between two lines at least, for small pieces.
        overall: of which this is a phase.
        unit: what the pieces are, such as "epochs".
    """

    def __init__(self, title: str, total: int, style: str, seconds: float = 0, overall: Overall | None = None, unit: str = ""):
        self.title, self.total, self.seconds, self.overall, self.unit = title, total, seconds, overall, f" {unit}".rstrip()
        self.done = self.skipped = 0
        self.over = False
        bar = sys.stderr.isatty() and shutil.get_terminal_size().columns >= NARROW
        self.style = ("bar" if bar else "lines") if style == "auto" else style
        self.begin = self.last_line = time.perf_counter()
        self.last_piece = self.begin

    def __enter__(self) -> "Progress":
        if self.overall:
            self.overall.begin(self.title)
        if self.style == "bar":
            self.bar = self._bar()
            self.task = self.bar.add_task(self.title, total=self.total, state="", left="")
            self.bar.start()
        return self

    def _bar(self) -> Any:
        from rich.console import Console, RenderableType
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as OneLine
        from rich.text import Text

        console = Console(stderr=True, force_terminal=True)
        wide = console.width >= WIDE
        outer = self

        class Lines(OneLine):
            def get_renderables(self) -> Iterator[RenderableType]:
                if outer.overall and not outer.over:  # what stays of a phase is its own line
                    yield Text(f"{'run':<10} {outer.in_all()}", overflow="fold")
                yield from super().get_renderables()
                yield from (Text(task.fields["state"], overflow="fold") for task in self.tasks if not wide)

        counted = (MofNCompleteColumn(), *([TextColumn(self.unit.strip())] if self.unit else []))
        columns = (TextColumn("{task.description:<10}"), BarColumn(bar_width=20 if wide else 10), *counted)
        return Lines(*columns, TextColumn("{task.fields[left]}"), *([TextColumn("{task.fields[state]}")] if wide else []), console=console)

    def skip(self, pieces: int) -> None:
        """Counts pieces that an earlier attempt has done; they do not count for the time left."""
        self.done += pieces
        self.skipped += pieces

    @property
    def left(self) -> float | None:
        """Seconds of this phase; None before its first piece."""
        pieces = self.done - self.skipped
        return (self.last_piece - self.begin) / pieces * (self.total - self.done) if pieces else None

    @property
    def _part(self) -> float:
        return (self.done - self.skipped) / self.total if self.total else 1.0

    def in_all(self) -> str:
        return self.overall.text(self._part, self.last_piece - self.begin, self.left) if self.overall else ""

    def advance(self, state: str) -> None:
        """Counts one piece, and shows ``state`` beside the numbers."""
        self.done += 1
        now = self.last_piece = time.perf_counter()
        left = f"{duration(self.left or 0.0)} left"
        if self.style == "bar":
            self.bar.update(self.task, completed=self.done, state=state, left=left)
        elif self.style == "lines" and now - self.last_line >= self.seconds:
            self.last_line = now
            whole = f"  ({self.in_all()})" if self.overall else ""
            logger.info("%s  %d/%d%s  %s  %s%s", self.title, self.done, self.total, self.unit, state, left, whole)

    def __exit__(self, *error) -> None:
        seconds = time.perf_counter() - self.begin
        if self.overall:
            self.overall.end(self._part, seconds)
        if self.style == "bar":
            self.over = True
            self.bar.update(self.task, completed=self.done, left=f"in {duration(seconds)}")
            self.bar.stop()


def duration(seconds: float) -> str:
    """``0.4 s``, ``14 s``, ``7.5 min``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "0 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{seconds / 60:.1f} min" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"
