"""HDF5 files that anyone may have written: only what lies in the file itself, in plain types; whatever is wrong in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddcnn.errors import InputError

HDF5_FORMAT = "v110"  # of the files that are written: the oldest that has checksums throughout
NUMBERS = "biuf"  # kinds of NumPy types
LONGEST_REASON = 300
ATTRIBUTE_BYTES = 1 << 24  # far more than the names of all classes take
# What h5py raises while it reads a damaged file; UnicodeDecodeError and RecursionError are among them.
DAMAGE = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, SystemError)

while h5py.h5pl.size():  # filters are programs: none is ever loaded because a file asks for it
    h5py.h5pl.remove(0)


@contextmanager
def reading(path: Path, what: str = "not a readable HDF5 file", remedy: str = "") -> Iterator[None]:
    """Turns what a damaged or foreign file leads to into an InputError: ``path: what (reason); remedy``."""
    try:
        yield
    except DAMAGE as error:
        reason = str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
        reason = reason if len(reason) < LONGEST_REASON else f"{reason[:LONGEST_REASON]} …"  # it may quote the file
        raise InputError(f"{path}: {what} ({reason}){remedy and '; '}{remedy}") from None


def own_object(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset:
    """The group or dataset ``name``, to which hard links alone lead.

    Raises:
        ValueError: no such object, or another kind of link.
    """
    found = file
    for part in name.split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            raise ValueError(f"{name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link, which could lead to another file and is not followed")
        found = found[part]
    return found


def own_group(file: h5py.File, name: str) -> h5py.Group:
    """The group ``name``; ValueError as ``own_object``."""
    found = own_object(file, name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{name} is not a group")
    return found


def own_dataset(
    file: h5py.File, name: str, shape: tuple[int, ...] | None = None, dtype: Any = None, *, kinds: str = NUMBERS
) -> h5py.Dataset:
    """The dataset ``name`` of plain numbers, whose data all lie in this file.

    Args:
        shape, dtype: that it must have; None for any.
        kinds: of NumPy types that it may have.

    Raises:
        ValueError: it has not; or its data lie elsewhere, pass through a filter, or are fewer than its shape says.
    """
    dataset = own_object(file, name)
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is not an array")
    if dataset.is_virtual or dataset.external:  # first of all: to know the shape, HDF5 would open the sources
        raise ValueError(f"{name} keeps its data in another file, which is not followed")
    if dataset.id.get_create_plist().get_nfilters():
        raise ValueError(f"{name} is compressed or filtered")
    if dataset.shape is None or dataset.dtype.kind not in kinds or (dtype is not None and dataset.dtype != np.dtype(dtype)):
        raise ValueError(f"{name} has type {dataset.dtype}{'' if dtype is None else f', not {np.dtype(dtype)}'}")
    if shape is not None and dataset.shape != shape:
        raise ValueError(f"{name} has shape {dataset.shape}, not {shape}")
    size = prod(dataset.shape) * dataset.dtype.itemsize
    if size > min(dataset.id.get_storage_size(), dataset.file.id.get_filesize()):
        raise ValueError(f"{name} has fewer data than its shape {dataset.shape} says")
    return dataset


def attribute(holder: h5py.HLObject, name: str) -> Any:
    """A string, a number, or a (nested) list of numbers.

    Raises:
        ValueError: no such attribute, or one of another type, or a large one.
    """
    if name not in holder.attrs:
        raise ValueError(f"attribute {name} is missing")
    found = holder.attrs.get_id(name)
    kind, size = found.get_type().get_class(), found.get_space().get_simple_extent_npoints()
    if size == 0 or max(size, found.get_storage_size()) > ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name} is empty or too large")
    if kind == h5py.h5t.STRING and found.shape == ():
        value = holder.attrs[name]
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if kind in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) and len(found.shape) <= 2:
        return np.asarray(holder.attrs[name]).tolist()
    raise ValueError(f"attribute {name} is neither a string nor an array of numbers")
