"""What a dry run shows: subdomains, methods, phases with their time and memory, disk."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from torch import nn

from ddcnn.config.methods import Method, divide_images
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import times
from ddcnn.experiment.disk import checkpoint_bytes, shortages
from ddcnn.experiment.estimate import Estimate
from ddcnn.experiment.problem import Problem
from ddcnn.experiment.residency import WORDS
from ddcnn.io.progress import duration
from ddcnn.io.run_folder import RUNS, RunFolder
from ddcnn.networks.layers import count_parameters
from ddcnn.networks.operations import multiply_adds
from ddcnn.report.pages import human, number
from ddcnn.report.terminal import fitted, width_of

MOST_SUBDOMAINS = 16  # with a row each
PHASES_HEADER = ("phase", "time", "memory a rank", "program", "data", "parameters", "optimizer", "activations")
Cost = tuple[int | None, float | None]  # parameters, multiply-adds a sample; None where they cannot be counted
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expected:
    """Of all ranks.

    Attributes:
        partitioning: seconds; None if that is done.
        opening: bytes of the rank that needs most to open the images.
        ranks: (ranks, phases, 7): seconds, bytes in all, and their parts as of ``Memory``.
        seeds: number of runs.
    """

    partitioning: float | None
    opening: float
    ranks: np.ndarray
    seeds: int


def show(problem: Problem, estimate: Estimate, expected: Expected) -> None:
    """On rank 0."""
    store, world, output = problem.store, problem.world, problem.settings.output
    *spatial, channels = store.shape
    images = ", ".join(f"{samples:,} {split}" for split, samples in store.samples.items())
    pixels = f"{times(spatial)} {'voxels' if len(spatial) == 3 else 'pixels'}, {channels} channel{'s' * (channels > 1)}"
    logger.info("images     %s; %s; %d classes", images, pixels, len(store.class_names))
    own, sharing = len(problem.owned), problem.groups.data_parallel.size
    shares = f"{own} subdomain{'s' * (own > 1)} each" if sharing == 1 else f"{sharing} for each subdomain"
    if not divide_images(problem.settings.methods):
        shares = "all for the whole images"
    threads, device = torch.get_num_threads(), "CPU" if problem.policy.device.type == "cpu" else "GPU"
    logger.info(
        "ranks      %d, %s; %s, %s, %d thread%s a rank", world.size, shares, device, problem.policy.precision, threads, "s" * (threads > 1)
    )
    axes = " × ".join(("depth", "rows", "columns")[-len(spatial) :])
    size = "with overlap" if store.decomposition.overlap else "size"
    _tell(("subdomain", axes, size, "parameters", "multiply-adds a sample"), _subdomain_rows(problem), left=(axes, size))
    _tell(("method", "parameters", "multiply-adds a sample", "epochs"), _method_rows(problem, estimate))
    longest, fullest = expected.ranks[..., 0].max(axis=0), expected.ranks[..., 1].argmax(axis=0)
    rows = [
        [phase, _time(longest[k]), *map(human, expected.ranks[fullest[k], k, 1:])] for k, phase in enumerate(problem.settings.phases)
    ]  # of the rank that has most
    whole = expected.seeds * float(longest.sum()) + (expected.partitioning or 0.0)
    dashes = ["–"] * (len(PHASES_HEADER) - 3)
    most = human(max(expected.opening, expected.ranks[..., 1].max()))
    first = ["partition", "done" if expected.partitioning is None else _time(expected.partitioning), human(expected.opening), *dashes]
    last = [f"{expected.seeds} seeds" if expected.seeds > 1 else "in all", duration(whole), most, *dashes]
    kind = "GPU memory of a rank" if problem.policy.device.type == "cuda" else "memory a rank"
    _tell([kind if name == "memory a rank" else name for name in PHASES_HEADER], [first, *rows, last])
    logger.info(
        "\nMemory: of the rank that needs most, at the peak of a phase, and its parts: program (Python and its libraries before any"
    )
    logger.info("training), data (images, and what goes through the interface), parameters (with gradients), activations (all else).")
    _tell_images(problem)
    _tell_disk(problem.settings, estimate, expected)
    if problem.settings.resume and output and RunFolder(output).is_run:
        logger.info("All numbers are of the whole run, also of what is done already.")
    if problem.settings.early_stopping is not None:
        logger.info("A training that stops early takes less time.")
    logger.info(
        "Times leave out the start of the processes and the report. This dry run has written nothing, and keeps nothing that it trained."
    )


def _time(seconds: float) -> str:
    return "< 0.1 s" if 0 < seconds < 0.05 else duration(seconds)


def _tell_images(problem: Problem) -> None:
    """Where the images of each phase are meanwhile."""
    places = dict[str, list[str]]()
    words = WORDS | ({"device": "in memory"} if problem.policy.device.type == "cpu" else {})
    for phase in problem.settings.phases:
        if phase not in ("gather", "dnn"):
            places.setdefault(words[problem.place_of(phase)], []).append(phase)
    told = "; ".join(f"{', '.join(phases)}: {place}" for place, phases in places.items())
    logger.info("\nresident   images during %s", told)


def _tell_disk(settings: RunSettings, estimate: Estimate, expected: Expected) -> None:
    """Of all seeds, one after the other."""
    (most, end), done = checkpoint_bytes(estimate), expected.partitioning is None
    earlier = (expected.seeds - 1) * end
    there, its = " (there already)" if done else "", f"at most {human(earlier + most)} while it runs, {human(earlier + end)} at the end"
    its += f"; {human(estimate.in_files)} of interface values meanwhile" if estimate.in_files else ""
    logger.info("disk       partitioned set %s%s, checkpoints %s", human(estimate.set_bytes), there, its)
    needed = [
        (settings.output or RUNS, earlier + most + estimate.in_files),
        *([] if done else [(settings.partitions, float(estimate.set_bytes))]),
    ]
    for text in shortages(needed):
        logger.info("note: %s", text)


def _tell(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> None:
    """A table; one that has no room is divided."""
    logger.info("")
    for line in fitted(header, rows, width_of(Console()), left):
        logger.info("%s", line.plain.rstrip())


def _subdomain_rows(problem: Problem) -> list[list[str]]:
    """A row per subdomain; of many, one per size."""
    networks, boxes = replace(problem.networks, weights=None), problem.store.decomposition.subdomains
    places = {index: boxes[networks.subimage(index)].subimage for index in range(networks.subdomains)}
    sizes = Counter(box.shape for box in places.values())
    first = {shape: next(index for index, box in places.items() if box.shape == shape) for shape in sizes}
    costs = {shape: _words(*_cost(networks.make_local(index), _sample(problem, shape))) for shape, index in first.items()}
    if len(places) > MOST_SUBDOMAINS:
        return [[f"{count} of {len(places)}", "", times(shape), *costs[shape]] for shape, count in sizes.items()]
    return [
        [str(index), " × ".join(f"{a}:{b}" for a, b in zip(box.start, box.stop, strict=True)), times(box.shape), *costs[box.shape]]
        for index, box in places.items()
    ]


def _method_rows(problem: Problem, estimate: Estimate) -> list[list[str]]:
    settings, networks, store = problem.settings, replace(problem.networks, weights=None), problem.store
    boxes = [store.decomposition.subdomains[networks.subimage(index)].subimage for index in range(networks.subdomains)]
    sizes = Counter(box.shape for box in boxes)
    local: list[tuple[int, Cost]] = []
    if estimate.local_cnn:
        local = [
            (count, _cost(networks.make_local([box.shape for box in boxes].index(shape)), _sample(problem, shape)))
            for shape, count in sizes.items()
        ]
    rows = []
    for method in map(Method, settings.methods):
        if settings.sees_whole_image(method):
            parts = [(1, _cost(networks.make_global(method), _sample(problem, store.shape[:-1])))]
        else:
            once = method.joint and settings.share == "all"  # parameters; of equal subimages
            mine = [(1, (parameters, operations and count * operations)) for count, (parameters, operations) in local] if once else local
            parts = [*mine, *([(1, _cost(networks.make_dnn(), (networks.subdomains * estimate.values,)))] if method.has_dnn else [])]
        rows.append([method, *_words(*_sum(parts)), str(settings.epochs_of(method))])
    return rows


def _sample(problem: Problem, spatial: tuple[int, ...]) -> tuple[int, ...]:
    return (problem.store.shape[-1], *spatial)


def _cost(make: Callable[[], nn.Module], sample: tuple[int, ...]) -> Cost:
    try:
        with torch.device("meta"):  # nothing is stored or computed
            network = make()
        return count_parameters(network), multiply_adds(network, sample)
    except Exception:  # a user's network may compute while it is made, or what PyTorch cannot count
        return None, None


def _sum(parts: Sequence[tuple[int, Cost]]) -> Cost:
    parameters, operations = 0, 0.0
    for count, (its_parameters, its_operations) in parts:
        if its_parameters is None or its_operations is None:
            return None, None
        parameters, operations = parameters + count * its_parameters, operations + count * its_operations
    return parameters, operations


def _words(parameters: int | None, operations: float | None) -> tuple[str, str]:
    return number(parameters, "{:,}"), number(operations, "{:,.0f}")
