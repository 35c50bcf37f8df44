"""Errors that the user can correct or has asked for, and suggestions for misspelt names."""

import os.path
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """Bad usage or input: one line on stderr, exit code 2.

    Attributes:
        agreed: whether every rank raises the same error, so that rank 0 alone reports it and no rank has to be aborted.
    """

    def __init__(self, message: str, *, agreed: bool = False):
        super().__init__(" ".join(message.split()))
        self.agreed = agreed


class Stopped(Exception):
    """The run has been asked to stop, and has saved a checkpoint: exit code 75, ``--resume`` continues it."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1, folder: str = "") -> str:
    """`` (did you mean …?)`` with the known names, in ``folder``, that are most similar, whatever their case; empty if none is."""
    names = {known_name.casefold(): known_name for known_name in known}
    close = [os.path.join(folder, names[match]) for match in get_close_matches(name.casefold(), names, n=most)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
