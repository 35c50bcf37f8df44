"""``ddcnn run --dry-run``: refuses what the run would refuse, and says what the run would take. It keeps nothing and writes nothing."""

import logging
from dataclasses import astuple

import numpy as np
import torch

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.experiment.dry_run_tables import Expected, show
from ddcnn.experiment.estimate import Estimate
from ddcnn.experiment.problem import notes
from ddcnn.experiment.run import checked, of_seed
from ddcnn.experiment.trial import Trial
from ddcnn.parallel import memory
from ddcnn.parallel.timeline import PHASES
from ddcnn.parallel.world import World

logger = logging.getLogger(__name__)


def dry_run(world: World, settings: RunSettings, store: PartitionedSet, partitioning: float | None) -> None:
    """All ranks together; rank 0 tells.

    Args:
        store, partitioning: as of ``unpartitioned.described_set``.

    Raises:
        InputError: the run would refuse the settings, or the images as far as they are looked at.
    """
    problem, seeds = checked(world, settings, store)
    problem = of_seed(problem, seeds[0])
    if world.rank == 0:
        for text in notes(problem):
            logger.info("note: %s", text)
    kind = memory.KINDS.index("reserved" if problem.policy.device.type == "cuda" else "resident")  # which is short
    program, trial = in_use(problem.policy.device), Trial(problem)
    estimate = Estimate(problem, trial.paces())
    peaks = world.timeline.take_peaks()[:, kind].copy()
    own = []
    for phase in problem.settings.phases:
        tried = Method.GLOBAL if phase in (Method.TRANSFER, Method.GLOBAL) and problem.settings.sees_whole_image(phase) else phase
        tried = {"folds": "local", Method.TRANSFER: Method.COHERENT}.get(tried, tried)
        needed = estimate.memory(phase, program, float(peaks[PHASES.index(tried)]), trial.few.store)
        own.append([estimate.seconds(phase), needed.total, *astuple(needed)])
    ranks, opening = world.gather(np.array(own)), world.gather(world.timeline.take_peaks()[PHASES.index("partition"), :1])
    if ranks is not None and opening is not None:
        show(problem, estimate, Expected(partitioning, float(opening.max()), ranks, len(seeds)))


def in_use(device: torch.device) -> float:
    """Bytes that this process has now: on the GPU, where there is one."""
    if device.type == "cuda":
        return float(torch.cuda.memory_reserved(device))
    memory.take_peaks()
    return float(memory.take_peaks()[0])
