"""How a network does on the validation images, and the epoch that is kept for it."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Score:
    """Accuracy and mean cross entropy on the validation images; of two with the same accuracy, the one with the smaller loss is better."""

    accuracy: float
    loss: float

    @property
    def order(self) -> tuple[float, float]:
        """The larger, the better."""
        return self.accuracy, -self.loss

    def is_better_than(self, other: "Score") -> bool:
        return self.order > other.order


@dataclass(frozen=True)
class KeptEpoch:
    """The best epoch of a training so far.

    Attributes:
        parameters: of each part of the network, its tensors by name; empty if the last epoch's are kept.
    """

    epoch: int
    score: Score
    parameters: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
