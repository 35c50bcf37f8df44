"""Errors that the user can correct or has asked for, suggestions for misspelt names, and names that cannot be shown as they are."""

import os
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's control characters, invisible ones, halves of a character, ends of lines
JOINERS = "\u200c\u200d"  # invisible, but emoji and many scripts are written with them


class InputError(Exception):
    """Bad usage or input: one line on stderr, exit code 2.

    Attributes:
        agreed: whether every rank raises the same error, so that rank 0 alone reports it and no rank has to be aborted.
        ends_job: whether other ranks wait for this one in what it has left, so that they have to be aborted.
    """

    ends_job = False

    def __init__(self, message: str, *, agreed: bool = False):
        super().__init__(" ".join(message.split()))
        self.agreed = agreed


class Stopped(Exception):
    """The run has been asked to stop, and has saved a checkpoint: exit code 75, ``--resume`` continues it."""


def escaped(text: str, kinds: tuple[str, ...] = UNSHOWN) -> str:
    """The text, with characters of these ``kinds`` (Unicode's categories) written as code: ``\\x1b``, ``\\u202e``."""
    if text.isprintable():
        return text
    return "".join(_code(one) if unicodedata.category(one) in kinds and one not in JOINERS else one for one in text)


def cause(error: BaseException) -> str:
    """What an error says, in one line; of one that is no InputError its kind, too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _code(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def file_name(name: object) -> str:
    """The name of a file as text, whatever the locale: bytes that are not UTF-8 are written as ``\\xe9``."""
    try:
        return os.fsencode(str(name)).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a text that no file of this locale can have as its name
        return escaped(str(name), ("Cs",))


def did_you_mean(name: str, known: Iterable[str], most: int = 1, folder: str = "") -> str:
    """`` (did you mean …?)`` with the known names, in ``folder``, that are most similar, whatever their case; empty if none is."""
    names = {known_name.casefold(): known_name for known_name in known}
    close = [os.path.join(folder, names[match]) for match in get_close_matches(name.casefold(), names, n=most)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
