"""Writes the files of a partitioned set: one file, or a part per rank that virtual datasets join."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.partitioned_set import PartitionedSet, checksum, images_name
from ddcnn.data.set_parts import part_name, written_parts
from ddcnn.data.sources import SPLITS, Source
from ddcnn.decomposition import Decomposition
from ddcnn.io.atomic import put_in_place
from ddcnn.io.hdf5 import HDF5_FORMAT
from ddcnn.parallel.world import World

CHUNK_BYTES = 1 << 20


class BlockWriter:
    """Writes blocks of images into the datasets of a file, and records what the description of the whole set needs.

    Attributes:
        samples: of each split, the samples of every written block, (n',) float64: exact up to 2⁵³.
        runs: of each split, a row per written block: its number of samples, then each subdomain's checksum (1 + N).
    """

    def __init__(self, source: Source, decomposition: Decomposition, resizable: bool):
        self.source, self.decomposition, self.resizable = source, decomposition, resizable
        self.samples: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in SPLITS}
        self.runs: dict[str, list[list[float]]] = {name: [] for name in SPLITS}

    def create_datasets(self, file: h5py.File, name: str, rows: slice) -> None:
        """Creates the datasets of a split for the ``rows`` of the set that this file holds."""
        samples, dtype = rows.stop - rows.start, self.source.splits[name].dtype
        for subdomain in self.decomposition.subdomains if samples else ():
            shape = (*subdomain.stored.shape, self.source.shape[-1])
            chunk = min(samples, max(1, CHUNK_BYTES // (int(np.prod(shape)) * dtype.itemsize)))
            most = (samples, *shape) if self.resizable else None
            file.create_dataset(images_name(name, subdomain.index), (samples, *shape), dtype, chunks=(chunk, *shape), maxshape=most)

    def write(self, file: h5py.File, name: str, samples: np.ndarray, images: np.ndarray, row: int) -> None:
        """Writes images of a split to the datasets' rows from ``row`` on, or, if they are resizable, behind those written before."""
        start = sum(map(len, self.samples[name])) if self.resizable else row
        run = [float(len(images))]
        for subdomain in self.decomposition.subdomains:
            stored = np.ascontiguousarray(images[(slice(None), *subdomain.stored.slices)])
            file[images_name(name, subdomain.index)][start : start + len(images)] = stored
            run.append(checksum(stored))
        self.samples[name].append(samples.astype(np.float64))
        self.runs[name].append(run)

    def shrink_datasets(self, file: h5py.File, name: str, rows: slice) -> None:
        """Cuts off the rows that skipped samples have left empty."""
        for subdomain in self.decomposition.subdomains if self.resizable and rows.stop > rows.start else ():
            file[images_name(name, subdomain.index)].resize(sum(map(len, self.samples[name])), axis=0)


@dataclass(frozen=True)
class SetFiles:
    """Files of a set that the ranks of ``world`` write, with temporary names until it is complete.

    Attributes:
        identity: 8 random hexadecimal digits.
        parallel_file: all ranks write one file, with parallel h5py.
        reuse: keep a set that another job has written to ``path`` meanwhile: it has the same content, and may be in use.
    """

    world: World
    path: Path
    identity: str
    parallel_file: bool
    reuse: bool

    @property
    def one_file(self) -> bool:
        return self.parallel_file or self.world.size == 1

    @property
    def temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{self.identity}")

    @property
    def parts(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.{self.identity}.parts")

    @property
    def written(self) -> Path:
        """The file that this rank writes."""
        return self.temporary if self.one_file else self.parts / part_name(self.world.rank)

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        """This rank's file, for writing; collective if all ranks write one file."""
        driver = {"driver": "mpio", "comm": self.world.communicator} if self.parallel_file else {}
        with h5py.File(self.written, "w", libver=HDF5_FORMAT, **driver) as file:
            try:
                yield file
            finally:
                if self.parallel_file:
                    self.world.barrier()  # else HDF5 waits for the other ranks and blocks every thread, also the watchdog's

    def discard(self) -> None:
        """Removes the files of an unfinished set; every rank must have closed its own."""
        if self.world.rank == 0:
            self.temporary.unlink(missing_ok=True)
            shutil.rmtree(self.parts, ignore_errors=True)

    def finish(self, described: PartitionedSet, source: Source, written: dict[str, list[np.ndarray]], runs: dict[str, np.ndarray]) -> None:
        """Adds labels, checksums and attributes, joins the parts, renames the file to ``path``, and removes the parts of an older file.

        Args:
            written: of each split, for every rank, the samples that it has written, (S',) int64.
            runs: of each split, (R, 1 + N): the number of rows of every run, and its checksums.
        """
        with h5py.File(self.temporary, "a", libver=HDF5_FORMAT) as file:
            for name in SPLITS:
                group, samples = file.require_group(name), np.concatenate(written[name])
                bounds = np.array([0, len(samples)] if self.one_file else np.cumsum([0, *map(len, written[name])]))
                group["labels"] = source.splits[name].labels[samples].astype("<i8")
                group["indices"] = samples.astype("<i8")
                group["runs"] = np.cumsum([0, *runs[name][:, 0]]).astype("<i8")
                group["parts"] = bounds.astype("<i8")
                group["checks"] = runs[name][:, 1:].astype("<u4")
                for subdomain in described.decomposition.subdomains:
                    images = images_name(name, subdomain.index)
                    if not self.one_file:
                        self._join(file, images, bounds, (*subdomain.stored.shape, described.shape[-1]), described.dtype)
                    for box in ("core", "subimage", "stored"):
                        file[images].attrs[box] = [getattr(subdomain, box).start, getattr(subdomain, box).stop]
            described.write_attributes(file)
        if self.reuse and self.path.exists():
            self.discard()
            return
        older = written_parts(self.path)
        put_in_place(self.temporary, self.path)
        for part in older:
            part.unlink(missing_ok=True)
        for folder in {part.parent for part in older}:
            if not any(folder.iterdir()):
                folder.rmdir()

    def _join(self, file: h5py.File, name: str, bounds: np.ndarray, shape: tuple[int, ...], dtype: str) -> None:
        """Creates a virtual dataset with the rows of all parts, each of ``shape``."""
        layout = h5py.VirtualLayout((bounds[-1], *shape), dtype)
        for rank, (start, stop) in enumerate(pairwise(bounds)):
            if stop > start:
                layout[start:stop] = h5py.VirtualSource(f"{self.parts.name}/{part_name(rank)}", name, (stop - start, *shape))
        file.create_virtual_dataset(name, layout)
