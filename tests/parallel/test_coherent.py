"""The coherent network over the ranks against the same network in one process, in float64."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import NOTHING, RankSubimages
from ddcnn.data.partition import partition
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.data.stored import Place
from ddcnn.decomposition import Decomposition
from ddcnn.method.coarse_solve import CoarseSolve
from ddcnn.method.coherent import CoherentNetwork, train_coherent
from ddcnn.method.interface import Collect, bytes_per_sample
from ddcnn.networks.dense import DenseNetwork
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.groups import owned_subdomains
from ddcnn.parallel.process_group import process_group
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
INTERFACES = ("probabilities", "logits", "features")
N, K, SAMPLES, BATCH, STEPS = 12, 3, 60, 12, 5
VALUES = {"probabilities": K, "logits": K, "features": 8}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 1, 5), (3, 7, 1)])
def test_the_adjoint_of_collecting_is_restricting(world, shape, on_device):
    """⟨E x, y⟩ = ⟨x, Eᵀ y⟩ for parts x of the ranks and one vector y that all of them hold."""
    part = normal(*shape, seed=world.rank).requires_grad_()
    everyone = normal(world.size * shape[0], *shape[1:], seed=99)
    sent = sum(world.timeline.sent.values())
    with process_group(world, POLICY.device) if on_device else nullcontext():
        collected = Collect.apply(part, world, on_device)
    assert sum(world.timeline.sent.values()) - sent == (world.size - 1) * part.nbytes
    assert torch.equal(collected, torch.cat([normal(*shape, seed=rank) for rank in range(world.size)]))
    (restricted,) = torch.autograd.grad(collected, part, everyone)
    left = (collected * everyone).sum().item()
    right = world.size * world.mean([(part * restricted).sum().item()])[0]
    assert left == pytest.approx(right, rel=1e-12)


class Numbers:
    """Subimages of the subdomains ``owned`` as float64, (S, 1, 4, 4) each."""

    pixels, on_device = 16, True

    def __init__(self, owned):
        self.images = [normal(SAMPLES, 1, 4, 4, seed=index) for index in owned]
        self.labels = torch.arange(SAMPLES) % K

    def ahead(self, batches, augmented=False):
        pass

    def draw(self, batches, generator):
        return [NOTHING] * len(batches)

    def batch(self, index, drawn=NOTHING):
        return [images[index] for images in self.images], self.labels[index]


def parts(interface: str, owned) -> tuple[list[nn.Module], nn.Module]:
    """Local CNNs of the subdomains and the DNN, each from a seed of its own; the last layer of the DNN is not zero."""
    networks = []
    for index in owned:
        torch.manual_seed(index)
        networks.append(make(Design("vgg3", 4, features=8, head="dense"), Shape((4, 4), 1, K)).double())
    torch.manual_seed(1000)
    dnn = DenseNetwork(interface, N, VALUES[interface], K, hidden=(16,)).double()
    nn.init.normal_(dnn.layers[-1].weight)
    return networks, dnn


class OneProcess(nn.Module):
    """The coherent network as one would write it down for one process: nothing of ddcnn's interface in it."""

    def __init__(self, interface: str):
        super().__init__()
        networks, self.dnn = parts(interface, range(N))
        self.local_cnns, self.interface = nn.ModuleList(networks), interface

    def forward(self, subimages):
        values = []
        for network, images in zip(self.local_cnns, subimages, strict=True):
            hidden = network.dense(network.convolutions(images))
            logits = network.classifier(hidden)
            values.append({"probabilities": torch.softmax(logits, 1), "logits": logits, "features": hidden}[self.interface])
        return self.dnn(torch.cat(values, 1))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max(), (found - expected).abs().max() / expected.abs().max()


