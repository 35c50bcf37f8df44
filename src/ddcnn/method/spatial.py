"""The undecomposed CNN over all ranks by exact spatial parallelism: each rank has a part of every image and of every map.

Convolutions and poolings see the halo of their part, batch normalisation the statistics of all parts; the head, and layers before it
whose parts would be empty, all ranks compute for the whole map. So the network and its gradient are those of one process up to rounding.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Images
from ddcnn.decomposition import Box
from ddcnn.method.halo import Assemble, Halo, Layout, Window, pixels_sent, plan_of
from ddcnn.method.shared import sum_gradients, total
from ddcnn.networks.layers import CONVOLUTION, MAX_POOLING, NORMALISATION
from ddcnn.networks.normalisation import normalised
from ddcnn.networks.recompute import again, in_segments, segments
from ddcnn.networks.resnet import BasicBlock, PaddedShortcut
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import broadcast_
from ddcnn.training.loop import Trainer, WrappedCallback
from ddcnn.training.state import Epoch, TrainState

CONVOLUTIONS, POOLINGS, NORMALISATIONS = (tuple(one.values()) for one in (CONVOLUTION, MAX_POOLING, NORMALISATION))


@dataclass
class Part:
    """A rank's part of a map.

    Pixels of other ranks are brought before the ReLU: so what the next layer sees is kept for the backward pass, and the part is not.

    Attributes:
        values: (B, C, *part), or (B, C, *seen) with what a layer has seen around it.
        layout: of the map.
        inside: the part in ``values``.
        relu: whether a ReLU is still to be taken.
    """

    values: torch.Tensor
    layout: Layout
    inside: tuple[slice, ...] = (...,)  # type: ignore[assignment]
    relu: bool = False

    @property
    def settled(self) -> torch.Tensor:
        """(B, C, *part) after the ReLU."""
        if self.relu:
            self.values, self.relu = self.values.relu_(), False
        return self.values[:, :, *self.inside]

    def seen(self, window: Window, world: World, border: float) -> torch.Tensor:
        """What a layer's windows see after the ReLU, (B, C, *seen), with ``border`` around the map."""
        plan = plan_of(self.layout, world.rank, window)
        if plan.is_cut:
            return self.settled[:, :, *plan.kept[0]]
        found = Halo.apply(self.values[:, :, *self.inside], plan, world, border)  # type: ignore[no-untyped-call]
        if self.relu:
            found = found.relu_()
        if plan.keeps_all:
            self.values, self.inside, self.relu = found, plan.kept[1], False
        return found


