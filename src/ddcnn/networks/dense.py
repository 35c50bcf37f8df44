"""The DNN: the small dense network that combines the local CNNs into one decision; the coarse problem of the method."""

import torch
from torch import nn

SMALLEST_PROBABILITY = 1e-6


class DenseNetwork(nn.Module):
    """Dense layers on the interface values of all local CNNs, as a correction of a simple decision.

    The simple decision is the normalised geometric mean of probabilities, the mean of logits, or one linear layer on features. The last
    layer starts at zero, so the untrained network returns the simple decision. Taking logarithms of the probabilities keeps the
    gradients through the softmax as large as gradients through logits.

    Args:
        interface: "probabilities", "logits", "features" or "maps", which are like features here.
        subdomains: N.
        values: C, interface values per subdomain: K for probabilities and logits, F for features.
        hidden: neurons per hidden layer.
    """

    half_precision = False  # it is too small to gain from it
    sees_logits = True

    def __init__(self, interface: str, subdomains: int, values: int, classes: int, hidden: tuple[int, ...] = (128, 128)):
        super().__init__()
        self.interface, self.subdomains = interface, subdomains
        self.simple = nn.Linear(subdomains * values, classes) if interface in ("features", "maps") else None
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
