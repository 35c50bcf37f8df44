"""Networks by the name that ``--network`` gives: built-in ones, torchvision's classification networks, and your own.

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
``--width`` is given. ``shape`` describes the network's input (see ``Shape``); ``divisor`` is that of the width rule, 1 for the
global CNN. The network maps images (B, C, *spatial) to logits (B, K), and its last operation is an ``nn.Linear`` with K outputs,
whose input is the last hidden layer. Initial parameters must come from PyTorch's generator, which is seeded.

To add a built-in network, write a module with a factory ``(shape, width, divisor, features, head=...) -> nn.Module``, and enter it in
``NETWORKS``. For ``--interface maps`` it has ``maps``, ``maps_and_features``, ``cell`` and ``channels``, for ``--share early`` also
``early``, as the VGGs have; with ``stages`` in its entry, its factory takes ``stages`` and ``coarse_stages``, too. This module imports
torch only when a network is made.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddcnn.errors import InputError
from ddcnn.networks.shape import Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """A built-in network.

    Attributes:
        factory: "package.module:function", imported when it is used.
        width: default of ``--width``, the channels of the first stage of the global network.
        smallest: smallest side of a subimage, pixels.
        heads: what ``--head`` may be, the default first.
        stages: convolutions of every stage, where ``--coarse-stages`` can give the last ones to the DNN.
    """

    factory: str
    width: int
    smallest: int
    heads: tuple[str, ...]
    stages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Design:
    """A network by its options; what images it takes is said when it is made.

    Attributes:
        width: channels of the first stage of the *global* network; None for the default.
        divisor: of the width rule; 1 for the global network.
        features: F; None for the network's own.
        head: of a built-in network; None for the default.
        coarse_stages: of the last stages, those that a local CNN lacks, since the DNN has them.
    """

    name: str
    width: int | None = None
    divisor: float = 1
    features: int | None = None
    head: str | None = None
    coarse_stages: int = 0


NETWORKS = {
    "vgg3": Architecture("ddcnn.networks.vgg:vgg3", 32, 4, ("pooled", "dense"), (1, 1, 1)),
    "vgg9": Architecture("ddcnn.networks.vgg:vgg9", 32, 4, ("pooled", "dense"), (2, 2, 2)),
    "resnet20": Architecture("ddcnn.networks.resnet:resnet20", 16, 4, ("pooled",)),
    "resnet18": Architecture("ddcnn.networks.resnet:resnet18", 64, 8, ("pooled",)),  # below 8 pixels all stages would see a single one
}

LARGER_SUBIMAGES = "choose a coarser --grid or a larger --overlap"
LARGER_IMAGES = "choose another --network, or larger images"


def make(design: Design, shape: Shape) -> "nn.Module":
    """Makes a local CNN or the global CNN, with new initial parameters.

    The network maps images (B, C, *spatial) to logits (B, K). Its method ``features`` maps images to the last hidden layer (B, F), and
    its ``classifier`` is the ``nn.Linear`` from there to the logits.

    Args:
        shape: of the network's input.

    Raises:
        InputError: an unknown network, or unsupported options.
    """
    name = design.name
    if built_in := NETWORKS.get(name):
        module, _, function = built_in.factory.partition(":")
        factory = getattr(importlib.import_module(module), function)
        stages = {"stages": built_in.stages, "coarse_stages": design.coarse_stages} if built_in.stages else {}
        head = design.head or built_in.heads[0]
        return factory(shape, design.width or built_in.width, design.divisor, design.features, head=head, **stages)
    from ddcnn.networks import custom, torchvision_models

    if ":" in name:
        network = custom.make(name, shape, design.width, design.divisor)
    else:
        network = torchvision_models.make(name, shape, design.width, design.divisor, built_in=list(NETWORKS))
    with custom.errors_as_input_error(_does_not_work(name, shape), ""):
        return custom.HeadedNetwork(name, network, shape, design.features)


def check(design: Design, shape: Shape, remedy: str = LARGER_SUBIMAGES) -> None:
    """Refuses unsupported options and images that the network cannot take, before anything is trained.

    Built-in networks are checked without torch. Any other network is made and passes two images of zeros in training mode on the CPU,
    which takes time: call this once per shape.

    Args:
        remedy: for images that are too small, for the message.

    Raises:
        InputError: with the network, the size and the reason.
    """
    name, head = design.name, design.head
    if head and head not in (heads := NETWORKS[name].heads if name in NETWORKS else ()):
        has = f"which has {' and '.join(heads)}" if heads else "whose head is its own"
        raise InputError(f"--head {head}: there is no such head of --network {name}, {has}: leave --head out")
    if name in NETWORKS:
        smallest = NETWORKS[name].smallest
        if min(shape.spatial) < smallest:
            raise InputError(f"--network {name} needs images of at least {smallest} pixels a side, but gets {shape.size}: {remedy}")
        return
    import torch

    from ddcnn.networks.custom import errors_as_input_error

    with torch.random.fork_rng(devices=[]):
        network = make(design, shape)
        with errors_as_input_error(_does_not_work(name, shape), f"; if they are too small for it, {remedy}"):
            network.check_on_zeros(shape)  # type: ignore[operator]


def _does_not_work(name: str, shape: Shape) -> str:
    return f"--network {name} does not work on images of {shape.size}"
