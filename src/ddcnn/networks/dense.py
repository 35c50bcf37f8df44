"""The DNN: the small dense network that learns the global decision, the coarse problem of the method."""

import torch
from torch import nn

SMALLEST_PROBABILITY = 1e-6


class DenseNetwork(nn.Module):
    """Hidden layers on the local classifications of all subdomains.

    Args:
        subdomains, classes: N and K.
        hidden: neurons per hidden layer.
    """

    def __init__(self, subdomains: int, classes: int, hidden: tuple[int, ...] = (128, 128)):
        super().__init__()
        layers: list[nn.Module] = []
        width = subdomains * classes
        for neurons in hidden:
            layers += [nn.Linear(width, neurons), nn.ReLU(inplace=True)]
            width = neurons
        self.layers = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(B, N·K) -> logits (B, K)."""
        return self.layers(probabilities)
