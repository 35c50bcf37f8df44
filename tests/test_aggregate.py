"""One decision out of the local classifications."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddcnn.method.aggregate import average, dnn_rows, train_dnn, vote
from ddcnn.networks.dense import DenseNetwork
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.evaluation import classify
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
RECIPE = Recipe(epochs=30, batch_size=32, optimizer="adamw", lr=0.01, weight_decay=0.01, schedule="one-cycle")


@st.composite
def sixteenths(draw) -> np.ndarray:
    """Local classifications (S, N, K) in sixteenths, so that sums are exact and ties are frequent."""
    samples, subdomains, classes = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(2, 5))
    cut = st.lists(st.integers(0, 16), min_size=classes - 1, max_size=classes - 1).map(sorted)
    rows = [np.diff([0, *draw(cut), 16]) for _ in range(samples * subdomains)]
    return np.array(rows).reshape(samples, subdomains, classes)


def plain_vote(probabilities: list[list[int]]) -> int:
    """The rule for one sample, word for word."""
    classes = range(len(probabilities[0]))
    votes, sums = [0 for _ in classes], [0 for _ in classes]
    for row in probabilities:
        votes[row.index(max(row))] += 1
        for k in classes:
            sums[k] += row[k]
    winner = 0
    for k in classes:
        if (votes[k], sums[k]) > (votes[winner], sums[winner]):
            winner = k
    return winner


@given(sixteenths())
def test_vote_is_the_majority_then_the_larger_sum_then_the_lower_class(units):
    expected = [plain_vote(sample.tolist()) for sample in units]
    assert vote((units / 16).astype(np.float32)).tolist() == expected


@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        ([[0.9, 0.1, 0], [0.4, 0.6, 0], [0.4, 0.6, 0]], 1),  # the majority, against the larger sum of class 0
        ([[0.6, 0.4, 0], [0.1, 0.9, 0]], 1),  # a tie: class 1 has the larger sum
        ([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], 0),  # a tie of votes and sums: the lower class
        ([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.25, 0.5, 0.25], [0.75, 0.25, 0]], 0),  # class 2 has no vote, whatever its sum
    ],
)
def test_vote_on_the_cases_of_the_rule(rows, winner):
    assert vote(np.array([rows], dtype=np.float32)).tolist() == [winner]


@given(sixteenths())
def test_average_is_the_mean_over_the_subdomains(units):
    found = average((units / 16).astype(np.float32))
    assert found.dtype == np.float64
    expected = [[sum(column) / len(column) / 16 for column in zip(*sample, strict=True)] for sample in units.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


def pairs(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two subdomains vote for classes 0 or 1; the label says whether they agree: no vote and no average can tell."""
    random = np.random.default_rng(seed)
    said = random.integers(0, 2, (samples, 2))
    sure = random.uniform(0.7, 0.95, (samples, 2))
    probabilities = np.where(np.arange(2) == said[:, :, None], sure[:, :, None], 1 - sure[:, :, None]).astype(np.float32)
    return probabilities, (said[:, 0] == said[:, 1]).astype(np.int64)


def make_dnn() -> DenseNetwork:
    return DenseNetwork("probabilities", 2, 2, 2)


def decisions(network, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    found = classify(network, dnn_rows(probabilities, labels, POLICY), torch.arange(len(labels)), POLICY)
    return found.argmax(1).numpy()


def test_the_dnn_learns_what_no_vote_can_tell():
    network = train_dnn(Trainer(RECIPE, POLICY, Seeds(0, "dnn")), make_dnn, *pairs(512, seed=1))
    probabilities, labels = pairs(200, seed=2)
    assert (decisions(network, probabilities, labels) == labels).mean() > 0.98


def test_the_dnn_is_a_function_of_its_seed_and_data_alone():
    def parameters(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        network = train_dnn(Trainer(RECIPE, POLICY, Seeds(seed, "dnn")), make_dnn, *pairs(128, seed=1))
        return torch.nn.utils.parameters_to_vector(network.parameters())

    first = parameters(seed=0, before=5)
    assert torch.equal(first, parameters(seed=0, before=6))
    assert not torch.equal(first, parameters(seed=1, before=5))


def test_the_dnn_sees_the_subdomains_side_by_side():
    probabilities = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    rows = dnn_rows(probabilities, np.array([0, 1]), POLICY)
    assert rows.batch(torch.tensor([1]))[0].tolist() == [[6, 7, 8, 9, 10, 11]]
