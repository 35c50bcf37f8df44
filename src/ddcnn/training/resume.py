"""Checkpoints of a training: when its state is saved, when it stops, what is saved and how it is restored.

A restored training continues as if it had never stopped, bit for bit with the same number of threads.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError, Stopped
from ddcnn.io.checkpoints import Arrays, Checkpoint, CheckpointManager
from ddcnn.io.metrics_log import Records
from ddcnn.io.parameters import dataset_name
from ddcnn.training.kept import KeptEpoch, Score
from ddcnn.training.loop import Callback
from ddcnn.training.recipe import Recipe
from ddcnn.training.state import Epoch, TrainState, parts_of

CONTINUE, SAVE, STOP = range(3)
SECONDS_BETWEEN_VOTES = 1.0  # about, between two agreements of all ranks on whether to save or stop


class Checkpointer(Callback):
    """Saves and restores one training of a run; all ranks of the checkpoints' communicator together.

    Args:
        samples: number of samples that the network learns from.
        records: what has been recorded about the training.
        settings: say how often it is saved.
        should_stop: whether this rank has been asked to stop.
    """

    def __init__(
        self, checkpoints: CheckpointManager, recipe: Recipe, samples: int, records: Records, settings: RunSettings,
        should_stop: Callable[[], bool],
    ):  # fmt: skip
        self.checkpoints, self.world, self.records = checkpoints, checkpoints.world, records
        self.settings, self.should_stop = settings, should_stop
        self.recipe = {"samples": samples} | asdict(recipe)
        self.steps_per_epoch = recipe.steps_per_epoch(samples)
        self._saved = self._voted = self._begin = time.monotonic()
        self._earlier = 0.0  # seconds of earlier attempts
        self._steps = self._next_vote = 0

    @property
    def seconds(self) -> float:
        """Time of the training so far, earlier attempts included."""
        return self._earlier + time.monotonic() - self._begin

    def after_step(self, state: TrainState) -> None:
        self._steps += 1
        if self._steps >= self._next_vote:
            self._save_or_stop(state)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        every = self.settings.checkpoint_epochs
        self._save_or_stop(state, due=state.epoch > self.recipe["epochs"] or bool(every and (state.epoch - 1) % every == 0))

    def _save_or_stop(self, state: TrainState, due: bool = False) -> None:
        """The most urgent action that any rank asks for, on all ranks; saves in any case if it is ``due``."""
        now, seconds = time.monotonic(), self.settings.checkpoint_seconds
        action = STOP if self.should_stop() else SAVE if seconds is not None and now - self._saved >= seconds else CONTINUE
        if self.world.size > 1:
            action, passed = self.world.largest_of([action, int(1e6 * (now - self._voted))])
            rate = self._steps / max(passed, 1) * 1e6  # steps a second of the slowest rank
            self._next_vote = min(max(1, int(rate * SECONDS_BETWEEN_VOTES)), 2 * self._steps + 1)
        self._voted, self._steps = time.monotonic(), 0
        if due or action != CONTINUE:
            self._save(state)
        if action == STOP:
            raise Stopped

    def _save(self, state: TrainState) -> None:
        ended = state.epoch > self.recipe["epochs"]
        rows, arrays = self.records.to_save()
        kept = state.kept and [state.kept.epoch, state.kept.score.accuracy, state.kept.score.loss]
        about = {"recipe": self.recipe, "epoch": state.epoch, "step": state.step, "seconds": self.seconds, "rows": rows, "kept": kept}
        parts = {
            name: _network_arrays(module) | _average_arrays(state, name)
            | ({} if ended else _optimizer_arrays(module, state.optimizer) | _kept_arrays(state, name))
            for name, module in parts_of(state.module).items()
            if self.world.rank == 0 or (self.checkpoints.leads and name.startswith("local"))
        }  # fmt: skip
        self.checkpoints.save(Checkpoint(about | _numbers(state), parts, arrays | _running_arrays(state)))
        self._saved = time.monotonic()

    def restore(self, state: TrainState) -> None:
        """Restores the newest complete checkpoint, if there is one.

        Raises:
            InputError: it is of another run, or of a training with another recipe.
        """
        parts = parts_of(state.module)
        checkpoint = self.checkpoints.load(parts)
        if checkpoint is None:
            return
        about, path = checkpoint.about, self.checkpoints.folder
        if not isinstance(about.get("recipe"), dict):
            raise InputError(f"{path}: its newest checkpoint is not one of a training; delete it")
        for name, expected in json.loads(json.dumps(self.recipe)).items():
            if (saved := about["recipe"].get(name, getattr(Recipe, name, None))) != expected:  # an older version lacks some
                raise InputError(
                    f"{path}: trained with {name.replace('_', ' ')} {saved}, where this run, on {self.world.size} ranks, has {expected}; "
                    "resume with the same options and number of ranks"
                )
        with self.world.raise_on_all_ranks():
            try:
                self._restore(state, parts, checkpoint)
            except (LookupError, ValueError) as error:  # of another version
                raise InputError(f"{path}: its newest checkpoint does not fit this run ({type(error).__name__}: {error})") from None

    def _restore(self, state: TrainState, parts: dict[str, nn.Module], checkpoint: Checkpoint) -> None:
        """Restores a checkpoint of this training; LookupError or ValueError if it does not fit."""
        about = checkpoint.about
        if not all(isinstance(about[name], int | float) for name in ("epoch", "step", "seconds")):
            raise ValueError("epoch, step and seconds are not numbers")
        ended = about["epoch"] > self.recipe["epochs"]
        if not 1 <= about["epoch"] <= self.recipe["epochs"] + 1 or not 0 <= about["step"] < self.steps_per_epoch:
            raise ValueError(f"epoch {about['epoch']}, step {about['step']}")
        if ended:
            state.average = None  # is what the network has been saved as
        for name, module in parts.items():
            _restore_network(module, checkpoint.parts[name])
            for key, mean in state.average.means(name) if state.average else ():
                mean.copy_(_like(mean, checkpoint.parts[name][f"average/{dataset_name(key)}"]))
            if not ended:
                _restore_optimizer(module, state.optimizer, checkpoint.parts[name])
        state.epoch, state.step = about["epoch"], about["step"]
        if not ended:
            _restore_numbers(state, about)
            _restore_running(state, checkpoint.of_rank)
            if about.get("kept") is not None:
                epoch, accuracy, loss = about["kept"]
                state.kept = KeptEpoch(epoch, Score(accuracy, loss), _kept_parameters(parts, checkpoint.parts))
        self.records.restore(about["rows"], checkpoint.of_rank)
        self._earlier, self._begin = about["seconds"], time.monotonic()


def _network_arrays(module: nn.Module) -> Arrays:
    return {f"parameters/{dataset_name(name)}": tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def _average_arrays(state: TrainState, part: str) -> Arrays:
    means = state.average.means(part) if state.average else ()
    return {f"average/{dataset_name(name)}": mean.cpu().numpy() for name, mean in means}


@torch.no_grad()
def _restore_network(module: nn.Module, arrays: Arrays) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(_like(tensor, arrays[f"parameters/{dataset_name(name)}"]))


def _kept_arrays(state: TrainState, name: str) -> Arrays:
    """The parameters of the best epoch so far, if they are not those of the last."""
    kept = state.kept.parameters.get(name, {}) if state.kept else {}
    return {f"kept/{dataset_name(key)}": tensor.cpu().numpy() for key, tensor in kept.items()}


def _kept_parameters(parts: dict[str, nn.Module], saved: dict[str, Arrays]) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {
            key: torch.empty_like(tensor).copy_(_like(tensor, saved[name][f"kept/{dataset_name(key)}"]))
            for key, tensor in module.state_dict().items()
        }
        for name, module in parts.items()
        if any(array.startswith("kept/") for array in saved[name])
    }  # fmt: skip


def _optimizer_arrays(module: nn.Module, optimizer: torch.optim.Optimizer) -> Arrays:
    return {
        f"optimizer.{key}/{dataset_name(name)}": value.detach().cpu().numpy()
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def _restore_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    kinds = {kind.partition(".")[2] for kind, _ in (name.split("/", 1) for name in arrays) if kind.startswith("optimizer.")}
    for name, parameter in module.named_parameters():
        for kind in kinds:
            array = arrays.get(f"optimizer.{kind}/{dataset_name(name)}")
            if array is not None:  # in the parameter's memory format, which a fused optimizer relies on
                like = parameter.detach() if array.shape == tuple(parameter.shape) else torch.empty(array.shape, device=parameter.device)
                optimizer.state[parameter][kind] = torch.empty_like(like).copy_(_like(like, array))


def _running_arrays(state: TrainState) -> Arrays:
    """Of this rank: the states of the random generators, and the sums of the current epoch."""
    sums = [state.loss_sum.item(), state.correct.item(), state.seen, state.seconds_so_far]
    random = {"random/cpu": torch.get_rng_state().numpy()}
    if state.loss_sum.is_cuda:
        random["random/cuda"] = torch.cuda.get_rng_state(state.loss_sum.device).numpy()
    return random | {"sums/epoch": np.array(sums, dtype=np.float64)}


def _restore_running(state: TrainState, arrays: Arrays) -> None:
    loss_sum, correct, seen, state.seconds = arrays["sums/epoch"].tolist()
    state.loss_sum.fill_(loss_sum)
    state.correct.fill_(int(correct))
    state.seen = int(seen)
    torch.set_rng_state(torch.from_numpy(arrays["random/cpu"]))
    if state.loss_sum.is_cuda and "random/cuda" in arrays:
        torch.cuda.set_rng_state(torch.from_numpy(arrays["random/cuda"]), state.loss_sum.device)


def _numbers(state: TrainState) -> dict[str, Any]:
    """JSON values of schedule, loss scale and optimizer options such as the learning rate."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state.optimizer.param_groups]
    return {"schedule": state.schedule.state_dict(), "scaler": state.scaler.state_dict(), "groups": groups}


