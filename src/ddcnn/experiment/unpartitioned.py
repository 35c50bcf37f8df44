"""The partitioned set of a run that is only tried: as it is, or as it would be, without its images.

Nothing here imports torch, so that errors come at once.
"""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddcnn.config.settings import RunSettings
from ddcnn.data.partition_trial import partition_seconds
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.stand_in import described
from ddcnn.errors import InputError
from ddcnn.experiment import plan
from ddcnn.experiment.resumed import Resumed, images_of
from ddcnn.networks.user_code import look_in
from ddcnn.parallel.world import World


def described_set(world: World, settings: RunSettings) -> tuple[PartitionedSet, float | None]:
    """The partitioned set of a run, and seconds of partitioning, None if that is done; all ranks together.

    Raises:
        InputError: the run would refuse the settings, or the images as far as they are looked at.
    """
    world.barrier()
    world.timeline.begin()
    with world.timeline.phase("partition"):
        return _described(world, settings)


def _described(world: World, settings: RunSettings) -> tuple[PartitionedSet, float | None]:
    resumed = Resumed.of(settings) if world.rank == 0 else None
    look_in(settings.network, world.on_root(lambda: resumed.module_places if resumed else []))
    options, begin = replace(plan.source_options(settings, settings.data), download=False), time.perf_counter()
    source, target = None, None
    with world.raise_on_all_ranks():
        if world.rank == 0:
            try:
                source, target = plan.plan_set(world.size, settings, options, resumed)
            except InputError as error:
                raise InputError(f"{error}; --dry-run itself downloads nothing" if settings.download else str(error)) from None
    opening, path = time.perf_counter() - begin, Path(world.broadcast(str(target)))
    if world.on_root(path.is_file):
        with world.raise_on_all_ranks():
            store = PartitionedSet.open(path)
        world.on_root(lambda: resumed.check(settings, images_of(store)) if resumed else None)
        return store, None

    def describe() -> dict[str, Any]:
        assert source
        chosen, decomposition = plan.select(settings, source), plan.decompose(settings, source)
        at_once = 1 if source.in_memory else min(world.size, len(os.sched_getaffinity(0)) * world.size // world.local_size)
        alone = partition_seconds(source, chosen, decomposition, settings.skip_damaged)
        return {
            "source": source.name, "shape": source.shape, "dtype": source.splits["train"].dtype.str, "class_names": source.class_names,
            "labels": {split: source.splits[split].labels[rows].tolist() for split, rows in chosen.items()},
            "grid": decomposition.grid, "preprocessing": source.preprocessing, "seconds": opening + alone / at_once,
        }  # fmt: skip

    found = world.on_root(describe)
    store = described(
        found["source"], tuple(found["shape"]), found["dtype"], tuple(found["class_names"]),
        {split: np.array(labels, np.int64) for split, labels in found["labels"].items()}, tuple(found["grid"]), settings.overlap,
        settings.margin, found["preprocessing"],
    )  # fmt: skip
    return store, found["seconds"]
