"""Logging of the commands: notes on the stdout of rank 0, warnings and errors of any rank on stderr, each a line that begins ``ddcnn:``.

Modules log to ``logging.getLogger(__name__)``. Without ``set_up``, as in a program that imports ddcnn, Python's defaults hold.
"""

import logging
import sys

from ddcnn.errors import InputError
from ddcnn.parallel.launcher import launched_size

KINDS = {logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "failed"}


class _ErrorFormatter(logging.Formatter):
    """``ddcnn: KIND: MESSAGE``, after the traceback if there is one; ``extra={"kind": …}`` names another kind than the level's."""

    def __init__(self, rank: int):
        super().__init__()
        self.mark = f"[rank {rank}] " if launched_size() > 1 else ""

    def format(self, record: logging.LogRecord) -> str:
        lines = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        kind = getattr(record, "kind", KINDS.get(record.levelno, "note"))
        return "\n".join([*(self.mark + line for line in lines), f"ddcnn: {kind}: {record.getMessage()}"])


class _Notes(logging.StreamHandler):
    """A stdout that cannot be written (full disk, closed pipe) ends the program; logging would print a traceback per line and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise InputError(f"stdout: cannot be written ({error.strerror or error})") from None
        super().handleError(record)


def set_up(rank: int) -> None:
    """Installs the handlers of this process, in place of those of an earlier call."""
    notes, errors = _Notes(sys.stdout), logging.StreamHandler(sys.stderr)
    notes.addFilter(lambda record: rank == 0 and record.levelno < logging.WARNING)
    errors.setLevel(logging.WARNING)
    errors.setFormatter(_ErrorFormatter(rank))
    logger = logging.getLogger("ddcnn")
    logger.handlers[:] = [notes, errors]
    logger.setLevel(logging.INFO)
    logger.propagate = False
