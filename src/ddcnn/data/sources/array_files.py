"""Files of arrays, read a few samples at a time so that a file may be larger than memory.

``.npz`` and ``.h5`` with x_train, y_train, x_test, y_test or train_images, train_labels, test_images, test_labels; and, for validation,
x_val, y_val or the like.
"""

import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.sources.base import READ_BYTES, SPLIT_NAMES, Source, SourceOptions, Split
from ddcnn.errors import InputError
from ddcnn.io.hdf5 import Damaged, parsing, reading

FILTER_PACKAGE = "hdf5plugin"
FILTERS = {
    307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard", 32017: "SZ", 32018: "FCIDECOMP",
    32024: "SZ3", 32026: "Blosc2", 32028: "SPERR", 32033: "HTJ2K",
}  # of that package, by their numbers  # fmt: skip
NAMES = {
    split: tuple(pair for name in names for pair in ((f"x_{name}", f"y_{name}"), (f"{name}_images", f"{name}_labels")))
    for split, names in SPLIT_NAMES.items()
}  # images, labels


class NpyMember:
    """An array of an ``.npz`` archive. Reading in ascending order streams; going back starts the member again."""

    def __init__(self, archive: zipfile.ZipFile, member: str):
        self._archive, self._member = archive, member
        self._stream = archive.open(member)
        version = np.lib.format.read_magic(self._stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = header(self._stream)
        self._data_start = self._stream.tell()
        if self.dtype.hasobject:
            raise InputError(
                f"{archive.filename}: {member} holds Python objects (images of different shapes?), which are never loaded; "
                "save one array of one shape"
            )
        if fortran and len(self.shape) > 1:
            raise InputError(f"{archive.filename}: {member} is in Fortran order; save numpy.ascontiguousarray of it")

    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows start <= s < stop."""
        sample = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        try:
            self._stream.seek(self._data_start + start * sample)
            data = self._stream.read((stop - start) * sample)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise InputError(f"{self._archive.filename}: {self._member} is damaged ({error})") from None
        if len(data) != (stop - start) * sample:
            raise InputError(f"{self._archive.filename}: {self._member} ends too early")
        return np.frombuffer(data, dtype=self.dtype).reshape(stop - start, *self.shape[1:])


class H5Dataset:
    """A dataset of an HDF5 file."""

    def __init__(self, dataset: h5py.Dataset):
        self._dataset, self.shape, self.dtype = dataset, dataset.shape, dataset.dtype
        if _missing_filters(dataset):
            with suppress(ImportError):
                import_module(FILTER_PACKAGE)  # registers its filters with HDF5

    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows start <= s < stop."""
        path = Path(self._dataset.file.filename)
        with reading(path, f"{self._dataset.name} is damaged"):
            try:
                with parsing():
                    return self._dataset[start:stop]
            except Damaged as error:
                missing = _missing_filters(self._dataset)
                if not missing:
                    raise
                raise InputError(f"{path}: {self._dataset.name.lstrip('/')} has passed through {missing}") from error


Array = NpyMember | H5Dataset


def _missing_filters(dataset: h5py.Dataset) -> str:
    """The filters that an array has passed through, and this HDF5 has not, with the package that brings them; empty if it has all."""
    properties = dataset.id.get_create_plist()
    numbers = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    missing = [number for number in numbers if not h5py.h5z.filter_avail(number)]
    if not missing:
        return ""
    names = " and ".join(f"filter {number}{f' ({FILTERS[number]})' if number in FILTERS else ''}" for number in missing)
    install = f"pip install {FILTER_PACKAGE}, or " if set(missing) <= set(FILTERS) else ""
    return f"{names}, which is not installed: {install}write it with gzip"


def open_npz(path: Path) -> tuple[dict[str, Array], str]:
    """Arrays by name, and a fingerprint of their content (the archive's own checksums).

    Raises:
        InputError: not an archive of arrays, or an array of Python objects.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        arrays: dict[str, Array] = {info.filename.removesuffix(".npy"): NpyMember(archive, info.filename) for info in members}
    # zipfile raises RuntimeError for an encrypted member or an unknown compression, NumPy ValueError for a damaged header
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable .npz archive ({error})") from None
    return arrays, ";".join(f"{info.filename} {info.file_size} {info.CRC:08x}" for info in members)


def open_h5(path: Path) -> tuple[dict[str, Array], str]:
    """Top-level datasets by name, and a fingerprint of the file (its path, size and time of change).

    Raises:
        InputError: not an HDF5 file, or a damaged one; a dataset that is empty, or keeps its data in other files.
    """
    arrays: dict[str, Array] = {}
    with reading(path), parsing():
        file = h5py.File(path, "r")
        for name in file:
            if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset):
                dataset = file[name]
                if dataset.is_virtual or dataset.external:
                    raise InputError(f"{path}: {name} keeps its data in other files, which are not followed; copy them into this one")
                if dataset.shape is None:
                    raise InputError(f"{path}: {name} is empty")
                arrays[name] = H5Dataset(dataset)
    status = path.stat()
    return arrays, f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


OPENERS = {".npz": open_npz, ".h5": open_h5}


def array_file(options: SourceOptions) -> Source:
    """Opens a file of arrays.

    Raises:
        InputError: missing arrays, shapes or types that are no images or labels, labels that are not 0, 1, 2 …
    """
    path = Path(options.name)
    arrays, fingerprint = OPENERS[path.suffix.lower()](path)
    splits = {}
    for split, pair in _pairs(options, arrays).items():
        splits[split] = array_split(options, arrays, *pair)
    labels = splits["train"].labels
    if labels.size and labels.min() > 0:
        raise InputError(f"{options.name}: the training labels begin with {labels.min()}; classes are 0, 1, 2 …: subtract {labels.min()}")
    classes = int(labels.max(initial=0)) + 1
    if classes > max(len(labels), 2):
        raise InputError(
            f"{options.name}: label {classes - 1} of train sample {labels.argmax()} is out of range: "
            f"{len(labels)} samples cannot have {classes} classes"
        )
    return Source(options.name, splits, tuple(map(str, range(classes))), fingerprint)


def _pairs(options: SourceOptions, arrays: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The names of images and labels of every split that there is, and is wanted."""
    found: dict[str, tuple[str, str]] = {}
    for split in ("train", "test", "validation"):
        if split == "validation" and "test" in found and not options.validation_fraction:
            continue
        whole = [pair for pair in NAMES[split] if set(pair) <= set(arrays)]
        half = next((pair for pair in NAMES[split] if set(pair) & set(arrays) and pair not in whole), None)
        wanted, other = (" and ".join(pair) for pair in NAMES[split][:2])
        if len(whole) > 1:
            both = " and ".join(x for x, _ in whole)
            raise InputError(f"{options.name}: {both} are both called like {split} images: leave out one of them, with its labels")
        if whole:
            found[split] = whole[0]
        elif half:
            there, missing = sorted(half, key=lambda name: name not in arrays)
            raise InputError(f"{options.name}: {there}, but no {missing} ({wanted}, or {other}) among its arrays: {', '.join(arrays)}")
        elif split == "train" or (split == "test" and not any(set(pair) <= set(arrays) for pair in NAMES["validation"])):
            raise InputError(f"{options.name}: no {wanted} (or {other}) among its arrays: {', '.join(arrays)}")
    return found


def array_split(options: SourceOptions, arrays: dict[str, Array], x: str, y: str) -> Split:
    """The images ``x`` with the labels ``y``, which are -1 if the file has no such array."""
    images = arrays[x]
    shape = _with_channels(f"{options.name}: {x}", images.shape, options.volumes)
    labels = _labels(f"{options.name}: {y}", arrays[y]) if y in arrays else np.full(shape[0], -1, np.int64)
    if len(labels) != shape[0]:
        raise InputError(f"{options.name}: {x} has {shape[0]} images and {y} {len(labels)} labels")
    return Split(shape, images.dtype, labels, partial(_read, images, shape[1:]))


def _read(images: Array, shape: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
    """Reads ranges of rows that hold the ascending indices, in order and of bounded size, which suits streams and chunks."""
    samples = np.empty((len(indices), *shape), images.dtype)
    span = max(1, READ_BYTES // max(1, samples[:1].nbytes))  # samples
    for begin, end in pairwise(np.searchsorted(indices, np.arange(indices[0], indices[-1] + span + 1, span)) if len(indices) else ()):
        if end > begin:
            first = int(indices[begin])
            samples[begin:end] = images.read(first, int(indices[end - 1]) + 1).reshape(-1, *shape)[indices[begin:end] - first]
    return samples


def _with_channels(what: str, shape: tuple[int, ...], volumes: bool) -> tuple[int, ...]:
    """The shape of an array of images or volumes, (S, *spatial, C)."""
    spatial = 3 if volumes else 2
    if volumes and len(shape) == 4 and shape[-1] == 3 and min(shape[1:3]) >= 8:
        raise InputError(f"{what} has shape {shape}, which looks like images with channels, not volumes: leave --volumes out")
    if len(shape) == spatial + 1:
        return (*shape, 1)
    if len(shape) == spatial + 2:
        if shape[1] <= 4 < shape[-1]:
            raise InputError(f"{what} has shape {shape}, which looks channels-first; channels come last: (n, rows, columns, channels)")
        return shape
    wanted = "(n, depth, rows, columns[, channels])" if volumes else "(n, rows, columns[, channels]); volumes need --volumes"
    raise InputError(f"{what} has shape {shape}, expected {wanted}")


def _labels(what: str, labels: Array) -> np.ndarray:
    if labels.shape[1:] not in ((), (1,)) or not labels.shape:
        raise InputError(f"{what} has shape {labels.shape}: expected one class number per sample, (n,) or (n, 1)")
    values = labels.read(0, labels.shape[0]).reshape(-1)
    if values.dtype.kind not in "ui":
        how = "np.unique(labels, return_inverse=True)[1]" if values.dtype.kind in "SUO" else "labels.astype(int)"
        raise InputError(f"{what} has type {values.dtype}: expected whole class numbers 0, 1, 2 … ({how})")
    return values.astype(np.int64)
