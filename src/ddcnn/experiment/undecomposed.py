"""The undecomposed CNN, trained by all ranks: each with its share of every batch, or with its part of every image."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.data.batches import Images
from ddcnn.experiment.problem import Problem
from ddcnn.io.rows import Room, Table, kept
from ddcnn.method.spatial import SpatialNetwork, train_spatial
from ddcnn.training.data_parallel import classify_together, divided, train_data_parallel
from ddcnn.training.evaluation import classify
from ddcnn.training.loop import Trainer


class DataParallel:
    """PyTorch's DistributedDataParallel.

    Attributes:
        images: loads those of a split.
        sharing: the ranks that share a batch.
        network: as this rank sees it.
    """

    def __init__(self, problem: Problem, network: nn.Module):
        self.problem, self.network, self.sharing = problem, network, problem.world.size
        self.images: Callable[[str], Images] = problem.whole_images

    def train(self, trainer: Trainer, images: Images, chosen: np.ndarray) -> None:
        train_data_parallel(self.problem.world, trainer, self.network, images, chosen)

    def classify(self, images: Images, samples: int, room: Room) -> Table | None:
        """Probabilities (S, K) float32 of all S samples on rank 0, None on the others."""
        return classify_together(self.problem.world, self.network, images, samples, self.problem.policy, room)


class Spatial:
    """Exact spatial parallelism; otherwise as ``DataParallel``."""

    def __init__(self, problem: Problem, network: nn.Module):
        self.problem, self.network = problem, SpatialNetwork(problem.world, network, problem.layout)
        self.sharing = 1
        self.images: Callable[[str], Images] = problem.parts_of_images

    def train(self, trainer: Trainer, images: Images, chosen: np.ndarray) -> None:
        train_spatial(trainer, self.network, images, chosen)

    def classify(self, images: Images, samples: int, room: Room) -> Table | None:
        world, policy = self.problem.world, self.problem.policy

        def work(block: np.ndarray) -> np.ndarray:
            return classify(self.network, images, torch.from_numpy(block), policy).numpy()

        blocks = (block if world.rank == 0 else None for block in divided(world.alone(), np.arange(samples), images.pixels, work))
        return kept(samples, blocks, room)


def undecomposed(problem: Problem, method: Method, network: nn.Module) -> DataParallel | Spatial:
    """How all ranks train the network of a method that sees the whole image."""
    return (Spatial if method == Method.SPATIAL else DataParallel)(problem, network)
