"""The state of a training between two steps, and what an epoch has come to."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddcnn.training.averaging import Average
from ddcnn.training.kept import KeptEpoch, Score
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe


@dataclass(frozen=True)
class Epoch:
    """Metrics of an epoch: mean loss, accuracy on the (augmented) training batches, seconds.

    Attributes:
        validation: its score, if it has been validated.
        stops_early: whether the training ends with it, before the last epoch of its recipe.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    validation: Score | None = None
    stops_early: bool = False


START = Epoch(0, math.nan, math.nan, 0.0)  # before the first epoch of a network whose parts are trained already


@dataclass
class TrainState:
    """The state of a training between two steps: all that is needed to continue it bit for bit.

    Attributes:
        steps_in_all: of the training.
        average: of the parameters over the steps, if there is one.
        loss_sum, correct, seen: sums over the steps of this epoch.
        epoch, step: the current epoch, from 1, and how many of its steps are done.
        seconds: time of this epoch before ``begin``, a value of ``time.perf_counter``.
        kept: the best epoch so far, if it matters.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    loss_sum: torch.Tensor
    correct: torch.Tensor
    steps_in_all: int
    average: Average | None = None
    epoch: int = 1
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    begin: float = 0.0
    kept: KeptEpoch | None = None

    @classmethod
    def start(cls, network: nn.Module, recipe: Recipe, policy: DevicePolicy, steps: int) -> "TrainState":
        optimizer, device = recipe.optimizer_of(network), policy.device
        schedule = recipe.schedule_of(optimizer, steps)
        scaler = torch.amp.GradScaler(device.type, enabled=policy.precision == "fp16")
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
        state = cls(network, optimizer, schedule, scaler, loss_sum, correct, recipe.epochs * steps)
        if recipe.ema is not None:
            state.average = Average(parts_of(state.module), recipe.ema)
        return state

    @property
    def module(self) -> nn.Module:
        """The network, without DistributedDataParallel around it."""
        return self.network.module if isinstance(self.network, DistributedDataParallel) else self.network

    @property
    def remaining(self) -> float:
        """The share of the steps that is left."""
        return 1 - self.schedule.last_epoch / self.steps_in_all

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """In here the network's parameters are those that are evaluated and kept: their average, if there is one. Also to change them."""
        if self.average:
            self.average.swap()
        try:
            yield self.module
        finally:
            if self.average:
                self.average.swap()

    def finish(self) -> None:
        """The network becomes the one that is evaluated and kept: at the end of the training, also where a callback ends it early."""
        if self.average:
            self.average.swap()
            self.average = None

    @property
    def seconds_so_far(self) -> float:
        """Time of the current epoch so far."""
        return self.seconds + time.perf_counter() - self.begin if self.step else 0.0

    def end_epoch(self) -> Epoch:
        """Metrics of the current epoch; the next epoch begins.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        loss = self.loss_sum.item() / self.step
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {self.epoch}: try a smaller learning rate")
        metrics = Epoch(self.epoch, loss, self.correct.item() / self.seen, self.seconds_so_far)
        self.loss_sum.zero_()
        self.correct.zero_()
        self.epoch, self.step, self.seen, self.seconds = self.epoch + 1, 0, 0, 0.0
        return metrics


def parts_of(network: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network by name, as they are saved: those called local belong to one rank each, others are the same on all ranks."""
    return getattr(network, "parts", None) or {"network": network}
