"""Parts of a batch whose gradients are added, and activations that are computed again: as without, with less memory."""

import copy

import pytest
import torch
from callbacks import Watch
from torch import nn

from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import Subimages
from ddcnn.data.stored import InMemory
from ddcnn.errors import InputError
from ddcnn.networks.custom import HeadedNetwork
from ddcnn.networks.recompute import recompute
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
SAMPLES = 25


def images(side: int) -> Subimages:
    pixels = torch.randint(0, 255, (SAMPLES, side, side, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    window, normalisation = (slice(0, side),) * 2, (torch.tensor([127.0, 127.0]), torch.tensor([1 / 74.0, 1 / 74.0]))
    return Subimages(
        InMemory(pixels, pixels.device), torch.arange(SAMPLES) % 3, *normalisation, window, ((0, 0),) * 2, Augmentation(mixup=0.5)
    )


def trained(network: nn.Module, side: int, policy: DevicePolicy = POLICY, **changes) -> tuple[nn.Module, list[float]]:
    told: list[float] = []
    recipe = Recipe(2, 12, "sgd", 0.05, 0.0, "one-cycle", class_weights=(1.2, 0.8, 1.0), **changes)
    Trainer(recipe, policy, Seeds(0, "test"), Watch(lambda epoch: told.extend([epoch.loss, epoch.accuracy]))).train(
        network, images(side), torch.arange(SAMPLES)
    )
    return network, told


def own() -> nn.Module:
    """Without batch normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_of_a_batch_have_its_gradient_together(parts):
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = own().double()

        def forward(self, inputs):
            return self.network(inputs.double())

    whole, told = trained(Double(), 9, clip_norm=0.5)
    found, told_of_parts = trained(Double(), 9, clip_norm=0.5, accumulate=parts)
    for one, other in zip(found.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert told_of_parts == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_recomputed_activations_are_those_that_were_not_kept(name, precision):
    """And running statistics count every batch once."""
    torch.manual_seed(0)
    network = make(Design(name, 4), Shape((16, 16), 2, 3))
    again = recompute(copy.deepcopy(network), name)
    policy = DevicePolicy(POLICY.device, precision)
    kept, told = trained(policy.place(network), 16, policy, ema=0.9)
    found, told_again = trained(policy.place(again), 16, policy, ema=0.9)
    assert told == told_again
    for (key, one), other in zip(kept.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("name", [*NETWORKS, "own"])
def test_fewer_activations_are_kept(name):
    network = make(Design(name, 4), Shape((32, 32), 2, 3)) if name in NETWORKS else HeadedNetwork("own", headed(), Shape((32, 32), 2, 3))

    def kept_bytes() -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.update({one.data_ptr(): one.nbytes}) or one, lambda one: one):
            network(torch.randn(8, 2, 32, 32)).sum()
        return sum(sizes.values()) - sum(parameter.nbytes for parameter in network.parameters())

    before = kept_bytes()
    recompute(network, name)
    assert kept_bytes() < 0.6 * before


def headed() -> nn.Module:
    blocks = [nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()) for channels in (2, 6, 6, 6)]
    return nn.Sequential(*blocks, nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def test_a_network_of_one_s_own_is_computed_again_with_the_same_dropout():
    def network() -> nn.Module:
        torch.manual_seed(0)
        return HeadedNetwork("own", headed(), Shape((9, 9), 2, 3))

    (kept, told), (found, told_again) = trained(network(), 9), trained(copy.deepcopy(recompute(network(), "own")), 9)
    assert told == told_again
    assert all(torch.equal(one, other) for one, other in zip(kept.state_dict().values(), found.state_dict().values(), strict=True))


def test_a_network_without_a_sequence_of_blocks_is_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(self.convolution(inputs).mean((2, 3)))

    with pytest.raises(InputError, match=r"--recompute: --network flat has no nn.Sequential of convolutions or blocks"):
        recompute(HeadedNetwork("flat", Flat(), Shape((9, 9), 2, 3)), "flat")
