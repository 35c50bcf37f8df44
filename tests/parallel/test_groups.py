"""More ranks than subdomains: the ranks of a group train a subdomain together, as one process would."""

import numpy as np
import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import RankSubimages, Subimages
from ddcnn.data.stored import InMemory
from ddcnn.method.coarse_solve import CoarseSolve
from ddcnn.method.coherent import CoherentNetwork, train_coherent
from ddcnn.method.dnn_samples import evaluate_interface_out_of_fold
from ddcnn.method.interface import evaluate_interface
from ddcnn.method.local import train_local
from ddcnn.networks.dense import DenseNetwork
from ddcnn.parallel.groups import form_groups, owned_subdomains
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
N, K, SAMPLES, BATCH = 2, 2, 48, 12
RECIPE = Recipe(2, BATCH, "sgd", 0.05, 0.0, "one-cycle", clip_norm=0.5, ema=0.9)


def images(seed: int, augmentation: Augmentation = Augmentation()) -> Subimages:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (SAMPLES, 6, 6, 1), generator=random, dtype=torch.uint8)
    labels = torch.arange(SAMPLES) % K
    window = (slice(0, 6), slice(0, 6))
    stored = InMemory(pixels, pixels.device)
    mirrored = dict.fromkeys(augmentation.mirrors, stored)
    return Subimages(stored, labels, torch.tensor([127.0]), torch.tensor([1 / 74.0]), window, ((1, 1),) * 2, augmentation, mirrored)


class Local(nn.Module):
    """Without batch normalisation, which would see a rank's share alone."""

    def __init__(self):
        super().__init__()
        self.convolution, self.hidden, self.classifier = nn.Conv2d(1, 4, 3), nn.Linear(64, 8), nn.Linear(8, K)

    def features(self, inputs):
        return self.hidden(self.convolution(inputs).relu().flatten(1)).relu()

    def forward(self, inputs):
        return self.classifier(self.features(inputs))


def close(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.fixture(params=[1, N])
def subdomains(world, request):
    """That divide the ranks."""
    if world.size % request.param:
        pytest.skip(f"{world.size} ranks are no multiple of {request.param} subdomains")
    return request.param


def test_every_group_owns_one_subdomain_and_the_peers_own_all(world, subdomains):
    groups = form_groups(world, subdomains)
    assert (groups.data_parallel.size, groups.across_subdomains.size) == (world.size // subdomains, subdomains)
    owned = groups.owned(subdomains)
    assert list(owned) == [groups.across_subdomains.rank]
    assert groups.leads == (groups.data_parallel.rank == 0)
    everyone = world.gather(np.array([owned[0], groups.data_parallel.rank]))
    if everyone is not None:
        assert everyone.tolist() == [[rank // groups.data_parallel.size, rank % groups.data_parallel.size] for rank in range(world.size)]


def test_with_as_many_ranks_or_fewer_every_rank_is_a_group_of_its_own(world):
    groups = form_groups(world, 4 * world.size)
    assert (groups.data_parallel.size, groups.across_subdomains) == (1, world)
    assert len(groups.owned(4 * world.size)) == 4


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(True, 1, (-1, -2), 0.5, 1.0)])
def test_a_group_trains_a_local_cnn_as_one_process_does(world, subdomains, augmentation):
    groups = form_groups(world, subdomains)
    index, samples = groups.across_subdomains.rank, images(groups.across_subdomains.rank, augmentation)
    chosen, seeds = np.arange(5, SAMPLES), Seeds(0, "local", index)
    epochs, alone = [], []
    found = train_local(groups.data_parallel, Trainer(RECIPE, POLICY, seeds, Watch(epochs.append)), Local, samples, chosen)
    expected = train_local(world.alone(), Trainer(RECIPE, POLICY, seeds, Watch(alone.append)), Local, samples, chosen)
    close(found.parameters(), expected.parameters())
    for one, other in zip(epochs, alone, strict=True):
        assert (one.epoch, one.accuracy) == (other.epoch, pytest.approx(other.accuracy))
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("interface", ["probabilities", "logits", "features"])
@pytest.mark.parametrize("chosen", [np.arange(SAMPLES), np.array([7, 3, 40]), np.array([], dtype=np.int64)])
def test_the_first_rank_of_a_group_has_what_all_of_it_hand_over(world, subdomains, interface, chosen):
    groups = form_groups(world, subdomains)
    torch.manual_seed(0)
    network, samples = Local(), images(groups.across_subdomains.rank)
    (found,) = evaluate_interface(groups.data_parallel, interface, network, samples, chosen, POLICY)
    assert (found is not None) == (groups.leads or not chosen.size)
    if found is not None:
        (expected,) = evaluate_interface(world.alone(), interface, network, samples, chosen, POLICY)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_group_hands_over_out_of_fold_as_one_process_does(world, subdomains):
    groups = form_groups(world, subdomains)
    rest = (Local, "logits", images(groups.across_subdomains.rank), np.arange(SAMPLES) % 3)

    def trainer_of(fold: int, samples: int) -> Trainer:
        return Trainer(RECIPE, POLICY, Seeds(0, f"local without fold {fold}"))

    found = list(evaluate_interface_out_of_fold(groups.data_parallel, trainer_of, *rest))
    expected = list(evaluate_interface_out_of_fold(world.alone(), trainer_of, *rest))
    assert bool(found) == groups.leads
    for (rows, values), (same_rows, wanted) in zip(found, expected if found else [], strict=True):
        assert np.array_equal(rows, same_rows)
        np.testing.assert_allclose(values, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("interface", ["logits", "features"])
@pytest.mark.parametrize("frozen", [False, True])
def test_groups_train_the_coherent_network_as_one_process_does(world, subdomains, interface, frozen):
    def trained(group, peers) -> tuple[list[nn.Module], nn.Module]:
        owned, networks = owned_subdomains(peers, N), []
        for index in owned:
            torch.manual_seed(index)
            networks.append(POLICY.place(Local()))
        torch.manual_seed(1000)
        dnn = DenseNetwork(interface, N, 8 if interface == "features" else K, K, hidden=(16,))
        nn.init.normal_(dnn.layers[-1].weight)
        network = CoherentNetwork(peers, interface, networks, CoarseSolve(peers, dnn))
        samples = RankSubimages([images(index, Augmentation(True, 1)) for index in owned], pixels=1)
        before = Trainer(RECIPE, POLICY, Seeds(0, "coherent frozen")) if frozen else None
        train_coherent(group, Trainer(RECIPE, POLICY, Seeds(0, "coherent")), network, samples, np.arange(SAMPLES), before)
        return networks, dnn

    groups = form_groups(world, subdomains)
    found, dnn = trained(groups.data_parallel, groups.across_subdomains)
    expected, single = trained(world.alone(), world.alone())
    close(dnn.parameters(), single.parameters())
    for network, other in zip(found, [expected[index] for index in groups.owned(N)], strict=True):
        close(network.parameters(), other.parameters())
    copies = world.gather(nn.utils.parameters_to_vector(dnn.parameters()).detach().numpy())
    if copies is not None:
        assert (copies == copies[0]).all()
