"""Partitioning: a source, read block by block, becomes a partitioned HDF5 set.

The samples are cut into blocks of a fixed size, whatever the number of ranks, and every rank works on a contiguous share of them;
so the statistics and the digest do not depend on the number of ranks, and no rank holds more than a block. With parallel h5py all
ranks write one file; with the ordinary wheel, or where damaged samples may be skipped, so that nobody knows in advance how many rows
there will be, every rank writes a part, and virtual datasets join the parts.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.partitioned_set import SPLITS, PartitionedSet, checksum, images_name
from ddcnn.data.set_writer import SetFiles
from ddcnn.data.sources import DamagedSample, Source, Split
from ddcnn.data.statistics import Facts
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError, Stopped
from ddcnn.io.atomic import disk_errors, sync
from ddcnn.io.progress import Progress
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.world import World

BLOCK_BYTES = 1 << 22  # small enough for shares that are nearly equal
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Block:
    """Ascending ``samples`` (n,) of the source, which lie near each other and go to the rows from ``row`` on."""

    samples: np.ndarray
    row: int


def blocks(split: Split, selection: np.ndarray, most: int = sys.maxsize) -> list[Block]:
    """All blocks of a split, of ``most`` samples each, that hold selected samples; ``selection`` (S,) is ascending."""
    sample = int(np.prod(split.shape[1:])) * split.dtype.itemsize
    size = max(1, min(BLOCK_BYTES // sample, most))
    bounds = range(0, len(split), size)
    rows = np.searchsorted(selection, [*bounds, len(split)])
    return [Block(selection[a:b], int(a)) for a, b in pairwise(rows) if b > a]


def partition(
    world: World, source: Source, selections: dict[str, np.ndarray], decomposition: Decomposition, path: Path,
    skip_damaged: bool = False, progress: str = "none", reuse: bool = False,
    asked: Callable[[], bool] = lambda: False,
) -> PartitionedSet:  # fmt: skip
    """Writes ``path``, all ranks together.

    Args:
        selections: ascending indices of the samples of each split, (S,) int64.
        path: the file to write; parts lie in a folder beside it.
        skip_damaged: leaves damaged samples out, and says so on stderr.
        progress: style of rank 0's, which has read as much as the others, or nearly so.
        asked: whether this rank has been asked to stop.
        reuse: takes a set that another job has put there meanwhile, whose content is the same.

    Raises:
        InputError: a damaged sample, a pixel that is no number, or a file system that refuses the files.
        Stopped: on all ranks, if one has been asked to; nothing is left.
    """
    parallel_file = h5py.get_config().mpi and world.size > 1 and not skip_damaged
    number = world.on_root(lambda: int.from_bytes(os.urandom(4)))
    files = SetFiles(path, f"{number:08x}", world.rank, world.size, parallel_file, reuse)
    shares = {name: _share(blocks(source.splits[name], selections[name]), world) for name in SPLITS}
    rows = {name: (0, len(selections[name])) if parallel_file else _rows(shares[name]) for name in SPLITS}
    facts = Facts(source.shape[-1])
    kept: dict[str, np.ndarray] = {name: np.empty(0, np.int64) for name in SPLITS}
    runs: dict[str, np.ndarray] = {name: np.empty((0, 1 + len(decomposition))) for name in SPLITS}

    def write(stopped: Callable[[], bool]) -> None:
        told = Progress("partition", sum(map(len, shares.values())), progress if world.rank == 0 else "none", seconds=5)
        with files.open(world) as file, told:  # with parallel h5py, opening, creating and closing are collective
            _create(file, source, rows, decomposition, skip_damaged)
            for name in SPLITS:
                share = takewhile(lambda block: not stopped() and not asked(), shares[name])
                kept[name], runs[name] = _write(file, source, name, share, rows[name][0], decomposition, facts, skip_damaged, told)
        if stopped() or asked():
            raise Stopped
        sync(files.written)

    def finish() -> None:
        parts = {name: [part[:, 0].astype(np.int64) for part in every_kept[name] or ()] for name in SPLITS}
        written = {name: np.concatenate(parts[name]) for name in SPLITS}
        content = hashlib.sha256(bytes.fromhex(digest))
        for name in SPLITS:
            if not len(written[name]):
                raise InputError(f"{source.name}: all of its {len(selections[name])} {name} samples are damaged")
            content.update(source.splits[name].labels[written[name]].astype("<i8").data)
        train, test = (len(written[name]) for name in SPLITS)
        skipped = sum(map(len, selections.values())) - train - test
        described = PartitionedSet(
            str(path), source.name, content.hexdigest(), source.shape, source.splits["train"].dtype.str, decomposition.grid,
            decomposition.overlap, decomposition.margin, source.class_names, mean, std, train, test, skipped,
            source.preprocessing, "" if files.one_file else files.parts.name,
        )  # fmt: skip
        with disk_errors(path):
            bounds = {name: np.cumsum([0, *map(len, parts[name])]) for name in SPLITS}
            files.finish(described, source, written, bounds, {name: np.concatenate(every_run[name]) for name in SPLITS})

    with world.raise_on_all_ranks(), disk_errors(path):
        files.prepare()
    try:
        with (
            world.raise_on_all_ranks(), world.cancel_together(number % 2**14, asked) as stopped,
            disk_errors(path), world.timeline.span("compute"),
        ):  # fmt: skip
            if parallel_file or any(shares.values()):
                write(stopped)
        mean, std, digest = facts.combine(world)
        every_kept = {name: world.gather_rows(kept[name][:, None].astype(np.float64)) for name in SPLITS}  # exact up to 2⁵³
        every_run = {name: world.gather_rows(runs[name]) or [] for name in SPLITS}
        world.on_root(finish)
    except (InputError, Stopped):
        files.discard()
        raise
    with world.raise_on_all_ranks():
        return PartitionedSet.open(path)


def _write(
    file: h5py.File, source: Source, name: str, share: Iterable[Block], first_row: int, decomposition: Decomposition, facts: "Facts",
    skip_damaged: bool, progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Writes a rank's share of a split, block by block, into datasets that begin with ``first_row``.

    Returns the samples (S',) that it wrote, and (blocks, 1 + N) float64: how many of each block, and each subdomain's checksum.
    """
    written, runs = [np.empty(0, np.int64)], [np.empty((0, 1 + len(decomposition)))]
    for block in share:
        beat(f"{name} sample {block.samples[0]}")
        samples, images = read_block(source.name, source.splits[name], name, block.samples, skip_damaged)
        progress.advance(f"{name} sample {block.samples[-1] + 1} of {len(source.splits[name])}")
        if not len(samples):
            continue
        facts.add(name, block.row, images)
        at = sum(map(len, written)) if skip_damaged else block.row - first_row
        run = [float(len(images))]
        for subdomain in decomposition.subdomains:
            stored = np.ascontiguousarray(images[(slice(None), *subdomain.stored.slices)])
            file[images_name(name, subdomain.index)][at : at + len(images)] = stored
            run.append(checksum(stored))
        written.append(samples)
        runs.append(np.array([run]))
    everything = np.concatenate(written)
    for subdomain in decomposition.subdomains if skip_damaged else ():
        if images_name(name, subdomain.index) in file:
            file[images_name(name, subdomain.index)].resize(len(everything), axis=0)
    return everything, np.concatenate(runs)