@pytest.mark.parametrize("interface", INTERFACES)
def test_loss_and_gradients_are_those_of_one_process(world, interface):
    owned = owned_subdomains(world, N)
    networks, dnn = parts(interface, owned)
    distributed, single = CoherentNetwork(world, interface, networks, CoarseSolve(world, dnn)), OneProcess(interface)
    losses = []
    for network, samples in ((distributed, Numbers(owned)), (single, Numbers(range(N)))):
        inputs, labels = samples.batch(torch.arange(BATCH))
        loss = nn.functional.cross_entropy(network(inputs), labels)
        loss.backward()
        losses.append(loss.detach())
    close(*losses)
    for index, network in zip(owned, networks, strict=True):
        for found, expected in zip(network.parameters(), single.local_cnns[index].parameters(), strict=True):
            if expected.grad is None:  # the classifier, when features are handed over
                assert found.grad is None
            else:
                close(found.grad, expected.grad)
    for found, expected in zip(dnn.parameters(), single.dnn.parameters(), strict=True):
        close(found.grad, expected.grad)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("interface", INTERFACES)
def test_five_steps_of_training_are_those_of_one_process(world, interface, optimizer):
    owned = owned_subdomains(world, N)
    trainer = Trainer(Recipe(1, BATCH, optimizer, 0.01, 0.01, "one-cycle"), POLICY, Seeds(0, "coherent"))
    assert SAMPLES // BATCH == STEPS
    networks, dnn = parts(interface, owned)
    distributed, single = CoherentNetwork(world, interface, networks, CoarseSolve(world, dnn)), OneProcess(interface)
    found_epochs, epochs = [], []
    train_coherent(world.alone(), replace(trainer, callback=Watch(found_epochs.append)), distributed, Numbers(owned), np.arange(SAMPLES))
    replace(trainer, callback=Watch(epochs.append)).train(single, Numbers(range(N)), torch.arange(SAMPLES))
    assert found_epochs[0].loss == pytest.approx(epochs[0].loss, rel=1e-12)
    assert found_epochs[0].accuracy == epochs[0].accuracy
    expected = [
        *(tensor for index in owned for tensor in single.local_cnns[index].state_dict().values()),
        *single.dnn.state_dict().values(),
    ]
    found = [*(tensor for network in networks for tensor in network.state_dict().values()), *dnn.state_dict().values()]
    for one, other in zip(found, expected, strict=True):
        close(one.double(), other.double())


@pytest.mark.parametrize("interface", INTERFACES)
def test_parts_of_a_batch_have_its_gradient_together(world, interface):
    """Without batch normalisation, which sees a part."""
    trained = []
    for accumulate in (1, 2, 5):
        networks, dnn = parts(interface, owned_subdomains(world, N))
        for network in networks:
            network.convolutions = nn.Sequential(*(one for one in network.convolutions if not isinstance(one, nn.BatchNorm2d)))
        recipe = Recipe(1, BATCH, "sgd", 0.05, 0.01, "one-cycle", clip_norm=0.5, accumulate=accumulate)
        coherent = CoherentNetwork(world, interface, networks, CoarseSolve(world, dnn))
        samples = Numbers(owned_subdomains(world, N))
        train_coherent(world.alone(), Trainer(recipe, POLICY, Seeds(0, "coherent")), coherent, samples, np.arange(SAMPLES))
        trained.append([*coherent.parameters()])
    for found in trained[1:]:
        for one, expected in zip(found, trained[0], strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_step_sends_what_the_formula_says_and_nothing_comes_back(world, interface):
    owned = owned_subdomains(world, N)
    networks, dnn = parts(interface, owned)
    network = CoherentNetwork(world, interface, networks, CoarseSolve(world, dnn)).float()
    inputs, labels = Numbers(owned).batch(torch.arange(BATCH))
    world.timeline.begin()
    with world.timeline.phase("coherent"):
        loss = nn.functional.cross_entropy(network([images.float() for images in inputs]), labels)
        forward = dict(world.timeline.sent)
        loss.backward()
    assert world.timeline.sent == forward
    assert world.size * forward["coherent"] == BATCH * bytes_per_sample(N, VALUES[interface], world.size)


def test_copies_of_the_dnn_that_have_drifted_apart_become_rank_0s(world):
    networks, dnn = parts("logits", owned_subdomains(world, N))
    network = CoherentNetwork(world, "logits", networks, CoarseSolve(world, dnn))
    expected = [tensor.clone() for tensor in dnn.state_dict().values()]
    world.timeline.begin()
    network.sync()
    assert not any(world.timeline.sent.values())  # they are the same
    with torch.no_grad():
        dnn.layers[0].bias += 1e-15 * world.rank
    network.sync()
    assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(dnn.state_dict().values(), expected, strict=True))


