"""The errors that are none of the program's: what the user can mend or has asked for, and what was probably meant."""

import os.path
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """Bad usage or input: shown as one line, exit code 2.

    ``agreed`` is true when every rank raises the same error, so that rank 0 speaks for all and nobody waits.
    """

    def __init__(self, message: str, *, agreed: bool = False):
        super().__init__(" ".join(message.split()))
        self.agreed = agreed


class Stopped(Exception):
    """The run has been asked to stop, and what it has done is kept: exit code 75, ``--resume`` goes on."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1, folder: str = "") -> str:
    """A remark on the known names, in ``folder``, that are closest, in either case, or nothing."""
    names = {one.casefold(): one for one in known}
    close = [os.path.join(folder, names[match]) for match in get_close_matches(name.casefold(), names, n=most)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
