"""Local training and the DNN's samples: which network has seen which sample."""

import numpy as np
import pytest
import torch
from torch import nn

from ddcnn.data.batches import Rows
from ddcnn.method.dnn_samples import DnnSamples, evaluate_interface_out_of_fold
from ddcnn.method.interface import evaluate_interface, probabilities_of
from ddcnn.method.local import train_local
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.evaluation import classify
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
LABELS = np.repeat(np.arange(3), 20)


class Memory(nn.Module):
    """Remembers the samples that it has been trained on; sure of class 1 for those that it knows, of class 0 for the others."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.known: set[float] = set()

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.known |= set(samples[:, 0].tolist())
        known = torch.tensor([sample in self.known for sample in samples[:, 0].tolist()])
        return self.scale * 50 * nn.functional.one_hot(known.long(), 3).float()


def numbered() -> Rows:
    return Rows.of(torch.arange(60.0)[:, None], torch.from_numpy(LABELS))


def recipe(epochs: int = 1) -> Recipe:
    return Recipe(epochs, 4, "adamw", 1e-6, 0, "constant")


def trainer_of(epochs: int):
    return lambda fold, samples: Trainer(recipe(epochs), POLICY, Seeds(0, f"local without fold {fold}"))


def test_out_of_fold_every_sample_is_classified_by_a_network_that_has_not_seen_it(world):
    samples = DnnSamples.choose("out-of-fold", LABELS, 4, seed=0)
    found = list(evaluate_interface_out_of_fold(world, trainer_of(3), Memory, "probabilities", numbered(), samples.fold))
    assert np.concatenate([values for _, values in found]).argmax(axis=1).tolist() == [0] * 60


def test_out_of_fold_classifications_come_in_the_order_of_the_samples(world):
    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(()))

        def forward(self, samples):
            return torch.cat([samples / 10 + self.offset, torch.zeros(len(samples), 2)], dim=1)

    fold = DnnSamples.choose("out-of-fold", LABELS, 5, seed=1).fold
    found = np.empty((60, 3))
    for rows, values in evaluate_interface_out_of_fold(world, trainer_of(1), Echo, "probabilities", numbered(), fold):
        found[rows] = values
    assert (np.diff(found[:, 0]) > 0).all()


def test_a_held_out_sample_is_seen_by_the_dnn_and_not_by_the_local_cnn(world):
    samples = DnnSamples.choose("holdout", LABELS, 5, seed=0)
    assert sorted([*samples.for_dnn, *samples.for_cnn]) == list(range(60))
    network = train_local(world, Trainer(recipe(3), POLICY, Seeds(0, "local")), Memory, numbered(), samples.for_cnn)
    assert not network.known & set(samples.for_dnn.astype(float).tolist())
    assert network.known == set(samples.for_cnn.astype(float).tolist())


@pytest.mark.parametrize("kind", ["train", "out-of-fold"])
def test_otherwise_both_see_all_samples(kind):
    samples = DnnSamples.choose(kind, LABELS, 3, seed=0)
    assert samples.for_dnn.tolist() == samples.for_cnn.tolist() == list(range(60))


def test_without_a_dnn_it_has_no_samples():
    assert DnnSamples.choose("none", LABELS, 3, seed=0).for_dnn.size == 0


def test_folds_are_balanced_over_the_classes_and_a_function_of_the_seed():
    fold = DnnSamples.choose("holdout", LABELS, 5, seed=3).fold
    for label in range(3):
        assert np.bincount(fold[label == LABELS]).tolist() == [4] * 5
    np.testing.assert_array_equal(fold, DnnSamples.choose("train", LABELS, 5, seed=3).fold)
    assert (fold != DnnSamples.choose("holdout", LABELS, 5, seed=4).fold).any()


@pytest.mark.parametrize("interface", ["probabilities", "logits", "features"])
def test_what_is_handed_over_gives_the_local_classification(world, interface):
    torch.manual_seed(0)
    network = make(Design("vgg3", 4), Shape((4, 4), 1, 3))
    samples = Rows.of(torch.randn(60, 1, 4, 4), torch.from_numpy(LABELS))
    (values,) = evaluate_interface(world, interface, network, samples, np.arange(60), POLICY)
    assert values.shape == (60, 64 if interface == "features" else 3)
    expected = classify(network, samples, torch.arange(60), POLICY).numpy()
    np.testing.assert_allclose(probabilities_of(interface, network, values, POLICY), expected, rtol=1e-4, atol=1e-7)
