"""The DNN: the small dense network that learns the global decision, the coarse problem of the method."""

import torch
from torch import nn

SMALLEST_PROBABILITY = 1e-6


class DenseNetwork(nn.Module):
    """Hidden dense layers on the logarithms of the local classifications, as a correction of their mean.

    Before training, the decision is that of the (normalised) geometric mean of the p_i; the hidden layers learn what to add.

    Args:
        subdomains, classes: N and K.
        hidden: neurons per hidden layer.
    """

    def __init__(self, subdomains: int, classes: int, hidden: tuple[int, ...] = (128, 128)):
        super().__init__()
        self.subdomains = subdomains
        layers: list[nn.Module] = []
        width = subdomains * classes
        for neurons in hidden:
            layers += [nn.Linear(width, neurons), nn.ReLU(inplace=True)]
            width = neurons
        last = nn.Linear(width, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(B, N·K) -> logits (B, K)."""
        logarithms = probabilities.clamp_min(SMALLEST_PROBABILITY).log()
        return logarithms.unflatten(1, (self.subdomains, -1)).mean(1) + self.layers(logarithms)
