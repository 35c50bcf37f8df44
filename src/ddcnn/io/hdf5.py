"""Writing HDF5 files, and reading those that anyone may have written: plain numbers and text that lie in the file itself.

HDF5 crashes on closing a file that cannot be written, and again at the end of the process. So it writes through ``atomic.Output``, which
keeps an error to itself until the file is closed.

All that is not plain is refused in one line. What h5py raises on damaged bytes becomes ``Damaged`` around the calls of h5py alone
(``parsing``), so that an error in this program keeps its type and its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddcnn.errors import InputError
from ddcnn.io.atomic import Output, replacing

HDF5_FORMAT = "v110"  # of the files that are written: the oldest that has checksums throughout
NUMBERS = "biuf"  # kinds of NumPy types
LONGEST_REASON = 300
DAMAGED = "missing, damaged or foreign", "bring it back, or run again"  # of a run's files: the problem and the way out, for ``reading``
ATTRIBUTE_BYTES = 1 << 24  # far more than the names of all classes take
# What h5py, json and NumPy raise on damaged bytes; UnicodeDecodeError and RecursionError are among them.
PARSE_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, SystemError)

while h5py.h5pl.size():  # filters are programs: none is ever loaded because a file asks for it
    h5py.h5pl.remove(0)


class Damaged(ValueError):
    """A file does not hold what this program has written into it."""


@contextmanager
def parsing() -> Iterator[None]:
    """Around calls that parse foreign bytes (h5py, json, ``np.dtype``) and around nothing else: what they raise becomes ``Damaged``."""
    try:
        yield
    except Damaged:
        raise
    except PARSE_ERRORS as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise Damaged(" ".join(str(reason).split()) or type(error).__name__) from None


class WrittenFile(h5py.File):
    """An HDF5 file that is written into ``output``."""

    def __init__(self, output: Output, mode: str = "w", libver: str | None = HDF5_FORMAT):
        output.silent = True
        self._output = output
        super().__init__(output, mode, libver=libver)

    def check(self) -> None:
        """Raises an InputError as soon as writing has failed, for long work; else only closing the output tells."""
        self._output.check()


@contextmanager
def writing(path: Path, libver: str | None = HDF5_FORMAT) -> Iterator[h5py.File]:
    """An HDF5 file that replaces ``path`` once it is complete; InputError if it cannot be written."""
    with replacing(path) as output, WrittenFile(output, libver=libver) as file:
        yield file


@contextmanager
def reading(path: Path, what: str = "not a readable HDF5 file", remedy: str = "") -> Iterator[None]:
    """Turns ``Damaged``, and what the file system refuses, into an InputError: ``path: what (reason); remedy``."""
    try:
        yield
    except (Damaged, OSError) as error:
        reason = str(error) or type(error).__name__
        reason = reason if len(reason) < LONGEST_REASON else f"{reason[:LONGEST_REASON]} …"  # it may quote the file
        raise InputError(f"{path}: {what} ({reason}){remedy and '; '}{remedy}") from None


@contextmanager
def opened(path: Path, what: str = "not a readable HDF5 file", remedy: str = "", named: Path | None = None) -> Iterator[h5py.File]:
    """An HDF5 file open for reading, within ``reading`` of it or of the file ``named``, to which it belongs."""
    with reading(named or path, what, remedy):
        with parsing():
            file = h5py.File(path, "r")
        with file:
            yield file


@parsing()
def _checked_object(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset:
    """The group or dataset ``name``, to which hard links alone lead."""
    place = file
    for part in name.split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise Damaged(f"{name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise Damaged(f"{name} is a link, which could lead to another file and is not followed")
        place = place[part]
    return place


@parsing()
def names_in(file: h5py.File, name: str) -> list[str]:
    """What the group ``name`` holds; Damaged if there is no such group, or a link that is not a hard link leads to it."""
    group = _checked_object(file, name)
    if not isinstance(group, h5py.Group):
        raise Damaged(f"{name} is not a group")
    return list(group)


@parsing()
def checked_dataset(file: h5py.File, name: str, shape: tuple[int, ...] | None = None, dtype: Any = None) -> h5py.Dataset:
    """The dataset ``name`` of plain numbers, of this shape and type if they are given, whose data all lie in this file.

    Raises:
        Damaged: it has not; or its data lie elsewhere, pass through a filter, or are fewer than its shape says.
    """
    dataset = _checked_object(file, name)
    if not isinstance(dataset, h5py.Dataset):
        raise Damaged(f"{name} is not an array")
    if dataset.is_virtual or dataset.external:  # first of all: to know the shape, HDF5 would open the sources
        raise Damaged(f"{name} keeps its data in another file, which is not followed")
    if dataset.id.get_create_plist().get_nfilters():
        raise Damaged(f"{name} is compressed or filtered")
    if dataset.shape is None or dataset.dtype.kind not in NUMBERS or (dtype is not None and dataset.dtype != np.dtype(dtype)):
        raise Damaged(f"{name} has type {dataset.dtype}{'' if dtype is None else f', not {np.dtype(dtype)}'}")
    if shape is not None and dataset.shape != shape:
        raise Damaged(f"{name} has shape {dataset.shape}, not {shape}")
    size = prod(dataset.shape) * dataset.dtype.itemsize
    if size > min(dataset.id.get_storage_size(), dataset.file.id.get_filesize()):
        raise Damaged(f"{name} has fewer data than its shape {dataset.shape} says")
    return dataset


@parsing()
def checked_array(file: h5py.File, name: str, shape: tuple[int, ...] | None = None, dtype: Any = None) -> np.ndarray:
    """The values of ``checked_dataset``, which raises the same."""
    return checked_dataset(file, name, shape, dtype)[...]


@parsing()
def attribute(holder: h5py.HLObject, name: str) -> Any:
    """A string, a number, or a (nested) list of numbers.

    Raises:
        Damaged: no such attribute, or one of another type, or a large one.
    """
    if name not in holder.attrs:
        raise Damaged(f"attribute {name} is missing")
    stored = holder.attrs.get_id(name)
    kind, size = stored.get_type().get_class(), stored.get_space().get_simple_extent_npoints()
    if size == 0 or max(size, stored.get_storage_size()) > ATTRIBUTE_BYTES:
        raise Damaged(f"attribute {name} is empty or too large")
    if kind == h5py.h5t.STRING and stored.shape == ():
        value = holder.attrs[name]
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if kind in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) and len(stored.shape) <= 2:
        return np.asarray(holder.attrs[name]).tolist()
    raise Damaged(f"attribute {name} is neither a string nor an array of numbers")


@parsing()
def attributes(file: h5py.File) -> dict[str, Any]:
    """All attributes of a file by name, as ``attribute`` reads them."""
    return {name: attribute(file, name) for name in file.attrs}
