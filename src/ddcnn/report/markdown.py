"""What a report is written in: tables, numbers as they stand in them, and names that users have chosen."""

import re
from collections.abc import Iterable
from typing import Any


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; numbers to the right, the first column to the left."""
    header = list(header)
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def number(value: float | None, pattern: str) -> str:
    return "–" if value is None else pattern.format(value)


def human(number: float) -> str:
    """Bytes in a unit that leaves few digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def plain(name: str) -> str:
    """A name in which Markdown sees nothing but letters."""
    return re.sub(r"[\\`*\[\]<>&~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(name.split()))


def no_formula(name: str) -> str:
    """A name in which Matplotlib sees no formula."""
    return name.replace("$", r"\$")
