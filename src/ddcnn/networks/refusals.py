"""Refusals in one line, with what other people's code has raised."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ddcnn.errors import InputError

NOT_THE_USERS = ("ddcnn", "torch", "torchvision", "importlib")  # packages


@contextmanager
def refusing(what: str, way_out: str = "") -> Iterator[None]:
    """Whatever is raised inside becomes an InputError: ``what``, the reason, and the way out."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit: of a script that is imported
        raise InputError(f"{what}: {_reason(error)}{way_out}") from error


def _reason(error: BaseException) -> str:
    """Type and message, and the last line of the user's own code on the way there."""
    lines = str(error).strip().splitlines() or ["no message"]
    message = lines[0] if isinstance(error, RuntimeError) else " ".join(lines)  # PyTorch appends where in C++ it was
    places = [
        f" ({frame.f_code.co_filename}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in NOT_THE_USERS
    ]
    return f"{type(error).__name__}: {message}{places[-1] if places else ''}"
