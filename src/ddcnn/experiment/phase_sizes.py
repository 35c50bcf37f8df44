"""How large the phases of a run are, relative to each other, from the counts of their operations: for the time that is left of all."""

import logging
from dataclasses import replace
from math import prod

from ddcnn.config.methods import Method
from ddcnn.experiment.problem import Problem
from ddcnn.io.progress import Overall
from ddcnn.method.work import Counts, Network, Sizes, counts, dense, networks

SECONDS = {  # for each, about: the speed that a run has corrects them
    "cpu": Counts(local_operations=2e-11, global_operations=1.5e-11, layer_steps=1.5e-4, collectives=2e-4, bytes_sent=1e-9),
    "cuda": Counts(local_operations=2e-13, global_operations=1e-13, layer_steps=4e-5, collectives=2e-4, bytes_sent=1e-9),
}
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
    return [*phases, *([(Method.GLOBAL, found["global"])] if Method.GLOBAL in settings.methods else [])]


def _as_whole(sizes: Sizes, method: str) -> Sizes:
    """Of the undecomposed CNN, with the epochs of another method."""
    epochs = {"global_epochs": sizes.epochs(method)}
    return replace(sizes, phases=("global",), settings=sizes.settings.model_copy(update=epochs))


def _sizes(problem: Problem) -> Sizes:
    settings, store, makes = problem.settings, problem.store, problem.networks
    boxes = [store.decomposition.subdomains[makes.subimage(index)].subimage.shape for index in problem.owned]
    subimage = max(boxes, key=prod)
    try:
        local, whole, dnn = networks(settings, store.shape, subimage, makes.subdomains, makes.classes)
    except Exception:  # a user's network may compute while it is made, or not take whole images
        local, whole, dnn = UNKNOWN, UNKNOWN, dense(settings.interface, makes.subdomains, UNKNOWN.values, makes.classes)
    phases = dict.fromkeys((*settings.phases, Method.GLOBAL))
    return Sizes(settings, problem.world.size, makes.subdomains, tuple(phases), store.samples, makes.classes, subimage, local, whole, dnn)
