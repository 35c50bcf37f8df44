"""Rows of a partitioned set in any order, straight from the bytes of its files: a random batch costs a read of each of its rows.

HDF5 would read and keep whole chunks, of which a random batch needs a row or none. The data are neither compressed nor filtered
(``checked_dataset``), so all that has to be known is where the chunks lie. Reads release the interpreter, and the kernel's page cache
serves all ranks of a node.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

import h5py
import numpy as np

from ddcnn.data.set_parts import Part
from ddcnn.decomposition import Box, Subdomain
from ddcnn.io.hdf5 import Damaged, checked_dataset, parsing, reading
from ddcnn.io.rows import RowReader, fill

OPEN_FILES = 64  # of a reader, at once


@dataclass(frozen=True)
class Extent:
    """The rows start <= s < stop of a set, in pieces of ``each`` rows that begin at the bytes ``places`` (pieces,) of a file."""

    file: Path
    start: int
    stop: int
    each: int
    places: np.ndarray


@parsing()
def extent_of(dataset: h5py.Dataset, file: Path, start: int) -> Extent:
    """Of a dataset in ``file`` that ``checked_dataset`` has checked, whose first row is row ``start`` of the set.

    Raises:
        Damaged: its rows do not lie in the file one after the other.
    """
    samples, chunks = len(dataset), dataset.chunks or dataset.shape
    if chunks[1:] != dataset.shape[1:] or dataset.file.userblock_size:
        raise Damaged(f"{dataset.name} is laid out in another way")
    each = max(1, chunks[0])
    places = np.full(-(-samples // each), -1, dtype=np.int64)

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        if (row := chunk.chunk_offset[0]) < samples:
            places[row // each] = chunk.byte_offset

    if dataset.chunks:
        dataset.id.chunk_iter(note)
    elif samples:
        places[0] = -1 if dataset.id.get_offset() is None else dataset.id.get_offset()
    if (places < 0).any():
        raise Damaged(f"{dataset.name} lacks some of its data")
    return Extent(file, start, start + samples, each, places)


class OpenFile:
    """A file to read from; readers of the same file share it, since a set may have many parts, and readers."""

    known: ClassVar[WeakValueDictionary[tuple[int, int], "OpenFile"]] = WeakValueDictionary()  # by device and inode

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    @classmethod
    def at(cls, path: Path) -> "OpenFile":
        found = os.stat(path)
        opened = cls.known.get((found.st_dev, found.st_ino))
        if opened is None:
            opened = cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            found = os.fstat(opened.descriptor)
            cls.known[found.st_dev, found.st_ino] = opened
        return opened

    def __del__(self) -> None:
        os.close(self.descriptor)


class FileRows:
    """Rows of a type and shape that lie in one or more files.

    Args:
        named: the set, for messages.
        extents: ascending; together they have all rows.
    """

    def __init__(self, named: Path, extents: Sequence[Extent], shape: tuple[int, ...], dtype: np.dtype):
        self.named, self.extents, self.shape, self.dtype = named, extents, shape, dtype
        self._starts = np.array([extent.start for extent in extents])
        self._open: OrderedDict[Path, OpenFile] = OrderedDict()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """
        Raises:
            InputError: a file is gone, has become shorter, or cannot be read.
        """
        found = np.empty((len(rows), *self.shape), self.dtype)
        size = prod(self.shape) * self.dtype.itemsize
        numbers = np.searchsorted(self._starts, rows, "right") - 1
        with reading(self.named, "its images cannot be read", "bring the file back, and resume"):
            for number in np.unique(numbers).tolist():
                extent, here = self.extents[number], np.flatnonzero(numbers == number)
                piece, within = np.divmod(rows[here] - extent.start, extent.each)
                fill(self._file(extent.file).descriptor, found, extent.places[piece] + within * size, here)
        return found

    def _file(self, path: Path) -> OpenFile:
        """The last few files are kept open."""
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = OpenFile.at(path)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return self._open[path]


def open_rows(path: Path, parts: Sequence[Part], name: str, shape: tuple[int, ...], dtype: np.dtype) -> FileRows:
    """The rows of the datasets ``name`` in the parts of the set ``path``.

    Raises:
        InputError: a part has been damaged or replaced.
    """
    extents = []
    for part in parts:
        with part.opened(path) as file:
            dataset = checked_dataset(file, name, (part.stop - part.start, *shape), dtype)
            extents.append(extent_of(dataset, part.file, part.start))
    return FileRows(path, extents, shape, dtype)


def joined(pieces: Sequence[tuple[Subdomain, Box]], parts: Iterable[np.ndarray], box: Box, images: np.ndarray) -> np.ndarray:
    """Fills ``images`` (B, *box, C), the pixels of ``box``, with pieces of the stored subimages (B, *stored, C) of subdomains."""
    for (subdomain, piece), stored in zip(pieces, parts, strict=True):
        images[(slice(None), *piece.within(box))] = stored[(slice(None), *piece.within(subdomain.stored))]
    return images


@dataclass(frozen=True)
class JoinedRows:
    """The pixels of a box, joined from the rows of subdomains."""

    box: Box
    pieces: Sequence[tuple[Subdomain, Box]]
    parts: Sequence[RowReader]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.box.shape, self.parts[0].shape[-1])

    def read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.shape), self.dtype)
        return joined(self.pieces, (part.read(rows) for part in self.parts), self.box, images)
