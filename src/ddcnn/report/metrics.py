"""Scores of decisions, computed by scikit-learn: accuracy, measures for imbalanced classes, calibration."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ddcnn.io.rows import Table

MANY_CLASSES = 100  # no confusion matrix in results.json beyond
BINS = 15  # of confidences, as usual since Guo et al., arXiv 1706.04599


@dataclass(frozen=True)
class Probable:
    """What is kept of probabilities (S, K), which may be very many.

    Attributes:
        classes: (S,) int64, the most probable ones.
        confidence: (S,) float32, their probabilities.
        loss: mean cross entropy.
        auc: as of ``scores``.
    """

    classes: np.ndarray
    confidence: np.ndarray
    loss: float
    auc: float | None

    @classmethod
    def of(cls, probabilities: Table, labels: np.ndarray) -> "Probable":
        """Of probabilities against ``labels`` (S,), block by block."""
        classes = probabilities.mapped(lambda block: block.argmax(axis=1))
        confidence = probabilities.mapped(lambda block: block.max(axis=1).astype(np.float32))
        return cls(classes, confidence, cross_entropy(labels, probabilities), auc(labels, probabilities))


def import_libraries() -> None:
    """Imports now what the scores need: that takes a second or more, which is to be of no method's time."""
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401


def scores(labels: np.ndarray, classes: np.ndarray, probable: Probable | None, number_of_classes: int) -> dict[str, Any]:
    """Scores of decisions ``classes`` (S,), and of their probabilities if there are any, against ``labels`` (S,).

    Returns:
        ``test_accuracy``; ``balanced_accuracy``, mean per-class recall; ``auc``, the area under the ROC
        curve, of more than two classes the mean over each against the rest (None without probabilities); ``test_loss``, the mean
        cross entropy (None without probabilities); ``confusion``, counts (K, K), true classes in rows (None for many classes). Classes
        without test samples do not count.
    """
    from sklearn.metrics import recall_score

    present = np.unique(labels)
    return {
        "test_accuracy": float((classes == labels).mean()),
        "test_loss": probable and probable.loss,
        "balanced_accuracy": float(recall_score(labels, classes, labels=present, average="macro", zero_division=0)),
        "auc": probable and probable.auc,
        "confusion": confusion(labels, classes, number_of_classes).tolist() if number_of_classes <= MANY_CLASSES else None,
    }


def cross_entropy(labels: np.ndarray, probabilities: Table) -> float:
    """Mean cross entropy of probabilities (S, K)."""
    of_label, start = np.empty(len(labels), probabilities.dtype), 0
    for block in probabilities.blocks():
        stop = start + len(block)
        of_label[start:stop] = block[np.arange(len(block)), labels[start:stop]]
        start = stop
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())


def auc(labels: np.ndarray, probabilities: Table) -> float | None:
    """Area under the ROC curve; None if all samples are of one class."""
    from sklearn.metrics import roc_auc_score

    (classes,), counts = probabilities.shape, np.bincount(labels)
    tested = [k for k in np.flatnonzero(counts).tolist() if counts[k] < len(labels) and (classes > 2 or k == 1)]
    rates = [roc_auc_score(labels == k, column) for k, column in probabilities.columns(tested)]
    return float(np.mean(rates)) if rates else None


def confusion(labels: np.ndarray, classes: np.ndarray, number_of_classes: int) -> np.ndarray:
    """(K, K) counts: true classes in rows, decisions in columns."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, classes, labels=np.arange(number_of_classes))


def reliability(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy (NaN without samples) and number of samples in bins of equal width, (BINS,) each.

    Args:
        confidence: (S,) probabilities of the decisions.
        correct: (S,) bool.
    """
    from scipy.stats import binned_statistic

    confidence = np.clip(confidence, 0, 1)  # a mean may exceed 1 by rounding
    (mean, accuracy), _, place = binned_statistic(confidence, [confidence, correct], bins=BINS, range=(0, 1))
    return mean, accuracy, np.bincount(place - 1, minlength=BINS)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over the bins, weighted by samples."""
    mean, accuracy, samples = reliability(confidence, correct)
    return float(np.nansum(samples * abs(mean - accuracy)) / len(correct))
