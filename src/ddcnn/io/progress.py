"""Progress of a run on rank 0: a bar with the time left where stderr is a terminal, else lines in the log.

Launchers such as mpirun pass output through pipes, so under them it is lines unless a bar is asked for.
"""

import logging
import shutil
import sys
import time
from collections.abc import Iterator

WIDE, NARROW = 120, 50  # columns of a terminal: one line has room, and a bar has none
logger = logging.getLogger(__name__)


class Progress:
    """Counts the epochs of a phase, or other pieces of work, within ``with``.

    Args:
        total: number of pieces.
        style: "auto", "bar", "lines" or "none".
        seconds: between two lines at least, for small pieces.
    """

    def __init__(self, title: str, total: int, style: str, seconds: float = 0):
        self.title, self.total, self.seconds = title, total, seconds
        self.done = self.skipped = 0
        bar = sys.stderr.isatty() and shutil.get_terminal_size().columns >= NARROW
        self.style = ("bar" if bar else "lines") if style == "auto" else style
        self.begin = self.last_line = time.perf_counter()

    def __enter__(self) -> "Progress":
        if self.style == "bar":
            from rich.console import Console, RenderableType
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as OneLine
            from rich.text import Text

            class TwoLines(OneLine):
                def get_renderables(self) -> Iterator[RenderableType]:
                    yield from super().get_renderables()
                    yield from (Text(task.fields["state"], overflow="fold") for task in self.tasks)

            console = Console(stderr=True, force_terminal=True)
            wide = console.width >= WIDE
            self.bar = (OneLine if wide else TwoLines)(
                TextColumn("{task.description:<10}"), BarColumn(bar_width=20 if wide else 10), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("left  {task.fields[state]}" if wide else "left"), console=console,
            )  # fmt: skip
            self.task = self.bar.add_task(self.title, total=self.total, state="")
            self.bar.start()
        return self

    def skip(self, pieces: int) -> None:
        """Counts pieces that an earlier attempt has done; they do not count for the time left."""
        self.done += pieces
        self.skipped += pieces

    def advance(self, state: str) -> None:
        """Counts one piece, and shows ``state`` beside the numbers."""
        self.done += 1
        now = time.perf_counter()
        if self.style == "bar":
            self.bar.update(self.task, completed=self.done, state=state)
        elif self.style == "lines" and now - self.last_line >= self.seconds:
            self.last_line = now
            left = (now - self.begin) / (self.done - self.skipped) * (self.total - self.done)
            logger.info("%s  %d/%d  %s  %.0f s left", self.title, self.done, self.total, state, left)

    def __exit__(self, *error) -> None:
        if self.style == "bar":
            self.bar.stop()
