"""The partitioned HDF5 set: one dataset per subdomain and split, so that a rank reads only its own subdomains.

    /                                  attributes: everything in ``PartitionedSet``, ``schema_version``, ``digest``
    /train, /validation (may be absent), /test
        labels                         (S,) int64
        indices                        (S,) int64, of the samples in the source
        runs                           (R + 1,) int64, bounds of the runs of rows that have a checksum
        checks                         (R, N) uint32, the checksum of every run of every subdomain
        parts                          (P + 1,) int64, bounds of the rows of the parts
        subdomains/IIII/images         (S, *stored, C) in the source's type; attributes core, subimage, stored: (start, stop)

Module ``ddcnn.data.partition`` writes it. HDF5's own checksums cover everything but the arrays: those are covered by ``digest``, a
SHA-256 over the attributes and the five small arrays, and by ``checks``, over the images.
"""

import hashlib
import json
import math
from collections.abc import Container
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddcnn.data.row_reader import JoinedRows, joined, open_rows
from ddcnn.data.set_parts import REFUSAL, CheckedRows, Part, images_name, parts_of
from ddcnn.data.sources import SPLITS
from ddcnn.decomposition import Box, Decomposition
from ddcnn.errors import InputError, escaped
from ddcnn.io.hdf5 import NUMBERS, Damaged, attribute, checked_array, checked_dataset, opened, parsing
from ddcnn.io.rows import RowReader

SCHEMA_VERSION = 4
OLDER_VERSIONS = (3,)  # without validation images, and else the same
LARGEST = 1e18  # magnitude of a pixel: networks compute in float32, in which squares overflow at 1.8e19
LARGEST_OVERLAP = 1 << 16  # of a set that is read
NOT_WRITTEN = ("path", "tables", "compared")  # of PartitionedSet
SUBDOMAIN_BYTES = 256  # least size of a subdomain in a file: the file's size bounds the grid


def is_partitioned(path: Path) -> bool:
    """Whether an HDF5 file claims to be a partitioned set."""
    if not path.is_file():
        return False
    try:
        with opened(path) as file, parsing():
            return "schema_version" in file.attrs
    except InputError:
        return False


