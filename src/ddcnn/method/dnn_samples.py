"""Which samples the DNN learns from: those of the local CNNs, held-out ones, or all of them out of fold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from ddcnn.data.batches import Images
from ddcnn.method.interface import evaluate_interface
from ddcnn.method.local import train_local
from ddcnn.parallel.seeding import numpy_generator
from ddcnn.parallel.world import World
from ddcnn.training.loop import Trainer


@dataclass(frozen=True)
class DnnSamples:
    """Which training samples the local CNNs learn from, and which ones the DNN learns from; the same in every subdomain.

    A local CNN is over-confident on the samples that it was trained on, so the DNN may learn from others.

    Attributes:
        kind: "train": the same samples. "holdout": one fold, which the local CNNs never see. "out-of-fold": all samples, each classified
            by a CNN that was trained on the other folds; the CNN that is kept learns from all samples. "none": no DNN is trained.
        fold: (S,) int64, the fold of each training sample.
    """

    kind: str
    fold: np.ndarray

    @classmethod
    def choose(cls, kind: str, labels: np.ndarray, folds: int, seed: int) -> "DnnSamples":
        """Seeded folds, balanced over the classes, of samples with ``labels`` (S,)."""
        order = numpy_generator(seed, "folds").permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        fold = np.empty(len(labels), dtype=np.int64)
        fold[order] = np.arange(len(labels)) % folds
        return cls(kind, fold)

    @property
    def for_dnn(self) -> np.ndarray:
        """The training samples of the DNN, (S_dnn,)."""
        if self.kind == "none":
            return np.empty(0, np.int64)
        return np.flatnonzero(self.fold == 0) if self.kind == "holdout" else np.arange(len(self.fold))

    @property
    def for_cnn(self) -> np.ndarray:
        """The training samples of the local CNNs, (S_cnn,)."""
        return np.flatnonzero(self.fold != 0) if self.kind == "holdout" else np.arange(len(self.fold))

    @property
    def networks(self) -> int:
        """Number of networks that are trained in each subdomain."""
        return 1 + (int(self.fold.max()) + 1 if self.kind == "out-of-fold" else 0)


def evaluate_interface_out_of_fold(
    group: World, trainer_of: Callable[[int, int], Trainer], make: Callable[[], nn.Module], interface: str, images: Images, fold: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Interface values (S, C) float32 of the training samples, each from a CNN that was not trained on its fold.

    Args:
        trainer_of: for the number of the fold that is left out, and the number of samples that remain.
        fold: (S,) int64, the fold of each training sample.

    Yields:
        ascending samples (b,) and their values (b, C), until all have theirs, on the group's first rank; nothing on its other ranks.

    Raises:
        FloatingPointError, Stopped: as ``train_local``.
    """
    for k in range(int(fold.max()) + 1):
        chosen = np.flatnonzero(fold != k)
        trainer = trainer_of(k, len(chosen))
        network = train_local(group, trainer, make, images, chosen)
        unseen = np.flatnonzero(fold == k)
        for values in evaluate_interface(group, interface, network, images, unseen, trainer.policy):
            if values is not None:
                yield unseen[: len(values)], values
                unseen = unseen[len(values) :]
