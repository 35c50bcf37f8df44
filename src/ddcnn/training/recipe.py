"""How a network is trained: batches, loss, optimizer, learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        batch_size: samples per step, of all ranks that train the network together.
        optimizer: "adamw" or "sgd" (with Nesterov momentum 0.9).
        lr: largest learning rate of the schedule.
        schedule: "one-cycle" (30 % of the steps up, the rest down), "cosine" (down only) or "constant".
        class_weights: (K,) weight of each class in the loss, with mean 1 over the samples; None for equal weights.
        clip_norm: largest norm of the gradient of each part of the network (see ``parts_of``), by itself; None for no limit.
        ema: decay of the average of the parameters over the steps, which is evaluated and kept; None for no average.
        auxiliary: weight of the further logits that a network has while it trains, in the loss; it falls to zero over the steps.
        accumulate: parts of a batch that are passed through the network one after the other; their gradients are added.
        warmup: epochs in which the learning rate rises to the schedules "cosine" and "constant"; None for none.
    """

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    clip_norm: float | None = None
    ema: float | None = None
    warmup: float | None = None
    auxiliary: float = 0.0
    accumulate: int = 1

    def steps_per_epoch(self, samples: int) -> int:
        """Number of full batches of an epoch; the samples left over (others in every epoch) are skipped, unless there is no full batch."""
        return max(1, samples // self.batch_size)

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer of the parameters that learn."""
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if self.optimizer == "sgd":
            return torch.optim.SGD(learning, self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay, fused=True)
        return torch.optim.AdamW(learning, self.lr, weight_decay=self.weight_decay, fused=True)

    def schedule_of(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate of each step."""
        steps, rise = self.epochs * steps_per_epoch, round((self.warmup or 0) * steps_per_epoch)
        if self.schedule == "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        if rise:

            def factor(step: int) -> float:
                if step < rise:
                    return (step + 1) / (rise + 1)
                return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2 if self.schedule == "cosine" else 1.0

            return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        if self.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
