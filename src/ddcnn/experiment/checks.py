"""What can be refused only with networks at hand, before a run trains: parts to start from, and what thin networks compose to."""

from functools import partial

import torch

from ddcnn.config.settings import RunSettings
from ddcnn.method.factory import Networks
from ddcnn.method.width import check_composes
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape
from ddcnn.parallel.world import World


def check_start(networks: Networks, owned: range) -> RunSettings:
    """The settings of a run that starts from another one's local CNNs: with the epochs that these have been trained for.

    Raises:
        InputError: a part is missing or of another kind.
    """
    epochs = {networks.kept_local(index)[1] for index in owned}
    networks.kept_dnn()
    return networks.settings.model_copy(update={"epochs": max(epochs)})


def check_composition(alone: World, networks: Networks) -> None:
    """Refuses a network that thin networks cannot be composed to."""
    settings, store, n = networks.settings, networks.store, networks.subdomains
    *spatial, channels = store.shape
    if settings.network in registry.NETWORKS:  # whose structure does not depend on the size
        spatial = [min(side, 32) for side in spatial]
    make = partial(registry.make, settings.network, Shape(tuple(spatial), channels, networks.classes), settings.width)
    images = torch.randn(1, channels, *spatial, generator=torch.Generator().manual_seed(0))
    check_composes(alone, settings.network, partial(make, settings.divisor(n), settings.features), make, n, images)
