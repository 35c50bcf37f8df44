"""Local training: every subdomain's CNN on its own subimages, with no communication at all (arXiv 2302.06564, section 3).

Where there are more ranks than subdomains, the ranks of a subdomain's group train its CNN together, data-parallel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Images, Samples
from ddcnn.method.interface import interface_values
from ddcnn.parallel.seeding import Seeds, numpy_generator
from ddcnn.parallel.world import World
from ddcnn.training.data_parallel import divided, train_data_parallel
from ddcnn.training.loop import Epoch, Keeper, NothingKept, Recipe, build, evaluate
from ddcnn.training.precision import DevicePolicy


@dataclass(frozen=True)
class DnnSamples:
    """Which training samples the local CNNs learn from and which ones the DNN does, the same in every subdomain.

    A local CNN is over-confident on samples that it has learnt, so the DNN can be given others:
    ``train`` the same samples; ``holdout`` one fold of ``folds`` that the local CNNs never see; ``out-of-fold`` all samples, each
    classified by a CNN that was trained on the other folds, while the CNN that is kept learns from all; ``none`` without a DNN.
    """

    kind: str
    fold: np.ndarray  # (S,) int64, the fold of every training sample

    @classmethod
    def choose(cls, kind: str, labels: np.ndarray, folds: int, seed: int) -> "DnnSamples":
        """Seeded, class-balanced folds of samples with ``labels`` (S,)."""
        order = numpy_generator(seed, "folds").permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        fold = np.empty(len(labels), dtype=np.int64)
        fold[order] = np.arange(len(labels)) % folds
        return cls(kind, fold)

    @property
    def index(self) -> np.ndarray:
        """The training samples of the DNN, (S_dnn,)."""
        chosen = {"none": self.fold < 0, "holdout": self.fold == 0}
        return np.flatnonzero(chosen.get(self.kind, self.fold >= 0))

    @property
    def for_cnn(self) -> np.ndarray:
        """The training samples of the local CNNs, (S_cnn,)."""
        return np.flatnonzero(self.fold != 0) if self.kind == "holdout" else np.arange(len(self.fold))

    @property
    def networks(self) -> int:
        """How many networks are trained in a subdomain."""
        return 1 + (int(self.fold.max()) + 1 if self.kind == "out-of-fold" else 0)


def train_local(
    group: World,
    make: Callable[[], nn.Module],
    training: Images,
    chosen: np.ndarray,
    recipe: Recipe,
    policy: DevicePolicy,
    seeds: Seeds,
    after_epoch: Callable[[nn.Module, Epoch], None] = lambda network, epoch: None,
    keeper: Keeper = NothingKept(),
) -> nn.Module:
    """Trains a local CNN f_i on (R_i x, y) alone (arXiv 2302.06564, section 3).

    Args:
        group: the ranks that train it together, of which nearly always there is one.
        make: a new network with initial parameters.
        training: the subdomain's subimages (R_i x) with their labels y.
        chosen: (S_cnn,) which of them it learns from.

    Returns:
        the network, (B, C, *subimage) float32 -> logits (B, K), on every rank of the group.

    Raises:
        FloatingPointError: the loss is no longer a number.
        Stopped: the keeper was asked to stop.
    """
    network = build(make, seeds, policy)
    train_data_parallel(group, network, training, chosen, recipe, policy, seeds, lambda epoch: after_epoch(network, epoch), keeper)
    return network


def evaluate_interface_out_of_fold(
    group: World,
    make: Callable[[], nn.Module],
    interface: str,
    training: Images,
    fold: np.ndarray,
    recipe: Recipe,
    policy: DevicePolicy,
    seeds: Seeds,
    after_epoch: Callable[[nn.Module, Epoch], None] = lambda network, epoch: None,
    keeper: Callable[[int, int], Keeper] = lambda fold, samples: NothingKept(),
) -> np.ndarray | None:
    """Interface values (S, C) float32 of the training samples, each by a CNN that was trained on the folds that it is not in.

    Args:
        fold: (S,) int64, the fold of every training sample.
        keeper: of the training without a fold, on so many samples.

    Returns:
        the values, in the order of the samples; on the group's first rank, None on the others.

    Raises:
        FloatingPointError, Stopped: as ``train_local``.
    """
    unseen: list[Any] = []
    for k in range(int(fold.max()) + 1):
        own = Seeds(seeds.seed, f"{seeds.role} without fold {k}", seeds.subdomain)
        chosen = np.flatnonzero(fold != k)
        network = train_local(group, make, training, chosen, recipe, policy, own, after_epoch, keeper(k, len(chosen)))
        unseen.append(evaluate_interface(group, interface, network, training, np.flatnonzero(fold == k), policy))
    if group.rank:
        return None
    return np.concatenate(unseen)[np.argsort(np.argsort(fold, kind="stable"))]


def evaluate_interface(
    group: World, interface: str, network: nn.Module, samples: Samples, chosen: np.ndarray, policy: DevicePolicy
) -> np.ndarray | None:  # fmt: skip
    """Interface values (S, C) float32 of the samples ``chosen`` (S,), on the group's first rank, None on the others."""

    def work(own: np.ndarray) -> np.ndarray:
        return evaluate(network, partial(interface_values, interface, network), samples, torch.from_numpy(own), policy).numpy()

    return divided(group, chosen, work)


def classified(interface: str, network: Any, values: torch.Tensor) -> torch.Tensor:
    """p_i (B, K) out of what a local CNN hands over, (B, C), without another pass through the convolutions."""
    if interface == "probabilities":
        return values
    return (network.classifier(values) if interface == "features" else values).softmax(1)


@torch.inference_mode()
def probabilities_of(interface: str, network: Any, values: np.ndarray, policy: DevicePolicy) -> np.ndarray:
    """The p_i (S, K) float32 out of interface values (S, C)."""
    return classified(interface, network, torch.from_numpy(values).to(policy.device)).cpu().numpy()