def _share(all_blocks: list[Block], world: World) -> list[Block]:
    return all_blocks[len(all_blocks) * world.rank // world.size : len(all_blocks) * (world.rank + 1) // world.size]


def _rows(share: list[Block]) -> tuple[int, int]:
    """First row and end of the rows of a share."""
    return (share[0].row, share[-1].row + len(share[-1].samples)) if share else (0, 0)


def read_block(
    source: str, split: Split, name: str, samples: np.ndarray, skip_damaged: bool, quiet: bool = False
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The samples (n',) of a split, out of ``samples`` (n,), that are not damaged, and their images (n', *spatial, C).

    Raises:
        DamagedSample: a sample cannot be read, or has a pixel that is not a finite number, and is not to be skipped.
    """
    try:
        images = split.read(samples)
        if images.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
            if bad.size:
                raise DamagedSample(
                    f"{source}: {name} sample {samples[bad[0]]} has a pixel that is NaN or infinite; mend it or leave it out, "
                    "or add --skip-damaged"
                )
        return samples, images
    except DamagedSample as damage:
        if not skip_damaged:
            raise
        if len(samples) == 1:
            if not quiet:
                print(f"ddcnn: skipped: {str(damage).partition('; mend')[0]}", file=sys.stderr, flush=True)
            return samples[:0], np.empty((0, *split.shape[1:]), split.dtype)
    one_by_one = [read_block(source, split, name, samples[k : k + 1], skip_damaged, quiet) for k in range(len(samples))]
    return np.concatenate([sample for sample, _ in one_by_one]), np.concatenate([image for _, image in one_by_one])


def _create(file: h5py.File, source: Source, rows: dict[str, tuple[int, int]], decomposition: Decomposition, shrinking: bool) -> None:
    for name in SPLITS:
        samples = rows[name][1] - rows[name][0]
        for subdomain in decomposition.subdomains if samples else ():
            shape = (*subdomain.stored.shape, source.shape[-1])
            chunk = min(samples, max(1, CHUNK_BYTES // (int(np.prod(shape)) * source.splits[name].dtype.itemsize)))
            most = (samples, *shape) if shrinking else None
            name_of_images, dtype = images_name(name, subdomain.index), source.splits[name].dtype
            file.create_dataset(name_of_images, (samples, *shape), dtype, chunks=(chunk, *shape), maxshape=most)
