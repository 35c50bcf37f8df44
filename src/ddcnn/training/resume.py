"""Keeps a training: says when its state is saved and when it stops, writes it as arrays, and brings it back.

With what is kept, a training goes on as if it had never stopped, bit for bit with the same number of threads.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddcnn.errors import InputError, Stopped
from ddcnn.io.checkpoints import Arrays, Sequence, Step
from ddcnn.io.hdf5 import DAMAGE
from ddcnn.io.progress import Progress
from ddcnn.parallel.stop_requests import Interrupts
from ddcnn.parallel.timeline import Timeline
from ddcnn.training.loop import Recipe, TrainState

GO_ON, KEEP, STOP = range(3)
LOOK_EVERY = 1.0  # seconds, about, between two looks of all ranks together at whether to save or stop


class Records(Protocol):
    """What a training has recorded so far."""

    def kept(self) -> tuple[list[list[float]], Arrays]:
        """Rows, and arrays of this rank."""

    def bring_back(self, rows: list[list[float]], arrays: Arrays) -> None:
        """What ``kept`` gave, recorded again."""


class Keeper:
    """Keeps one training of a run; all ranks of the sequence's world together. It is a ``training.Keeper``.

    Args:
        every: epochs and seconds after which it is kept, beside its end; None for neither.
        samples: that the network learns from.
        leads: whether this rank keeps the local CNNs that it has; others of its group have the same.
        others_stop: whether another rank stops, where each works for itself.
    """

    def __init__(
        self, sequence: Sequence, every: tuple[int | None, float | None], interrupts: Interrupts, records: Records, recipe: Recipe,
        samples: int, timeline: Timeline, progress: Progress, leads: bool = True, others_stop: Callable[[], bool] | None = None,
    ):  # fmt: skip
        self.sequence, self.world = sequence, sequence.world
        self.every_epochs, self.every_seconds = every
        self.interrupts, self.records, self.timeline = interrupts, records, timeline
        self.progress, self.leads, self.others_stop = progress, leads, others_stop
        self.recipe = {"samples": samples} | asdict(recipe)
        self.steps_per_epoch = recipe.steps_per_epoch(samples)
        self._kept = self._looked = self._begin = time.monotonic()
        self._earlier = 0.0
        self._steps = self._look = 0

    @property
    def seconds(self) -> float:
        """That the training has taken so far, those of earlier attempts included."""
        return self._earlier + time.monotonic() - self._begin

    # When

    def after_step(self, training: TrainState) -> None:
        self._steps += 1
        if self._steps < self._look:
            return
        wish = self._wish()
        if wish != GO_ON:
            self._save(training)
        if wish == STOP:
            raise Stopped

    def after_epoch(self, training: TrainState) -> None:
        wish = self._wish()
        ended = training.epoch > self.recipe["epochs"]
        if ended or wish != GO_ON or (self.every_epochs and (training.epoch - 1) % self.every_epochs == 0):
            self._save(training)
        if wish == STOP:
            raise Stopped

    def _wish(self) -> int:
        """What one of the ranks wishes, the same on all of them."""
        now = time.monotonic()
        due = self.every_seconds is not None and now - self._kept >= self.every_seconds
        wish = STOP if self.interrupts.reason or (self.others_stop and self.others_stop()) else KEEP if due else GO_ON
        if self.world.size > 1:
            wish, passed = self.world.largest_of([wish, int(1e6 * (now - self._looked))])
            rate = self._steps / max(passed, 1) * 1e6  # steps a second, as the slowest rank sees it
            self._look = min(max(1, int(rate * LOOK_EVERY)), 2 * self._steps + 1)
        self._looked, self._steps = time.monotonic(), 0
        return wish

    # What

    def _save(self, training: TrainState) -> None:
        ended = training.epoch > self.recipe["epochs"]
        rows, arrays = self.records.kept()
        about = {"recipe": self.recipe, "epoch": training.epoch, "step": training.step, "seconds": self.seconds, "rows": rows}
        parts = {
            name: _network_arrays(module) | ({} if ended else _optimizer_arrays(module, training.optimizer))
            for name, module in parts_of(training.network).items() if self.world.rank == 0 or (self.leads and name.startswith("local"))
        }  # fmt: skip
        own = arrays | _running_arrays(training) | self.timeline.kept()
        self.sequence.save(Step(about | _numbers(training), parts, own))
        self._kept = time.monotonic()

    def restore(self, training: TrainState) -> None:
        """Brings back the newest step that is whole.

        Raises:
            InputError: of another run, or of a training with another recipe.
        """
        parts = parts_of(training.network)
        step = self.sequence.load(parts)
        if step is None:
            return
        about, path = step.about, self.sequence.folder
        if not isinstance(about.get("recipe"), dict):
            raise InputError(f"{path}: its newest step is not one of a training; delete it")
        for name, wanted in json.loads(json.dumps(self.recipe)).items():
            if (there := about["recipe"].get(name)) != wanted:
                raise InputError(
                    f"{path}: trained with {name.replace('_', ' ')} {there}, where this run, on {self.world.size} ranks, has {wanted}; "
                    "resume with the same options and number of ranks"
                )
        try:
            ended = about["epoch"] > self.recipe["epochs"]
            if not 1 <= about["epoch"] <= self.recipe["epochs"] + 1 or not 0 <= about["step"] < self.steps_per_epoch:
                raise ValueError(f"epoch {about['epoch']}, step {about['step']}")
            for name, module in parts.items():
                _restore_network(module, step.parts[name])
                if not ended:
                    _restore_optimizer(module, training.optimizer, step.parts[name])
            training.epoch, training.step = about["epoch"], about["step"]
            if not ended:
                _restore_numbers(training, about)
                _restore_running(training, step.own)
            self.timeline.bring_back(step.own)
            self.records.bring_back(about["rows"], step.own)
            self.progress.skip(training.epoch - 1)
            self._earlier, self._begin = about["seconds"], time.monotonic()
        except DAMAGE as error:
            raise InputError(f"{path}: its newest step does not fit this run ({type(error).__name__}: {error})") from None


def parts_of(network: nn.Module) -> dict[str, nn.Module]:
    """What is kept of a network: its parts by name; those called local belong to one rank each, others are the same on all ranks."""
    if isinstance(network, DistributedDataParallel):
        return parts_of(network.module)
    return getattr(network, "parts", None) or {"network": network}


def _network_arrays(module: nn.Module) -> Arrays:
    return {f"parameters/{_name(name)}": tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def _restore_network(module: nn.Module, arrays: Arrays) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(_like(tensor, arrays[f"parameters/{_name(name)}"]))


def _optimizer_arrays(module: nn.Module, optimizer: torch.optim.Optimizer) -> Arrays:
    return {
        f"optimizer.{key}/{_name(name)}": value.detach().cpu().numpy()
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def _restore_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    kinds = {kind.partition(".")[2] for kind, _ in (name.split("/", 1) for name in arrays) if kind.startswith("optimizer.")}
    for name, parameter in module.named_parameters():
        for kind in kinds:
            array = arrays.get(f"optimizer.{kind}/{_name(name)}")
            if array is not None:  # in the parameter's order in memory, which a fused optimiser takes for granted
                like = parameter.detach() if array.shape == tuple(parameter.shape) else torch.empty(array.shape, device=parameter.device)
                optimizer.state[parameter][kind] = torch.empty_like(like).copy_(_like(like, array))


def _running_arrays(training: TrainState) -> Arrays:
    """Of this rank: random state, and the sums of the epoch that goes on."""
    sums = [training.loss_sum.item(), training.correct.item(), training.seen, training.seconds_so_far]
    random = {"random/cpu": torch.get_rng_state().numpy(), "random/draw": training.draw.get_state().numpy()}
    if training.loss_sum.is_cuda:
        random["random/cuda"] = torch.cuda.get_rng_state(training.loss_sum.device).numpy()
    return random | {"sums/epoch": np.array(sums, dtype=np.float64)}


def _restore_running(training: TrainState, arrays: Arrays) -> None:
    loss_sum, correct, seen, training.seconds = arrays["sums/epoch"].tolist()
    training.loss_sum.fill_(loss_sum)
    training.correct.fill_(int(correct))
    training.seen = int(seen)
    torch.set_rng_state(torch.from_numpy(arrays["random/cpu"]))
    training.draw.set_state(torch.from_numpy(arrays["random/draw"]))
    if training.loss_sum.is_cuda and "random/cuda" in arrays:
        torch.cuda.set_rng_state(torch.from_numpy(arrays["random/cuda"]), training.loss_sum.device)


def _numbers(training: TrainState) -> dict[str, Any]:
    """JSON values of schedule, loss scale and the optimiser's options, the learning rate among them."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in training.optimizer.param_groups]
    return {"schedule": training.schedule.state_dict(), "scaler": training.scaler.state_dict(), "groups": groups}


