"""How long partitioning would take, from a few blocks that are read, and written into memory."""

import time

import h5py
import numpy as np

from ddcnn.data.partition import Block, blocks, read_block
from ddcnn.data.set_writer import BlockWriter
from ddcnn.data.sources import Source
from ddcnn.data.statistics import BlockStatistics
from ddcnn.decomposition import Decomposition

SECONDS, MOST_BLOCKS = 1.0, 16


def partition_seconds(source: Source, selections: dict[str, np.ndarray], decomposition: Decomposition, skip_damaged: bool) -> float:
    """Seconds that one rank alone would take; arguments as of ``partition``.

    Raises:
        InputError: a sample that is read is damaged, as ``partition``.
    """
    work = [(name, block) for name, chosen in selections.items() for block in blocks(source.splits[name], chosen)]
    first, block = work[0]
    _seconds(source, first, Block(block.samples[:1], 0), decomposition, skip_damaged)  # imports what it takes
    seconds, samples = 0.0, 0
    for name, block in work[:MOST_BLOCKS]:  # neighbours: a compressed file is read from its beginning to its end
        seconds += _seconds(source, name, block, decomposition, skip_damaged)
        samples += len(block.samples)
        if seconds > SECONDS:
            break
    return seconds / samples * sum(map(len, selections.values()))


def _seconds(source: Source, name: str, block: Block, decomposition: Decomposition, skip_damaged: bool) -> float:
    """Of one block."""
    begin = time.perf_counter()
    samples, images = read_block(source.name, source.splits[name], name, block.samples, skip_damaged)
    if len(samples):
        BlockStatistics(source.shape[-1]).add(name, 0, images)
        writer = BlockWriter(source, decomposition, resizable=False)
        with h5py.File("block", "w", driver="core", backing_store=False) as file:
            writer.create_datasets(file, name, slice(0, len(samples)))
            writer.write(file, name, samples, images, 0)
    return time.perf_counter() - begin
