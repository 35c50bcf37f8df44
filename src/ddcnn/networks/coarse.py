"""The coarse network of maps: convolutions on the map of the whole image, in place of dense layers."""

from math import gcd, prod

import torch
from torch import nn

from ddcnn.networks.layers import ADAPTIVE_MAX_POOLING, CONVOLUTION, MAX_POOLING
from ddcnn.networks.maps import MapInterface


def normalisation(channels: int) -> nn.GroupNorm:
    """Of each sample by itself, so that samples may be divided over the ranks."""
    return nn.GroupNorm(gcd(channels, 16), channels)


class ConvolutionalNetwork(nn.Module):
    """Convolution, pooling, convolution, pooled head on the stitched map, as a correction of the mean of the local CNNs' logits.

    The last layer starts at zero, so the untrained network returns that mean, as that of ``DenseNetwork`` does.

    Args:
        width: channels of the first convolution; the second has twice as many.
    """

    half_precision = True  # where the local CNNs have it

    def __init__(self, interface: MapInterface, width: int):
        super().__init__()
        size = interface.stitching.shape
        dimensions = len(size)
        convolution, pooling = CONVOLUTION[dimensions], MAX_POOLING[dimensions]
        factors = tuple(2 if side >= 4 else 1 for side in size)
        size = tuple(side // factor for side, factor in zip(size, factors, strict=True))
        self.interface, self.subdomains = interface, len(interface.stitching.own)
        self.convolutions = nn.Sequential(
            convolution(interface.channels, width, 3, padding=1, bias=False), normalisation(width), nn.ReLU(inplace=True),
            pooling(factors),
            convolution(width, 2 * width, 3, padding=1, bias=False), normalisation(2 * width), nn.ReLU(inplace=True),
        )  # fmt: skip
        pooled = tuple(min(side, 2) for side in size)
        self.head = nn.Sequential(ADAPTIVE_MAX_POOLING[dimensions](pooled), nn.Flatten())
        self.classifier = nn.Linear(2 * width * prod(pooled), interface.classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N·C) -> logits (B, K)."""
        values = values.unflatten(1, (self.subdomains, -1))
        correction = self.classifier(self.head(self.convolutions(self.interface.stitched(values))))
        return self.interface.logits(values).mean(1) + correction