def _restore_numbers(training: TrainState, about: dict[str, Any]) -> None:
    fresh = _numbers(training)
    same = {name: _of_the_kind(fresh[name], about[name]) for name in fresh}
    training.schedule.load_state_dict(same["schedule"])
    training.scaler.load_state_dict(same["scaler"])
    for group, values in zip(training.optimizer.param_groups, same["groups"], strict=True):
        group.update(values)


def _of_the_kind(fresh: Any, there: Any) -> Any:
    """JSON values in the types of fresh ones.

    Raises:
        ValueError: they do not have the same names and kinds.
    """
    if isinstance(fresh, dict) and isinstance(there, dict) and set(fresh) == set(there):
        return {name: _of_the_kind(fresh[name], there[name]) for name in fresh}
    if isinstance(fresh, (list, tuple)) and isinstance(there, list) and len(fresh) == len(there):
        return type(fresh)(_of_the_kind(*pair) for pair in zip(fresh, there, strict=True))
    number = isinstance(fresh, (int, float)) and isinstance(there, (int, float))
    if number or type(fresh) is type(there):
        return there
    raise ValueError(f"{there!r} where {fresh!r} is expected")


def _like(tensor: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    if array.shape != tuple(tensor.shape):
        raise ValueError(f"an array of shape {array.shape} where {tuple(tensor.shape)} is expected")
    return torch.from_numpy(array)


def _name(parameter: str) -> str:
    """Without the character that HDF5 takes for a path."""
    return parameter.replace("/", "%")
