"""VGG networks: stages of 3x3 convolutions, each followed by pooling, then dense layers or a pooling (Simonyan, Zisserman, 2014)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ddcnn.networks.layers import MAX_POOLING, LargestOfHalves, convolved, halving
from ddcnn.networks.recompute import in_segments
from ddcnn.networks.shape import Shape, scaled_width


class VGG(nn.Module):
    """Stages of convolution, batch normalisation and ReLU, then a head, then the logits; 2-D or 3-D.

    Args:
        shape: of the network's input.
        width: channels of the first stage of the *global* network; they double from stage to stage.
        divisor: of the width rule; 1 for the global network.
        stages: convolutions of each.
        coarse_stages: of the last stages, those that the DNN has in place of this network; ``maps`` is then what they see, pooled.
        dense_layers: hidden dense layers, each with 4 ``width`` neurons before the width rule.
        features: neurons of the last hidden layer; None: as many as in the others, or of the pooled head none.
        head: "dense", hidden dense layers with ReLU on all pixels of the last stage; "pooled", the largest values in each half of every
            axis, whose number does not depend on the size of the image.

    An axis is pooled only where at least 2 pixels remain, so a subimage may be as small as 4 pixels a side.
    """

    def __init__(
        self, shape: Shape, width: int, divisor: float = 1, features: int | None = None, *, stages: Sequence[int], dense_layers: int,
        head: str = "dense", coarse_stages: int = 0,
    ):  # fmt: skip
        super().__init__()
        dimensions = len(shape.spatial)
        layers: list[nn.Module] = []
        channels, size = shape.channels, shape.spatial
        self.cell, self.hands_on_pooled = (1,) * dimensions, coarse_stages > 0
        own = stages[: len(stages) - coarse_stages]
        for stage, repeats in enumerate(own):
            outputs = scaled_width(width << stage, divisor)
            for _ in range(repeats):
                layers += convolved(dimensions, channels, outputs)
                channels = outputs
            factors = halving(size)
            if max(factors) > 1:
                layers.append(MAX_POOLING[dimensions](factors))
            if stage == 0:
                self._first_stage = len(layers)
            if stage < len(own) - 1 or self.hands_on_pooled:
                self.cell = tuple(c * factor for c, factor in zip(self.cell, factors, strict=True))
            size = tuple(side // factor for side, factor in zip(size, factors, strict=True))
        self.convolutions = nn.Sequential(*layers)
        self.recomputes = False
        self.channels = channels
        dense: list[nn.Module] = [nn.Flatten()]
        hidden = scaled_width(4 * width, divisor)
        neurons_of = [hidden] * (dense_layers - 1) + [features or hidden]
        if head == "pooled":
            dense.insert(0, LargestOfHalves())
            size = tuple(min(side, 2) for side in size)
            neurons_of = [features] if features else []
        inputs = channels * int(torch.Size(size).numel())
        for neurons in neurons_of:
            dense += [nn.Linear(inputs, neurons), nn.ReLU(inplace=True)]
            inputs = neurons
        self.dense = nn.Sequential(*dense)
        self.classifier = nn.Linear(inputs, shape.classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """The last stage, pooled if the DNN goes on: (B, C, *spatial) -> (B, ``channels``, *cells), a cell for ``cell`` pixels."""
        return self._convolved(slice(self._map_layers), images)

    def maps_and_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``maps`` and ``features`` in one pass."""
        maps = self.maps(images)
        return maps, self.dense(self._convolved(slice(self._map_layers, None), maps))

    @property
    def early(self) -> tuple[str, ...]:
        """Beginnings of the names of the first stage's parameters."""
        return tuple(f"convolutions.{layer}." for layer in range(self._first_stage))

    @property
    def _map_layers(self) -> int:
        pools = isinstance(self.convolutions[-1], tuple(MAX_POOLING.values()))
        return len(self.convolutions) - (pools and not self.hands_on_pooled)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last hidden layer: (B, C, *spatial) -> (B, F)."""
        return self.dense(self._convolved(slice(None), images))

    def _convolved(self, part: slice, images: torch.Tensor) -> torch.Tensor:
        layers = self.convolutions[part]
        return in_segments(layers, images) if self.recomputes else layers(images)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> logits (B, K)."""
        return self.classifier(self.features(images))


vgg3 = partial(VGG, dense_layers=1)
vgg9 = partial(VGG, dense_layers=2)
