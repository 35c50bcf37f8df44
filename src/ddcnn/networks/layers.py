"""PyTorch's layer classes by the dimension of the images, 2 or 3."""

from collections.abc import Sequence

import torch
from torch import nn

CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORMALISATION: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOLING: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEAN_POOLING: dict[int, type[nn.AdaptiveAvgPool2d] | type[nn.AdaptiveAvgPool3d]] = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, nn.MultiheadAttention, nn.RNNBase)


def draws(network: nn.Module) -> bool:
    """Whether a network may draw random numbers while it trains; of modules from elsewhere nobody knows."""
    known = ("torch.nn.modules.", "ddcnn.networks.")
    return any(isinstance(one, DRAWING) or not type(one).__module__.startswith(known) for one in network.modules())


def convolved(dimensions: int, inputs: int, outputs: int) -> list[nn.Module]:
    """A 3x3 convolution, batch normalisation and ReLU."""
    convolution = CONVOLUTION[dimensions](inputs, outputs, 3, padding=1, bias=False)
    return [convolution, NORMALISATION[dimensions](outputs), nn.ReLU(inplace=True)]


def halving(size: Sequence[int]) -> tuple[int, ...]:
    """By how much an axis is pooled: not at all where fewer than 2 pixels would remain."""
    return tuple(2 if side >= 4 else 1 for side in size)


class LargestOfHalves(nn.Module):
    """The largest value in each half of every axis: (B, C, *size) -> (B, C, *min(size, 2)); halves of an odd axis overlap.

    It is adaptive pooling, of which exporters know even sizes alone.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        size = values.shape[2:]
        pooling = {2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}[len(size)]
        return pooling(values, [-(-side // 2) for side in size], [max(1, side // 2) for side in size])


def cell_means(images: torch.Tensor, cell: Sequence[int], cells: Sequence[int]) -> torch.Tensor:
    """The mean of each cell's pixels: (B, C, *spatial) -> (B, C, *cells); a cell beyond the image is 0, a last one may be cut off."""
    pooling = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[len(cell)]
    means = pooling(images, tuple(cell), ceil_mode=True)
    return nn.functional.pad(means, [side for n, found in zip(cells, means.shape[2:], strict=True) for side in (n - found, 0)][::-1])


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
