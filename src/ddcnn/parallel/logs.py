"""What the commands say: notes on the stdout of rank 0, warnings and errors of any rank on stderr, each a line that begins ``ddcnn:``.

Modules log to ``logging.getLogger(__name__)``. Without ``set_up``, as in a program that imports ddcnn, Python's defaults hold. Nothing that
is said can fail: streams escape what their encoding does not have, and drop what a closed pipe or a full disk does not take.
"""

import codecs
import io
import logging
import os
import select
import sys
from typing import Any

from ddcnn.errors import escaped
from ddcnn.parallel.launcher import launched_size

PLAIN = str.maketrans(dict(zip("–×±→…▁▂▃▄▅▆▇█", ("-", "x", "+-", "->", "...", *"_.:-=+*#"), strict=True)))
KINDS = {logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "failed"}


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """What a stream writes that has not the characters: similar ones, else their codes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return error.object[error.start : error.end].translate(PLAIN).encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(__name__, _in_plain_characters)


class Descriptor(io.FileIO):
    """A file that is open already, to which writing does not fail; ``lost`` is the first error."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that is full, and that somebody has made nonblocking
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


def open_streams() -> None:
    """Puts stdout and stderr on streams that cannot fail; what was closed leads nowhere, so that no other file gets its number."""
    for size in ("COLUMNS", "LINES"):  # 0 where no terminal has been found: then rich would show nothing
        if not os.environ.get(size, "0").strip("0"):
            os.environ.pop(size, None)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # None if it was closed; not what a caller has put in its place
            encoding, lines = (stream.encoding, stream.line_buffering) if stream else ("utf-8", True)
            buffer = io.BufferedWriter(Descriptor(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, errors=__name__, line_buffering=lines))


def lost_stdout() -> OSError | None:
    """Why something that was written to stdout is lost, if so."""
    sys.stdout.flush()
    descriptor = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return descriptor.lost if isinstance(descriptor, Descriptor) else None


class _Formatter(logging.Formatter):
    """What cannot be shown is escaped, line by line."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escaped, record.getMessage().split("\n")))


class _ErrorFormatter(_Formatter):
    """``ddcnn: KIND: MESSAGE``, after the traceback if there is one; ``extra={"kind": …}`` names another kind than the level's."""

    def __init__(self, rank: int):
        super().__init__()
        self.mark = f"[rank {rank}] " if launched_size() > 1 else ""

    def format(self, record: logging.LogRecord) -> str:
        lines = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        kind = getattr(record, "kind", KINDS.get(record.levelno, "note"))
        return "\n".join([*(self.mark + line for line in lines), f"ddcnn: {kind}: {super().format(record)}"])


def set_up(rank: int) -> None:
    """Installs the handlers of this process, in place of those of an earlier call."""
    notes, errors = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    notes.addFilter(lambda record: rank == 0 and record.levelno < logging.WARNING)
    notes.setFormatter(_Formatter())
    errors.setLevel(logging.WARNING)
    errors.setFormatter(_ErrorFormatter(rank))
    logger = logging.getLogger("ddcnn")
    logger.handlers[:] = [notes, errors]
    logger.setLevel(logging.INFO)
    logger.propagate = False
