"""Rows of numbers that are read in any order: from memory, or from the bytes of a file, each in a read of its own.

What grows with the number of samples lies in a ``Table``: in memory while it is small, else in a file without a name, which goes with the
process.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from ddcnn.io.atomic import disk_errors
from ddcnn.io.hdf5 import Damaged

IN_MEMORY = 1 << 26  # bytes of the tables that are kept side by side
BLOCK_BYTES = 1 << 24  # that are worked on at a time


class RowReader(Protocol):
    """Rows (S, *shape) that can be read in any order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(B,) int64 -> (B, *shape), an array of its own."""


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array (S, ...) in memory."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


def fill(file: int, rows: np.ndarray, places: np.ndarray, chosen: np.ndarray | None = None) -> None:
    """Reads ``rows`` (B, ...), C-contiguous, or those of them that are ``chosen`` (b,), from the bytes ``places`` (b,) of an open file.

    Raises:
        Damaged: the file is shorter.
    """
    size, data = rows.nbytes // max(1, len(rows)), memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    order = np.argsort(places, kind="stable")  # as disks like it
    numbers = order if chosen is None else chosen[order]
    for k, place in zip(numbers.tolist(), places[order].tolist(), strict=True):
        begin, end = k * size, (k + 1) * size
        while begin < end:  # the kernel may give fewer at a time
            got = os.preadv(file, [data[begin:end]], place)
            if not got:
                raise Damaged("it has become shorter")
            begin, place = begin + got, place + got


@dataclass(frozen=True)
class Room:
    """Where tables lie: in memory while they are small, else in files of ``folder``.

    Attributes:
        side_by_side: how many of a kind there are at a time, such as one for each of a rank's subdomains; together they may be
            ``IN_MEMORY`` large.
    """

    folder: Path
    side_by_side: int = 1

    @property
    def each(self) -> int:
        """Bytes of the largest table that is kept in memory."""
        return IN_MEMORY // self.side_by_side


class Table:
    """Rows (S, *shape), written and read in any order.

    Args:
        room: None to keep it in memory, whatever its size.

    Raises:
        InputError: no file can be made there; by ``write``: there is no room on the disk.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], dtype: np.dtype, room: Room | None):
        self.rows, self.shape, self.dtype, self._room = rows, shape, dtype, room
        self._size = prod(shape) * dtype.itemsize
        self._array: np.ndarray | None = None
        if room and self.nbytes > room.each:
            with disk_errors(room.folder):
                self._file = tempfile.TemporaryFile(dir=room.folder)  # noqa: SIM115  # closed with the table
        else:
            self._array = np.empty((rows, *shape), dtype)

    @classmethod
    def of(cls, array: np.ndarray) -> "Table":
        """In memory."""
        table = cls(0, array.shape[1:], array.dtype, None)
        table.rows, table._array = len(array), array
        return table

    def __len__(self) -> int:
        return self.rows

    @property
    def array(self) -> np.ndarray:
        """All of it, in memory."""
        return self._array if self._array is not None else self.read(np.arange(self.rows))

    @property
    def flat(self) -> "Table":
        """The same numbers as rows (S, numbers)."""
        table = copy(self)
        table.shape = (prod(self.shape),)
        if self._array is not None:
            table._array = self._array.reshape(self.rows, -1)
        return table

    @property
    def nbytes(self) -> int:
        return self.rows * self._size

    @property
    def in_memory(self) -> bool:
        return self._array is not None

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """The ``values`` (B, *shape) of ascending ``rows`` (B,)."""
        if self._array is not None:
            self._array[rows] = values
            return
        assert self._room is not None
        with disk_errors(self._room.folder):
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else ():
                bytes_of_run = np.ascontiguousarray(values[run[0] : run[-1] + 1], self.dtype).reshape(-1).view(np.uint8)
                data, place = memoryview(bytes_of_run), int(rows[run[0]]) * self._size  # type: ignore[arg-type]
                while data:
                    written = os.pwrite(self._file.fileno(), data, place)
                    data, place = data[written:], place + written

    def read(self, rows: np.ndarray) -> np.ndarray:
        if self._array is not None:
            return self._array[rows]
        found = np.empty((len(rows), *self.shape), self.dtype)
        fill(self._file.fileno(), found, rows * self._size)
        return found

    def blocks(self, tables: int = 1) -> Iterator[np.ndarray]:
        """All rows, in blocks of bounded size; of so many tables at once."""
        each = max(1, BLOCK_BYTES // max(1, tables * self._size))
        for start in range(0, max(1, self.rows), each):
            stop = min(start + each, self.rows)
            if self._array is not None:
                yield self._array[start:stop]
            else:
                found = np.empty((1, stop - start, *self.shape), self.dtype)
                fill(self._file.fileno(), found, np.array([start * self._size]))
                yield found[0]

    def mapped(self, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What ``work`` makes of every block of rows, (S, ...), in memory.

        In an array that is there before: small results, kept one by one, would lie in the holes that large blocks leave, and take them.
        """
        found = kept(self.rows, map(work, self.blocks()), None)
        assert found is not None
        return found.array

    def columns(self, chosen: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Of rows (S, K) the ``chosen`` numbers of all, (S,) each; a table in a file is turned once, in one more file."""
        if self._array is not None:
            yield from ((k, self._array[:, k]) for k in chosen)
            return
        (columns,), each = self.shape, max(1, BLOCK_BYTES // max(1, self._size))
        blocks = -(-self.rows // each)
        turned = Table(columns * blocks, (each,), self.dtype, self._room)  # of each column its blocks, one after the other
        for number, block in enumerate(self.blocks()):
            turned.write(np.arange(columns) * blocks + number, np.pad(block.T, ((0, 0), (0, each - len(block)))))
        for k in chosen:
            yield k, turned.read(np.arange(k * blocks, (k + 1) * blocks)).reshape(-1)[: self.rows]


def kept(rows: int, blocks: Iterable[np.ndarray | None], room: Room | None) -> Table | None:
    """A table of so many rows, from blocks of them one after the other, one at least; else as of ``placed``."""

    def numbered() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        start = 0
        for block in blocks:
            stop = start + (0 if block is None else len(block))
            yield np.arange(start, stop), block
            start = stop

    return placed(rows, numbered(), room)


def placed(rows: int, blocks: Iterable[tuple[np.ndarray, np.ndarray | None]], room: Room | None) -> Table | None:
    """A table of so many rows, from blocks (b, ...) of them with their numbers (b,); None if all blocks are, as on ranks that get none."""
    table = None
    for numbers, block in blocks:
        if block is not None:
            table = Table(rows, block.shape[1:], block.dtype, room) if table is None else table
            table.write(numbers, block)
    return table
