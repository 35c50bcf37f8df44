"""Networks by name: ``--network``. Built-in ones, torchvision's classification networks, and your own.

Your own is named ``package.module:factory``, for example ``mine:small`` with this in ``mine.py``::

    from torch import nn
    from ddcnn.networks.shape import Shape, scaled_width

    def small(shape: Shape, width: int = 16, divisor: float = 1) -> nn.Module:
        channels = scaled_width(width, divisor)
        return nn.Sequential(
            nn.Conv2d(shape.channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, shape.classes),
        )

The factory is called as ``factory(shape, width=..., divisor=...)`` for every local CNN and for the global one, ``width`` only if
``--width`` is given. ``shape`` says what the network sees (see ``Shape``); ``divisor`` is that of the width rule, 1 for the global
CNN. The network maps images (B, C, *spatial) to logits (B, K), and the last thing that it does is an ``nn.Linear`` with K outputs:
what goes into that one is its last hidden layer. Initial parameters must come from PyTorch's generator, which is seeded.

To add a built-in network, write a module with a factory ``(shape, width, divisor, features) -> nn.Module``, and name it in
``NETWORKS``. Nothing here imports torch before a network is made.
"""

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddcnn.errors import InputError
from ddcnn.networks.refusals import refusing
from ddcnn.networks.shape import Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """A built-in network.

    Attributes:
        factory: "package.module:function", imported when it is used.
        width: default of ``--width``, the channels of the first stage of the global network.
        smallest: pixels a side that a subimage must have at least.
    """

    factory: str
    width: int
    smallest: int


NETWORKS = {
    "vgg3": Architecture("ddcnn.networks.vgg:vgg3", 32, 4),
    "vgg9": Architecture("ddcnn.networks.vgg:vgg9", 32, 4),
    "resnet20": Architecture("ddcnn.networks.resnet:resnet20", 16, 4),
    "resnet18": Architecture("ddcnn.networks.resnet:resnet18", 64, 8),  # below, one pixel is left for all stages
}

LARGER = "choose a coarser --grid or a larger --overlap"


def default_width(name: str) -> int | None:
    """What ``--width`` is if it is not given; None: the network has widths, or a default, of its own."""
    return NETWORKS[name].width if name in NETWORKS else None


def make(name: str, shape: Shape, width: int | None = None, divisor: float = 1, features: int | None = None) -> "nn.Module":
    """A network with new initial parameters: a local CNN, or the global one.

    It maps images (B, C, *spatial) to logits (B, K). Its method ``features`` maps images to the last hidden layer (B, F), its
    ``classifier`` is the ``nn.Linear`` from there to the logits.

    Args:
        shape: what it sees.
        width: channels of the first stage of the *global* network; None for the default.
        divisor: of the width rule; 1 for the global network.
        features: F, if it is not to be what the network has by itself.

    Raises:
        InputError: there is no such network, or it cannot be had like this.
    """
    if name in NETWORKS:
        built_in = NETWORKS[name]
        module, _, function = built_in.factory.partition(":")
        return getattr(importlib.import_module(module), function)(shape, width or built_in.width, divisor, features)
    from ddcnn.networks import own, torchvision_models
    from ddcnn.networks.adapted import Adapted

    other = own.make if ":" in name else torchvision_models.make
    network = other(name, shape, width, divisor)
    with _refusing(name, shape):
        return Adapted(name, network, shape, features)


def check(name: str, shape: Shape, width: int | None = None, divisor: float = 1, features: int | None = None) -> None:
    """Refuses what ``make`` would refuse, and images that the network cannot take, before anything is trained.

    Built-in networks are checked without torch. Any other one is made once, and two empty images are passed in training mode on the
    CPU: call it once a shape.

    Raises:
        InputError: naming the network, the size and the reason.
    """
    if name in NETWORKS:
        smallest = NETWORKS[name].smallest
        if min(shape.spatial) < smallest:
            raise InputError(
                f"--network {name} needs subimages of at least {smallest} pixels a side, but a subimage has {shape.size}: {LARGER}"
            )
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        network = make(name, shape, width, divisor, features)
        with _refusing(name, shape):
            network.probe(shape)  # type: ignore[operator]


def _refusing(name: str, shape: Shape) -> AbstractContextManager:
    return refusing(f"--network {name} does not work on images of {shape.size}", f"; if they are too small for it, {LARGER}")
