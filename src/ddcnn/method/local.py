"""Local training: the CNN of each subdomain on its own subimages, without communication (arXiv 2302.06564, section 3).

With more ranks than subdomains, the ranks of a subdomain's group train its CNN together, data-parallel.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from ddcnn.data.batches import Images
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import train_data_parallel
from ddcnn.training.loop import Trainer


def train_local(group: World, trainer: Trainer, make: Callable[[], nn.Module], images: Images, chosen: np.ndarray) -> nn.Module:
    """Trains a local CNN f_i on (R_i x, y) alone (arXiv 2302.06564, section 3).

    Args:
        group: the ranks that train it together, usually a single one.
        make: makes the network, with new initial parameters.
        images: the subdomain's subimages R_i x with their labels y.
        chosen: (S_cnn,) int64, the samples to train on.

    Returns:
        the network, (B, C, *subimage) float32 -> logits (B, K), on every rank of the group.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        Stopped: the callback was asked to stop.
    """
    network = trainer.build(make)
    train_data_parallel(group, trainer, network, images, chosen)
    return network
