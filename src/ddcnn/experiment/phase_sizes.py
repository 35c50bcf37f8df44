"""How large the phases of a run are, relative to each other, from the counts of their operations: for the time that is left of all."""

import logging
from dataclasses import replace
from math import prod
from typing import Literal

from torch import nn

from ddcnn.config.methods import Method
from ddcnn.experiment.problem import Problem
from ddcnn.io.progress import Overall
from ddcnn.method.coarse_solve import CoarseSolve
from ddcnn.method.costs import Network, dense, halos, networks
from ddcnn.method.work import SECONDS, Sizes, counts, divides

logger = logging.getLogger(__name__)
UNKNOWN = Network(1e7, 20, 100_000, 10)  # in place of a network that cannot be counted


def overall(problem: Problem, runs: int) -> Overall | None:
    """How far so many runs together are; None, and a warning, if their sizes cannot be counted: what is only shown fails no run."""
    try:
        return Overall(runs * phase_sizes(problem))
    except Exception as error:  # a mistake in counting, which must be seen and must not cost a run
        logger.warning("the time that is left of the run is not shown: its phases cannot be counted (%s: %s)", type(error).__name__, error)
        return None


def phase_sizes(problem: Problem) -> list[tuple[str, float]]:
    """Of the phases of a seed, in order: title as it is shown, and seconds, of which only the relation counts."""
    settings = problem.settings
    each, sizes = SECONDS[problem.policy.device.type], _sizes(problem)
    found = {phase: count.seconds(each) for phase, count in counts(sizes).items()}
    phases: list[tuple[str, float]] = []
    if settings.needs("local"):
        phases.append(("local CNNs", (0.0 if settings.start_from else found["local"]) + found.get("folds", 0.0)))
    if settings.needs("dnn"):
        phases.append(("DNN", found["dnn"]))
    for method in (Method.COHERENT, Method.TRANSFER):
        if method in settings.methods:
            whole = settings.sees_whole_image(method)
            phases.append((method, counts(_as_whole(sizes, method))["global"].seconds(each) if whole else found[method]))
    return [*phases, *((method, found[method]) for method in (Method.GLOBAL, Method.SPATIAL) if method in settings.methods)]


def _as_whole(sizes: Sizes, method: str) -> Sizes:
    """Of the undecomposed CNN, with the epochs of another method."""
    epochs = {"global_epochs": sizes.epochs(method)}
    return replace(sizes, phases=("global",), settings=sizes.settings.model_copy(update=epochs))


def _sizes(problem: Problem) -> Sizes:
    settings, store, makes = problem.settings, problem.store, problem.networks
    boxes = [store.decomposition.subdomains[makes.subimage(index)].subimage.shape for index in problem.owned]
    subimage = max(boxes, key=prod)
    try:
        local, whole, dnn = networks(settings, store.decomposition, store.shape[-1], makes.classes)
    except Exception:  # a user's network may compute while it is made, or not take whole images
        local, whole, dnn = UNKNOWN, UNKNOWN, dense(settings.interface, makes.subdomains, makes.classes, makes.classes)
    phases = dict.fromkeys((*settings.phases, Method.GLOBAL))
    ranks = problem.world.size
    exchanged = halos(settings.global_design(Method.SPATIAL), makes.whole_shape, ranks) if Method.SPATIAL in settings.methods else None
    sizes = Sizes(
        settings, ranks, makes.subdomains, tuple(phases), store.samples, makes.classes, subimage, local, whole, dnn, halos=exchanged
    )  # fmt: skip
    return replace(sizes, divided=divides(sizes, SECONDS[problem.policy.device.type]))


def _is_divided(problem: Problem) -> bool:
    return bool(problem.settings.convolutional) and 1 < problem.world.size <= problem.networks.subdomains and _sizes(problem).divided


def who_solves(problem: Problem) -> Literal["by every rank", "divided over the samples"] | None:
    """Of the coarse problem of a step."""
    if not problem.settings.joint or problem.world.size == 1:
        return None
    return "divided over the samples" if _is_divided(problem) else "by every rank"


def coarse_solve(problem: Problem, dnn: nn.Module) -> CoarseSolve:
    """How the ranks solve the coarse problem of a step: whatever costs less, which is the same on all ranks."""
    chunked = bool(problem.settings.convolutional) and problem.groups.data_parallel.size == 1
    divided = problem.world.broadcast(_is_divided(problem))
    return CoarseSolve(problem.groups.across_subdomains, dnn, problem.networks.subdomains if chunked else 1, divided)
