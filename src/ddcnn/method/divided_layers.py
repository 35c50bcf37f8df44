"""Which layers of a built-in network the ranks divide in exact spatial parallelism, and what they exchange for them."""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from ddcnn.method.halo import Layout, Window, pixels_sent
from ddcnn.networks.layers import CONVOLUTION, MAX_POOLING, MEAN_POOLING, NORMALISATION, LargestOfHalves
from ddcnn.networks.resnet import BasicBlock, PaddedShortcut

CONVOLUTIONS, POOLINGS, NORMALISATIONS, MEAN_POOLINGS = (
    tuple(one.values()) for one in (CONVOLUTION, MAX_POOLING, NORMALISATION, MEAN_POOLING)
)


def divided_layers(network: Any, layout: Layout) -> tuple[list[nn.Module], list[nn.Module], dict[nn.Module, Window]]:
    """The convolutional layers of a built-in network that are divided, those that are not, and the windows of the former."""
    layers, windows, number = list(network.convolutions), dict[nn.Module, Window](), 0
    for layer in layers if len(layout.boxes) > 1 else ():
        found = windows_of(layer)
        layout = after(layer, layout, found)
        if layout.least < 1:
            break
        windows |= found
        number += 1
    return layers[:number], layers[number:], windows


def pools_parts(network: Any, rest: Sequence[nn.Module], layout: Layout) -> bool:
    """Whether each rank pools its part of the last map for the head, so that the map itself need not be assembled."""
    return len(layout.boxes) > 1 and not rest and isinstance(network.dense[0], (LargestOfHalves, *MEAN_POOLINGS))


def windows_of(layer: nn.Module) -> dict[nn.Module, Window]:
    """Those of all convolutions, poolings and shortcuts in a layer."""
    found = dict[nn.Module, Window]()
    for one in layer.modules():
        if isinstance(one, (*CONVOLUTIONS, *POOLINGS)):
            dimensions = 2 if isinstance(one, (nn.Conv2d, nn.MaxPool2d)) else 3
            found[one] = Window(*(_per_axis(value, dimensions) for value in (one.kernel_size, one.stride, one.padding)))
        elif isinstance(one, PaddedShortcut):
            dimensions = next(len(window.kernel) for window in found.values())
            found[one] = Window((1,) * dimensions, (one.stride,) * dimensions, (0,) * dimensions)
    return found


def after(layer: Any, layout: Layout, windows: dict[nn.Module, Window]) -> Layout:
    """The layout of what a layer makes of a map."""
    layers = layer.residual if isinstance(layer, BasicBlock) else layer if isinstance(layer, nn.Sequential) else ()
    for one in layers:
        layout = after(one, layout, windows)
    return layout.after(windows[layer]) if layer in windows else layout


def exchanged(network: Any, layout: Layout, channels: int) -> tuple[int, int, tuple[int, ...], int]:
    """What ranks exchange in a step, as of ``costs.Halos``, for images of so many channels."""
    divided, rest, windows = divided_layers(network, layout)
    values, exchanges, normalised, needs_gradient = 0, 0, [], False

    def through(layer: Any, layout: Layout) -> Layout:
        nonlocal values, exchanges, channels, needs_gradient
        if isinstance(layer, BasicBlock):
            before = channels
            through(layer.shortcut, layout)
            channels = before
            return through(layer.residual, layout)
        if isinstance(layer, nn.Sequential):
            for one in layer:
                layout = through(one, layout)
        if layer in windows:
            if pixels := pixels_sent(layout, windows[layer]):
                values += channels * pixels * (1 + needs_gradient)
                exchanges += 1 + needs_gradient
            layout = layout.after(windows[layer])
        weights: Any = getattr(layer, "weight", None)
        if isinstance(layer, CONVOLUTIONS):
            channels, needs_gradient = len(weights), True
        if isinstance(layer, NORMALISATIONS):
            normalised.append(len(weights))
        return layout

    for layer in divided:
        layout = through(layer, layout)
    parameters = sum(one.numel() for layer in divided for one in layer.parameters())
    ranks = len(layout.boxes)
    if pools_parts(network, rest, layout):
        pooled = prod(min(side, 2) for side in layout.shape) if isinstance(network.dense[0], LargestOfHalves) else 1
        values += channels * pooled * ranks * (ranks - 1)
    else:
        values += channels * pixels_sent(layout, None)
    return values, exchanges + (ranks > 1), tuple(normalised), parameters


def _per_axis(value: Any, dimensions: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,) * dimensions
