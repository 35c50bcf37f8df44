"""The files of a partitioned set while it is written: one file, or a part per rank that virtual datasets join."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.partitioned_set import PartitionedSet, images_name
from ddcnn.data.set_parts import part_name, written_parts
from ddcnn.data.sources import SPLITS, Source
from ddcnn.io.atomic import put_in_place
from ddcnn.io.hdf5 import HDF5_FORMAT
from ddcnn.parallel.world import World


@dataclass(frozen=True)
class SetFiles:
    """Paths of a set that is being written, temporary until it is complete.

    Attributes:
        identity: 8 random hexadecimal digits.
        rank, size: of the communicator that writes.
        parallel_file: all ranks write one file, with parallel h5py.
        reuse: keep a set that another job has written to ``path`` meanwhile: it has the same content, and may be in use.
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
                world.barrier()  # else HDF5 waits for the other ranks and blocks every thread, also the watchdog's

    def discard(self) -> None:
        """Removes the files of an unfinished set; every rank must have closed its own."""
        if self.rank == 0:
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
                        layout = self._join(images, bounds, described, subdomain.stored.shape)
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
