"""Maps as the interface: what a local CNN hands on of its last feature map, and the map of the whole image that comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import nn

from ddcnn.decomposition import Decomposition, times
from ddcnn.errors import InputError
from ddcnn.networks import registry
from ddcnn.networks.custom import errors_as_input_error
from ddcnn.networks.layers import cell_means
from ddcnn.networks.shape import Shape
from ddcnn.networks.stitching import Stitching


@dataclass(frozen=True)
class MapInterface:
    """A subdomain hands on its own cells of its last map, and its K logits; one vector of C numbers a sample.

    Attributes:
        channels: of a map, with those of the image.
        classes: K.
        layer: path of the module in a network that is not built in, whose output the maps are.
        image: whether the mean of each cell's pixels joins the map, as further channels.
    """

    stitching: Stitching
    channels: int
    classes: int
    layer: str = ""
    image: bool = False

    @property
    def cells(self) -> int:
        """Numbers of the largest own map."""
        return self.channels * max(prod(box.shape) for box in self.stitching.own)

    @property
    def values(self) -> int:
        """C."""
        return self.cells + self.classes

    def hands_on(self, make: Callable[[], nn.Module], index: int) -> Callable[[], nn.Module]:
        """What makes the same local CNNs, of subdomain ``index``, which know what they hand on."""

        def made() -> nn.Module:
            network: Any = make()
            network.map_interface, network.pack = self, partial(self.pack, index=index)
            if self.layer:
                network.map_layer = self.layer
            return network

        return made

    def pack(self, subimages: torch.Tensor, maps: torch.Tensor, logits: torch.Tensor, index: int) -> torch.Tensor:
        """Subimages, their maps (B, ..., *map) and logits (B, K) of a subdomain -> (B, C); zeros fill up where others have more cells."""
        if self.image:
            maps = torch.cat([maps, cell_means(subimages, self.stitching.cell, maps.shape[2:]).to(maps.dtype)], 1)
        own = self.stitching.restrict(maps, index).movedim(1, -1).flatten(1)  # channels last, as convolutions like it
        return torch.cat([nn.functional.pad(own, (0, self.cells - own.shape[1])), logits], 1)

    def stitched(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N, C) of all subdomains -> the map of the whole image, (B, channels, *cells)."""
        shapes = [(*box.shape, self.channels) for box in self.stitching.own]
        parts = (values[:, index, : prod(shape)].unflatten(1, shape) for index, shape in enumerate(shapes))
        return self.stitching.stitch([part.movedim(-1, 1) for part in parts])

    def stand_in(self, values: torch.Tensor, present: Sequence[int], missing: int) -> torch.Tensor:
        """For a missing subdomain, from (B, n, C) of those that are ``present``: (B, C), in each cell the mean of all their cells."""
        cells = [prod(box.shape) for box in self.stitching.own]
        known = [values[:, k, : cells[i] * self.channels].unflatten(1, (cells[i], self.channels)) for k, i in enumerate(present)]
        mean = torch.cat(known, 1).mean(1).repeat(1, cells[missing])
        return torch.cat([nn.functional.pad(mean, (0, self.cells - mean.shape[1])), self.logits(values).mean(1)], 1)

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., K)."""
        return values[..., self.cells :]


@lru_cache
def map_interface(design: registry.Design, decomposition: Decomposition, channels: int, classes: int, image: bool = False) -> MapInterface:
    """Of the local CNNs of a decomposition, whose images have so many channels.

    Raises:
        InputError: the network has no maps, or their cells are not cells of the whole image.
    """
    sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
    cells: dict[tuple[int, ...], tuple[int, ...]] = {}
    for spatial in dict.fromkeys(subdomain.subimage.shape for subdomain in decomposition.subdomains):
        shape = Shape(spatial, channels, classes)
        with torch.random.fork_rng(devices=[]), torch.inference_mode(), torch.device("meta" if design.name in registry.NETWORKS else "cpu"):
            network: Any = registry.make(design, shape).eval()
            with errors_as_input_error(f"--interface maps: --network {design.name}"):
                size = tuple(network.maps(torch.zeros(1, channels, *spatial)).shape[2:])
            if len(size) != len(spatial) or min(network.cell) < 1:
                found = f"what --network {design.name} makes of {times(spatial)} pixels is no map"
                raise InputError(f"--interface maps: {found}: name another map_layer")
            sizes[spatial] = size
            cells[network.cell] = spatial
    if len(cells) > 1:
        told = " and ".join(f"{times(cell)} for subimages of {times(spatial)}" for cell, spatial in cells.items())
        raise InputError(f"--interface maps: cells have different sizes, {told} pixels: {registry.LARGER_SUBIMAGES}")
    maps = tuple(sizes[subdomain.subimage.shape] for subdomain in decomposition.subdomains)
    layer = getattr(network, "map_layer", "")
    of_image = channels if image else 0
    return MapInterface(Stitching(decomposition, network.cell, maps), network.channels + of_image, classes, layer, image)
