"""The files that hold the images of a partitioned set: the set itself, or a part per rank in a folder beside it.

Virtual datasets join the parts for other programs. This program opens the parts itself, since HDF5 would search further folders for
them, read zeros where a part is missing, and crash on a damaged virtual dataset.
"""

import os
import re
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import h5py
import numpy as np

from ddcnn.errors import InputError
from ddcnn.io.hdf5 import attribute, checked_dataset, opened, parsing, reading
from ddcnn.parallel.heartbeat import beat

READ_BYTES = 1 << 26  # that are read at once: meanwhile no other thread can use HDF5
REFUSAL = ("not a complete partitioned set", "partition the source again")  # problem and way out, for messages


def part_name(rank: int) -> str:
    return f"{rank:05d}.h5"


def images_name(split: str, index: int) -> str:
    return f"{split}/subdomains/{index:04d}/images"


def checksum(images: np.ndarray) -> int:
    """CRC-32 of the row and column sums of a C-contiguous array's 64-bit words: several times as fast as CRC-32 of the array."""
    data = images.reshape(-1).view(np.uint8)
    table = data[: len(data) // 8192 * 8192].view(np.uint64).reshape(-1, 1024)
    return zlib.crc32(table.sum(axis=0), zlib.crc32(table.sum(axis=1), zlib.crc32(data[table.nbytes :].data)))


@dataclass(frozen=True)
class Part:
    """A ``file`` with the rows start <= s < stop of a split."""

    file: Path
    start: int
    stop: int

    def opened(self, path: Path) -> AbstractContextManager[h5py.File]:
        """Opens this part of the set ``path`` for reading, within ``hdf5.reading``."""
        what = REFUSAL[0] if self.file == path else f"its part {self.file.name} is damaged or foreign"
        return opened(self.file, what, REFUSAL[1], named=path)


@dataclass(frozen=True)
class CheckedRows:
    """The images of a subdomain in a split, in runs of rows that have a checksum.

    Attributes:
        path: of the set.
        name: of the dataset in every part.
        shape, dtype: of a row.
        runs: (R + 1,) bounds of the runs.
        checks: (R,) their checksums.
    """

    path: Path
    parts: list[Part]
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    runs: np.ndarray
    checks: np.ndarray

    def read(self, first: int, last: int) -> np.ndarray:
        """The rows of the runs first <= k < last.

        Raises:
            InputError: a part or a run has been damaged or replaced.
        """
        start, stop = int(self.runs[first]), int(self.runs[last])
        images = np.empty((stop - start, *self.shape), self.dtype)
        for part in self.parts:
            a, b = max(start, part.start), min(stop, part.stop)
            if a < b:
                with part.opened(self.path) as file, parsing():
                    dataset = checked_dataset(file, self.name, (part.stop - part.start, *self.shape), self.dtype)
                    for c in range(a, b, self._each):
                        d = min(c + self._each, b)
                        dataset.read_direct(images, np.s_[c - part.start : d - part.start], np.s_[c - start : d - start])
                        beat()
        for k in range(first, last):
            if checksum(images[self.runs[k] - start : self.runs[k + 1] - start]) != self.checks[k]:
                rows = f"rows {self.runs[k]} to {self.runs[k + 1] - 1}"
                raise InputError(f"{self.path}: {self.name} is damaged in {rows}; partition the source again")
        return images

    def compare(self) -> None:
        """Reads all rows, some runs at a time, as ``read`` does."""
        first, runs = 0, len(self.checks)
        for last in range(1, runs + 1):
            if last == runs or self.runs[last + 1] - self.runs[first] > self._each:
                self.read(first, last)
                first = last

    @property
    def _each(self) -> int:
        return max(1, READ_BYTES // (prod(self.shape) * self.dtype.itemsize))


def parts_of(path: Path, folder: str, bounds: np.ndarray) -> list[Part]:
    """The parts of the set ``path``.

    Args:
        folder: name of the folder of the parts; empty if all rows are in ``path``.
        bounds: (ranks + 1,) ascending; the part of a rank has the rows bounds[rank] <= s < bounds[rank + 1], and exists if there are any.

    Raises:
        InputError: a part is missing, or is not in a folder beside the file.
    """
    rows = bounds.tolist()
    if not folder:
        return [Part(path, rows[0], rows[-1])]
    parts = [Part(path.parent / folder / part_name(rank), a, b) for rank, (a, b) in enumerate(pairwise(rows)) if b > a]
    with reading(path, *REFUSAL):  # names may be too long
        for part in parts:
            name = f"{folder}/{part.file.name}"
            beside = os.path.join(os.path.realpath(path.parent), name)
            if Path(folder).name != folder or "\0" in folder or os.path.realpath(part.file) != beside:
                raise InputError(f"{path}: its part {name} lies outside of its folder, and is not followed")
            if not part.file.is_file():
                raise InputError(f"{path}: its part {name} is missing; bring it back beside the file, or partition again")
    return parts


def written_parts(path: Path) -> set[Path]:
    """The parts of the set at ``path``, if this program wrote them for this path and not for a set that was copied to it."""
    if not path.is_file():
        return set()
    try:
        with opened(path) as file:
            folder = str(attribute(file, "parts"))
    except InputError:
        return set()
    ours = re.fullmatch(rf"{re.escape(path.stem)}\.[0-9a-f]{{8}}\.parts", folder) and not (path.parent / folder).is_symlink()
    return set((path.parent / folder).glob("[0-9]" * 5 + ".h5")) if ours else set()
