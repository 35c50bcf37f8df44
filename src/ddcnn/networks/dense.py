"""The DNN: the small dense network that learns the global decision, the coarse problem of the method."""

import torch
from torch import nn

SMALLEST_PROBABILITY = 1e-6


class DenseNetwork(nn.Module):
    """Hidden dense layers on what the local CNNs hand over, as a correction of a simple decision.

    The simple decision is, on probabilities, their (normalised) geometric mean; on logits, the same as their mean; on features,
    one linear layer. The last layer starts at zero: before training, the decision is the simple one. A gradient that comes back
    through the logarithm of a softmax is as strong as one through logits.

    Args:
        interface: "probabilities", "logits" or "features".
        subdomains, values: N, and C values per subdomain: K, or F for features.
        hidden: neurons per hidden layer.
    """

    def __init__(self, interface: str, subdomains: int, values: int, classes: int, hidden: tuple[int, ...] = (128, 128)):
        super().__init__()
        self.interface, self.subdomains = interface, subdomains
        self.simple = nn.Linear(subdomains * values, classes) if interface == "features" else None
        layers: list[nn.Module] = []
        inputs = subdomains * values
        for neurons in hidden:
            layers += [nn.Linear(inputs, neurons), nn.ReLU(inplace=True)]
            inputs = neurons
        last = nn.Linear(inputs, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N·C) -> logits (B, K)."""
        if self.interface == "probabilities":
            values = values.clamp_min(SMALLEST_PROBABILITY).log()
        mean = self.simple(values) if self.simple else values.unflatten(1, (self.subdomains, -1)).mean(1)
        return mean + self.layers(values)
