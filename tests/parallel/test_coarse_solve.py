"""The coarse problem of maps, solved by all ranks for all samples or by each for its own: the same, bit for bit, as on one rank."""

import numpy as np
import pytest
import torch
from torch import nn

from ddcnn.data.batches import NOTHING
from ddcnn.decomposition import Decomposition
from ddcnn.method.coarse_solve import CoarseSolve, bytes_of_divided_solve
from ddcnn.method.coherent import CoherentNetwork, train_coherent
from ddcnn.method.interface import Exchange
from ddcnn.method.shared import SharedParameters, bytes_of_sum, spread, sum_over_subdomains, total
from ddcnn.networks.coarse import ConvolutionalNetwork
from ddcnn.networks.maps import MapInterface, map_interface
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.groups import owned_subdomains
from ddcnn.parallel.seeding import Seeds
from ddcnn.parallel.world import World
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
DESIGN, CUT = Design("vgg3", 4, head="pooled"), Decomposition((24, 32), (3, 4), 4)
STAGES = ((8, 8), (16,))  # of the DNN
N, K, SAMPLES, BATCH = len(CUT), 3, 54, 20  # a batch that N does not divide


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_adjoint_of_the_exchange_is_its_inverse(world):
    """⟨X u, y⟩ = ⟨u, Xᵀ y⟩ summed over the ranks, and Xᵀ X u = u."""
    part = normal(2, 3 * world.size, 5, seed=world.rank).requires_grad_()
    mine = normal(2 * world.size, 3, 5, seed=100 + world.rank)
    exchanged = Exchange.apply(part, world)
    everyone = torch.cat([normal(2, 3 * world.size, 5, seed=rank) for rank in range(world.size)])
    assert torch.equal(exchanged, everyone[:, 3 * world.rank : 3 * world.rank + 3])
    (returned,) = torch.autograd.grad(exchanged, part, mine, retain_graph=True)
    left, right = world.mean([(exchanged * mine).sum().item(), (part * returned).sum().item()])
    assert left == pytest.approx(right, rel=1e-12)
    (back,) = torch.autograd.grad(exchanged, part, exchanged.detach())
    assert torch.equal(back, part)


def test_half_precision_travels_as_it_is(world):
    part = normal(1, world.size, 7, seed=world.rank, dtype=torch.float32)
    world.timeline.begin()
    with world.timeline.phase("coherent"):
        halves = Exchange.apply(part.bfloat16(), world)
        sent = sum(world.timeline.sent.values())
        whole = Exchange.apply(part, world)
    assert torch.equal(halves, whole.bfloat16())
    assert ((halves.float() - whole).abs() <= whole.abs() / 256).all()  # eight significant bits, rounded
    assert 3 * sent == sum(world.timeline.sent.values())


