"""The undecomposed CNN over all ranks by exact spatial parallelism: each rank has a part of every image and of every map.

Convolutions and poolings see the halo of their part, batch normalisation the statistics of all parts, a pooling of the whole map what each
rank has pooled of its part; the layers behind that, and layers whose parts would be empty, all ranks compute for the whole map. So the
network and its gradient are those of one process up to rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Images
from ddcnn.decomposition import Box, common
from ddcnn.method.divided_layers import CONVOLUTIONS, NORMALISATIONS, POOLINGS, after, divided_layers, pools_parts
from ddcnn.method.halo import Assemble, Halo, Layout, Window, plan_of
from ddcnn.method.halo_convolution import convolved_part, edges_of, keeps_size
from ddcnn.method.interface import Collect
from ddcnn.method.joint import Together, make_equal
from ddcnn.method.shared import sum_gradients, total
from ddcnn.networks.layers import LargestOfHalves
from ddcnn.networks.normalisation import normalised
from ddcnn.networks.recompute import again, in_segments, segments
from ddcnn.networks.resnet import BasicBlock, PaddedShortcut
from ddcnn.parallel.world import World
from ddcnn.training.loop import Trainer


@dataclass
class Part:
    """A rank's part of a map.

    A ReLU waits for the next layer: where that brings pixels of other ranks into a larger tensor, that is kept for the backward pass, and
    the part is not; a pooling comes before it, which leaves it fewer pixels.

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

    def seen(self, window: Window, world: World, border: float, settled: bool = True) -> torch.Tensor:
        """What a layer's windows see, after the ReLU if ``settled``, (B, C, *seen), with ``border`` around the map."""
        plan, relu = plan_of(self.layout, world.rank, window), self.relu and settled
        if plan.is_cut:
            return (self.settled if settled else self.values[:, :, *self.inside])[:, :, *plan.kept[0]]
        found = Halo.apply(self.values[:, :, *self.inside], plan, world, border)  # type: ignore[no-untyped-call]
        if relu:
            found = found.relu_()
        if plan.keeps_all:
            self.values, self.inside, self.relu = found, plan.kept[1], self.relu and not relu
        return found


class SpatialNetwork(nn.Module):
    """A rank's view of a built-in network, which all ranks have with the same parameters.

    Args:
        world: the ranks.
        network: of its divided convolutions and poolings, some from now on take images that are padded already.
        layout: of an image.
    """

    communicates = True  # in its forward pass

    def __init__(self, world: World, network: Any, layout: Layout):
        super().__init__()
        self.world, self.network, self.layout = world, network, layout
        self.divided, self.rest, self.windows = divided_layers(network, layout)
        for layer, window in self.windows.items():
            if not (isinstance(layer, PaddedShortcut) or keeps_size(layer, window)):
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
        if pools_parts(network, self.rest, self.layout):
            return network.classifier(network.dense[1:](self._pooled(network.dense[0], part)))
        values = part.settled
        if self.world.size > 1:
            values = Assemble.apply(values, plan_of(part.layout, self.world.rank), self.world)  # type: ignore[no-untyped-call]
        rest = nn.Sequential(*self.rest).train(self.training)
        values = in_segments(rest, values) if network.recomputes else rest(values)
        return network.classifier(network.dense(values))

    def _pooled(self, layer: nn.Module, part: Part) -> torch.Tensor:
        """What a pooling of the whole map makes of it, on all ranks; each pools its part."""
        values, shape, own = part.settled, part.layout.shape, part.layout.boxes[self.world.rank]
        if not isinstance(layer, LargestOfHalves):
            mean = values.flatten(2).sum(2) / prod(shape)
            return Collect.apply(mean[None], self.world).sum(0)  # type: ignore[no-untyped-call]
        halves = [[(0, -(-side // 2)), (side // 2, side)][: min(side, 2)] for side in shape]
        boxes = [common(own, Box(*zip(*sides, strict=True))) for sides in product(*halves)]
        lowest = values.new_full(values.shape[:2], -torch.inf)
        largest = [values[:, :, *box.within(own)].flatten(2).max(2).values if box.pixels else lowest for box in boxes]
        return Collect.apply(torch.stack(largest, 2)[None], self.world).max(0).values  # type: ignore[no-untyped-call]

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
            window, layout = self.windows[layer], part.layout.after(self.windows[layer])
            if isinstance(layer, POOLINGS):  # the largest value after the ReLU is that before it
                return Part(layer(part.seen(window, self.world, -torch.inf, settled=False)), layout, relu=part.relu)
            if keeps_size(layer, window):
                compute = partial(convolved_part, layer, edges_of(part.layout, self.world.rank), self.world)
                return Part(self._computed(layer, compute, part.settled, part.layout.least), layout)
            return Part(self._computed(layer, layer, part.seen(window, self.world, 0.0), part.layout.least), layout)
        if isinstance(layer, NORMALISATIONS):
            return Part(self._normalised(layer, part.settled), part.layout)
        assert isinstance(layer, nn.Identity), layer
        return part

    def _computed(
        self, layer: Any, compute: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, least: int
    ) -> torch.Tensor:  # fmt: skip
        """What a layer makes of values, in one precision on all ranks; for small maps see ``DevicePolicy.place``."""
        device = values.device.type
        if not (torch.is_autocast_enabled(device) and isinstance(layer, CONVOLUTIONS)):
            return compute(values)
        small = device == "cpu" and least <= max(self.windows[layer].kernel)
        with torch.autocast(device, enabled=False) if small else nullcontext():
            found = compute(values.float() if small else values)
        return found.to(torch.get_autocast_dtype(device))

    def _normalised(self, layer: Any, values: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return layer(values)
        own = [{"weight": layer.weight, "bias": layer.bias}]
        return normalised(layer, [values], own, [len(values)], partial(total, world=self.world))[0]

    def finish_gradient(self) -> None:
        """All ranks, after a backward pass: the gradients of divided layers, of which each rank has its part's, become their sum."""
        sum_gradients([[parameter for layer in self.divided for parameter in layer.parameters()]], self.world)

    def sync(self) -> None:
        """All ranks, after an epoch: networks that unlike devices have driven apart become rank 0's."""
        make_equal(self.world, self.network.state_dict().values())


def train_spatial(trainer: Trainer, network: SpatialNetwork, images: Images, chosen: np.ndarray) -> None:
    """Trains a network in place, all ranks together.

    Args:
        images: the rank's part of the images; every rank draws the same order and the same augmentation.
        chosen: (S,) int64, the samples to train on.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        Stopped: the callback was asked to stop.
    """
    replace(trainer, callback=Together(trainer.callback, network)).train(network, images, torch.from_numpy(chosen))
