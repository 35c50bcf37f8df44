"""Tables on a terminal, whose names and numbers are never cut: columns that have no room stand in a further table below."""

import os
import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = "  "  # between columns


def width_of(console: Console) -> int:
    """Characters in a line; of a pipe or a file as many as there are."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else sys.maxsize


def fitted(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, left: Sequence[str] = (), bold: Sequence[int] = ()
) -> list[Text]:
    """The lines of a table; the first column, which names the rows, begins each of the tables that it is divided into.

    A line is longer than ``width`` only where the first column and a single other one are, and is then to be folded.

    Args:
        left: names of the columns whose cells stand at the left, as those of the first do.
        bold: numbers of rows.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    tables: list[list[int]] = []
    for k in range(1, len(columns)):
        shown = [0, *tables[-1], k] if tables else []
        if shown and sum(len(GAP) + widths[one] for one in shown) < width:  # a blank at the left in place of the first gap
            tables[-1].append(k)
        else:
            tables.append([k])
    lines: list[Text] = []
    for table in tables:
        lines += [Text()] if lines else []
        for number, line in enumerate((header, *rows)):
            cells = (_padded(line[k], widths[k], k == 0 or header[k] in left) for k in (0, *table))
            style = "bold" if number == 0 or number - 1 in bold else ""
            lines.append(Text(f" {GAP.join(cells).rstrip()} ", style, overflow="fold"))
    return lines


def _padded(text: str, width: int, left: bool) -> str:
    blanks = " " * (width - cell_len(text))
    return text + blanks if left else blanks + text


def show(lines: Sequence[Text], console: Console) -> None:
    """Shows lines, of which a terminal folds those that are too long."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
