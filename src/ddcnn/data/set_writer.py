"""Writes the files of a partitioned set: one file, or a part per rank that virtual datasets join.

Until the set is complete, its files lie in a folder of their own with a hidden name, which its writer holds (module ``lock``). What a
killed job has left is removed by the next one that writes a set to the same path.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.set_parts import checksum, images_name, part_name, written_parts
from ddcnn.data.sources import Source
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError, Stopped
from ddcnn.io.atomic import NAME_LETTERS, disk_errors, not_written, output, put_in_place, sync_folder
from ddcnn.io.hdf5 import HDF5_FORMAT, WrittenFile
from ddcnn.io.lock import ABANDONED, NAME, PATIENCE, alone, locked
from ddcnn.parallel.abort import abort_all
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
        self.samples: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in source.splits}
        self.runs: dict[str, list[list[float]]] = {name: [] for name in source.splits}

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
        if isinstance(file, WrittenFile):
            file.check()
        self.samples[name].append(samples.astype(np.float64))
        self.runs[name].append(run)

    def shrink_datasets(self, file: h5py.File, name: str, rows: slice) -> None:
        """Cuts off the rows that skipped samples have left empty."""
        for subdomain in self.decomposition.subdomains if self.resizable and rows.stop > rows.start else ():
            file[images_name(name, subdomain.index)].resize(sum(map(len, self.samples[name])), axis=0)


@dataclass(frozen=True)
class SetFiles:
    """Files of a set that the ranks of ``world`` write.

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
    def parts(self) -> Path:
        """The folder of the parts of the finished set."""
        return self.path.with_name(f"{self.path.stem}.{self.identity}.parts")

    @property
    def unfinished(self) -> Path:
        """The folder of all files while they are written."""
        return self.path.with_name(f".{self.path.stem[:NAME_LETTERS]}.{self.identity}.parts")

    @property
    def joint(self) -> Path:
        """The file that becomes ``path``."""
        return self.unfinished / "set.h5"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Collective: makes the folder and holds it for this job; at the end it is removed with what is left in it."""
        with ExitStack() as lock:

            def make() -> None:
                with disk_errors(self.path):
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._remove_abandoned()
                    self.unfinished.mkdir()
                lock.enter_context(locked(self.unfinished, named=self.path))

            try:
                self.world.on_root(make)
                yield
            finally:  # on every rank: the one that is interrupted first ends the job
                shutil.rmtree(self.unfinished, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        """Removes what killed jobs have left of sets for the same path."""
        name = re.compile(rf"\.{re.escape(self.path.stem[:NAME_LETTERS])}\.[0-9a-f]{{8}}\.parts")
        for folder in [entry for entry in self.path.parent.iterdir() if name.fullmatch(entry.name) and not entry.is_symlink()]:
            with suppress(OSError, InputError):  # InputError: its job runs, or may run
                if (folder / NAME).is_file() or time.time() - folder.stat().st_mtime > ABANDONED:  # else one that is just being made
                    with locked(folder):
                        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        """This rank's file, for writing; collective if all ranks write one file."""
        if self.parallel_file:
            driver = {"driver": "mpio", "comm": self.world.communicator}
            with self._ending_all(), h5py.File(self.joint, "w", libver=HDF5_FORMAT, **driver) as file:
                try:
                    with self._ending_all():
                        yield file
                finally:
                    self.world.barrier()  # else HDF5 waits for the other ranks and blocks every thread, also the watchdog's
        else:
            written = self.joint if self.one_file else self.unfinished / part_name(self.world.rank)
            with output(written, named=self.path) as raw, WrittenFile(raw) as file:
                yield file

    @contextmanager
    def _ending_all(self) -> Iterator[None]:
        """Ends all ranks on an error of parallel HDF5, in which the others may wait for this one for ever."""
        try:
            yield
        except (InputError, Stopped):  # which all ranks agree on
            raise
        except Exception as error:
            shutil.rmtree(self.unfinished, ignore_errors=True)
            abort_all(self.world, not_written(self.path, error))

    def finish(self, described: PartitionedSet, source: Source, written: dict[str, list[np.ndarray]], runs: dict[str, np.ndarray]) -> None:
        """Adds labels, checksums and attributes, joins the parts, renames the file to ``path``, and removes the parts of an older file.

        Args:
            written: of each split, for every rank, the samples that it has written, (S',) int64.
            runs: of each split, (R, 1 + N): the number of rows of every run, and its checksums.
        """
        exists = self.joint.exists()
        with output(self.joint, named=self.path, exists=exists) as raw, WrittenFile(raw, "r+" if exists else "w") as file:
            for name in source.splits:
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
        older = self._publish()
        for part in older:
            with suppress(OSError):
                part.unlink()
        for folder in {part.parent for part in older}:
            with suppress(OSError):  # it holds something else
                folder.rmdir()

    def _publish(self) -> set[Path]:
        """Gives the files their names, unless another job was faster; returns the parts of the file that they replace."""
        with disk_errors(self.path):
            sync_folder(self.unfinished)
            (self.unfinished / NAME).unlink(missing_ok=True)
            with alone(self.path.parent, ABANDONED + PATIENCE):
                if self.reuse and self.path.exists():
                    return set()
                older = written_parts(self.path)
                if self.one_file:
                    put_in_place(self.joint, self.path)
                    return older
                os.rename(self.unfinished, self.parts)
                try:
                    put_in_place(self.parts / self.joint.name, self.path)
                except OSError:
                    os.rename(self.parts, self.unfinished)
                    raise
                return older

    def _join(self, file: h5py.File, name: str, bounds: np.ndarray, shape: tuple[int, ...], dtype: str) -> None:
        """Creates a virtual dataset with the rows of all parts, each of ``shape``."""
        layout = h5py.VirtualLayout((bounds[-1], *shape), dtype)
        for rank, (start, stop) in enumerate(pairwise(bounds)):
            if stop > start:
                layout[start:stop] = h5py.VirtualSource(f"{self.parts.name}/{part_name(rank)}", name, (stop - start, *shape))
        file.create_virtual_dataset(name, layout)
