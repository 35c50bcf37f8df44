"""The one training loop, for local CNNs, the DNN and every other network, on samples wherever they are."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ddcnn.data.augmentation import Labels, MixedLabels
from ddcnn.data.batches import Samples
from ddcnn.data.stored import on_host
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.averaging import Average
from ddcnn.training.evaluation import at_least_single
from ddcnn.training.kept import KeptEpoch, Score
from ddcnn.training.precision import DevicePolicy, Network
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
        augmentation: generator of this epoch's augmentation.
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
    augmentation: torch.Generator
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
        state = cls(network, optimizer, schedule, scaler, loss_sum, correct, recipe.epochs * steps, torch.Generator())
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


def build(make: Callable[[], Network], seeds: Seeds, policy: DevicePolicy) -> Network:
    """A new network on the device; its initial parameters depend on its own seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.at("initial parameters"))
        return policy.place(make())


class Callback:
    """Hooks of the training loop, for recording, display and checkpoints. These do nothing."""

    def restore(self, state: TrainState) -> None:
        """Before the first step; may bring back the state of an earlier attempt."""

    def after_backward(self, state: TrainState) -> None:
        """Between the backward pass and the step of the optimizer; may change gradients."""

    def after_step(self, state: TrainState) -> None:
        """Between two steps of an epoch; may raise ``Stopped``."""

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        """After an epoch; ``state`` is at the begin of the next one, or of the one after the last. May raise ``Stopped``."""


@dataclass(frozen=True)
class WrappedCallback(Callback):
    """Passes everything on to ``inner``; subclasses add to it."""

    inner: Callback

    def restore(self, state: TrainState) -> None:
        self.inner.restore(state)

    def after_backward(self, state: TrainState) -> None:
        self.inner.after_backward(state)

    def after_step(self, state: TrainState) -> None:
        self.inner.after_step(state)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self.inner.after_epoch(state, epoch)


@dataclass(frozen=True)
class Trainer:
    """How a network is trained: the recipe, the device and precision, the seeds, and the hooks."""

    recipe: Recipe
    policy: DevicePolicy
    seeds: Seeds
    callback: Callback = Callback()

    def build(self, make: Callable[[], Network]) -> Network:
        return build(make, self.seeds, self.policy)

    def train(self, network: nn.Module, samples: Samples, chosen: torch.Tensor) -> None:
        """Trains ``network`` in place on the samples ``chosen`` (S,) int64 with the cross entropy of its logits.

        Order, augmentation and dropout are functions of the seeds and the epoch alone. Nothing inside an epoch waits for the device.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
            Stopped: the callback was asked to stop.
        """
        recipe, policy, seeds = self.recipe, self.policy, self.seeds
        steps = recipe.steps_per_epoch(len(chosen))
        state = TrainState.start(network, recipe, policy, steps)
        self.callback.restore(state)
        weights = None if recipe.class_weights is None else torch.tensor(recipe.class_weights, device=policy.device)
        while state.epoch <= recipe.epochs:
            if state.step == 0:
                torch.manual_seed(seeds.at("dropout", state.epoch))
                state.augmentation.manual_seed(seeds.at("augmentation", state.epoch))
            order = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seeds.at("order", state.epoch)))]
            batches = on_host(order, policy.device).split(recipe.batch_size)[:steps]
            samples.ahead(batches[state.step :], augmented=True)
            network.train()
            state.begin = time.perf_counter()
            for index in batches[state.step :]:
                take_step(state, *samples.batch(index, state.augmentation), self, weights)
                if state.step < steps:
                    self.callback.after_step(state)
            epoch = state.end_epoch()
            if state.epoch > recipe.epochs:
                state.finish()
            self.callback.after_epoch(state, epoch)


def take_step(state: TrainState, inputs: Any, labels: Labels, trainer: Trainer, weights: torch.Tensor | None) -> None:
    """One step of the optimizer on a batch with labels (B,); ``weights`` (K,) of the classes in the loss."""
    recipe = trainer.recipe
    state.optimizer.zero_grad(set_to_none=True)
    bounds = [len(labels) * k // recipe.accumulate for k in range(recipe.accumulate + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    for part in parts:
        network = state.network
        alone = part.stop < len(labels) and isinstance(network, DistributedDataParallel)  # with the last part, gradients are reduced
        with network.no_sync() if alone else nullcontext():  # type: ignore[operator]
            add_gradient(state, part_of(inputs, part), labels[part], (part.stop - part.start) / len(labels), trainer, weights)
    trainer.callback.after_backward(state)
    if recipe.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        for part in getattr(state.module, "clipped", None) or [part.parameters() for part in parts_of(state.module).values()]:
            nn.utils.clip_grad_norm_(part, recipe.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    if state.average:
        state.average.follow(state.schedule.last_epoch)
    state.seen += len(labels)
    state.step += 1
    beat(f"epoch {state.epoch}, step {state.step}")


def part_of(inputs: Any, part: slice) -> Any:
    """The samples ``part`` of network input: of a tensor (B, ...), or of each in a list."""
    return inputs[part] if isinstance(inputs, torch.Tensor) else [one[part] for one in inputs]


def add_gradient(
    state: TrainState, inputs: Any, labels: Labels, share: float, trainer: Trainer, weights: torch.Tensor | None
) -> None:  # fmt: skip
    """Adds the gradient of a part of a batch, of which it is the ``share``; arguments as of ``take_step``."""
    recipe = trainer.recipe
    with trainer.policy.autocast():
        output = state.network(inputs)
    logits, others = output if isinstance(output, tuple) else (output, None)
    logits = at_least_single(logits)
    loss = objective = cross_entropy(logits, labels, weights, recipe.label_smoothing)
    if others is not None:
        each = [cross_entropy(at_least_single(one), labels, weights, recipe.label_smoothing) for one in others]
        objective = loss + recipe.auxiliary * state.remaining * sum(each)
    state.scaler.scale(objective if share == 1 else share * objective).backward()
    main = labels.main if isinstance(labels, MixedLabels) else labels
    state.loss_sum += share * loss.detach()
    state.correct += (logits.detach().argmax(1) == main).sum()


def cross_entropy(logits: torch.Tensor, labels: Labels, weights: torch.Tensor | None, label_smoothing: float) -> torch.Tensor:
    """Mean cross entropy of logits (B, K) against labels (B,), with weights (K,) of the classes.

    The weighted sum too is divided by B, not by the sum of the batch's weights: so the mean over ranks is the mean over their samples.
    """
    if isinstance(labels, MixedLabels):
        weights = None if weights is None else weights.to(logits.dtype)
        each = partial(functional.cross_entropy, logits, weight=weights, reduction="none", label_smoothing=label_smoothing)
        return torch.lerp(each(labels.other), each(labels.main), labels.weight.to(logits.dtype)).mean()
    if weights is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return functional.cross_entropy(logits, labels, weights.to(logits.dtype), reduction="none", label_smoothing=label_smoothing).mean()
