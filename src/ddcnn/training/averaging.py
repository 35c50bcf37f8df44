"""The exponential moving average of a network over the steps of its training."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Average of the parameters and the floating-point buffers (running statistics) of a network.

    A copy of the network would do as ``torch.optim.swa_utils.AveragedModel``, but one with communicators has no copy.

    Args:
        parts: of the network, by name.
        decay: the part of the average that stays in a step; at most (1 + t) / (10 + t) after step t, so that the random start is
            forgotten.
    """

    def __init__(self, parts: Mapping[str, nn.Module], decay: float):
        self.decay = decay
        self._keys = [(part, name) for part, module in parts.items() for name in _floating(module)]
        self._values = [values for module in parts.values() for values in _floating(module).values()]
        self._means = [values.clone() for values in self._values]

    def follow(self, step: int) -> None:
        """Moves the average after ``step`` steps; nothing waits for the device."""
        get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(self._means, self._values, step)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the values of the network and of the average."""
        for values, mean in zip(self._values, self._means, strict=True):
            kept = values.clone()
            values.copy_(mean)
            mean.copy_(kept)

    def means(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The averages of a part, by the names of its parameters and buffers."""
        return ((name, mean) for (own, name), mean in zip(self._keys, self._means, strict=True) if own == part)


def _floating(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own memory, without gradients: writing there changes the module."""
    return {name: values for name, values in module.state_dict().items() if values.is_floating_point()}
