"""The one training loop: local CNNs, the DNN and whatever network comes, on samples that are resident on the device."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ddcnn.data.batches import Samples
from ddcnn.errors import InputError
from ddcnn.pulse import beat
from ddcnn.seeding import Seeds


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
class Engine:
    """What computes: a device and a precision ("fp32", "bf16" or "fp16"; weights and loss are always fp32)."""

    device: torch.device
    precision: str

    @classmethod
    def choose(cls, device: torch.device, precision: str) -> "Engine":
        """``auto`` is bf16 on a GPU that has it, else fp32.

        Raises:
            InputError: fp16 on a CPU.
        """
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if precision == "fp16" and device.type != "cuda":
            raise InputError("--precision fp16 needs a GPU; take bf16 or fp32")
        return cls(device, precision)

    def autocast(self) -> AbstractContextManager:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, its convolutions in channels_last order."""
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return network.to(self.device)


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training came to: mean loss, accuracy on the (augmented) training batches, seconds."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


START = Epoch(0, math.nan, math.nan, 0.0)  # before the first epoch of a network that has parts which are trained


def build(make: Callable[[], nn.Module], seeds: Seeds, engine: Engine) -> nn.Module:
    """A network with initial parameters from its own seed, whatever has been drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.at("initial parameters"))
        return engine.place(make())


def train(
    network: nn.Module,
    samples: Samples,
    chosen: torch.Tensor,
    recipe: Recipe,
    engine: Engine,
    seeds: Seeds,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> None:
    """Trains ``network`` on the samples ``chosen`` (S,) int64 with the cross entropy of its logits.

    Order, augmentation and dropout are functions of the seeds and the epoch alone. Nothing inside an epoch waits for the device.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    steps = recipe.steps_per_epoch(len(chosen))
    optimizer = _optimizer(network, recipe)
    schedule = _schedule(optimizer, recipe, recipe.epochs * steps)
    weights = None if recipe.class_weights is None else torch.tensor(recipe.class_weights, device=engine.device)
    scaler = torch.amp.GradScaler(engine.device.type, enabled=engine.precision == "fp16")
    for epoch in range(1, recipe.epochs + 1):
        begin = time.perf_counter()
        torch.manual_seed(seeds.at("dropout", epoch))
        order = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seeds.at("order", epoch)))]
        order = order.to(engine.device)
        draw = torch.Generator().manual_seed(seeds.at("augmentation", epoch))
        loss_sum = torch.zeros((), device=engine.device)
        correct = torch.zeros((), dtype=torch.int64, device=engine.device)
        seen = 0
        network.train()
        for step in range(steps):
            index = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            inputs, labels = samples.batch(index, draw)
            with engine.autocast():
                logits = at_least_single(network(inputs))
            loss = cross_entropy(logits, labels, weights, recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            beat(f"epoch {epoch}, step {step + 1}")
        loss_mean = loss_sum.item() / steps
        if not math.isfinite(loss_mean):
            raise FloatingPointError(f"the loss is {loss_mean} in epoch {epoch}: try a smaller --lr")
        after_epoch(Epoch(epoch, loss_mean, correct.item() / seen, time.perf_counter() - begin))


def classify(network: nn.Module, samples: Samples, chosen: torch.Tensor, engine: Engine) -> torch.Tensor:
    """Class probabilities of the samples ``chosen`` (S,): (S, K) float32, on the CPU.

    Raises:
        FloatingPointError: the last step of training has spoilt the parameters.
    """
    return evaluate(network, lambda inputs: at_least_single(network(inputs)).softmax(1), samples, chosen, engine)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    function: Callable[[Any], torch.Tensor],
    samples: Samples,
    chosen: torch.Tensor,
    engine: Engine,
    batch_size: int = 512,
) -> torch.Tensor:
    """A function of the network, in its evaluation mode, of the samples ``chosen`` (S,): (S, ...) on the CPU."""
    network.eval()
    found = []
    for index in chosen.to(engine.device).split(batch_size):
        with engine.autocast():
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
