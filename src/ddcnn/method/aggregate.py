"""One decision out of the local classifications: majority vote, average probability, CNN-DNN (arXiv 2408.14442, section 2).

Shapes: probabilities p (S, N, K) float32, p[s, i] = p_i(x_s), rows of which sum to one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Rows
from ddcnn.networks.dense import DenseNetwork
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Epoch, Keeper, NothingKept, Recipe, build, classify, train
from ddcnn.training.precision import DevicePolicy


def vote(probabilities: np.ndarray) -> np.ndarray:
    """Majority vote over arg max p_i: (S, N, K) float32 -> classes (S,) int64 (arXiv 2408.14442, section 2).

    A tie goes to the tied class with the larger summed probability, then to the lower class index (our rule, the papers state none).
    """
    return vote_scores(torch.from_numpy(probabilities)).argmax(1).numpy()


def vote_scores(probabilities: torch.Tensor) -> torch.Tensor:
    """(S, N, K) float32 -> (S, K) float64, the largest of which is the class that ``vote`` decides for."""
    votes = nn.functional.one_hot(probabilities.argmax(2), probabilities.shape[2]).sum(1)  # (S, K)
    tied = votes == votes.amax(1, keepdim=True)
    return torch.where(tied, probabilities.sum(1, dtype=torch.float64), -1.0)


def average(probabilities: np.ndarray) -> np.ndarray:
    """The mean of the p_i: (S, N, K) float32 -> probabilities (S, K) float64; their arg max decides (arXiv 2408.14442, section 2)."""
    return probabilities.mean(axis=1, dtype=np.float64)


def train_dnn(
    values: np.ndarray,
    labels: np.ndarray,
    interface: str,
    classes: int,
    recipe: Recipe,
    policy: DevicePolicy,
    seeds: Seeds,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    keeper: Keeper = NothingKept(),
) -> nn.Module:
    """CNN-DNN: trains the DNN on gathered interface values, in the papers the p_i (arXiv 2302.06564, section 3); on one rank alone.

    Args:
        values: (S, N, C) float32.
        labels: (S,) int64.
        interface: "probabilities", "logits" or "features": what the values are.
        classes: K.

    Returns:
        the network, (B, N·C) float32 -> logits (B, K).

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    network = build_dnn(interface, values.shape[1], values.shape[2], classes, policy, seeds)
    train(network, dnn_rows(values, labels, policy), torch.arange(len(labels)), recipe, policy, seeds, after_epoch, keeper)
    return network


def build_dnn(interface: str, subdomains: int, values: int, classes: int, policy: DevicePolicy, seeds: Seeds) -> nn.Module:
    """The DNN before training, of N subdomains, C values each, and K classes."""
    return build(lambda: DenseNetwork(interface, subdomains, values, classes), seeds, policy)


def classify_by_dnn(network: Any, values: np.ndarray, policy: DevicePolicy, present: Sequence[int] | None = None) -> np.ndarray:
    """The DNN's probabilities (S, K) float32 out of interface values (S, n, C) of the subdomains ``present``, None for all."""
    if present is not None:
        values = fill_missing(torch.from_numpy(values), present, network.subdomains).numpy()
    unknown = np.zeros(len(values), dtype=np.int64)  # labels
    return classify(network, dnn_rows(values, unknown, policy), torch.arange(len(values)), policy).numpy()


def fill_missing(values: torch.Tensor, present: Sequence[int], subdomains: int) -> torch.Tensor:
    """(B, n, C) of the subdomains ``present`` -> (B, N, C): in the place of a missing one's values stands the mean of the others'.

    On CIFAR-10 (2x2) the geometric mean did as well, 1/K for every class worse, and leaving the DNN out too (``average``) worse
    for ``dnn`` and ``transfer``, but better for ``coherent``, whose local CNNs have never learnt to decide alone.
    """
    if len(present) == subdomains:
        return values
    place = {i: k for k, i in enumerate(present)}
    mean = values.mean(1)
    return torch.stack([values[:, place[i]] if i in place else mean for i in range(subdomains)], 1)


@contextmanager
def capture_inputs(dnn: nn.Module) -> Iterator[list[np.ndarray]]:
    """Collects the DNN's inputs, (B, N·C) each, while it classifies as a part of another network."""
    seen: list[np.ndarray] = []
    hook = dnn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu().numpy()))
    try:
        yield seen
    finally:
        hook.remove()


def dnn_rows(values: np.ndarray, labels: np.ndarray, policy: DevicePolicy) -> Rows:
    """The DNN's samples: (S, N, C) -> inputs (S, N·C)."""
    inputs = torch.from_numpy(values.reshape(len(labels), -1)).to(policy.device)
    return Rows(inputs, torch.from_numpy(labels).to(policy.device))
