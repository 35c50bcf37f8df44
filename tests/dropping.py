"""A network of one's own with dropout and batch normalisation."""

from torch import nn

from ddcnn.networks.shape import Shape, scaled_width


def small(shape: Shape, width: int = 16, divisor: float = 1) -> nn.Module:
    channels = scaled_width(width, divisor)
    return nn.Sequential(
        nn.Conv2d(shape.channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * channels, shape.classes),
    )  # fmt: skip
