"""Named arrays in ``.npz`` and ``.h5`` files, read a few samples at a time, so that a file may be larger than memory."""

import zipfile
import zlib
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from ddcnn.errors import InputError


class Array(Protocol):
    """What a source needs of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start ... stop-1."""


class NpyMember:
    """An array of an ``.npz`` archive. Reading in ascending order streams; going back starts the member again."""

    def __init__(self, archive: zipfile.ZipFile, member: str):
        self._archive, self._member = archive, member
        self._stream, self._position = archive.open(member), 0
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

    def read(self, start: int, stop: int) -> np.ndarray:
        try:
            return self._dataset[start:stop]
        except OSError as error:
            raise InputError(f"{self._dataset.file.filename}: {self._dataset.name} is damaged ({error})") from None


def open_npz(path: Path) -> tuple[dict[str, Array], str]:
    """Arrays by name, and a fingerprint of their content (the archive's own checksums).

    Raises:
        InputError: not an archive of arrays, or an array of Python objects.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        arrays: dict[str, Array] = {info.filename.removesuffix(".npy"): NpyMember(archive, info.filename) for info in members}
    # zipfile says RuntimeError of an encrypted member or an unknown compression, NumPy ValueError of a damaged header
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable .npz archive ({error})") from None
    return arrays, ";".join(f"{info.filename} {info.file_size} {info.CRC:08x}" for info in members)


def open_h5(path: Path) -> tuple[dict[str, Array], str]:
    """Datasets at the top of the file by name, and a fingerprint of the file (its size and time of change).

    Raises:
        InputError: not an HDF5 file.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error})") from None
    arrays: dict[str, Array] = {}
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset):
            dataset = file[name]
            if dataset.is_virtual or dataset.external:
                raise InputError(f"{path}: {name} keeps its data in other files, which are not followed; copy them into this one")
            arrays[name] = H5Dataset(dataset)
    status = path.stat()
    return arrays, f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
