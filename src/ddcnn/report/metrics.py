"""Scores of decisions, computed by scikit-learn: accuracy, measures for imbalanced classes, calibration."""

from typing import Any

import numpy as np

MANY_CLASSES = 100  # no confusion matrix in results.json beyond
BINS = 15  # of confidences, as usual since Guo et al., arXiv 1706.04599


def scores(labels: np.ndarray, classes: np.ndarray, probabilities: np.ndarray | None, number_of_classes: int) -> dict[str, Any]:
    """Scores of decisions ``classes`` (S,) and, if there are any, probabilities (S, K), against ``labels`` (S,).

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
        "test_loss": None if probabilities is None else cross_entropy(labels, probabilities),
        "balanced_accuracy": float(recall_score(labels, classes, labels=present, average="macro", zero_division=0)),
        "auc": None if probabilities is None else auc(labels, probabilities),
        "confusion": confusion(labels, classes, number_of_classes).tolist() if number_of_classes <= MANY_CLASSES else None,
    }


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean cross entropy of probabilities (S, K)."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Area under the ROC curve; None if all samples are of one class."""
    from sklearn.metrics import roc_auc_score

    tested = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    rates = [roc_auc_score(labels == k, probabilities[:, k]) for k in tested if 0 < (labels == k).sum() < len(labels)]
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