def _restore_numbers(state: TrainState, about: dict[str, Any]) -> None:
    fresh = _numbers(state)
    saved = {name: _like_types(fresh[name], about[name]) for name in fresh}
    state.schedule.load_state_dict(saved["schedule"])
    state.scaler.load_state_dict(saved["scaler"])
    for group, values in zip(state.optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)


def _like_types(fresh: Any, saved: Any) -> Any:
    """Saved JSON values with the container types of fresh ones.

    Raises:
        ValueError: names or types differ.
    """
    if isinstance(fresh, dict) and isinstance(saved, dict) and set(fresh) == set(saved):
        return {name: _like_types(fresh[name], saved[name]) for name in fresh}
    if isinstance(fresh, (list, tuple)) and isinstance(saved, list) and len(fresh) == len(saved):
        return type(fresh)(_like_types(*pair) for pair in zip(fresh, saved, strict=True))
    number = isinstance(fresh, (int, float)) and isinstance(saved, (int, float))
    if number or type(fresh) is type(saved):
        return saved
    raise ValueError(f"{saved!r} where {fresh!r} is expected")


def _like(tensor: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    if array.shape != tuple(tensor.shape):
        raise ValueError(f"an array of shape {array.shape} where {tuple(tensor.shape)} is expected")
    return torch.from_numpy(array)
