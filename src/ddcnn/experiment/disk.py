"""What a run takes on disk beside its partitioned set: networks, which stay, and states of its trainings, until all of them have ended."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.experiment.estimate import STATE, Estimate
from ddcnn.io.atomic import nearest
from ddcnn.report.pages import human

PER_TENSOR = 400  # bytes that a tensor takes in a file beyond its numbers


@dataclass(frozen=True)
class Training:
    """Trainings of one kind.

    Attributes:
        number, at_once: of them, and of those that take place at the same time.
        network, state: bytes of one's network, and of a state from which it can go on.
        states: that are saved of one before its end.
        stays: whether its network is kept when all have ended.
    """

    number: int
    at_once: int
    network: float
    state: float
    states: int
    stays: bool = True


def checkpoint_bytes(estimate: Estimate) -> tuple[float, float]:
    """Of a run with one seed, on rank 0: at most while it runs, and at its end."""
    settings, keep = estimate.settings, estimate.settings.keep_checkpoints
    taken = _size(estimate.local_cnn) * estimate.networks.subdomains if settings.needs("local") and settings.start_from else 0.0
    most, states, end = 0.0, 0.0, taken
    for training in _trainings(estimate):
        left = min(training.states, keep - 1) * training.state + training.network  # the last state is the network alone
        writing = min(training.states, keep + 1) * training.state  # the oldest one goes when the newest is whole
        during = max(writing, min(training.states, keep) * training.state + training.network)
        others = (training.number - training.at_once) * (left + training.stays * training.network)
        most = max(most, end + states + others + training.at_once * during)
        states += training.number * left
        end += training.number * training.stays * training.network
    return max(most, end + states), end


def _trainings(estimate: Estimate) -> list[Training]:
    """In their order."""
    settings, networks = estimate.settings, estimate.networks
    every, seconds = settings.checkpoint_epochs, settings.checkpoint_seconds
    more = estimate.state  # numbers beside each parameter
    local, number = _size(estimate.local_cnn), networks.subdomains
    groups, dnn = number // estimate.own, _size(estimate.networks.make_dnn()) if estimate.local_cnn else 0.0

    def states(epochs: int, took: float) -> int:
        return max(0, epochs - 1) // every if every else int(took / seconds) if seconds else 0

    found = []
    if settings.needs("local") and not settings.start_from:
        found.append(Training(number, groups, local, (1 + more) * local, states(settings.epochs, estimate.seconds("local") / estimate.own)))
    if "folds" in settings.phases:
        took = estimate.seconds("folds") / estimate.own / settings.folds
        found.append(Training(number * settings.folds, groups, local, (1 + more) * local, states(settings.epochs, took), stays=False))
    if settings.trains_dnn:
        its_states = states(settings.dnn_epochs, estimate.seconds("dnn"))
        found.append(Training(1, 1, dnn, (1 + STATE["adamw"]) * dnn, its_states))
    for method in map(Method, settings.methods):
        if method.joint or method.whole_image:
            whole = settings.sees_whole_image(method)
            size = _size(networks.make_global(method)) if whole else number * local + dnn
            stored = local + dnn if settings.share == "all" and not whole else size
            if method == Method.TRANSFER and settings.frozen_epochs:
                found.append(Training(1, 1, size, size + more * dnn, states(settings.frozen_epochs, 0.0), stays=False))
            its_states = states(estimate.recipe(method)[0].epochs, estimate.seconds(method))
            found.append(Training(1, 1, stored, (1 + more) * size, its_states))
    return found


def _size(network: nn.Module | Callable[[], nn.Module] | None) -> float:
    """Bytes of a network in a file; 0 if it cannot be made."""
    try:
        with torch.device("meta"):  # nothing is stored or computed
            made = network if isinstance(network, nn.Module) else network() if network else None
    except Exception:  # a user's network may compute while it is made
        made = None
    return float(sum(tensor.nbytes + PER_TENSOR for tensor in made.state_dict().values())) if made else 0.0


def shortages(needed: Sequence[tuple[Path, float]]) -> list[str]:
    """Notes on disks that have less room than is needed in these places together."""
    disks: dict[int, list[tuple[Path, float]]] = {}
    texts = []
    with suppress(OSError):
        for place, size in needed:
            disks.setdefault(nearest(place).stat().st_dev, []).append((place, size))
        for places in disks.values():
            free, size = shutil.disk_usage(nearest(places[0][0])).free, sum(size for _, size in places)
            if size > free:
                where = " and ".join(str(place) for place, _ in places)
                texts.append(f"{human(size)} are more than the {human(free)} that are free in {where}")
    return texts
