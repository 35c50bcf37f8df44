"""What tests hand to a training beside its recipe."""

from collections.abc import Callable
from dataclasses import dataclass

from ddcnn.training.loop import Callback
from ddcnn.training.state import Epoch, TrainState


@dataclass(frozen=True)
class Watch(Callback):
    """Calls ``watch`` after each epoch."""

    watch: Callable[[Epoch], object]

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self.watch(epoch)
