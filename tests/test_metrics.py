"""Accuracy, balanced accuracy, AUC and confusion, against hand calculation."""

import numpy as np
import pytest

from ddcnn.io.rows import Table
from ddcnn.report.metrics import MANY_CLASSES, Probable, scores

LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1])


def of(labels, probabilities, number_of_classes):
    probable = Probable.of(Table.of(probabilities), labels)
    return scores(labels, probable.classes, probable, number_of_classes)


def auc(labels, probabilities):
    return Probable.of(Table.of(probabilities), labels).auc


def test_of_a_rare_class_that_is_never_found():
    probabilities = np.tile([0.9, 0.1], (8, 1))
    found = of(LABELS, probabilities, 2)
    assert found["test_accuracy"] == 0.75
    assert found["balanced_accuracy"] == 0.5
    assert found["auc"] == 0.5
    assert found["confusion"] == [[6, 0], [2, 0]]
    assert found["test_loss"] == pytest.approx(-(6 * np.log(0.9) + 2 * np.log(0.1)) / 8)


def test_auc_is_the_share_of_pairs_in_the_right_order():
    second = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.5, 0.7])  # of the twelve pairs, 4 + 5 are in order
    assert auc(LABELS, np.stack([1 - second, second], 1)) == pytest.approx(9 / 12)


def test_auc_of_several_classes_is_the_mean_over_each_against_the_rest():
    labels = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.2, 0.6, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
    each = [auc((labels == k).astype(int), np.stack([1 - p, p], 1)) for k, p in enumerate(probabilities.T)]
    assert auc(labels, probabilities) == pytest.approx(np.mean(each))


def test_the_vote_has_no_probabilities_and_so_no_auc_and_no_loss():
    found = scores(LABELS, LABELS, None, 2)
    assert (found["test_accuracy"], found["balanced_accuracy"], found["auc"], found["test_loss"]) == (1, 1, None, None)


def test_classes_without_test_samples_do_not_count():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.2, 0.7, 0.1]])
    labels = np.array([0, 0, 1, 1])
    found = of(labels, probabilities, 3)
    assert found["balanced_accuracy"] == 0.75
    assert found["auc"] == pytest.approx((1 + 0.875) / 2)
    assert found["confusion"] == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert auc(np.zeros(4, int), probabilities) is None


def test_many_classes_have_no_confusion_matrix_in_the_results():
    assert scores(LABELS, LABELS, None, MANY_CLASSES)["confusion"] is not None
    assert scores(LABELS, LABELS, None, MANY_CLASSES + 1)["confusion"] is None


def test_a_sample_that_is_surely_wrong_costs_what_its_probability_says():
    probabilities = np.array([[1 - 1e-10, 1e-10], [1.0, 0.0]])
    assert of(np.array([1, 0]), probabilities, 2)["test_loss"] == pytest.approx(-np.log(1e-10) / 2)
    assert np.isfinite(of(np.array([1, 1]), probabilities, 2)["test_loss"])
