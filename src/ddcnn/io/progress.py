"""What a person sees of a run on rank 0: a bar with the time left on a terminal, plain lines in a file."""

import logging
import os
import sys
import time
from pathlib import Path

LAUNCHERS = {"mpirun", "mpiexec", "mpiexec.hydra", "mpirun.openmpi", "orterun", "prterun", "srun"}

logger = logging.getLogger(__name__)


class Progress:
    """Counts the epochs of one phase, or other work. Use it as a context manager.

    Of work that is cut into small pieces, a line tells only every few ``seconds``.
    """

    def __init__(self, title: str, total: int, style: str, seconds: float = 0):
        self.title, self.total, self.seconds = title, total, seconds
        self.done = self.skipped = 0
        self.width = terminal_width() if style in ("auto", "bar") else 0
        self.style = ("bar" if self.width else "lines") if style == "auto" else style
        self.begin = self.told = time.perf_counter()

    def __enter__(self) -> "Progress":
        if self.style == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description:<10}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("left  {task.fields[state]}"),
                console=Console(stderr=True, force_terminal=True, width=self.width or None),
            )  # fmt: skip
            self.task = self.bar.add_task(self.title, total=self.total, state="")
            self.bar.start()
        return self

    def skip(self, pieces: int) -> None:
        """So many have been done in an earlier attempt."""
        self.done += pieces
        self.skipped += pieces

    def advance(self, state: str) -> None:
        self.done += 1
        if self.style == "bar":
            self.bar.update(self.task, completed=self.done, state=state)
        elif self.style == "lines" and time.perf_counter() - self.told >= self.seconds:
            self.told = time.perf_counter()
            left = (time.perf_counter() - self.begin) / (self.done - self.skipped) * (self.total - self.done)
            logger.info("%s  %d/%d  %s  %.0f s left", self.title, self.done, self.total, state, left)

    def __exit__(self, *error) -> None:
        if self.style == "bar":
            self.bar.stop()


def terminal_width() -> int:
    """Columns of the terminal that a person looks at, 0 for none: a launcher passes output through a pipe, so ask for its terminal."""
    if sys.stderr.isatty():
        return os.get_terminal_size(sys.stderr.fileno()).columns
    process = os.getppid()
    try:
        while process > 1:
            folder = Path("/proc") / str(process)
            if (folder / "comm").read_text().strip() in LAUNCHERS:
                with (folder / "fd" / "2").open() as launchers_stderr:
                    return os.get_terminal_size(launchers_stderr.fileno()).columns
            process = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        pass  # the launcher's output is no terminal, it is gone, or this is another operating system
    return 0
