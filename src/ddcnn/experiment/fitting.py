"""Whether the networks of a run fit its images, and trained weights fit both; rank 0 checks it before any rank trains.

Nothing here imports torch but for networks that are not built in, and for trained weights.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.image_spec import imagenet
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import Source
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.experiment.resumed import Resumed
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape


def check_networks(settings: RunSettings, decomposition: Decomposition, channels: int, classes: int) -> None:
    """Raises InputError for a network that cannot take the images."""
    for arguments in _networks(settings, decomposition, channels, classes):
        registry.check(*arguments)


def check_trained(
    settings: RunSettings, decomposition: Decomposition, images: Source | PartitionedSet, dtype: str, resumed: Resumed | None
) -> None:
    """Raises InputError for trained weights that do not fit, or have changed, and for images that cannot be normalised as theirs."""
    if settings.normalise == "imagenet":
        imagenet(images.shape, dtype, images.preprocessing, settings.network)
    if settings.weights is None:
        return
    from ddcnn.io.weights import Weights

    weights = Weights.read(settings.weights)
    if resumed:
        resumed.check_weights(settings.weights, weights.sha256)
    divisor = settings.divisor(len(decomposition) * settings.networks_per_subimage)
    if divisor != 1 and any(not method.whole_image for method in settings.methods):
        raise InputError(
            f"--weights {settings.weights} are of full width, and local CNNs are thinner by {divisor:g}: add --width-divisor 1"
        )
    for *arguments, _ in _networks(settings, decomposition, images.shape[-1], len(images.class_names)):
        weights.check(partial(registry.make, *arguments), settings.network)


def _networks(settings: RunSettings, decomposition: Decomposition, channels: int, classes: int) -> Iterator[tuple[Any, ...]]:
    """Arguments of ``registry.check``, and but for the last of ``registry.make``, for all that differ of a run's networks."""
    shape, subdomains = partial(Shape, channels=channels, classes=classes), len(decomposition) * settings.networks_per_subimage
    if any(not method.whole_image for method in settings.methods):
        for spatial in dict.fromkeys(subdomain.subimage.shape for subdomain in decomposition.subdomains):
            remedy = registry.LARGER_IMAGES if spatial == decomposition.shape else registry.LARGER_SUBIMAGES
            yield settings.network, shape(spatial), settings.width, settings.divisor(subdomains), settings.features, remedy
    if Method.GLOBAL in settings.methods:
        yield settings.network, shape(decomposition.shape), settings.width_of(Method.GLOBAL), 1, None, registry.LARGER_IMAGES
