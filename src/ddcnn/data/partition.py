"""Partitioning: a source is read block by block and written as a partitioned HDF5 set.

The samples are cut into blocks of a fixed size, whatever the number of ranks, and every rank works on a contiguous range of blocks. So
statistics and digest do not depend on the number of ranks, and no rank holds more than one block. With parallel h5py all ranks write
one file. With the ordinary wheel, or where damaged samples may be skipped and the number of rows is not known in advance, every rank
writes a part of its own, and virtual datasets join the parts.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import h5py
import numpy as np

from ddcnn.data.partitioned_set import LARGEST, PartitionedSet
from ddcnn.data.set_writer import BlockWriter, SetFiles
from ddcnn.data.sources import DamagedSample, Source, Split
from ddcnn.data.statistics import BlockStatistics
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError, Stopped
from ddcnn.io.progress import Progress
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.messages import Tag
from ddcnn.parallel.world import World

SMALLEST_STD = 1e-36  # its inverse must be a finite float32
BLOCK_BYTES = 1 << 22  # small, so that all ranks have nearly equal work
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Neighbouring ``samples`` (n,) of the source, ascending, which go to the rows from ``row`` on."""

    samples: np.ndarray
    row: int


def blocks(split: Split, selection: np.ndarray, most: int = sys.maxsize) -> list[Block]:
    """The selected samples of a split, (S,) ascending, in blocks that span at most ``most`` samples of the split."""
    sample = int(np.prod(split.shape[1:])) * split.dtype.itemsize
    size = max(1, min(BLOCK_BYTES // sample, most))
    bounds = range(0, len(split), size)
    rows = np.searchsorted(selection, [*bounds, len(split)])
    return [Block(selection[a:b], int(a)) for a, b in pairwise(rows) if b > a]


@dataclass(frozen=True)
class PartitionOptions:
    """How a source is partitioned.

    Attributes:
        skip_damaged: leave damaged samples out, and name them on stderr, instead of refusing the source.
        progress: style of the progress display, which counts rank 0's blocks: every other rank has about as many.
        reuse: keep a set that another job has written to the same path meanwhile; its content is the same.
        should_stop: whether this rank has been asked to stop.
    """

    skip_damaged: bool = False
    progress: str = "none"
    reuse: bool = False
    should_stop: Callable[[], bool] = lambda: False


def partition(
    world: World, source: Source, selections: dict[str, np.ndarray], decomposition: Decomposition, path: Path,
    options: PartitionOptions = PartitionOptions(),
) -> PartitionedSet:  # fmt: skip
    """Writes the partitioned set ``path``; collective.

    Args:
        selections: ascending indices of the samples of each split, (S,) int64.
        path: of the file; a folder of parts may lie beside it.

    Raises:
        InputError: a damaged sample, a pixel that is not a finite number, or files that cannot be written.
        Stopped: on all ranks, if one has been asked to stop; nothing is left behind.
    """
    skip_damaged, should_stop = options.skip_damaged, options.should_stop
    parallel_file = h5py.get_config().mpi and world.size > 1 and not skip_damaged
    files = SetFiles(world, path, world.on_root(lambda: os.urandom(4).hex()), parallel_file, options.reuse)
    work = {name: rank_slice(blocks(source.splits[name], selections[name]), world) for name in source.splits}
    writer = BlockWriter(source, decomposition, resizable=skip_damaged)
    statistics = BlockStatistics(source.shape[-1])
    with files.held():
        with (
            world.raise_on_all_ranks(), world.cancel_together(Tag.PARTITION, should_stop) as cancelled,
            world.timeline.span("compute"),
        ):  # fmt: skip
            if parallel_file or any(work.values()):
                style = options.progress if world.rank == 0 else "none"
                display = Progress("partition", sum(map(len, work.values())), style, seconds=5, unit="blocks")
                with files.open() as file, display:  # with parallel h5py, opening, creating and closing are collective
                    rows = {name: slice(0, len(selections[name])) if parallel_file else _rows(work[name]) for name in source.splits}
                    for name in source.splits:
                        writer.create_datasets(file, name, rows[name])
                    for name in source.splits:
                        for block in takewhile(lambda block: not (cancelled() or should_stop()), work[name]):
                            beat(f"{name} sample {block.samples[0]}")
                            own = "train" if name in source.drawn else name
                            samples, images = read_block(source.name, source.splits[name], own, block.samples, skip_damaged)
                            display.advance(f"{name} sample {block.samples[-1] + 1} of {len(source.splits[name])}")
                            if len(samples):
                                statistics.add(name, block.row, images)
                                writer.write(file, name, samples, images, block.row - rows[name].start)
                        writer.shrink_datasets(file, name, rows[name])
                if cancelled() or should_stop():
                    raise Stopped
        kept = {name: world.gather_rows(np.concatenate(writer.samples[name]).reshape(-1, 1)) or [] for name in source.splits}
        written = {name: [part[:, 0].astype(np.int64) for part in kept[name]] for name in source.splits}
        world.on_root(lambda: check_kept(source, selections, {name: np.concatenate(written[name]) for name in source.splits}))
        mean, std, digest = statistics.combine(world)
        runs = {name: world.gather_rows(np.array(writer.runs[name]).reshape(-1, 1 + len(decomposition))) or [] for name in source.splits}

        def finish() -> None:
            content = hashlib.sha256(bytes.fromhex(digest))
            for name in source.splits:
                content.update(source.splits[name].labels[np.concatenate(written[name])].astype("<i8").data)
            if any(0 < value < SMALLEST_STD for value in std):
                raise InputError(f"{source.name}: its values differ by {min(std):.3g} only, which cannot be computed with: scale them")
            samples = {name: sum(map(len, parts)) for name, parts in written.items()}
            skipped = sum(map(len, selections.values())) - sum(samples.values())
            described = PartitionedSet(
                str(path), source.name, content.hexdigest(), source.shape, source.splits["train"].dtype.str, decomposition.grid,
                decomposition.overlap, decomposition.margin, source.class_names, mean, std, samples["train"], samples["test"], skipped,
                source.preprocessing, "" if files.one_file else files.parts.name, validation_samples=samples.get("validation", 0),
            )  # fmt: skip
            files.finish(described, source, written, {name: np.concatenate(runs[name]) for name in source.splits})

        world.on_root(finish)
    with world.raise_on_all_ranks():
        return PartitionedSet.open(path)


def check_kept(source: Source, selections: dict[str, np.ndarray], kept: dict[str, np.ndarray]) -> None:
    """Checks again, after damaged samples have been left out, what every set needs; notes classes that cannot be tested any more.

    Args:
        selections, kept: indices of the samples of each split (S,), before and after.

    Raises:
        InputError: a split, or a class of the training split, has lost all of its samples.
    """
    for split in selections:
        if not len(kept[split]):
            raise InputError(f"{source.name}: all of its {len(selections[split])} {split} samples are damaged; mend some")
    for split, kind in (("train", "training"), ("test", "test")):
        counts, left = (
            np.bincount(source.splits[split].labels[samples], minlength=len(source.class_names))
            for samples in (selections[split], kept[split])
        )
        lost = np.flatnonzero((counts > 0) & (left == 0))
        if lost.size:
            more = f", and so it is with {lost.size - 1} other{'s' * (lost.size > 2)}" if lost.size > 1 else ""
            what = f"{source.name}: all {counts[lost[0]]} {kind} samples of the class {source.class_names[lost[0]]} are damaged{more}"
            if split == "train":
                raise InputError(f"{what}: mend some, or take the class out of the data")
            logger.warning("%s: accuracies say nothing of it", what, extra={"kind": "note"})


def rank_slice(all_blocks: list[Block], world: World) -> list[Block]:
    """The contiguous range of the blocks that this rank works on."""
    return all_blocks[len(all_blocks) * world.rank // world.size : len(all_blocks) * (world.rank + 1) // world.size]


def _rows(work: list[Block]) -> slice:
    """The rows of the whole set that consecutive blocks go to."""
    return slice(work[0].row, work[-1].row + len(work[-1].samples)) if work else slice(0, 0)


def _named(source: str, split: Split, name: str, i: int) -> object:
    """A sample in messages: its file if it has one; else its number in the split of the source."""
    own = split.name(i)
    return f"{source}: {name} sample {own}" if str(own).isdigit() else own


def check_values(name: Callable[[int], object], images: np.ndarray) -> None:
    """Refuses values that cannot be computed with, in images (n, *spatial, C), the k-th of which has a name.

    Raises:
        DamagedSample: a value is NaN or infinite.
        InputError: a value is larger than ``LARGEST``.
    """
    if images.dtype.kind != "f" and images.dtype.itemsize < 8:
        return
    values = images.reshape(len(images), -1)
    largest = np.maximum(values.max(axis=1).astype(np.float64), -values.min(axis=1).astype(np.float64))  # NaN if one is
    bad = np.flatnonzero(~(largest <= LARGEST))
    if bad.size and not np.isfinite(largest[bad[0]]):
        raise DamagedSample.not_finite(name(int(bad[0])), images[bad[0]])
    if bad.size:
        raise InputError(
            f"{name(int(bad[0]))} has a pixel of magnitude {largest[bad[0]]:.3g}, and more than {LARGEST:g} cannot be computed with: "
            "scale the values, or clip them"
        )


def read_block(
    source: str, split: Split, name: str, samples: np.ndarray, skip_damaged: bool, quiet: bool = False
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Those of ``samples`` (n,) of a split that are not damaged, (n',), and their images (n', *spatial, C).

    Args:
        source, name: of the source and of the split, for messages.
        quiet: do not report skipped samples.

    Raises:
        DamagedSample: a sample cannot be read or has a pixel that is not a finite number, and ``skip_damaged`` is false.
        InputError: a pixel is too large.
    """
    try:
        images = split.read(samples)
        check_values(lambda k: _named(source, split, name, int(samples[k])), images)
        return samples, images
    except OSError as error:
        raise InputError(f"{source}: {name} sample {samples[0]} cannot be read ({error.strerror or error})") from None
    except DamagedSample as damage:
        if not skip_damaged:
            raise
        if len(samples) == 1:
            if not quiet:
                logger.warning("%s", str(damage).partition("; mend")[0], extra={"kind": "skipped"})
            return samples[:0], np.empty((0, *split.shape[1:]), split.dtype)
    one_by_one = [read_block(source, split, name, samples[k : k + 1], skip_damaged, quiet) for k in range(len(samples))]
    return np.concatenate([sample for sample, _ in one_by_one]), np.concatenate([image for _, image in one_by_one])