@dataclass(frozen=True)
class PartitionedSet:
    """A partitioned set, described by its attributes; ``open`` reads one.

    Attributes:
        path: of the file.
        source, source_sha256: the source's name, and the SHA-256 over the digests of the blocks of selected images and over their labels.
        shape: (*spatial, C) of a whole image, pixels.
        dtype: the source's pixel type, as NumPy writes it: ``|u1``, ``<f4``.
        grid, overlap, margin: of the decomposition; subdomains per axis, pixels, pixels.
        class_names: K names.
        mean, std: per channel over the selected training images, in the source's units.
        train_samples, test_samples, validation_samples: S of each split.
        skipped: number of damaged samples that were left out.
        preprocessing: of the source's images (see ``SourceOptions``), as JSON.
        parts: name of the folder of the parts beside the file (see ``ddcnn.data.set_parts``); empty if the images lie in the file.
        digest: SHA-256 over all the above and the small arrays; empty before they are written.
        tables: the small arrays, by their names in the file.
        compared: splits and subdomains whose checksums this process has compared already.
    """

    path: str
    source: str
    source_sha256: str
    shape: tuple[int, ...]
    dtype: str
    grid: tuple[int, ...]
    overlap: int
    margin: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_samples: int
    test_samples: int
    skipped: int = 0
    preprocessing: str = ""
    parts: str = ""
    validation_samples: int = 0
    digest: str = ""
    tables: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    compared: set[tuple[str, int]] = field(default_factory=set, compare=False, repr=False)

    @cached_property
    def decomposition(self) -> Decomposition:
        """The grid and the subdomains."""
        return Decomposition(self.shape[:-1], self.grid, self.overlap, self.margin)

    def attributes(self) -> dict[str, Any]:
        """The attributes of the file by name, with the digest over them and the tables."""
        values = {name: getattr(self, name) for name in self.__annotations__ if name not in (*NOT_WRITTEN, "digest")}
        if not self.validation_samples:
            del values["validation_samples"]  # as in older versions
        digest = hashlib.sha256(json.dumps(values).encode())
        for table in self.tables.values():
            digest.update(np.ascontiguousarray(table).data)
        return values | {"class_names": json.dumps(self.class_names), "digest": digest.hexdigest()}

    def write_attributes(self, file: h5py.File) -> None:
        """Writes the attributes of a set whose arrays have been written."""
        for name, value in replace(self, tables=_tables(self, file)).attributes().items():
            # fixed-length text, since HDF5 has no checksums for variable-length text
            file.attrs[name] = np.bytes_(value.encode("utf-8", "surrogateescape")) if isinstance(value, str) else value
        file.attrs["schema_version"] = SCHEMA_VERSION  # last: marks the file as complete

    @classmethod
    def open(cls, path: Path) -> "PartitionedSet":
        """Reads attributes and small arrays, and checks that all datasets exist, in all parts, with the right shape and type.

        Raises:
            InputError: not a partitioned set, another schema version, or a missing, damaged or foreign part.
        """
        described = _opened(path)
        by_file: dict[Path, list[tuple[str, Part]]] = {}
        for split in described.samples:
            for part in parts_of(path, described.parts, described.tables[f"{split}/parts"]):
                by_file.setdefault(part.file, []).append((split, part))
        for parts in by_file.values():  # each file is opened once
            with parts[0][1].opened(path) as file:
                for split, part in parts:
                    for box in described.decomposition.subdomains:
                        shape = (part.stop - part.start, *box.stored.shape, described.shape[-1])
                        checked_dataset(file, images_name(split, box.index), shape, described.dtype)
        return described

    @property
    def samples(self) -> dict[str, int]:
        """S per split that there is."""
        counts = {split: int(getattr(self, f"{split}_samples")) for split in SPLITS}
        return {split: samples for split, samples in counts.items() if samples or split != "validation"}

    def labels(self, split: str) -> np.ndarray:
        """Class numbers (S,) int64 of a split."""
        return self.tables[f"{split}/labels"].astype(np.int64)

    def read(self, split: str, index: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Stored subimages of subdomain ``index`` for all samples or ascending ``rows``: (rows, *stored, C) in the source's type.

        Raises:
            InputError: the set has been damaged or replaced since it was opened.
        """
        images, everything = self._checked(split, index), np.arange(self.samples[split])
        wanted = everything[rows]
        if np.array_equal(wanted, everything):
            return images.read(0, len(images.checks))
        run_of_row = np.searchsorted(images.runs, wanted, "right") - 1  # whole runs are read, since checksums are those of runs
        found = [images.read(k, k + 1)[wanted[run_of_row == k] - images.runs[k]] for k in np.unique(run_of_row).tolist()]
        return np.concatenate([np.empty((0, *images.shape), self.dtype), *found])

    def _checked(self, split: str, index: int) -> CheckedRows:
        self._check_unchanged()
        box, path = self.decomposition.subdomains[index].stored, Path(self.path)
        runs, checks, parts = (self.tables[f"{split}/{name}"] for name in ("runs", "checks", "parts"))
        shape, name = (*box.shape, self.shape[-1]), images_name(split, index)
        return CheckedRows(path, parts_of(path, self.parts, parts), name, shape, np.dtype(self.dtype), runs, checks[:, index])

    def rows(self, split: str, index: int, checked: bool = True) -> RowReader:
        """The stored subimages of subdomain ``index``, (S, *stored, C), to be read in any order; errors as of ``read``.

        Args:
            checked: read all of them once in this process, to compare their checksums; single rows have none.
        """
        images = self._checked(split, index)
        if checked and (split, index) not in self.compared:
            images.compare()
            self.compared.add((split, index))
        return open_rows(images.path, images.parts, images.name, images.shape, images.dtype)

    def box_rows(self, split: str, box: Box, checked: Container[int] | None = None) -> RowReader:
        """The pixels of a box, (S, *box, C) in the source's type, as ``rows``; ``checked`` are the subdomains that are compared (all)."""
        pieces = self.decomposition.pieces(box)
        parts = [self.rows(split, one.index, checked is None or one.index in checked) for one, _ in pieces]
        return JoinedRows(box, pieces, parts, np.dtype(self.dtype))

    def _check_unchanged(self) -> None:
        with opened(Path(self.path), *REFUSAL) as file:
            if attribute(file, "digest") != self.digest:
                raise InputError(f"{self.path}: was replaced by another partitioned set; start again")

    def whole(self, split: str, rows: slice | np.ndarray = slice(None), box: Box | None = None) -> np.ndarray:
        """Whole images, or the pixels of a box, of all samples or ascending ``rows``: (rows, *spatial, C); errors as of ``read``."""
        box = box or self.decomposition.box
        pieces, chosen = self.decomposition.pieces(box), np.arange(self.samples[split])[rows]
        images = np.empty((len(chosen), *box.shape, self.shape[-1]), self.dtype)
        for start, stop in pairwise(np.searchsorted(chosen, self.tables[f"{split}/runs"]).tolist()):  # not all of a subdomain at once
            if start < stop:
                parts = (self.read(split, one.index, chosen[start:stop]) for one, _ in pieces)
                joined(pieces, parts, box, images[start:stop])
        return images


def _opened(path: Path) -> PartitionedSet:
    """Reads a set's attributes and small arrays; InputError if they are damaged or contradict each other."""
    with opened(path, *REFUSAL) as file:
        with parsing():
            version = attribute(file, "schema_version") if "schema_version" in file.attrs else None
        if version not in (SCHEMA_VERSION, *OLDER_VERSIONS):
            raise InputError(f"{path}: schema version {str(version)[:20]}, this program reads {SCHEMA_VERSION}; partition the source again")
        described = _described(path, file)
        described = replace(described, tables=_tables(described, file))
        if described.digest != described.attributes()["digest"]:
            raise Damaged("its attributes, labels or checksums are not those that were written")
        for split, samples in described.samples.items():
            labels, runs, parts = (described.tables[f"{split}/{name}"] for name in ("labels", "runs", "parts"))
            labels_fit = labels.min() >= 0 and labels.max() < len(described.class_names)
            if not (labels_fit and _ascends(runs, samples) and _ascends(parts, samples)):
                raise Damaged(f"the labels, runs or parts of {split} are out of range")
            if (runs[:-1] == runs[1:]).any():
                raise Damaged(f"{split} has runs without rows")
        names = tuple(escaped(name, ("Cs",)) for name in described.class_names)  # of folders that are not UTF-8, in an older version
        return replace(described, class_names=names)


def _described(path: Path, file: h5py.File) -> PartitionedSet:
    """Reads the attributes; Damaged if they are invalid."""
    values: dict[str, Any] = {"path": str(path)}
    for name, kind in PartitionedSet.__annotations__.items():
        if name not in NOT_WRITTEN and (name != "validation_samples" or name in file.attrs):
            value = attribute(file, name)
            with parsing():
                value = json.loads(value) if name == "class_names" else value
            values[name] = tuple(value) if isinstance(value, list) else value
            if not _is(values[name], kind):
                raise Damaged(f"attribute {name} has another type")
    described = PartitionedSet(**values)
    spatial = described.shape[:-1]
    with parsing():
        dtype = np.dtype(described.dtype)
    if (
        len(spatial) not in (2, 3)
        or len(described.grid) != len(spatial)
        or any(not 1 <= parts <= n for parts, n in zip(described.grid, spatial, strict=True))
        or math.prod(described.grid) * SUBDOMAIN_BYTES > file.id.get_filesize()
        or not 0 <= described.overlap <= LARGEST_OVERLAP
        or not 0 <= described.margin <= LARGEST_OVERLAP
        or min(described.train_samples, described.test_samples) < 1
        or described.validation_samples < 0
        or dtype.kind not in NUMBERS
        or not 1 <= len(described.mean) == len(described.std) == described.shape[-1]
        or not all(map(math.isfinite, described.mean + described.std))
        or min(described.std) <= 0
        or not described.class_names
    ):
        raise Damaged("its attributes contradict each other, or are out of range")
    if max(map(abs, described.mean + described.std)) > LARGEST:
        raise InputError(f"{path}: holds values above {LARGEST:g}, which cannot be computed with: scale them, and partition again")
    return described


def _is(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a field of ``PartitionedSet``."""
    if kind in (str, int):
        return type(value) is kind
    return isinstance(value, tuple) and all(type(entry) is kind.__args__[0] for entry in value)


def _tables(described: PartitionedSet, file: h5py.File) -> dict[str, np.ndarray]:
    """Reads the small arrays."""
    tables = {}
    for split, samples in described.samples.items():
        for name, rows in (("labels", (samples,)), ("indices", (samples,)), ("runs", None), ("parts", None)):
            tables[f"{split}/{name}"] = checked_array(file, f"{split}/{name}", rows, "<i8")
        shape = (tables[f"{split}/runs"].size - 1, math.prod(described.grid))
        tables[f"{split}/checks"] = checked_array(file, f"{split}/checks", shape, "<u4")
    return tables


def _ascends(bounds: np.ndarray, samples: int) -> bool:
    """Whether (n + 1,) bounds of n intervals cover all samples."""
    return bounds.ndim == 1 and len(bounds) > 1 and bounds[0] == 0 and bounds[-1] == samples and bool((bounds[:-1] <= bounds[1:]).all())
