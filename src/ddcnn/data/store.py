"""The partitioned HDF5 set: one dataset per subdomain and split, of which a rank reads its own and nothing else.

    /                                  attributes: everything in ``PartitionedSet``, ``schema_version``
    /train, /test
        labels                         (S,) int64
        indices                        (S,) int64, the samples' places in the source
        subdomains/IIII/images         (S, *stored, C) in the source's type; attributes core, subimage, stored: (start, stop)

Module ``ddcnn.partition`` writes it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError

SCHEMA_VERSION = 1
SPLITS = ("train", "test")


def images_name(split: str, index: int) -> str:
    return f"{split}/subdomains/{index:04d}/images"


def is_partitioned(path: Path) -> bool:
    """Whether an HDF5 file claims to be a partitioned set."""
    return h5py.is_hdf5(path) and _attribute(path, "schema_version") is not None


def _attribute(path: Path, name: str):
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get(name)
    except OSError:  # a damaged file
        return None


@dataclass(frozen=True)
class PartitionedSet:
    """A partitioned set and all that its attributes say.

    Attributes:
        source, source_sha256: the source's name, and the SHA-256 over those of the blocks of its selected images and over their labels.
        shape: (*spatial, C) of a whole image.
        dtype: the source's pixel type.
        grid, overlap, margin: of the decomposition.
        class_names: K names.
        mean, std: per channel over the selected training images, in the source's units.
        train_samples, test_samples: S of each split.
        skipped: samples that were damaged and left out.
        thin: networks that a run trains per box of the grid (see ``Decomposition``); the file does not depend on it.
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
    thin: int = 1

    @property
    def decomposition(self) -> Decomposition:
        return Decomposition(self.shape[:-1], self.grid, self.overlap, self.margin, self.thin)

    def write_attributes(self, file: h5py.File) -> None:
        attributes = asdict(self)
        del attributes["path"], attributes["thin"]
        attributes["class_names"] = json.dumps(self.class_names)
        for name, value in attributes.items():
            file.attrs[name] = value
        file.attrs["schema_version"] = SCHEMA_VERSION  # last: a file without it is not finished

    @classmethod
    def open(cls, path: Path) -> "PartitionedSet":
        """Reads the attributes and checks that every dataset is there, of the right shape, with all of its parts.

        Raises:
            InputError: not a partitioned set, another schema version, or a missing or foreign part.
        """
        try:
            with h5py.File(path, "r") as file:
                found = cls._from_attributes(path, file)
                checked: set[Path] = set()
                for split, samples in zip(SPLITS, (found.train_samples, found.test_samples), strict=True):
                    wanted = {f"{split}/labels": (samples,)} | {
                        images_name(split, subdomain.index): (samples, *subdomain.stored.shape, found.shape[-1])
                        for subdomain in found.decomposition.subdomains
                    }
                    for name, shape in wanted.items():
                        if file[name].shape != shape:
                            raise InputError(f"{path}: {name} has shape {file[name].shape}; partition the source again")
                        _check_parts(path, file[name], checked)
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a complete partitioned set ({error}); partition the source again") from None
        return found

    @classmethod
    def _from_attributes(cls, path: Path, file: h5py.File) -> "PartitionedSet":
        attributes = dict(file.attrs)
        if attributes.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema version {attributes.get('schema_version')}, this program reads {SCHEMA_VERSION}; "
                "partition the source again"
            )
        values: dict[str, Any] = {"path": str(path)}
        for name, kind in cls.__annotations__.items():
            if name in ("path", "thin"):
                continue
            if name == "class_names":
                values[name] = tuple(json.loads(attributes[name]))
            elif kind in (str, int):
                values[name] = kind(attributes[name])
            else:
                values[name] = tuple(np.asarray(attributes[name]).tolist())
        return cls(**values)

    def labels(self, split: str) -> np.ndarray:
        """(S,) int64."""
        with h5py.File(self.path, "r") as file:
            return file[split]["labels"][...]

    def read(self, split: str, index: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Stored subimages of subdomain ``index``, of all samples or some ascending ``rows``: (rows, *stored, C) in the source's type."""
        with h5py.File(self.path, "r") as file:
            dataset = file[images_name(split, self.decomposition.subdomains[index].dataset)]
            images = dataset[rows]
            _check_parts(Path(self.path), dataset, set())  # afterwards: another run may have replaced the set meanwhile
            return images

    def whole(self, split: str, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Images put together again from their cores: (rows, *spatial, C)."""
        images = None
        for subdomain in self.decomposition.subdomains[:: self.thin]:
            stored = self.read(split, subdomain.index, rows)
            offset = subdomain.stored.start
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(subdomain.core.start, subdomain.core.stop, offset, strict=True))
            images = np.empty((len(stored), *self.shape), dtype=self.dtype) if images is None else images
            images[(slice(None), *subdomain.core.slices)] = stored[(slice(None), *inside)]
        assert images is not None
        return images


def _check_parts(path: Path, dataset: h5py.Dataset, checked: set[Path]) -> None:
    """A virtual dataset reads as zeros where a source file is missing, so look for each."""
    if dataset.file.filename != str(path) or dataset.external:
        raise InputError(f"{path}: {dataset.name} keeps its data in another file, which is not followed")
    if not dataset.is_virtual:
        return
    for part in dataset.virtual_sources():
        file = path.parent / part.file_name
        if Path(part.file_name).is_absolute() or file.resolve().parent.parent != path.parent.resolve():
            raise InputError(f"{path}: its part {part.file_name} lies outside of its folder, and is not followed")
        if not file.is_file():
            raise InputError(f"{path}: its part {part.file_name} is missing; bring it back beside the file, or partition again")
        if file not in checked:
            checked.add(file)
            try:
                h5py.File(file, "r").close()
            except OSError as error:
                raise InputError(f"{path}: its part {part.file_name} is damaged ({error}); partition again") from None
