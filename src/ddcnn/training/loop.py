"""The one training loop: local CNNs, the DNN and whatever network comes, on samples that are resident on the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from ddcnn.data.batches import Samples
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.precision import DevicePolicy


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        lr: the largest learning rate of the schedule.
        schedule: "one-cycle" (30 % of the steps up, the rest down), "cosine" (down only) or "constant".
        class_weights: (K,) of the samples of each class in the loss, in the mean over the samples 1; None for all alike.
    """

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def steps_per_epoch(self, samples: int) -> int:
        """Full batches; an incomplete one is left out (another sample every epoch) unless it is the only one."""
        return max(1, samples // self.batch_size)


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training came to: mean loss, accuracy on the (augmented) training batches, seconds."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


START = Epoch(0, math.nan, math.nan, 0.0)  # before the first epoch of a network that has parts which are trained


@dataclass
class TrainState:
    """Everything that a training is between two steps: with it, it goes on as if it had never stopped.

    Attributes:
        epoch, step: the epoch that goes on, from 1, and how many of its steps are done.
        draw: the augmentation of this epoch.
        loss_sum, correct, seen: over the steps of this epoch.
        seconds: that this epoch has taken before ``begin``, a moment of ``time.perf_counter``.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    loss_sum: torch.Tensor
    correct: torch.Tensor
    draw: torch.Generator
    epoch: int = 1
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    begin: float = 0.0

    @classmethod
    def start(cls, network: nn.Module, recipe: Recipe, policy: DevicePolicy, steps: int) -> "TrainState":
        optimizer = _optimizer(network, recipe)
        scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.precision == "fp16")
        loss_sum = torch.zeros((), device=policy.device)
        correct = torch.zeros((), dtype=torch.int64, device=policy.device)
        schedule = _schedule(optimizer, recipe, recipe.epochs * steps)
        return cls(network, optimizer, schedule, scaler, loss_sum, correct, torch.Generator())

    @property
    def seconds_so_far(self) -> float:
        """Of the epoch that goes on."""
        return self.seconds + time.perf_counter() - self.begin if self.step else 0.0

    def end_epoch(self) -> Epoch:
        """What the epoch came to; the next one begins.

        Raises:
            FloatingPointError: the loss is no longer a number.
        """
        loss = self.loss_sum.item() / self.step
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {self.epoch}: try a smaller --lr")
        ended = Epoch(self.epoch, loss, self.correct.item() / self.seen, self.seconds_so_far)
        self.loss_sum.zero_()
        self.correct.zero_()
        self.epoch, self.step, self.seen, self.seconds = self.epoch + 1, 0, 0, 0.0
        return ended


def build(make: Callable[[], nn.Module], seeds: Seeds, policy: DevicePolicy) -> nn.Module:
    """A network with initial parameters from its own seed, whatever has been drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.at("initial parameters"))
        return policy.place(make())


class Keeper(Protocol):
    """What keeps a training, so that it can go on where it stopped."""

    def restore(self, training: TrainState) -> None:
        """Brings a training that has just begun to where an earlier attempt has got, if there was one."""

    def after_step(self, training: TrainState) -> None:
        """Between two steps of an epoch; may keep the training, and raise ``Stopped``."""

    def after_epoch(self, training: TrainState) -> None:
        """Between two epochs, or after the last one; the same."""


class NothingKept:
    def restore(self, training: TrainState) -> None:
        pass

    after_step = after_epoch = restore


def train(
    network: nn.Module,
    samples: Samples,
    chosen: torch.Tensor,
    recipe: Recipe,
    policy: DevicePolicy,
    seeds: Seeds,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    keeper: Keeper = NothingKept(),
) -> None:
    """Trains ``network`` on the samples ``chosen`` (S,) int64 with the cross entropy of its logits.

    Order, augmentation and dropout are functions of the seeds and the epoch alone. Nothing inside an epoch waits for the device.

    Raises:
        FloatingPointError: the loss is no longer a number.
        Stopped: the keeper was asked to stop.
    """
    steps = recipe.steps_per_epoch(len(chosen))
    training = TrainState.start(network, recipe, policy, steps)
    keeper.restore(training)
    weights = None if recipe.class_weights is None else torch.tensor(recipe.class_weights, device=policy.device)
    while training.epoch <= recipe.epochs:
        if training.step == 0:
            torch.manual_seed(seeds.at("dropout", training.epoch))
            training.draw.manual_seed(seeds.at("augmentation", training.epoch))
        order = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seeds.at("order", training.epoch)))]
        batches = order.to(policy.device).split(recipe.batch_size)[:steps]
        network.train()
        training.begin = time.perf_counter()
        for index in batches[training.step :]:
            take_step(training, *samples.batch(index, training.draw), policy, weights, recipe.label_smoothing)
            if training.step < steps:
                keeper.after_step(training)
        after_epoch(training.end_epoch())
        keeper.after_epoch(training)


def take_step(
    training: TrainState, inputs: Any, labels: torch.Tensor, policy: DevicePolicy, weights: torch.Tensor | None, label_smoothing: float
) -> None:
    """One step of the optimiser on a batch, with labels (B,); ``weights`` (K,) of the classes in the loss."""
    with policy.autocast():
        logits = at_least_single(training.network(inputs))
    loss = cross_entropy(logits, labels, weights, label_smoothing)
    training.optimizer.zero_grad(set_to_none=True)
    training.scaler.scale(loss).backward()
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.schedule.step()
    training.loss_sum += loss.detach()
    training.correct += (logits.detach().argmax(1) == labels).sum()
    training.seen += len(labels)
    training.step += 1
    beat(f"epoch {training.epoch}, step {training.step}")


def classify(network: nn.Module, samples: Samples, chosen: torch.Tensor, policy: DevicePolicy) -> torch.Tensor:
    """Class probabilities of the samples ``chosen`` (S,): (S, K) float32, on the CPU.

    Raises:
        FloatingPointError: the last step of training has spoilt the parameters.
    """
    return evaluate(network, lambda inputs: at_least_single(network(inputs)).softmax(1), samples, chosen, policy)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    function: Callable[[Any], torch.Tensor],
    samples: Samples,
    chosen: torch.Tensor,
    policy: DevicePolicy,
    batch_size: int = 512,
) -> torch.Tensor:
    """A function of the network, in its evaluation mode, of the samples ``chosen`` (S,): (S, ...) on the CPU."""
    network.eval()
    found = []
    for index in chosen.to(policy.device).split(batch_size):
        with policy.autocast():
            found.append(function(samples.batch(index)[0]))
        beat("evaluation")
    values = torch.cat(found).cpu()
    if not values.isfinite().all():
        raise FloatingPointError("a network's output is no longer a number: try a smaller --lr")
    return values


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, label_smoothing: float) -> torch.Tensor:
    """Mean over the samples of logits (B, K), labels (B,), and weights (K,) of the classes.

    With weights too it is divided by B, not by the weights that a batch happens to have: so the ranks' mean is that of all.
    """
    if weights is None:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return functional.cross_entropy(logits, labels, weights.to(logits.dtype), reduction="none", label_smoothing=label_smoothing).mean()


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """Out of the half precision of an autocast region; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(learning, recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.AdamW(learning, recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps + 1)
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
