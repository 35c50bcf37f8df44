"""Local training: every subdomain's CNN on its own subimages, with no communication at all (arXiv 2302.06564, section 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ddcnn.data.batches import Samples
from ddcnn.seeding import Seeds, numpy_generator
from ddcnn.training import Engine, Epoch, Recipe, build, classify, train


@dataclass(frozen=True)
class LocalClassifier:
    """A trained local CNN f_i and what it says.

    Attributes:
        for_dnn: (S_dnn, K) float32, the p_i that the DNN will be trained on, in the order of ``DnnSamples.index``.
        test: (S_test, K) float32, the p_i of the test samples.
    """

    network: nn.Module
    for_dnn: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class DnnSamples:
    """Which training samples the local CNNs learn from and which ones the DNN does, the same in every subdomain.

    A local CNN is over-confident on samples that it has learnt, so the DNN can be given others:
    ``train`` the same samples; ``holdout`` one fold of ``folds`` that the local CNNs never see; ``out-of-fold`` all samples, each
    classified by a CNN that was trained on the other folds, while the CNN that is kept learns from all; ``none`` without a DNN.
    """

    kind: str
    fold: np.ndarray  # (S,) the fold of every training sample

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
    make: Callable[[], nn.Module],
    training: Samples,
    test: Samples,
    dnn_samples: DnnSamples,
    recipe: Recipe,
    engine: Engine,
    seeds: Seeds,
    after_epoch: Callable[[nn.Module, Epoch, int | None], None] = lambda network, epoch, fold: None,
) -> LocalClassifier:
    """Trains the local CNN of one subdomain and classifies with it.

    Args:
        make: a new network with initial parameters.
        training, test: the subdomain's subimages (R_i x) with their labels y.
        after_epoch: called with the network, the epoch, and the fold that was left out (None for the network that is kept).
    """

    def train_on(index: np.ndarray, fold: int | None = None) -> nn.Module:
        own = seeds if fold is None else Seeds(seeds.seed, f"{seeds.role} without fold {fold}", seeds.subdomain)
        network = build(make, own, engine)
        train(network, training, torch.from_numpy(index), recipe, engine, own, lambda epoch: after_epoch(network, epoch, fold))
        return network

    def classify_with(network: nn.Module, samples: Samples, index: np.ndarray) -> np.ndarray:
        return classify(network, samples, torch.from_numpy(index), engine).numpy()

    network = train_on(dnn_samples.for_cnn)
    if dnn_samples.kind == "out-of-fold":
        fold, unseen = dnn_samples.fold, []
        for k in range(int(fold.max()) + 1):
            unseen.append(classify_with(train_on(np.flatnonzero(fold != k), k), training, np.flatnonzero(fold == k)))
        for_dnn = np.concatenate(unseen)[np.argsort(np.argsort(fold, kind="stable"))]
    else:
        for_dnn = classify_with(network, training, dnn_samples.index)
    return LocalClassifier(network, for_dnn, classify_with(network, test, np.arange(len(test.labels))))