@pytest.mark.parametrize("numbers", [1, 7, 2000])  # few are summed by every rank
def test_the_adjoint_of_spreading_sums_over_the_subdomains_in_their_order(world, numbers):
    owned = owned_subdomains(world, N)
    copies = torch.stack([normal(numbers, seed=index, dtype=torch.float32) for index in owned])
    found, parameters = sum_over_subdomains(copies, world), normal(numbers, seed=50, dtype=torch.float32)
    expected = normal(numbers, seed=0, dtype=torch.float32)
    for index in range(1, N):
        expected = expected + normal(numbers, seed=index, dtype=torch.float32)
    assert torch.equal(found, expected)
    own = spread(parameters, N)[owned.start : owned.stop]
    left = world.size * world.mean([(own * copies).double().sum().item()])[0]
    assert left == pytest.approx((parameters * found).double().sum().item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("numbers", [1, 7])
def test_the_total_is_its_own_adjoint(world, numbers):
    """⟨T u, y⟩ = ⟨u, Tᵀ y⟩ summed over the ranks, with Tᵀ = T."""
    owned = owned_subdomains(world, N)
    own, mine = (torch.stack([normal(numbers, seed=first + index, dtype=torch.float32) for index in owned]) for first in (0, 100))
    left, right = world.mean([(total(own, world) * mine).double().sum().item(), (own * total(mine, world)).double().sum().item()])
    assert left == pytest.approx(right, rel=1e-4, abs=1e-4)


class Numbers:
    """Subimages of the subdomains ``owned``, (S, 1, *subimage) each."""

    pixels, on_device = 144, True

    def __init__(self, owned):
        images = normal(SAMPLES, 1, *CUT.shape, seed=0, dtype=torch.float32)
        self.images = [CUT.restrict(images, index, first_axis=2) for index in owned]
        self.labels = torch.arange(SAMPLES) % K

    def ahead(self, batches, augmented=False):
        pass

    def draw(self, batches, generator):
        return [NOTHING] * len(batches)

    def batch(self, index, drawn=NOTHING):
        return [images[index] for images in self.images], self.labels[index]


def parts(owned, same: bool) -> tuple[list[nn.Module], nn.Module, MapInterface]:
    """Local CNNs, with the same parameters or not, and a convolutional DNN."""
    maps, networks = map_interface(DESIGN, CUT, 1, K, image=True), []
    for index in owned:
        torch.manual_seed(0 if same else index)
        shape = Shape(CUT.subdomains[index].subimage.shape, 1, K)
        networks.append(POLICY.place(maps.hands_on(lambda shape=shape: make(DESIGN, shape), index)()))
    torch.manual_seed(1000)
    dnn = POLICY.place(ConvolutionalNetwork(maps, STAGES))
    return networks, dnn, maps


def trained(world: World, divided: bool, share: str = "none", chunks: int = N) -> dict[str, torch.Tensor]:
    """Parameters after two epochs by name, of this rank's local CNNs and of the DNN."""
    owned = owned_subdomains(world, N)
    networks, dnn, _ = parts(owned, share != "none")
    shared = SharedParameters(world, networks, share) if share != "none" else None
    network = CoherentNetwork(world, "maps", networks, CoarseSolve(world, dnn, chunks, divided), shared)
    trainer = Trainer(Recipe(2, BATCH, "adamw", 0.01, 0.01, "one-cycle", clip_norm=1.0, auxiliary=0.3 / N), POLICY, Seeds(0, "c"))
    train_coherent(world.alone(), trainer, network, Numbers(owned), np.arange(SAMPLES))
    return {f"{part} {name}": tensor for part, one in network.parts.items() for name, tensor in one.state_dict().items()}


@pytest.mark.parametrize("share", ["none", "early", "all"])
@pytest.mark.parametrize("divided", [False, True])
def test_the_solve_does_not_depend_on_the_number_of_ranks_and_on_who_solves(world, divided, share):
    found, expected = trained(world, divided, share), trained(world.alone(), False, share)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    locals_ = [{k.split(" ")[1]: v for k, v in expected.items() if k.startswith(f"local-{i:04}")} for i in (0, N - 1)]
    same = [name for name in locals_[0] if torch.equal(locals_[0][name], locals_[1][name]) and "num_batches" not in name]
    early = [name for name in same if name.startswith("convolutions.0.")]
    assert {"none": not same, "early": bool(early) and len(same) < 6, "all": len(same) == len(locals_[0]) - 3}[share]


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("batch", [1, 2, N + 3])
def test_an_evaluation_solves_for_few_samples_besides_its_own(world, divided, batch):
    """Large images are evaluated in batches of fewer samples than there are chunks."""
    solved, logits = [], []
    for ranks in (world, world.alone()):
        owned = owned_subdomains(ranks, N)
        networks, dnn, _ = parts(owned, same=True)
        network = CoherentNetwork(ranks, "maps", networks, CoarseSolve(ranks, dnn, N, divided)).eval()
        dnn.register_forward_hook(lambda _, inputs, __: solved[-1].append(len(inputs[0])))
        solved.append([])
        with torch.inference_mode():
            logits.append(network(Numbers(owned).batch(torch.arange(batch))[0]))
    assert torch.equal(*logits)
    size = -(-batch // N)
    assert set(solved[0]) == set(solved[1]) == {size}
    ranks = world.size if divided else 1
    assert sum(solved[0]) * ranks < batch + size * ranks and sum(solved[1]) < batch + size


@pytest.mark.parametrize("divided", [False, True])
def test_gradients_of_parts_of_a_batch_are_added(world, divided):
    owned = owned_subdomains(world, N)
    networks, dnn, _ = parts(owned, same=False)
    network = CoherentNetwork(world, "maps", networks, CoarseSolve(world, dnn, N, divided)).double()

    def gradient(*batches: torch.Tensor) -> list[torch.Tensor]:
        network.zero_grad()
        for batch in batches:
            inputs, labels = Numbers(owned).batch(batch)
            nn.functional.cross_entropy(network([images.double() for images in inputs]), labels, reduction="sum").backward()
        network.solve.finish_gradient()
        return [one.grad for one in dnn.parameters()]

    first, second = torch.arange(BATCH).split(13)
    for found, one, other in zip(gradient(first, second), gradient(first), gradient(second), strict=True):
        torch.testing.assert_close(found, one + other, rtol=1e-9, atol=1e-12)


def test_chunks_learn_as_the_whole_batch_does(world):
    """Up to rounding, which the optimizer makes larger where a gradient is nearly zero; with fused optimizers, which see memory."""
    found, expected = trained(world, True), trained(world, False, chunks=1)
    for name, tensor in found.items():
        apart = (tensor - expected[name]).abs() > 1e-3 + 1e-2 * expected[name].abs()
        assert apart.float().mean() < 0.1, name


def test_gradients_are_those_of_one_network_whose_local_cnns_are_one(world):
    """Against the plain network in one process, without any operator of ours but the stitching, in float64."""
    owned = owned_subdomains(world, N)
    networks, dnn, maps = parts(owned, same=True)
    network = CoherentNetwork(world, "maps", networks, CoarseSolve(world, dnn, N, True), SharedParameters(world, networks, "all")).double()
    (one,), other_dnn, _ = parts([0], same=True)
    one, other_dnn = one.double(), other_dnn.double()
    inputs, labels = Numbers(owned).batch(torch.arange(BATCH))
    nn.functional.cross_entropy(network([images.double() for images in inputs]), labels).backward()
    network.solve.finish_gradient()
    network.shared.sum_gradients()
    values = []
    for index, images in enumerate(Numbers(range(N)).batch(torch.arange(BATCH))[0]):
        own, features = one.maps_and_features(images.double())
        values.append(maps.pack(images.double(), own, one.classifier(features), index))
    nn.functional.cross_entropy(other_dnn(torch.cat(values, 1)), labels).backward()
    for name, found in dnn.named_buffers():
        torch.testing.assert_close(found, other_dnn.get_buffer(name), msg=name)
    for found, expected in ((networks[0], one), (dnn, other_dnn)):
        for (name, parameter), wanted in zip(found.named_parameters(), expected.parameters(), strict=True):
            gradient = torch.zeros_like(wanted) if parameter.grad is None else parameter.grad  # nobody sees the local logits
            torch.testing.assert_close(gradient, wanted.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_bytes_of_a_step_are_counted_as_the_formula_says(world):
    owned = owned_subdomains(world, N)
    networks, dnn, maps = parts(owned, same=True)
    solve = CoarseSolve(world, dnn, N, divided=True)
    network = CoherentNetwork(world, "maps", networks, solve, SharedParameters(world, networks, "all"))
    inputs, labels = Numbers(owned).batch(torch.arange(BATCH))
    world.timeline.begin()
    with world.timeline.phase("coherent"):
        nn.functional.cross_entropy(network(inputs), labels).backward()
        solve.finish_gradient()
        network.shared.sum_gradients()
    sent = world.size * world.mean([sum(world.timeline.sent.values())])[0]
    local, coarse = (sum(one.numel() for one in part.parameters() if one.grad is not None) for part in (networks[0], dnn))
    assert sent == bytes_of_divided_solve(BATCH, N, maps.values, K, coarse, STAGES, world.size) + bytes_of_sum(local, N, world.size)
