"""The coarse network of maps: convolutions on the map of the whole image, in place of dense layers."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import nn
from torch.func import functional_call

from ddcnn.networks.layers import MAX_POOLING, LargestOfHalves, convolved, halving
from ddcnn.networks.maps import MapInterface
from ddcnn.networks.normalisation import Total, normalised

Stages = tuple[tuple[int, ...], ...]


class ConvolutionalNetwork(nn.Module):
    """Stages of convolutions on the map of the whole image, pooled between them, and a pooled head.

    It leaves out the logits of the local CNNs, unlike ``DenseNetwork``: it learnt better without their mean (docs/benchmarks/accuracy.md).

    Args:
        stages: channels of the convolutions of each.
    """

    half_precision = True  # where the local CNNs have it
    sees_logits = False

    def __init__(self, interface: MapInterface, stages: Stages):
        super().__init__()
        size = interface.stitching.shape
        dimensions = len(size)
        self.interface, self.subdomains = interface, len(interface.stitching.own)
        layers: list[nn.Module] = []
        channels = interface.channels
        for stage, outputs in enumerate(stages):
            if stage:
                factors = halving(size)
                layers.append(MAX_POOLING[dimensions](factors))
                size = tuple(side // factor for side, factor in zip(size, factors, strict=True))
            for width in outputs:
                layers += convolved(dimensions, channels, width)
                channels = width
        inputs = channels * prod(min(side, 2) for side in size)
        self.layers = nn.Sequential(*layers, LargestOfHalves(), nn.Flatten(), nn.Linear(inputs, interface.classes))

    @property
    def classifier(self) -> nn.Linear:
        """The last layer."""
        return self.layers[-1]  # type: ignore[return-value]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N·C) -> logits (B, K)."""
        return self.layers(self._map(values))

    def in_chunks(
        self, chunks: Sequence[torch.Tensor], copies: Sequence[Mapping[str, torch.Tensor]], real: Sequence[int], total: Total
    ) -> list[torch.Tensor]:
        """While it trains, the logits of a batch in chunks, (b, N·C) -> (b, K) each.

        Each chunk has a copy of the parameters, and so a gradient of its own; batch normalisation sees the whole batch.

        Args:
            copies: by the name of the parameter.
            real: samples of a chunk; what is behind them fills up.
            total: over the chunks of all ranks.
        """
        maps = [self._map(values) for values in chunks]
        for name, layer in self.layers.named_children():
            own = [{key: copy[f"layers.{name}.{key}"] for key, _ in layer.named_parameters()} for copy in copies]
            if hasattr(layer, "running_mean"):
                maps = normalised(layer, maps, own, real, total)
            else:
                maps = [functional_call(layer, copy, (one,)) for one, copy in zip(maps, own, strict=True)]
        return maps

    def _map(self, values: torch.Tensor) -> torch.Tensor:
        return self.interface.stitched(values.unflatten(1, (self.subdomains, -1)))


def statistics(stages: Stages) -> list[int]:
    """float32 numbers that ``in_chunks`` sums over the chunks for each of the normalisations, forward (of twice the size) and backward."""
    return [numbers for stage in stages for width in stage for numbers in (2 * (2 * width + 1), 2 * width)]