class SpatialNetwork(nn.Module):
    """A rank's view of a built-in network, which all ranks have with the same parameters.

    Args:
        world: the ranks.
        network: its divided convolutions and poolings from now on take images that are padded already.
        layout: of an image.
    """

    communicates = True  # in its forward pass

    def __init__(self, world: World, network: Any, layout: Layout):
        super().__init__()
        self.world, self.network, self.layout = world, network, layout
        self.divided, self.rest, self.windows = divided_layers(network, layout)
        for layer in self.windows:
            if not isinstance(layer, PaddedShortcut):
                layer.padding = (0,) * len(layout.bounds)  # type: ignore[assignment]

    @property
    def own(self) -> Box:
        """This rank's part of an image."""
        return self.layout.boxes[self.world.rank]

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What is saved."""
        return {"network": self.network}

    def forward(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """The rank's part of images, one tensor (B, C, *part) -> logits (B, K), on all ranks."""
        part, network = Part(images[0], self.layout), self.network
        if network.recomputes and self.training and torch.is_grad_enabled():
            for segment in segments(nn.Sequential(*self.divided)) if self.divided else ():
                layout = after(segment, part.layout, self.windows)
                part = Part(again(segment, partial(self._settled, segment, part.layout), part.values), layout)
        else:
            part = self._passed(self.divided, part)
        values = part.settled
        if self.divided:
            values = Assemble.apply(values, plan_of(part.layout, self.world.rank), self.world)  # type: ignore[no-untyped-call]
        rest = nn.Sequential(*self.rest).train(self.training)
        values = in_segments(rest, values) if network.recomputes else rest(values)
        return network.classifier(network.dense(values))

    def _settled(self, segment: nn.Sequential, layout: Layout, values: torch.Tensor) -> torch.Tensor:
        return self._passed(segment, Part(values, layout)).settled

    def _passed(self, layers: Any, part: Part) -> Part:
        for layer in layers:
            part = self._through(layer, part)
        return part

    def _through(self, layer: Any, part: Part) -> Part:
        """What a layer makes of a map."""
        if isinstance(layer, nn.Sequential):
            return self._passed(layer, part)
        if isinstance(layer, nn.ReLU):
            return replace(part, relu=True)
        if isinstance(layer, BasicBlock):
            residual, shortcut = self._passed(layer.residual, part), self._through(layer.shortcut, part)
            return Part(residual.settled + shortcut.settled, residual.layout, relu=True)
        if layer in self.windows:
            window, border = self.windows[layer], -torch.inf if isinstance(layer, POOLINGS) else 0.0
            return Part(self._computed(layer, part.seen(window, self.world, border), part.layout.least), part.layout.after(window))
        if isinstance(layer, NORMALISATIONS):
            return Part(self._normalised(layer, part.settled), part.layout)
        assert isinstance(layer, nn.Identity), layer
        return part

    def _computed(self, layer: Any, values: torch.Tensor, least: int) -> torch.Tensor:
        """What a layer makes of padded values, in one precision on all ranks; for small maps see ``DevicePolicy.place``."""
        device = values.device.type
        if not (torch.is_autocast_enabled(device) and isinstance(layer, CONVOLUTIONS)):
            return layer(values)
        small = device == "cpu" and least <= max(self.windows[layer].kernel)
        with torch.autocast(device, enabled=False) if small else nullcontext():
            found = layer(values.float() if small else values)
        return found.to(torch.get_autocast_dtype(device))

    def _normalised(self, layer: Any, values: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return layer(values)
        own = [{"weight": layer.weight, "bias": layer.bias}]
        return normalised(layer, [values], own, [len(values)], partial(total, world=self.world))[0]

    def sum_gradients(self) -> None:
        """All ranks, after a backward pass: the gradients of divided layers, of which each rank has its part's, become their sum."""
        sum_gradients([[parameter for layer in self.divided for parameter in layer.parameters()]], self.world)

    def sync(self) -> None:
        """All ranks, after an epoch: networks that unlike devices have driven apart become rank 0's."""
        tensors = self.network.state_dict().values()
        if self.world.size > 1 and not self.world.all_equal(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)):
            broadcast_(self.world, tensors)


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
    divided, _, windows = divided_layers(network, layout)
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
    return values + bool(divided) * channels * pixels_sent(layout, None), exchanges + bool(divided), tuple(normalised), parameters


def _per_axis(value: Any, dimensions: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,) * dimensions


@dataclass(frozen=True)
class _Summed(WrappedCallback):
    """Sums the gradients of a step, and keeps the ranks' networks equal."""

    network: SpatialNetwork

    def after_backward(self, state: TrainState) -> None:
        self.network.sum_gradients()
        self.inner.after_backward(state)

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self.network.sync()
        if state.average:
            with state.evaluated():
                self.network.sync()
        self.inner.after_epoch(state, epoch)


def train_spatial(trainer: Trainer, network: SpatialNetwork, images: Images, chosen: np.ndarray) -> None:
    """Trains a network in place, all ranks together.

    Args:
        images: the rank's part of the images; every rank draws the same order and the same augmentation.
        chosen: (S,) int64, the samples to train on.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        Stopped: the callback was asked to stop.
    """
    replace(trainer, callback=_Summed(trainer.callback, network)).train(network, images, torch.from_numpy(chosen))
