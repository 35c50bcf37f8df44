"""Residual networks (He, Zhang, Ren, Sun, arXiv 1512.03385): ResNet20 for small images, ResNet18 for large ones; 2-D or 3-D."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ddcnn.networks.layers import CONVOLUTION, MAX_POOLING, MEAN_POOLING, NORMALISATION
from ddcnn.networks.recompute import in_segments
from ddcnn.networks.shape import Shape, scaled_width


class ResNet(nn.Module):
    """A stem, stages of basic blocks, the mean over all pixels, then the logits.

    Args:
        shape: of the network's input.
        width: channels of stem and first stage of the *global* network; they double from stage to stage.
        divisor: of the width rule; 1 for the global network.
        features: neurons of a hidden dense layer with ReLU before the logits; None: the channels of the last stage are the last
            hidden layer.
        blocks: number of blocks per stage. From the second stage on, the first block halves the sides, rounding up.
        large_images: ResNet18's stem, which divides the sides by 4, and shortcuts with weights (the paper's option B);
            otherwise ResNet20's stem, a 3x3 convolution, and shortcuts without weights (option A).
    """

    def __init__(
        self, shape: Shape, width: int, divisor: float = 1, features: int | None = None, *, blocks: Sequence[int], large_images: bool,
        head: str = "pooled",
    ):  # fmt: skip
        super().__init__()
        dimensions = len(shape.spatial)
        channels = scaled_width(width, divisor)
        kernel, stride = (7, 2) if large_images else (3, 1)
        stem: list[nn.Module] = [
            CONVOLUTION[dimensions](shape.channels, channels, kernel, stride, padding=kernel // 2, bias=False),
            NORMALISATION[dimensions](channels),
            nn.ReLU(inplace=True),
        ]
        if large_images:
            stem.append(MAX_POOLING[dimensions](3, 2, padding=1))
        stages: list[nn.Module] = []
        for stage, repeats in enumerate(blocks):
            outputs = scaled_width(width << stage, divisor)
            for block in range(repeats):
                stages.append(BasicBlock(dimensions, channels, outputs, 2 if stage > 0 and block == 0 else 1, large_images))
                channels = outputs
        self.convolutions = nn.Sequential(*stem, *stages)
        self.recomputes = False
        self._first_stage = len(stem) + blocks[0]
        self.channels, self.cell = channels, ((4 if large_images else 1) << (len(blocks) - 1),) * dimensions
        dense: list[nn.Module] = [MEAN_POOLING[dimensions](1), nn.Flatten()]
        if features:
            dense += [nn.Linear(channels, features), nn.ReLU(inplace=True)]
        self.dense = nn.Sequential(*dense)
        self.classifier = nn.Linear(features or channels, shape.classes)
        for module in self.convolutions.modules():
            if isinstance(module, CONVOLUTION[dimensions]):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def early(self) -> tuple[str, ...]:
        """Beginnings of the names of the first stage's parameters."""
        return tuple(f"convolutions.{layer}." for layer in range(self._first_stage))

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """What the last stage sees: (B, C, *spatial) -> (B, ``channels``, *cells), a cell for ``cell`` pixels."""
        return in_segments(self.convolutions, images) if self.recomputes else self.convolutions(images)

    def maps_and_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``maps`` and ``features`` in one pass."""
        maps = self.maps(images)
        return maps, self.dense(maps)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last hidden layer: (B, C, *spatial) -> (B, F)."""
        return self.dense(self.maps(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> logits (B, K)."""
        return self.classifier(self.features(images))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, inputs, *spatial) -> (B, outputs, *spatial / stride); inputs = outputs with stride 1."""

    def __init__(self, dimensions: int, inputs: int, outputs: int, stride: int, projection: bool):
        super().__init__()
        convolution, normalisation = CONVOLUTION[dimensions], NORMALISATION[dimensions]
        self.residual = nn.Sequential(
            convolution(inputs, outputs, 3, stride, padding=1, bias=False),
            normalisation(outputs),
            nn.ReLU(inplace=True),
            convolution(outputs, outputs, 3, padding=1, bias=False),
            normalisation(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 and projection:
            self.shortcut = nn.Sequential(POINTWISE[dimensions](inputs, outputs, 1, stride, bias=False), normalisation(outputs))
        elif stride > 1:
            self.shortcut = PaddedShortcut(inputs, outputs, stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.residual(images) + self.shortcut(images), inplace=True)


class _Pointwise:
    """Of few channels, takes the pixels that its stride keeps before it convolves, not while it does.

    In single precision, PyTorch 2.13 writes outside of its memory in the backward pass of a strided 1x1 convolution of 4 channels, channels
    last, on some CPUs.
    """

    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        if self.in_channels >= 8 or images.dtype == torch.float64:
            return super().forward(images)  # type: ignore[misc]
        kept = images[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]
        return {2: functional.conv2d, 3: functional.conv3d}[len(self.stride)](kept, self.weight, self.bias)


class _Pointwise2d(_Pointwise, nn.Conv2d):
    pass


class _Pointwise3d(_Pointwise, nn.Conv3d):
    pass


POINTWISE: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: _Pointwise2d, 3: _Pointwise3d}


class PaddedShortcut(nn.Module):
    """The paper's option A, without parameters: takes every ``stride``-th pixel and adds channels of zeros.

    The paper leaves open where the new channels lie. Here they are *interleaved*: with twice the channels, output channel 2j is input
    channel j, and 2j + 1 is zero. Then thin networks whose channels are concatenated (block-diagonal weights) are exactly the wide
    network; new channels at the end, as is usual, would mix them.
    """

    targets: torch.Tensor  # (inputs,) output channel of each input channel

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.outputs, self.stride = outputs, stride
        self.register_buffer("targets", torch.arange(inputs) * outputs // inputs, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (slice(None, None, self.stride),) * (images.ndim - 2)
        kept = images[:, :, *pixels]
        padded = kept.new_zeros(kept.shape[0], self.outputs, *kept.shape[2:])
        padded[:, self.targets] = kept
        return padded


resnet20 = partial(ResNet, blocks=(3, 3, 3), large_images=False)
resnet18 = partial(ResNet, blocks=(2, 2, 2, 2), large_images=True)
