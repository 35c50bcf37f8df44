"""What the ranks do together in a step, and after an epoch, of a network of which each has a part."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import broadcast_
from ddcnn.training.loop import WrappedCallback
from ddcnn.training.state import Epoch, TrainState


class Joint(Protocol):
    """A rank's view of such a network."""

    def finish_gradient(self) -> None:
        """All ranks, after a backward pass: what one gradient lacks of the others is added."""

    def sync(self) -> None:
        """All ranks, after an epoch: what all ranks have is made equal."""


@dataclass(frozen=True)
class Together(WrappedCallback):
    """Finishes the gradients of every step, and keeps the ranks equal; counts epochs from ``before`` + 1."""

    network: Joint
    before: int = 0

    def after_backward(self, state: TrainState) -> None:
        self.network.finish_gradient()
        self.inner.after_backward(state)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self.network.sync()
        if state.average:
            with state.evaluated():
                self.network.sync()
        self.inner.after_epoch(state, replace(epoch, epoch=self.before + epoch.epoch))


def make_equal(world: World, tensors: Iterable[torch.Tensor]) -> None:
    """All ranks: copies that the rounding of unlike devices has driven apart become rank 0's."""
    copies = list(tensors)
    if world.size > 1 and not world.all_equal(b"".join(tensor.cpu().numpy().tobytes() for tensor in copies)):
        broadcast_(world, copies)
