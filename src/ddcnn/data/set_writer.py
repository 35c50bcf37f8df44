"""The files of a partitioned set while they are written: one, or a part of every rank that virtual datasets join."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.partitioned_set import SPLITS, PartitionedSet, images_name
from ddcnn.data.set_parts import part_name, written_parts
from ddcnn.data.sources import Source
from ddcnn.io.atomic import put_in_place
from ddcnn.io.hdf5 import HDF5_FORMAT
from ddcnn.parallel.world import World


@dataclass(frozen=True)
class SetFiles:
    """Where a set that is being written and its parts lie, under temporary names until they are whole.

    Attributes:
        identity: of this writing, 8 hexadecimal digits.
        parallel_file: all ranks write one file, with parallel h5py.
        reuse: a set of the same name that another job has made meanwhile stays: it has the same content, and may be being read.
    """

    path: Path
    identity: str
    rank: int
    size: int
    parallel_file: bool
    reuse: bool

    @property
    def one_file(self) -> bool:
        return self.parallel_file or self.size == 1

    @property
    def temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{self.identity}")

    @property
    def parts(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.{self.identity}.parts")

    def part(self, rank: int) -> Path:
        return self.parts / part_name(rank)

    @property
    def written(self) -> Path:
        """The file that this rank writes."""
        return self.temporary if self.one_file else self.part(self.rank)

    def prepare(self) -> None:
        (self.path.parent if self.one_file else self.parts).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def open(self, world: World) -> Iterator[h5py.File]:
        if not self.parallel_file:
            with h5py.File(self.written, "w", libver=HDF5_FORMAT) as file:
                yield file
            return
        with h5py.File(self.written, "w", libver=HDF5_FORMAT, driver="mpio", comm=world.communicator) as file:
            try:
                yield file
            finally:
                world.barrier()  # HDF5 would wait for the others with every thread of this process held up, the one that watches too

    def discard(self) -> None:
        """Removes what an unfinished partitioning has written; every rank has closed its file."""
        if self.rank == 0:
            self.temporary.unlink(missing_ok=True)
            shutil.rmtree(self.parts, ignore_errors=True)

    def finish(
        self, described: PartitionedSet, source: Source, written: dict[str, np.ndarray], bounds: dict[str, np.ndarray],
        runs: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        """Adds labels, checksums and attributes, joins the parts, and gives the file its name; the parts of an older file go.

        Args:
            written: samples of each split, (S,) int64.
            bounds: rows of each split at which the ranks' parts begin, and its end: (ranks + 1,).
            runs: of each split, (R, 1 + N): the rows of every run, and its checksums.
        """
        with h5py.File(self.temporary, "a", libver=HDF5_FORMAT) as file:
            for name in SPLITS:
                group = file.require_group(name)
                group["labels"] = source.splits[name].labels[written[name]].astype("<i8")
                group["indices"] = written[name].astype("<i8")
                group["runs"] = np.cumsum([0, *runs[name][:, 0]]).astype("<i8")
                group["parts"] = (bounds[name][[0, -1]] if self.one_file else bounds[name]).astype("<i8")
                group["checks"] = runs[name][:, 1:].astype("<u4")
                for subdomain in described.decomposition.subdomains:
                    images = images_name(name, subdomain.index)
                    if not self.one_file:
                        layout = self._join(images, bounds[name], described, subdomain.stored.shape)
                        file.create_virtual_dataset(images, layout)
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

    def _join(self, images: str, bounds: np.ndarray, described: PartitionedSet, stored: tuple[int, ...]) -> h5py.VirtualLayout:
        shape = (*stored, described.shape[-1])
        layout = h5py.VirtualLayout((bounds[-1], *shape), described.dtype)
        for rank, (start, stop) in enumerate(pairwise(bounds)):
            if stop > start:
                part = self.part(rank).relative_to(self.path.parent)
                layout[start:stop] = h5py.VirtualSource(str(part), images, (stop - start, *shape))
        return layout
