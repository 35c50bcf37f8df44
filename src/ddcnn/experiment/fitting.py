"""Whether images, networks and ranks of a run fit each other, and trained weights fit them; rank 0 checks it before any rank trains.

Nothing here imports torch but for networks that are not built in, trained weights, maps and shared parameters.
"""

from collections.abc import Iterator
from functools import partial

from ddcnn.config.methods import Method, divide_images
from ddcnn.config.settings import RunSettings
from ddcnn.data.image_spec import imagenet
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import Source
from ddcnn.decomposition import Decomposition, grid_of_ranks, times
from ddcnn.errors import InputError
from ddcnn.experiment.resumed import Resumed
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape


def check_fits(ranks: int, settings: RunSettings, decomposition: Decomposition, samples: int, channels: int, classes: int) -> None:
    """Refuses too few training samples, a network that does not fit the images, and ranks that do not fit the subdomains."""
    subdomains = len(decomposition) * settings.networks_per_subimage
    if settings.dnn_data != "train" and samples < settings.folds:
        raise InputError(f"{samples} training samples are fewer than --folds {settings.folds}: give more, or a smaller --folds")
    others = [name for name in settings.methods if name != Method.SPATIAL]  # in which ranks share a batch
    sharing = ranks if any(map(settings.sees_whole_image, others)) else max(1, ranks // subdomains) if others else 1
    if samples < 2 * sharing:
        raise InputError(f"{samples} training samples are fewer than two a rank of those that share them: give more, or take fewer ranks")
    holds_out = settings.dnn_data != "train" and settings.needs("local")
    fewest = samples - -(-samples // settings.folds) if holds_out else samples  # that a local CNN learns from
    most = max(1, min(settings.batch_size, fewest) // sharing // 2)
    if settings.accumulate > most:
        shared = f", shared by {sharing} ranks," if sharing > 1 else ""
        raise InputError(
            f"--accumulate {settings.accumulate}: a part would have fewer than two samples of a batch of "
            f"{min(settings.batch_size, fewest)}{shared} for batch normalisation: take {most} at most, or a larger --batch-size"
        )
    check_networks(settings, decomposition, channels, classes)
    if Method.SPATIAL in settings.methods:
        check_spatial(ranks, settings, decomposition)
    if not divide_images(settings.methods):  # any ranks do, and any image is flipped as a whole
        decomposition, subdomains = Decomposition(decomposition.shape, (1,) * len(decomposition.shape)), 1
    if "flip" in settings.augmentations:
        for subdomain in decomposition.subdomains:
            decomposition.mirror(subdomain.index, settings.flipped_axes)
    grid = f" (--grid {times(decomposition.grid)})" if settings.splitting.cuts_images else ""
    check_ranks(ranks, subdomains, f"{subdomains} {settings.splitting.parts}{grid}")


def check_spatial(ranks: int, settings: RunSettings, decomposition: Decomposition) -> None:
    """Refuses networks that ranks cannot divide, and more ranks than an axis has pixels."""
    if settings.network not in registry.NETWORKS:
        raise InputError(
            f"--methods spatial: the layers of --network {settings.network} are not known, so its halos are not: take "
            f"{', '.join(registry.NETWORKS)}, or leave spatial out"
        )
    grid = grid_of_ranks(ranks, decomposition.shape)
    if any(parts > side for parts, side in zip(grid, decomposition.shape, strict=True)):
        raise InputError(
            f"--methods spatial: {ranks} ranks cannot divide images of {times(decomposition.shape)} pixels: take fewer, or leave it out"
        )


def check_ranks(ranks: int, subdomains: int, parts: str) -> None:
    """Refuses ranks that neither divide the subdomains nor are a multiple of them; names the numbers of ranks that would do."""
    if subdomains % ranks and ranks % subdomains:
        fitting = [str(n) for n in range(1, subdomains + 1) if subdomains % n == 0]
        fewer = f"{', '.join(fitting[:-1])} or {fitting[-1]}" if len(fitting) > 1 else "1"
        raise InputError(f"{ranks} ranks do not fit {parts}: start {fewer} ranks, or a multiple of {subdomains} with mpirun -n")


def check_networks(settings: RunSettings, decomposition: Decomposition, channels: int, classes: int) -> None:
    """Raises InputError for a network that cannot take the images, has no maps of them, or cannot share parameters."""
    for arguments in _networks(settings, decomposition, channels, classes):
        registry.check(*arguments)
        if settings.recompute and settings.network not in registry.NETWORKS:
            from ddcnn.networks.recompute import recompute

            recompute(registry.make(*arguments[:2]), settings.network)
    if all(map(settings.sees_whole_image, settings.methods)):
        return
    design = settings.local_design(len(decomposition) * settings.networks_per_subimage)
    if settings.interface == "maps":
        from ddcnn.networks.maps import map_interface

        map_interface(design, decomposition, channels, classes)
    if settings.share != "none" and settings.joint:
        from ddcnn.method.shared import check_shared

        check_shared(settings.share, design, [Shape(one.subimage.shape, channels, classes) for one in decomposition.subdomains])


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
    if divisor != 1 and divide_images(settings.methods):
        raise InputError(
            f"--weights {settings.weights} are of full width, and local CNNs are thinner by {divisor:g}: add --width-divisor 1"
        )
    for design, shape, _ in _networks(settings, decomposition, images.shape[-1], len(images.class_names)):
        weights.check(partial(registry.make, design, shape), settings.network)


def _networks(
    settings: RunSettings, decomposition: Decomposition, channels: int, classes: int
) -> Iterator[tuple[registry.Design, Shape, str]]:
    """Arguments of ``registry.check`` for all that differ of a run's networks."""
    shape, subdomains = partial(Shape, channels=channels, classes=classes), len(decomposition) * settings.networks_per_subimage
    if divide_images(settings.methods):
        for spatial in dict.fromkeys(subdomain.subimage.shape for subdomain in decomposition.subdomains):
            remedy = registry.LARGER_IMAGES if spatial == decomposition.shape else registry.LARGER_SUBIMAGES
            yield settings.local_design(subdomains), shape(spatial), remedy
    for method in [method for method in map(Method, settings.methods) if method.whole_image][:1]:
        yield settings.global_design(method), shape(decomposition.shape), registry.LARGER_IMAGES
