"""Validation: after an epoch the validation images are classified; by them a training may stop early, and keep its best epoch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ddcnn.parallel.world import World
from ddcnn.training.kept import KeptEpoch, Score
from ddcnn.training.loop import WrappedCallback
from ddcnn.training.state import Epoch, TrainState, parts_of


@dataclass(frozen=True)
class Selection:
    """What is decided by the validation images.

    Attributes:
        every: epochs between validations; 0: none, unless something is decided by them.
        patience: a training ends after so many epochs without a better one; None: never.
        keep_best: the parameters of the best epoch are kept, not those of the last.
    """

    every: int
    patience: int | None
    keep_best: bool

    @property
    def decides(self) -> bool:
        return self.keep_best or self.patience is not None


@dataclass(frozen=True)
class Validation(WrappedCallback):
    """Validates a network that ``ranks`` train together; ``inner`` gets the epochs with their scores.

    Attributes:
        score: of a network, on the first rank, None on the others; all ranks together.
        epochs: of the training, unless it ends early.
    """

    score: Callable[[nn.Module], Score | None]
    selection: Selection
    ranks: World
    epochs: int

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        decides, last, every = self.selection.decides, state.epoch > self.epochs, self.selection.every
        if (every and epoch.epoch % every == 0) or (decides and last):
            with state.evaluated() as network:
                score = self.score(network)
            if decides:
                self._decide(state, epoch.epoch, score)
            epoch = replace(epoch, validation=score, stops_early=not last and state.epoch > self.epochs)
        self.inner.after_epoch(state, epoch)

    def _decide(self, state: TrainState, epoch: int, score: Score | None) -> None:
        """Keeps the epoch if it is the best so far, ends the training if there has been no better one for long; alike on all ranks."""
        numbers = np.array([score.accuracy, score.loss] if score else [0.0, 0.0])
        self.ranks.broadcast_(numbers)
        score = Score(*numbers.tolist())
        if state.kept is None or score.is_better_than(state.kept.score):
            with state.evaluated() as network:
                kept_parts = parts_of(network).items() if self.selection.keep_best else ()
                copies = {name: {key: tensor.detach().clone() for key, tensor in part.state_dict().items()} for name, part in kept_parts}
            state.kept = KeptEpoch(epoch, score, copies)
        if self.selection.patience is not None and epoch - state.kept.epoch >= self.selection.patience:
            state.epoch = self.epochs + 1
            state.finish()
        if state.epoch > self.epochs:
            parts = parts_of(state.module)
            for name, values in state.kept.parameters.items():
                parts[name].load_state_dict(values)
