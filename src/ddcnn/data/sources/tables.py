"""A table of labels in a folder of files, ``labels.csv``: columns file, label and, optionally, split."""

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

from ddcnn.data.sources.base import SPLIT_NAMES, SPLITS
from ddcnn.data.sources.folders import Walk
from ddcnn.errors import InputError

TABLE = "labels.csv"
COLUMNS = ("file", "label", "split")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # of tables that are refused: cells stand between commas


@dataclass(frozen=True)
class Row:
    """A line of the table; ``where`` names it in messages, ``named`` is what it names: the sample, or a folder around it."""

    table: Path
    where: str
    named: Path
    path: Path
    label: str
    split: str | None


def table_in(folder: Path, suffixes: tuple[str, ...]) -> Path | None:
    """The table of a folder, None if there is none. Its name may be in any case if it names files with one of the suffixes."""
    if (folder / TABLE).is_file():
        return folder / TABLE
    with os.scandir(folder) as entries:
        others = [Path(entry.path) for entry in entries if entry.name.lower() == TABLE and entry.is_file()]
    return next((table for table in others if any(suffix.encode() in table.read_bytes().lower() for suffix in suffixes)), None)


def read_table(walk: Walk, every_label: bool = True) -> list[Row]:
    """The lines of the table of a folder, checked. Rows of empty cells, as spreadsheets write them, are left out.

    Args:
        walk: knows the folder and what can be in it.
        every_label: whether every file must have a label.

    Raises:
        InputError: no readable table, or a line that names no label, or no sample in the folder, or one that another line names.
    """
    table = table_in(walk.root, walk.suffixes) or walk.root / TABLE
    rows: list[Row] = []
    seen: dict[Path, str] = {}
    try:
        content = table.read_bytes()
        if content.startswith(UTF_16):
            raise InputError(f"{table}: its text is UTF-16; save it as CSV in UTF-8")
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True)
        lines = (cells for cells in reader if any(cell.strip() for cell in cells))
        columns = _columns(table, next(lines, []))
        for cells in lines:
            values = {name: cells[k].strip() if k < len(cells) else "" for name, k in columns.items()}
            if every_label and values["file"] and not values["label"]:
                raise InputError(f"{table} line {reader.line_num}: no label{_separated(cells)}")
            row = _row(walk, table, f"{table} line {reader.line_num}", values)
            if row.path in seen:
                raise InputError(f"{row.where}: {row.path.name} is listed in {seen[row.path]} already")
            seen[row.path] = row.where.removeprefix(f"{table} ")
            rows.append(row)
    except (OSError, ValueError, csv.Error) as error:  # not UTF-8, or a zero byte in a name
        raise InputError(f"{table}: not a readable table in UTF-8 ({error}); save it as CSV in UTF-8") from None
    if not rows:
        raise InputError(f"{table}: no lines below the column names")
    return rows


def _columns(table: Path, cells: list[str]) -> dict[str, int]:
    """Where the columns of the table are, by its first line."""
    names = [cell.strip().casefold() for cell in cells]
    twice = next((name for name in COLUMNS if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{table}: its first line names the column {twice} twice")
    if not {"file", "label"} <= set(names):
        found = _separated(cells) or f"; it names {','.join(cells)[:80] or 'none'}"
        raise InputError(f"{table}: its first line must name the columns file,label or file,label,split{found}")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _separated(cells: list[str]) -> str:
    """A remark on a line whose cells do not stand between commas."""
    what = next((what for separator, what in SEPARATORS.items() if separator in "".join(cells)), None)
    return f"; it has {what} between its cells: save it with commas" if what else ""


def _row(walk: Walk, table: Path, where: str, values: dict[str, str]) -> Row:
    root, name, label, split = walk.root, values["file"], values["label"], values.get("split")
    if not name:
        raise InputError(f"{where}: no file")
    path = _inside(root, name)
    if path is None:
        raise InputError(f"{where}: {name} lies outside of {root}, and is not read")
    if not walk.follow_links and not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{where}: {name} lies outside of {root}, where a link leads, and is not read; --follow-links reads it")
    if not walk.takes(path):
        exists = os.path.exists(path)
        kinds = f"{' or '.join(walk.suffixes)}{', and is no folder' if walk.folders else ''}"
        raise InputError(
            f"{where}: {f'{name} does' if exists else f'there is no {name}, which does'} not end in {kinds}; if these are class folders of "
            f"images, move {table.name} out of the folder"
        )
    sample = walk.sample(path, where)
    if split is not None:
        split = next((name for name in SPLITS if split.casefold() in SPLIT_NAMES[name]), split)
        if split not in SPLITS:
            raise InputError(f"{where}: split {split!r}; expected train, validation or test")
    return Row(table, where, path, sample, label, split)


def _inside(root: Path, name: str) -> Path | None:
    """The path of a file that a table names, below ``root``; None if it is not there."""
    if not Path(name).is_absolute() and ".." not in Path(name).parts:
        return root / name
    path = root / name  # which is the name itself if that is absolute
    try:
        return root / (path.parent.resolve() / path.name).relative_to(root.resolve())
    except ValueError:
        return None


def class_names_of(rows: list[Row]) -> list[str]:
    """Class names in the order of the class numbers: sorted as numbers if all are whole numbers, else as text."""
    names = {row.label for row in rows}
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
