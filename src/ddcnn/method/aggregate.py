"""One decision from the local classifications: majority vote, average probability, CNN-DNN (arXiv 2408.14442, section 2).

Shapes: probabilities p (S, N, K) float32, p[s, i] = p_i(x_s); each row sums to one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Rows
from ddcnn.data.stored import Streamed
from ddcnn.io.rows import Room, Table, kept
from ddcnn.networks.maps import MapInterface
from ddcnn.training.evaluation import classify
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy


def vote(probabilities: np.ndarray) -> np.ndarray:
    """Majority vote over arg max p_i: (S, N, K) float32 -> classes (S,) int64 (arXiv 2408.14442, section 2).

    A tie goes to the tied class with the larger summed probability, then to the lower class index (our rule, the papers state none).
    """
    return vote_scores(torch.from_numpy(probabilities)).argmax(1).numpy()


def vote_scores(probabilities: torch.Tensor) -> torch.Tensor:
    """Scores of ``vote``: (S, N, K) float32 -> (S, K) float64; the class with the largest score wins."""
    classes = probabilities.argmax(2)  # (S, N)
    votes = classes.new_zeros(probabilities.shape[0], probabilities.shape[2]).scatter_add_(1, classes, torch.ones_like(classes))  # (S, K)
    tied = votes == votes.amax(1, keepdim=True)
    return torch.where(tied, probabilities.sum(1, dtype=torch.float64), -1.0)


def average(probabilities: np.ndarray) -> np.ndarray:
    """The mean of the p_i: (S, N, K) float32 -> probabilities (S, K) float64; their arg max decides (arXiv 2408.14442, section 2)."""
    return probabilities.mean(axis=1, dtype=np.float64)


def train_dnn(trainer: Trainer, make: Callable[[], nn.Module], values: np.ndarray | Table, labels: np.ndarray) -> nn.Module:
    """CNN-DNN: trains the DNN on gathered interface values, in the papers the p_i (arXiv 2302.06564, section 3); on one rank.

    Args:
        values: (S, N, C) float32.
        labels: (S,) int64.

    Returns:
        the network that ``make`` makes, (B, N·C) float32 -> logits (B, K).

    Raises:
        FloatingPointError: the loss is NaN or infinite.
        Stopped: the callback was asked to stop.
    """
    network = trainer.build(make)
    trainer.train(network, dnn_rows(values, labels, trainer.policy), torch.arange(len(labels)))
    return network


def classify_by_dnn(network: Any, values: np.ndarray, policy: DevicePolicy, present: Sequence[int] | None = None) -> np.ndarray:
    """The DNN's probabilities (S, K) float32 from interface values (S, n, C) of the subdomains ``present``; None for all."""
    if present is not None:
        values = fill_missing(torch.from_numpy(values), present, network).numpy()
    labels = np.zeros(len(values), dtype=np.int64)  # not used
    return classify(network, dnn_rows(values, labels, policy), torch.arange(len(values)), policy).numpy()


def fill_missing(values: torch.Tensor, present: Sequence[int], dnn: Any) -> torch.Tensor:
    """(B, n, C) of the subdomains ``present`` -> (B, N, C): a missing subdomain's values are the mean of the others', of maps their cells'.

    On CIFAR-10 (2x2) the geometric mean was as accurate, 1/K for every class less so. Averaging without the DNN was less accurate for
    ``dnn`` and ``transfer`` but more so for ``coherent``, whose local CNNs have never learnt to decide alone. Of maps, the mean of the
    others' maps, cell by cell, was less accurate by half a point.
    """
    if len(present) == dnn.subdomains:
        return values
    place, of_maps = {i: k for k, i in enumerate(present)}, dnn.interface

    def stand_in(missing: int) -> torch.Tensor:
        return of_maps.stand_in(values, present, missing) if isinstance(of_maps, MapInterface) else values.mean(1)

    return torch.stack([values[:, place[i]] if i in place else stand_in(i) for i in range(dnn.subdomains)], 1)


def classify_all_by_dnn(network: Any, values: Table, policy: DevicePolicy, room: Room) -> Table:
    """``classify_by_dnn`` of a table (S, N, C), block by block -> (S, K)."""
    found = kept(len(values), (classify_by_dnn(network, block, policy) for block in values.blocks()), room)
    assert found is not None
    return found


def dnn_rows(values: np.ndarray | Table, labels: np.ndarray, policy: DevicePolicy) -> Rows:
    """Samples of the DNN: interface values (S, N, C), on the device, or in a file from which they are read as they are needed."""
    classes, flat = torch.from_numpy(labels).to(policy.device), (values if isinstance(values, Table) else Table.of(values)).flat
    if flat.in_memory:
        return Rows.of(torch.from_numpy(flat.array).to(policy.device), classes)
    return Rows(Streamed(flat, policy.device), classes)
