"""Writes predictions block by block: a CSV file with a line per sample, or an HDF5 file of arrays."""

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddcnn.errors import InputError, file_name
from ddcnn.io.atomic import Output, disk_errors, replacing
from ddcnn.io.hdf5 import WrittenFile

QUOTED = re.compile('[,"\r\n]')  # characters for which a CSV file quotes a cell
CHUNK = 1024  # rows per HDF5 chunk
Names = Callable[[int], object]  # the name of a sample, by its index


@dataclass(frozen=True)
class Columns:
    """The columns of a prediction: sample, label (-1 if unknown), class, K probabilities or none, n·K local probabilities."""

    class_names: tuple[str, ...]
    labelled: bool  # whether any label is known
    probable: bool  # whether the method has probabilities
    subdomains: tuple[int, ...]  # indices of the n subdomains whose local classifications are written

    def rows(self, samples: np.ndarray, labels: np.ndarray, classes: np.ndarray, *probabilities: np.ndarray) -> np.ndarray:
        """(n, columns) float64, which holds indices and float32 exactly."""
        columns = [samples, labels, classes, *(part.reshape(len(samples), -1).T for part in probabilities)]
        return np.vstack(columns).astype(np.float64).T

    @property
    def width(self) -> int:
        return 3 + len(self.class_names) * (self.probable + len(self.subdomains))

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """(n, K), or (n, 0) if there are none."""
        return rows[:, 3 : 3 + len(self.class_names) * self.probable].astype(np.float32)

    def local(self, rows: np.ndarray) -> np.ndarray:
        """(n, subdomains, K)."""
        values = rows[:, 3 + len(self.class_names) * self.probable :].astype(np.float32)
        return values.reshape(len(rows), len(self.subdomains), len(self.class_names))


class CsvWriter:
    """A line per sample: name, label if any is known, class, probabilities, and the class of every subdomain.

    A format string per file takes half the time of the csv module.
    """

    def __init__(self, output: Output, columns: Columns, names: Names, about: dict[str, Any]):
        self.columns, self.names = columns, names
        self.file = io.TextIOWrapper(io.BufferedWriter(output), newline="", encoding="utf-8", errors="backslashreplace")
        label = ["label"] * columns.labelled
        probabilities = [f"p({name})" for name in columns.class_names] * columns.probable
        local = [f"subdomain {i}" for i in columns.subdomains]
        self.file.write(",".join(map(cell, ["sample", *label, "class", *probabilities, *local])) + "\n")
        texts = ["%s"] * (1 + len(label) + 1)
        self.line = ",".join([*texts, *["%.9g"] * len(probabilities), *["%s"] * len(local)]) + "\n"  # 9 digits give back the same float32
        self.class_cells = (*map(cell, columns.class_names), "")  # label -1: the last one, empty

    def write(self, rows: np.ndarray) -> None:
        columns, cells = self.columns, self.class_cells
        local = columns.local(rows).argmax(2).tolist() if columns.subdomains else [()] * len(rows)
        numbers = columns.probabilities(rows).tolist()
        for (sample, label, decision), probabilities, classes in zip(rows[:, :3].astype(int).tolist(), numbers, local, strict=True):
            name, labels = cell(file_name(self.names(sample))), [cells[label]] * columns.labelled
            self.file.write(self.line % (name, *labels, cells[decision], *probabilities, *[cells[one] for one in classes]))


def cell(text: str) -> str:
    """A cell of a CSV file, quoted if necessary (RFC 4180)."""
    return '"' + text.replace('"', '""') + '"' if QUOTED.search(text) else text


class H5Writer:
    """Datasets ``samples`` (S,) names, ``labels`` (S,), ``classes`` (S,), ``probabilities`` (S, K), ``local_probabilities`` (S, n, K)."""

    def __init__(self, output: Output, columns: Columns, names: Names, about: dict[str, Any]):
        self.columns, self.names = columns, names
        self.file = WrittenFile(output, libver=None)
        self.file.attrs["class_names"] = json.dumps(columns.class_names)
        self.file.attrs.update(about)

    def write(self, rows: np.ndarray) -> None:
        sample, label, decision = rows[:, :3].astype(np.int64).T
        self._append("samples", np.array([file_name(self.names(i)).encode() for i in sample.tolist()], object))
        self._append("classes", decision)
        if self.columns.labelled:
            self._append("labels", label)
        if self.columns.probable:
            self._append("probabilities", self.columns.probabilities(rows))
        if self.columns.subdomains:
            self._append("local_probabilities", self.columns.local(rows))
            self.file["local_probabilities"].attrs["subdomains"] = self.columns.subdomains
        self.file.check()

    def _append(self, name: str, values: np.ndarray) -> None:
        if name not in self.file:
            kind = h5py.string_dtype() if values.dtype == object else values.dtype
            shape = values.shape[1:]
            self.file.create_dataset(name, (0, *shape), kind, maxshape=(None, *shape), chunks=(CHUNK, *shape))
        dataset = self.file[name]
        dataset.resize(len(dataset) + len(values), axis=0)
        dataset[-len(values) :] = values


WRITERS: dict[str, type[CsvWriter] | type[H5Writer]] = {".csv": CsvWriter, ".h5": H5Writer}


@contextmanager
def writing(path: Path, columns: Columns, names: Names, about: dict[str, Any]) -> Iterator[CsvWriter | H5Writer]:
    """A writer of a file that appears only once it is complete; ``about`` are the attributes of an HDF5 file."""
    with replacing(path) as output:
        writer = WRITERS[path.suffix](output, columns, names, about)
        try:
            yield writer
        except BaseException:
            with suppress(InputError):  # the same error again
                writer.file.close()
            raise
        writer.file.close()


def check_output(path: Path, overwrite: bool, run: Path, source: Path | None = None) -> None:
    """Refuses an output file that cannot be written, or would replace one that must stay."""
    with disk_errors(path):
        if path.is_dir():
            raise InputError(f"--output {path} is a folder: name a file in it")
        if path.exists() and not overwrite:
            raise InputError(f"--output {path} exists: name another file, or add --overwrite")
        if path.exists() and path.resolve().is_relative_to(run.resolve()):
            raise InputError(f"--output {path} is a file of the run: name another file")
        if source and source.exists() and path.exists() and path.samefile(source):
            raise InputError(f"--output {path} is the source: name another file")
        if not path.absolute().parent.is_dir():
            raise InputError(f"--output {path}: there is no folder {path.parent}; make it first")
