"""What the networks of a run cost, counted once for each kind, on no device."""

from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import torch

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import Decomposition
from ddcnn.method.divided_layers import exchanged
from ddcnn.method.halo import Layout
from ddcnn.method.interface import values_per_subdomain
from ddcnn.networks import registry
from ddcnn.networks.coarse import ConvolutionalNetwork, Stages
from ddcnn.networks.dense import DenseNetwork
from ddcnn.networks.maps import MapInterface, map_interface
from ddcnn.networks.operations import layers, trained_operations
from ddcnn.networks.shape import Shape


class Network(NamedTuple):
    """Cost of a network.

    Attributes:
        operations: floating-point operations to train on one sample, forward and backward.
        layers: modules without modules in them.
        values: at the interface.
    """

    operations: float
    layers: int
    parameters: int
    values: int


class Halos(NamedTuple):
    """What ranks exchange in a step of spatial parallelism.

    Attributes:
        values: per sample, all ranks together.
        exchanges: of them, forward and backward.
        normalised: channels of each batch normalisation whose statistics are summed.
        parameters: whose gradients are summed.
    """

    values: int
    exchanges: int
    normalised: tuple[int, ...]
    parameters: int


@lru_cache
def halos(design: registry.Design, shape: Shape, ranks: int) -> Halos:
    """Of a built-in network."""
    layout = Layout.of(shape.spatial, ranks)
    return Halos(*exchanged(_made(partial(registry.make, design, shape)), layout, shape.channels))


def networks(settings: RunSettings, decomposition: Decomposition, channels: int, classes: int) -> tuple[Network, Network, Network]:
    """Costs of the largest local CNN, of the global CNN and of the DNN."""
    subdomains = len(decomposition) * settings.networks_per_subimage
    design, subimage = settings.local_design(subdomains), max((one.subimage.shape for one in decomposition.subdomains), key=prod)
    local = cnn(settings.interface, design, Shape(subimage, channels, classes))
    whole = cnn("logits", settings.global_design(Method.GLOBAL), Shape(decomposition.shape, channels, classes))
    if settings.interface != "maps":
        return local, whole, dense(settings.interface, subdomains, local.values, classes)
    maps = map_interface(design, decomposition, channels, classes, settings.coarse_image)
    dnn = convolutional(maps, settings.convolutional) if settings.convolutional else dense("maps", subdomains, maps.values, classes)
    return local._replace(values=maps.values), whole, dnn


@lru_cache
def cnn(interface: str, design: registry.Design, shape: Shape) -> Network:
    """Cost of a local CNN or of the global one; of maps the values are not told."""
    network: Any = _made(partial(registry.make, design, shape))
    return _cost(network, (shape.channels, *shape.spatial), 0 if interface == "maps" else values_per_subdomain(interface, network))


@lru_cache
def dense(interface: str, subdomains: int, values: int, classes: int) -> Network:
    """Cost of a DNN of dense layers."""
    return _cost(_made(partial(DenseNetwork, interface, subdomains, values, classes)), (subdomains * values,), classes)


@lru_cache
def convolutional(maps: MapInterface, stages: Stages) -> Network:
    """Cost of a convolutional DNN."""
    return _cost(_made(partial(ConvolutionalNetwork, maps, stages)), (len(maps.stitching.own) * maps.values,), maps.classes)


def _made(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):  # nothing is stored or computed
        return make()


def _cost(network: Any, sample: tuple[int, ...], values: int) -> Network:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with torch.device("meta"):
        return Network(trained_operations(network, sample), layers(network), parameters, values)