def test_after_each_epoch_all_ranks_hold_the_same_dnn(world):
    networks, dnn = parts("logits", owned_subdomains(world, N))
    with torch.no_grad():
        dnn.layers[0].bias += 1e-3 * world.rank  # as unlike devices would, a little at a time
    trainer = Trainer(Recipe(1, BATCH, "adamw", 0.01, 0.01, "one-cycle"), POLICY, Seeds(0, "coherent"))
    network = CoherentNetwork(world, "logits", networks, CoarseSolve(world, dnn))
    train_coherent(world.alone(), trainer, network, Numbers(owned_subdomains(world, N)), np.arange(SAMPLES))
    assert world.all_equal(nn.utils.parameters_to_vector(dnn.parameters()).detach().numpy().tobytes())


def test_in_frozen_epochs_only_the_dnn_learns(world):
    networks, dnn = parts("features", owned_subdomains(world, N))
    before = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in (networks[0], dnn)]
    network = CoherentNetwork(world, "features", networks, CoarseSolve(world, dnn))
    changed = []

    def after_epoch(epoch):
        state = [part.state_dict() for part in (networks[0], dnn)]
        changed.append([any(not torch.equal(now[name], then[name]) for name in then) for now, then in zip(state, before, strict=True)])

    recipe = Recipe(2, BATCH, "adamw", 0.01, 0.01, "one-cycle")
    samples = Numbers(owned_subdomains(world, N))
    trainer = Trainer(recipe, POLICY, Seeds(0, "transfer"), Watch(after_epoch))
    frozen = replace(trainer, seeds=Seeds(0, "transfer frozen"))
    train_coherent(world.alone(), trainer, network, samples, np.arange(SAMPLES), frozen)
    assert changed == [[False, True], [False, True], [True, True], [True, True]]


def test_training_with_augmentation_and_dropout_does_not_depend_on_the_number_of_ranks(world, shared_path):
    """Against this rank alone with all subdomains: bit for bit, since every subdomain is trained by one rank."""
    if world.rank == 0:
        random = np.random.default_rng(0)
        images, labels = random.integers(0, 255, (SAMPLES, 10, 12, 1), np.uint8), np.arange(SAMPLES) % K
        np.savez(shared_path / "a.npz", x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
    world.barrier()
    source = open_source(SourceOptions(str(shared_path / "a.npz"), shared_path))
    chosen = {name: np.arange(len(split)) for name, split in source.splits.items()}
    store = partition(world, source, chosen, Decomposition((10, 12), (3, 4), 1, 1), shared_path / "set.h5")
    store = PartitionedSet.open(shared_path / "set.h5")

    def trained(ranks, resident="device") -> tuple[list[nn.Module], nn.Module]:
        owned = owned_subdomains(ranks, N)
        networks, dnn = [], parts("features", [])[1].float()
        for index in owned:
            torch.manual_seed(index)
            network = make(Design("vgg3", 4, features=8, head="dense"), Shape(store.decomposition.subdomains[index].subimage.shape, 1, K))
            network.dense.append(nn.Dropout(0.3))
            networks.append(POLICY.place(network))
        samples = RankSubimages.load(store, "train", owned, Place(POLICY.device, resident), Augmentation(True, 1, (-1, -2), 0.5, 1.0))
        recipe = Recipe(2, BATCH, "adamw", 0.01, 0.01, "cosine", clip_norm=0.1, ema=0.9, warmup=0.5)
        trainer, network = Trainer(recipe, POLICY, Seeds(0, "c")), CoherentNetwork(ranks, "features", networks, CoarseSolve(ranks, dnn))
        train_coherent(world.alone(), trainer, network, samples, np.arange(SAMPLES))
        return networks, dnn

    found, dnn = trained(world, "stream")
    expected, single = trained(world.alone())
    for one, other in [(dnn, single), *zip(found, [expected[index] for index in owned_subdomains(world, N)], strict=True)]:
        for tensor, wanted in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(tensor, wanted)
