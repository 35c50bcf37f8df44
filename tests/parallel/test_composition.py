"""Thin networks of all ranks, composed to the undecomposed one (decomposition in width)."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.method.factory import Networks
from ddcnn.method.width import check_composition, compose
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape
from ddcnn.training.precision import DevicePolicy

EACH = 2  # thin networks of a rank
CLASSES = 3


def thin_networks(name: str, shape: Shape, n: int, width: int) -> list[nn.Module]:
    """n of them, with running statistics and affine parameters that are no longer those of a new network."""
    torch.manual_seed(1)
    networks = [make(Design(name, width, n), shape).double() for _ in range(n)]
    for network in networks:
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.rand_like(tensor))
    return [network.eval() for network in networks]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("spatial", [(12, 9), (8, 6, 7)])
def test_right_after_composition_the_logits_are_the_mean_of_those_of_the_thin_networks(world, name, spatial):
    n = EACH * world.size
    shape, width = Shape(spatial, 2, CLASSES), 4 * n
    thin = thin_networks(name, shape, n, width)
    wide = make(Design(name, width), shape).double().eval()
    compose(world, thin[world.rank * EACH : (world.rank + 1) * EACH], wide)
    images = torch.randn(3, 2, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.stack([network(images) for network in thin]).mean(0)
        assert expected.std() > 1e-3
        torch.testing.assert_close(wide(images), expected, rtol=1e-10, atol=1e-12)


def test_the_cross_terms_are_zero_and_learn(world):
    shape, n = Shape((8, 8), 1, CLASSES), EACH * world.size
    wide = make(Design("vgg3", 4 * n), shape)
    compose(
        world,
        thin_networks("vgg3", shape, EACH, 4 * EACH) if n == EACH else [make(Design("vgg3", 4 * n, n), shape) for _ in range(EACH)],
        wide,
    )
    weight = wide.get_parameter(next(name for name, p in wide.named_parameters() if p.ndim == 4 and p.shape[1] > 1))
    rows, columns = weight.shape[0] // n, weight.shape[1] // n
    assert not weight[:rows, columns:].any()
    assert weight[:rows, :columns].any()
    wide(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert weight.grad[:rows, columns:].any()


@pytest.mark.parametrize(("features", "width"), [(12, 16), (None, 20)])
def test_what_is_not_thin_networks_side_by_side_is_refused(world, features, width):
    images = SimpleNamespace(shape=(8, 8, 1), decomposition=Decomposition((8, 8), (1, 1)), class_names=("a", "b", "c"))

    def networks(**options) -> Networks:
        settings = RunSettings(decomposition="width", grid="2x2", network="vgg3", **options)
        return Networks(settings, images, DevicePolicy(torch.device("cpu"), "fp32"))

    with pytest.raises(InputError, match="4 thin networks side by side are not --network vgg3"):
        check_composition(world.alone(), networks(width=width, features=features))
    check_composition(world.alone(), networks(width=16))
